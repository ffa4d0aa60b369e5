/* One row of a matrix: its product with an input, and its numbers in bf16. */
#pragma once
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "rows_avx512.h"
#elif defined(__AVX2__) || defined(__ARM_NEON)
#include "rows_blocks.h"
#include "unpacked.h"
#else
#include "rows_scalar.h"
#include "unpacked.h"
#endif

/* Return the product of bf16 numbers with floats, in 32 sums of their own, so in one order. */
static inline float bf16_row(const uint16_t *w, const float *x, int32_t columns) {
    float sums[32] = {0};
    int32_t at = 0;
    for (; at + 32 <= columns; at += 32)
        for (int l = 0; l < 32; l++) sums[l] += from_bf16(w[at + l]) * x[at + l];
    for (int l = 0; at + l < columns; l++) sums[l] += from_bf16(w[at + l]) * x[at + l];
    for (int half = 16; half; half /= 2)
        for (int l = 0; l < half; l++) sums[l] += sums[l + half];
    return sums[0];
}

static inline float row_product(const Matrix *m, int64_t row, const Activations *a) {
    switch (m->bits) {
    case 2: return packed_row(m, row, a, 2);
    case 3: return packed_row(m, row, a, 3);
    case 4: return packed_row(m, row, a, 4);
    case 8: return packed_row(m, row, a, 8);
    default: return bf16_row((const uint16_t *)(m->codes + row * m->row_bytes), a->x, m->columns);
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

/* Set the scales and offsets of the blocks of a SUPER, rounded to bf16. */
static inline void scales_in(const Matrix *m, int64_t row, int32_t super, float *scale,
                             float *offset) {
    int32_t groups = groups_of(m);
    float unit = from_bf16(m->row_scale[row]), reach = (float)(1 << m->bits) / 128;
    for (int block = 0; block < SUPER / BLOCK; block++) {
        int32_t at = super * SUPER + block * BLOCK;
        if (at >= m->columns) break;
        int64_t group = row * groups + (m->group ? at / m->group : 0);
        scale[block] = m->scale_code ? rounded(unit * (m->scale_code[group] / LARGEST)) : unit;
        offset[block] = m->offset_code ? rounded(scale[block] * (m->offset_code[group] * reach)) : 0;
    }
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
    float scale[SUPER / BLOCK], offset[SUPER / BLOCK];
    for (int32_t super = 0; super * SUPER < m->columns; super++) {
        int32_t begin = super * SUPER, count = m->columns - begin < SUPER ? m->columns - begin : SUPER;
        scales_in(m, row, super, scale, offset);
        unpacked(m->codes + row * m->row_bytes + (int64_t)begin * bits / 8, count, bits, codes);
        int32_t block = 0;
        for (; (block + 1) * BLOCK <= count; block++)
            dense_block(codes + block * BLOCK, scale[block], offset[block], to + begin + block * BLOCK);
        if (block * BLOCK < count) {
            dense_block(codes + block * BLOCK, scale[block], offset[block], last);
            memcpy(to + begin + block * BLOCK, last, 2 * (size_t)(count - block * BLOCK));
        }
    }
}

static inline void dense_row(const Matrix *m, int64_t row, uint16_t *to) {
    switch (m->bits) {
    case 2: dense_of(m, row, to, 2); break;
    case 3: dense_of(m, row, to, 3); break;
    case 4: dense_of(m, row, to, 4); break;
    default: dense_of(m, row, to, 8);
    }
}
