/* What a map is made of in memory: matrices as packed codes, or as bf16 numbers.
 *
 * The layout of codes is that of formats/packed/matrix.py, what scales and offsets mean is said in
 * formats/packed/scales.py. Nothing here is ever unpacked in memory: rows are read as they are
 * stored. Python fills these structures (kernels/maps.py), so both must say the same.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#define BLOCK 32        /* inputs that share a scale of the activations; groups are multiples */
#define SUPER 512       /* inputs after which every layout begins anew */
#define LARGEST 255.0f  /* the largest code of a scale */

typedef struct {
    const uint8_t *codes;       /* rows x row_bytes; with bits 16 these are bf16 numbers */
    const uint16_t *row_scale;  /* bf16 [rows] */
    const uint8_t *scale_code;  /* [rows, groups], NULL where a row is one group */
    const int8_t *offset_code;  /* [rows, groups], NULL where the grid is symmetric */
    int64_t row_bytes;
    int32_t rows, columns;      /* rows 0: there is no such matrix */
    int32_t bits;               /* 1, 2, 3, 4, 8 or 16, or TRELLIS (trellis.h) */
    int32_t group;              /* inputs that share a scale: a power of two from BLOCK; 0: a row */
} Matrix;

/* y = direct x + second (first x) + bias. With places (first x, second first x) are the outputs, each
 * to be put at its place, so that nothing has to be gathered. */
typedef struct {
    Matrix direct, first, second;
    const int32_t *places; /* [out] or NULL */
    const uint16_t *bias;  /* bf16 [out] or NULL */
    const uint16_t *input_scale; /* bf16 [in], of what direct and first read; NULL: ones */
    int32_t in, out;
} Map;

static inline float from_bf16(uint16_t number) {
    uint32_t bits = (uint32_t)number << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_bf16(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 64); /* not a number */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline int32_t padded(int32_t columns) { return (columns + SUPER - 1) / SUPER * SUPER; }

/* Return the half of a code's range: codes are read as code + half, from 0 up. Signs, of one bit,
 * are -1 and 1, and are read as 0 and 1, so that their unit counts twice and their middle half. */
static inline int32_t half_range(int bits) { return 1 << (bits - 1); }

/* Return what a row's scale codes are multiplied by. Products leave out that each scale is rounded
 * to bf16, which is a hundredth of what eight bits of the input lose. */
static inline float unit_of(const Matrix *m, int64_t row) {
    float unit = from_bf16(m->row_scale[row]) * (m->bits == 1 ? 2 : 1);
    return m->scale_code ? unit / LARGEST : unit;
}

static inline float code_scale(const Matrix *m, int64_t row, int32_t group, int32_t groups) {
    return m->scale_code ? m->scale_code[row * groups + group] : 1;
}

/* Return an offset in units of its scale, less half of the codes' range. */
static inline float code_centre(const Matrix *m, int64_t row, int32_t group, int32_t groups,
                                float half) {
    if (!m->offset_code) return m->bits == 1 ? -0.5f : -half;
    return m->offset_code[row * groups + group] * ((1 << m->bits) / 128.0f) - half;
}

static inline int32_t groups_of(const Matrix *m) {
    return m->group ? (m->columns + m->group - 1) >> __builtin_ctz((unsigned)m->group) : 1;
}

/* Return a code of a row, from 0 up: code + half. */
static inline int32_t code_at(const uint8_t *row, int bits, int32_t column) {
    int32_t half = half_range(bits);
    int64_t at = (int64_t)bits * column;
    int32_t both = row[at >> 3];
    if ((at & 7) + bits > 8) both |= row[(at >> 3) + 1] << 8; /* 3 bits may lie across two bytes */
    return (both >> (at & 7) & (2 * half - 1)) ^ half;
}
