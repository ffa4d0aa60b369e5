/* A matrix whose columns are paths through a trellis (bitshift trellis of QTIP, 2406.11235).
 *
 * The layout is that of formats/packed/trellis_matrix.py: a column is a run of bits, and the code of a
 * row is computed from STATE_BITS of them, which begin ⌊row x rate / 16⌋ bits behind its beginning.
 * Nothing is looked up: four bytes of a product are added ("1MAD" of QTIP), and the input, in eight
 * bits, is multiplied with the bytes themselves.
 */
#pragma once
#include "activations.h"

#define TRELLIS 64      /* what ``bits`` says of such a matrix; ``group`` is then its rate */
#define STATE_BITS 12
#define LANE_ROWS 16    /* rows after which the bits of all columns begin alike again */
#define MULTIPLIER 1860382173u
#define ADDEND 3365302260u
#define CODE_MIDDLE 510 /* of four bytes */

static inline int64_t window_begin(const Matrix *m, int64_t row) { return row * m->group / LANE_ROWS; }

/* Return the four bytes whose sum, less CODE_MIDDLE, is the code of a window in a row. */
static inline uint32_t code_bytes(uint32_t window, int64_t row) {
    uint32_t state = (window & ((1u << STATE_BITS) - 1)) | (uint32_t)(row & 1) << STATE_BITS;
    return state * MULTIPLIER + ADDEND;
}

static inline int32_t sum_of_bytes(uint32_t bytes) {
    return (int32_t)((bytes & 255) + (bytes >> 8 & 255) + (bytes >> 16 & 255) + (bytes >> 24));
}

static inline int32_t trellis_code(const uint8_t *column, const Matrix *m, int64_t row) {
    int64_t at = window_begin(m, row);
    const uint8_t *from = column + (at >> 3);
    uint32_t word = from[0] | (uint32_t)from[1] << 8;
    if ((at & 7) + STATE_BITS > 16) word |= (uint32_t)from[2] << 16;
    return sum_of_bytes(code_bytes(word >> (at & 7), row)) - CODE_MIDDLE;
}

/* Set columns as bf16 numbers [count, rows]: codes without their scales, of whole numbers. */
static inline void trellis_column(const Matrix *m, int64_t column, uint16_t *to) {
    const uint8_t *from = m->codes + column * m->row_bytes;
    for (int64_t row = 0; row < m->rows; row++) to[row] = to_bf16((float)trellis_code(from, m, row));
}

/* Set the products of some rows, one number after the other. */
static inline void trellis_products_plain(const Matrix *m, int64_t row, int32_t count,
                                          const Activations *a, float *to) {
    for (int32_t k = 0; k < count; k++) to[k] = 0;
    for (int32_t block = 0; block * BLOCK < m->columns; block++) {
        int32_t begin = block * BLOCK, end = begin + BLOCK < m->columns ? begin + BLOCK : m->columns;
        for (int32_t k = 0; k < count; k++) {
            int32_t sum = 0;
            for (int32_t j = begin; j < end; j++)
                sum += a->codes[j] * trellis_code(m->codes + j * m->row_bytes, m, row + k);
            to[k] += a->scale[block] * (float)sum;
        }
    }
    for (int32_t k = 0; k < count; k++) to[k] *= from_bf16(m->row_scale[row + k]);
}

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define GANGS 4 /* of LANE_ROWS rows, at once */

/* Set the products of some gangs of rows; row is a multiple of LANE_ROWS. */
static inline __attribute__((always_inline)) void trellis_gangs(const Matrix *m, int64_t row,
                                                                const int gangs, const Activations *a,
                                                                __m512 *to) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i mask = _mm512_set1_epi32((1 << STATE_BITS) - 1);
    const __m512i times = _mm512_set1_epi32((int)MULTIPLIER);
    const __m512i odd = _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(1)), STATE_BITS);
    const __m512i plus = _mm512_add_epi32(_mm512_mullo_epi32(odd, times), _mm512_set1_epi32((int)ADDEND));
    const __m512i four = _mm512_set1_epi32(0x03020100);
    const __m512i bits = _mm512_srli_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(m->group)), 4);
    __m512i places[GANGS], shifts[GANGS];
    __mmask16 there[GANGS];
    int64_t first[GANGS];
    __m512 whole[GANGS];
    for (int g = 0; g < gangs; g++) {
        int64_t at = window_begin(m, row + g * LANE_ROWS), left = m->row_bytes - (at >> 3);
        __m512i from = _mm512_add_epi32(bits, _mm512_set1_epi32((int)(at & 7)));
        __m512i byte = _mm512_mullo_epi32(_mm512_srli_epi32(from, 3), _mm512_set1_epi32(0x01010101));
        places[g] = _mm512_add_epi32(byte, four);
        shifts[g] = _mm512_and_si512(from, _mm512_set1_epi32(7));
        there[g] = (__mmask16)(left < 16 ? (1u << left) - 1 : 0xffff);
        first[g] = at >> 3;
        whole[g] = _mm512_setzero_ps();
    }
    float middle = 0;
    for (int32_t block = 0; block * BLOCK < m->columns; block++) {
        int32_t begin = block * BLOCK, end = begin + BLOCK < m->columns ? begin + BLOCK : m->columns;
        __m512i sums[GANGS];
        for (int g = 0; g < gangs; g++) sums[g] = _mm512_setzero_si512();
        for (int32_t j = begin; j < end; j++) {
            const uint8_t *column = m->codes + j * m->row_bytes;
            __m512i x = _mm512_set1_epi8(a->codes[j]);
            for (int g = 0; g < gangs; g++) {
                __m128i run = _mm_maskz_loadu_epi8(there[g], column + first[g]);
                __m512i words = _mm512_permutexvar_epi8(places[g], _mm512_broadcast_i32x4(run));
                __m512i window = _mm512_and_si512(_mm512_srlv_epi32(words, shifts[g]), mask);
                __m512i bytes = _mm512_add_epi32(_mm512_mullo_epi32(window, times), plus);
                sums[g] = _mm512_dpbusd_epi32(sums[g], bytes, x);
            }
        }
        __m512 scale = _mm512_set1_ps(a->scale[block]);
        for (int g = 0; g < gangs; g++)
            whole[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[g]), scale, whole[g]);
        middle += a->sum[block];
    }
    for (int g = 0; g < gangs; g++)
        to[g] = _mm512_sub_ps(whole[g], _mm512_set1_ps(CODE_MIDDLE * middle));
}

static inline void trellis_products(const Matrix *m, int64_t row, int32_t count, const Activations *a,
                                    float *to) {
    __m512 found[GANGS];
    float all[GANGS * LANE_ROWS];
    if (row % LANE_ROWS) {
        trellis_products_plain(m, row, count, a, to);
        return;
    }
    for (int32_t at = 0; at < count;) {
        int gangs = count - at >= GANGS * LANE_ROWS ? GANGS : 1;
        int32_t own = gangs * LANE_ROWS < count - at ? gangs * LANE_ROWS : count - at;
        if (gangs == GANGS) trellis_gangs(m, row + at, GANGS, a, found);
        else trellis_gangs(m, row + at, 1, a, found);
        for (int g = 0; g < gangs; g++) _mm512_storeu_ps(all + g * LANE_ROWS, found[g]);
        for (int32_t k = 0; k < own; k++) to[at + k] = all[k] * from_bf16(m->row_scale[row + at + k]);
        at += own;
    }
}
#else
#define trellis_products trellis_products_plain
#endif
