/* A gang of 32 rows in two vectors, those of even and those of odd places: with VBMI and VNNI.
 *
 * Four neighbouring rows lie within 64 bits, out of which one instruction picks all their windows.
 */
#pragma once
#include <immintrin.h>
#define GANG_ROWS 32
#define GANGS 2 /* at once */

typedef struct {
    __m512i places, shifts; /* of bytes in a column's run, and of windows in 64 bits of it */
    __m512i plus[2];
    __mmask32 there;        /* bytes of the run before the end of the column */
    int64_t first;
} Gang;

static inline __attribute__((always_inline)) Gang gang_at(const Matrix *m, int64_t row) {
    const __m512i pair = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i bytes = _mm512_set1_epi64(0x0706050403020100LL), rate = _mm512_set1_epi32(m->group);
    int32_t lane = (int32_t)(row % LANE_ROWS);
    int64_t at = window_begin(m, row), left = m->row_bytes - (at >> 3);
    const __m512i begin = _mm512_set1_epi32((int)(at & 7) - lane * m->group / LANE_ROWS);
    __m512i even = _mm512_mullo_epi32(_mm512_add_epi32(pair, _mm512_set1_epi32(lane)), rate);
    __m512i odd = _mm512_add_epi32(_mm512_srli_epi32(_mm512_add_epi32(even, rate), 4), begin);
    even = _mm512_add_epi32(_mm512_srli_epi32(even, 4), begin);
    __m512i byte = _mm512_srli_epi32(_mm512_shuffle_epi32(even, 0xa0), 3); /* of the first of four */
    __m512i bits = _mm512_slli_epi32(byte, 3);
    even = _mm512_mullo_epi32(_mm512_sub_epi32(even, bits), _mm512_set1_epi32(0x00000101));
    odd = _mm512_mullo_epi32(_mm512_sub_epi32(odd, bits), _mm512_set1_epi32(0x01010000));
    uint32_t other = ADDEND + (MULTIPLIER << STATE_BITS); /* of odd rows */
    return (Gang){
        .places = _mm512_add_epi8(_mm512_mullo_epi32(byte, _mm512_set1_epi32(0x01010101)), bytes),
        /* windows of even places begin with their 32 bits, those of odd places end with them */
        .shifts = _mm512_add_epi8(_mm512_add_epi32(even, odd), _mm512_set1_epi32(0x043c0800)),
        .plus = {_mm512_set1_epi32((int)(row & 1 ? other : ADDEND)),
                 _mm512_set1_epi32((int)(row & 1 ? ADDEND : other))},
        .there = left < 32 ? (__mmask32)((1ull << left) - 1) : 0xffffffffu,
        .first = at >> 3,
    };
}

/* Set the four bytes of every code of a column, of even and of odd places. */
static inline __attribute__((always_inline)) void gang_bytes(const Gang *g, const uint8_t *column,
                                                             __m512i bytes[2]) {
    const __m512i mask = _mm512_set1_epi32((1 << STATE_BITS) - 1);
    const __m512i times = _mm512_set1_epi32((int)MULTIPLIER);
    __m512i run = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(g->there, column + g->first));
    __m512i words = _mm512_permutexvar_epi8(g->places, run);
    words = _mm512_multishift_epi64_epi8(g->shifts, words);
    __m512i even = _mm512_and_si512(words, mask), odd = _mm512_srli_epi32(words, 32 - STATE_BITS);
    bytes[0] = _mm512_add_epi32(_mm512_mullo_epi32(even, times), g->plus[0]);
    bytes[1] = _mm512_add_epi32(_mm512_mullo_epi32(odd, times), g->plus[1]);
}

/* Set the products of some gangs of rows, without the scales of rows. */
static inline __attribute__((always_inline)) void gang_products(const Matrix *m, int64_t row,
                                                                const int gangs, const Activations *a,
                                                                float *to) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    Gang gang[GANGS];
    __m512 whole[GANGS][2];
    float middle = 0;
    for (int g = 0; g < gangs; g++) {
        gang[g] = gang_at(m, row + g * GANG_ROWS);
        whole[g][0] = whole[g][1] = _mm512_setzero_ps();
    }
    for (int32_t block = 0; block * BLOCK < m->columns; block++) {
        int32_t begin = block * BLOCK, end = begin + BLOCK < m->columns ? begin + BLOCK : m->columns;
        __m512i sums[GANGS][2];
        for (int g = 0; g < gangs; g++) sums[g][0] = sums[g][1] = _mm512_setzero_si512();
        for (int32_t j = begin; j < end; j++) {
            __m512i x = _mm512_set1_epi8(a->codes[j]), bytes[2];
            for (int g = 0; g < gangs; g++) {
                gang_bytes(&gang[g], m->codes + j * m->row_bytes, bytes);
                sums[g][0] = _mm512_dpbusd_epi32(sums[g][0], bytes[0], x);
                sums[g][1] = _mm512_dpbusd_epi32(sums[g][1], bytes[1], x);
            }
        }
        __m512 scale = _mm512_set1_ps(a->scale[block]);
        for (int g = 0; g < gangs; g++)
            for (int half = 0; half < 2; half++)
                whole[g][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[g][half]), scale, whole[g][half]);
        middle += a->sum[block];
    }
    const __m512 less = _mm512_set1_ps(CODE_MIDDLE * middle);
    for (int g = 0; g < gangs; g++) {
        __m512 even = _mm512_sub_ps(whole[g][0], less), odd = _mm512_sub_ps(whole[g][1], less);
        _mm512_storeu_ps(to + g * GANG_ROWS, _mm512_permutex2var_ps(even, low, odd));
        _mm512_storeu_ps(to + g * GANG_ROWS + 16, _mm512_permutex2var_ps(even, high, odd));
    }
}

/* Return codes as the upper halves of floats, rounded to bf16. */
static inline __m512i bf16_codes(__m512i bytes) {
    __m512i code = _mm512_dpbusd_epi32(_mm512_set1_epi32(-CODE_MIDDLE), bytes, _mm512_set1_epi8(1));
    __m512i bits = _mm512_castps_si512(_mm512_cvtepi32_ps(code)), one = _mm512_set1_epi32(1);
    __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    return _mm512_add_epi32(_mm512_add_epi32(bits, tie), _mm512_set1_epi32(0x7fff));
}

/* Set the codes of a column as bf16 numbers. */
static inline void gang_numbers(const Gang *g, const uint8_t *column, uint16_t *to) {
    __m512i bytes[2];
    gang_bytes(g, column, bytes);
    __m512i even = _mm512_srli_epi32(bf16_codes(bytes[0]), 16), odd = bf16_codes(bytes[1]);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, even, odd));
}
