/* One row of a matrix: its product with an input, and its numbers in bf16. */
#pragma once
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "rows_avx512.h"
#elif defined(__AVX2__) || defined(__ARM_NEON)
#include "rows_blocks.h"
#include "unpacked.h"
#include "values.h"
#else
#include "rows_scalar.h"
#include "unpacked.h"
#include "values.h"
#endif

#include "trellis.h"

/* Set the products of some rows: ``packed_rows`` takes AT_ONCE of them, or one. */
#define BY_BITS(bits)                                                                    \
    for (; at + AT_ONCE <= count; at += AT_ONCE)                                         \
        packed_rows(m, row + at, AT_ONCE, a, bits, to + at);                             \
    for (; at < count; at++) packed_rows(m, row + at, 1, a, bits, to + at);              \
    return

/* Set the products of rows of bf16 numbers that lie one behind the other. */
static inline void bf16_products(const uint16_t *w, int32_t columns, int64_t count, const float *x,
                                 float *to) {
    int64_t at = 0;
    for (; at + AT_ONCE <= count; at += AT_ONCE) bf16_rows(w + at * columns, columns, x, to + at);
    for (; at < count; at++) to[at] = bf16_row(w + at * columns, x, columns);
}

static void row_products(const Matrix *m, int64_t row, int32_t count, const Activations *a,
                         float *to) {
    int32_t at = 0;
    switch (m->bits) {
    case 1: BY_BITS(1);
    case 2: BY_BITS(2);
    case 3: BY_BITS(3);
    case 4: BY_BITS(4);
    case 8: BY_BITS(8);
    case TRELLIS: trellis_products(m, row, count, a, to); return;
    default: bf16_products((const uint16_t *)m->codes + row * m->columns, m->columns, count, a->x, to);
    }
}

/* Round to bf16 and back; of what is a number. */
static inline float rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&value, &bits, 4);
    return value;
}

#define GROUPS_AT_ONCE 16

/* Set the scales and offsets of some groups of a row, rounded to bf16. */
static inline void scales_in(const Matrix *m, int64_t row, int32_t first, int32_t count,
                             float *scale, float *offset) {
    int64_t at = row * groups_of(m) + first;
    float unit = from_bf16(m->row_scale[row]), reach = (float)(1 << m->bits) / 128;
    for (int32_t g = 0; g < count; g++) scale[g] = unit, offset[g] = 0;
    if (m->scale_code)
        for (int32_t g = 0; g < count; g++)
            scale[g] = rounded(unit * (m->scale_code[at + g] / LARGEST));
    if (m->offset_code)
        for (int32_t g = 0; g < count; g++)
            offset[g] = rounded(scale[g] * (m->offset_code[at + g] * reach));
}

static inline void dense_block(const int8_t *codes, float scale, float offset, uint16_t *to) {
    for (int k = 0; k < BLOCK; k++) {
        float value = codes[k] * scale + offset;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        to[k] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* Set a row as bf16 numbers, as PackedMatrix.dense makes them: in floats, rounded once. */
static inline __attribute__((always_inline)) void dense_of(const Matrix *m, int64_t row,
                                                           uint16_t *to, const int bits) {
    int8_t codes[SUPER + 64];
    uint16_t last[BLOCK];
    float scale[GROUPS_AT_ONCE], offset[GROUPS_AT_ONCE];
    int shift = m->group ? __builtin_ctz((unsigned)m->group) : 30;
    for (int32_t super = 0; super * SUPER < m->columns; super++) {
        int32_t begin = super * SUPER, count = m->columns - begin < SUPER ? m->columns - begin : SUPER;
        int32_t first = begin >> shift, known = -1;
        VALUES values;
        scales_in(m, row, first, ((begin + count - 1) >> shift) - first + 1, scale, offset);
        unpacked(m->codes + row * m->row_bytes + (int64_t)begin * bits / 8, count, bits, codes);
        for (int32_t at = 0; at < count; at += BLOCK) {
            int32_t group = ((begin + at) >> shift) - first;
            uint16_t *place = at + BLOCK <= count ? to + begin + at : last;
            if (bits == 8) {
                dense_block(codes + at, scale[group], offset[group], place);
            } else {
                if (group != known) values = values_of(scale[group], offset[group], half_range(bits));
                known = group;
                look_up(codes + at, &values, half_range(bits), place);
            }
            if (place == last) memcpy(to + begin + at, last, 2 * (size_t)(count - at));
        }
    }
}

static inline void dense_row(const Matrix *m, int64_t row, uint16_t *to) {
    switch (m->bits) {
    case 1: dense_of(m, row, to, 1); break;
    case 2: dense_of(m, row, to, 2); break;
    case 3: dense_of(m, row, to, 3); break;
    case 4: dense_of(m, row, to, 4); break;
    default: dense_of(m, row, to, 8);
    }
}
