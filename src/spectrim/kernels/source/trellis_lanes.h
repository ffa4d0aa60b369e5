/* A gang of 16 rows as one vector of whatever width the processor has. */
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#define GANG_ROWS LANE_ROWS
#define GANGS 1
#define RUN_BYTES 16 /* of a column that a gang's windows lie in, at most */

typedef uint32_t Words __attribute__((vector_size(4 * GANG_ROWS)));
typedef int32_t Sums_of_rows __attribute__((vector_size(4 * GANG_ROWS)));

typedef struct {
    Words shifts, plus;
    uint8_t places[4 * GANG_ROWS]; /* in a column's run, of the four bytes with a window */
    size_t there;                  /* bytes of the run before the end of the column */
    int64_t first;
} Gang;

static inline Gang gang_at(const Matrix *m, int64_t row) {
    int64_t at = window_begin(m, row), left = m->row_bytes - (at >> 3);
    Gang g = {.first = at >> 3, .there = left < RUN_BYTES ? (size_t)left : RUN_BYTES};
    for (int k = 0; k < GANG_ROWS; k++) {
        int64_t from = window_begin(m, row + k) - (at >> 3 << 3);
        g.shifts[k] = (uint32_t)(from & 7);
        g.plus[k] = ADDEND + ((row + k) & 1 ? MULTIPLIER << STATE_BITS : 0);
        for (int byte = 0; byte < 4; byte++) g.places[4 * k + byte] = (uint8_t)((from >> 3) + byte);
    }
    return g;
}

/* Return 32 bits for each row, among which its window is. */
static inline Words words_of(const Gang *g, const uint8_t *run) {
    Words words;
#if defined(__AVX2__)
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)run)), half[2];
    for (int k = 0; k < 2; k++)
        half[k] = _mm256_shuffle_epi8(both, _mm256_loadu_si256((const __m256i *)(g->places + 32 * k)));
    memcpy(&words, half, sizeof words);
#else
    for (int k = 0; k < GANG_ROWS; k++) {
        uint32_t word;
        memcpy(&word, run + g->places[4 * k], 4);
        words[k] = word;
    }
#endif
    return words;
}

/* Return the codes of a column with the middle of four bytes, as sums of two bytes each. */
static inline __attribute__((always_inline)) Words gang_pairs(const Gang *g, const uint8_t *column) {
    uint8_t last[RUN_BYTES] = {0};
    const uint8_t *run = column + g->first;
    if (g->there < RUN_BYTES) run = memcpy(last, run, g->there);
    Words windows = words_of(g, run) >> g->shifts & (1u << STATE_BITS) - 1;
    Words bytes = windows * MULTIPLIER + g->plus;
    return (bytes & 0x00ff00ff) + (bytes >> 8 & 0x00ff00ff);
}

/* Return codes times an input. */
static inline __attribute__((always_inline)) Sums_of_rows times_input(Words pairs, int8_t x) {
    Sums_of_rows found;
#if defined(__AVX2__)
    __m256i half[2];
    memcpy(half, &pairs, sizeof pairs);
    for (int k = 0; k < 2; k++) half[k] = _mm256_madd_epi16(half[k], _mm256_set1_epi16(x));
    memcpy(&found, half, sizeof found);
#else
    found = (Sums_of_rows)((pairs & 0xffff) + (pairs >> 16)) * (int32_t)x;
#endif
    return found;
}

/* Set the products of a gang of rows, without the scales of rows. */
static inline void gang_products(const Matrix *m, int64_t row, int gangs, const Activations *a,
                                 float *to) {
    Gang gang = gang_at(m, row);
    for (int k = 0; k < gangs * GANG_ROWS; k++) to[k] = 0;
    for (int32_t block = 0; block * BLOCK < m->columns; block++) {
        int32_t begin = block * BLOCK, end = begin + BLOCK < m->columns ? begin + BLOCK : m->columns;
        Sums_of_rows sums = {0};
        int32_t inputs = 0;
        for (int32_t j = begin; j < end; j++) {
            sums += times_input(gang_pairs(&gang, m->codes + j * m->row_bytes), a->codes[j]);
            inputs += a->codes[j];
        }
        sums -= CODE_MIDDLE * inputs;
        for (int k = 0; k < GANG_ROWS; k++) to[k] += a->scale[block] * (float)sums[k];
    }
}

/* Set the codes of a column as bf16 numbers. */
static inline void gang_numbers(const Gang *g, const uint8_t *column, uint16_t *to) {
    Words pairs = gang_pairs(g, column);
    Sums_of_rows codes = (Sums_of_rows)((pairs & 0xffff) + (pairs >> 16)) - CODE_MIDDLE;
    for (int k = 0; k < GANG_ROWS; k++) to[k] = to_bf16((float)codes[k]);
}
