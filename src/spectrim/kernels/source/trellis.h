/* A matrix whose columns are paths through a trellis (bitshift trellis of QTIP, 2406.11235).
 *
 * The layout is that of formats/packed/trellis_matrix.py: a column is a run of bits, and the code of a
 * row is computed from STATE_BITS of them, which begin ⌊row x rate / 16⌋ bits behind its beginning.
 * Nothing is looked up: four bytes of a product are added ("1MAD" of QTIP), and the input, in eight
 * bits, is multiplied with the bytes themselves. Some rows, a gang, go through all columns together.
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

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#include "trellis_avx512.h"
#else
#include "trellis_lanes.h"
#endif

/* Set the products of some rows. */
static inline void trellis_products(const Matrix *m, int64_t row, int32_t count, const Activations *a,
                                    float *to) {
    float found[GANGS * GANG_ROWS];
    for (int32_t at = 0; at < count;) {
        int gangs = count - at > (GANGS - 1) * GANG_ROWS ? GANGS : 1;
        int32_t own = gangs * GANG_ROWS < count - at ? gangs * GANG_ROWS : count - at;
        if (gangs == GANGS) gang_products(m, row + at, GANGS, a, found);
        else gang_products(m, row + at, 1, a, found);
        for (int32_t k = 0; k < own; k++) to[at + k] = found[k] * from_bf16(m->row_scale[row + at + k]);
        at += own;
    }
}

/* Set columns as bf16 numbers [count, rows]: codes without their scales, of whole numbers. */
static inline void trellis_columns(const Matrix *m, int64_t begin, int64_t count, uint16_t *to) {
    for (int32_t row = 0; row < m->rows; row += GANG_ROWS) {
        Gang gang = gang_at(m, row);
        int32_t own = m->rows - row < GANG_ROWS ? m->rows - row : GANG_ROWS;
        for (int64_t k = 0; k < count; k++) {
            const uint8_t *column = m->codes + (begin + k) * m->row_bytes;
            uint16_t *place = to + k * m->rows + row, last[GANG_ROWS];
            gang_numbers(&gang, column, own == GANG_ROWS ? place : last);
            if (own < GANG_ROWS) memcpy(place, last, 2 * (size_t)own);
        }
    }
}
