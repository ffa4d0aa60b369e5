/* Rows in plain C: what every other instruction set is checked against. */
#pragma once
#define AT_ONCE 1 /* rows */
#define UNIT_TWO 512 /* never read: codes are taken one by one */
#define UNIT_FOUR 512
#include "activations.h"

static inline float packed_row(const Matrix *m, int64_t row, const Activations *a, const int bits) {
    const uint8_t *codes = m->codes + row * m->row_bytes;
    int32_t groups = groups_of(m);
    float whole = 0;
    for (int32_t block = 0; block * BLOCK < m->columns; block++) {
        int32_t group = m->group ? block * BLOCK / m->group : 0, found = 0;
        float scale = code_scale(m, row, group, groups);
        int32_t end = m->columns - block * BLOCK < BLOCK ? m->columns : (block + 1) * BLOCK;
        for (int32_t k = block * BLOCK; k < end; k++) found += code_at(codes, bits, k) * a->codes[k];
        whole += scale * a->scale[block] * found;
        float centre = code_centre(m, row, group, groups, (float)half_range(bits));
        whole += scale * centre * a->sum[block];
    }
    return whole * unit_of(m, row);
}

static inline void packed_rows(const Matrix *m, int64_t row, int count, const Activations *a,
                               const int bits, float *to) {
    for (int r = 0; r < count; r++) to[r] = packed_row(m, row + r, a, bits);
}

static inline void bf16_rows(const uint16_t *w, int32_t columns, const float *x, float *to) {
    to[0] = bf16_row(w, x, columns);
}
