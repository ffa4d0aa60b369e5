/* One row of a matrix: its product with an input, and its numbers in bf16. */
#pragma once
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "rows_avx512.h"
#elif defined(__AVX2__) || defined(__ARM_NEON)
#include "rows_blocks.h"
#else
#include "rows_scalar.h"
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

/* Set codes of a row with their signs; begin is a multiple of 8. */
static inline void unpacked(const uint8_t *row, int32_t begin, int32_t count, int bits,
                            int8_t *to) {
    const uint8_t *w = row + (int64_t)begin * bits / 8;
    if (bits == 8) memcpy(to, w, (size_t)count);
    if (bits == 3) unpacked_three(w, count, to);
    if (bits == 4 || bits == 2) {
        int each = 8 / bits;
        for (int32_t k = 0; k * each < count; k++) {
            uint32_t b = w[k], all;
            if (bits == 4) all = ((b | b << 4) & 0x0f0f) ^ 0x0808;
            else all = ((b | b << 6 | b << 12 | b << 18) & 0x03030303) ^ 0x02020202;
            for (int l = 0; l < each; l++) to[k * each + l] = (int8_t)(all >> 8 * l) - half_range(bits);
        }
    }
}

/* Set a row as bf16 numbers, as PackedMatrix.dense makes them: in floats, rounded once. */
static inline void dense_row(const Matrix *m, int64_t row, uint16_t *to) {
    int8_t codes[SUPER + 8];
    int32_t groups = groups_of(m), size = m->group ? m->group : m->columns;
    for (int32_t begin = 0; begin < m->columns; begin += SUPER) {
        int32_t end = m->columns - begin < SUPER ? m->columns : begin + SUPER;
        unpacked(m->codes + row * m->row_bytes, begin, end - begin, m->bits, codes);
        for (int32_t at = begin; at < end;) {
            int32_t group = at / size, stop = (group + 1) * size < end ? (group + 1) * size : end;
            float scale = scale_at(m, row, group, groups);
            float offset = offset_at(m, row, group, groups, scale);
            for (int32_t k = at; k < stop; k++) {
                float value = codes[k - begin] * scale + offset;
                uint32_t bits;
                memcpy(&bits, &value, 4);
                to[k] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            }
            at = stop;
        }
    }
}
