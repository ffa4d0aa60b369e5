/* What a product reads of its input: eight bits with a scale for every 32, in the order of codes.
 *
 * Codes of two and four bits lie beside each other in bytes. Instead of taking them apart, the
 * input is put into the order in which shifts of a whole vector uncover them: in a stretch of UNIT
 * codes first every fourth (or second) one, then those behind them, and so on.
 */
#pragma once
#include <math.h>
#include <stdlib.h>
#include "matrix.h"

typedef struct {
    float *x;      /* [padded] the input itself, for bf16 matrices and for rows that are not codes */
    int8_t *codes; /* [padded] in order: what 3 and 8 bits read */
    int8_t *two;   /* [padded] in the order of 2-bit codes */
    int8_t *four;  /* [padded] in the order of 4-bit codes */
    float *scale;  /* [padded / 32] */
    float *sum;    /* [padded / 32] scale x sum of the codes */
} Activations;

static inline size_t activation_bytes(int32_t columns) {
    size_t full = padded(columns);
    return full * 4 + full * 3 + full / BLOCK * 8;
}

static inline Activations activations_in(char *room, int32_t columns) {
    size_t full = padded(columns);
    Activations a;
    a.x = (float *)room;
    a.scale = a.x + full;
    a.sum = a.scale + full / BLOCK;
    a.codes = (int8_t *)(a.sum + full / BLOCK);
    a.two = a.codes + full;
    a.four = a.two + full;
    return a;
}

static inline void uncovered(const int8_t *codes, int8_t *to, int32_t full, int planes, int unit) {
    int each = unit / planes;
    for (int32_t begin = 0; begin < full; begin += unit)
        for (int plane = 0; plane < planes; plane++)
            for (int k = 0; k < each; k++)
                to[begin + plane * each + k] = codes[begin + k * planes + plane];
}

/* Make codes of a.x, which is filled up with zeros to a whole SUPER. */
static inline void quantize(Activations *a, int32_t columns) {
    int32_t full = padded(columns);
    for (int32_t at = columns; at < full; at++) a->x[at] = 0;
    for (int32_t block = 0; block < full / BLOCK; block++) {
        const float *x = a->x + block * BLOCK;
        int8_t *codes = a->codes + block * BLOCK;
        float largest[8] = {0}, nothing[8] = {0}; /* x 0 is no number where x is none, or infinite */
        for (int k = 0; k < BLOCK; k += 8)
            for (int l = 0; l < 8; l++) {
                float size = fabsf(x[k + l]);
                largest[l] = size > largest[l] ? size : largest[l];
                nothing[l] += x[k + l] * 0;
            }
        float most = 0, broken = 0;
        for (int l = 0; l < 8; l++) most = largest[l] > most ? largest[l] : most;
        for (int l = 0; l < 8; l++) broken += nothing[l];
        if (broken != 0) { /* shows in the product, as it does in a product of floats */
            for (int k = 0; k < BLOCK; k++) codes[k] = 1;
            a->scale[block] = a->sum[block] = broken;
            continue;
        }
        float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
        int32_t sum = 0;
        for (int k = 0; k < BLOCK; k++) {
            float part = x[k] * inverse;
            int32_t code = (int32_t)(part + copysignf(0.5f, part));
            codes[k] = (int8_t)code;
            sum += code;
        }
        a->scale[block] = scale;
        a->sum[block] = scale * sum;
    }
    uncovered(a->codes, a->two, full, 4, UNIT_TWO);
    uncovered(a->codes, a->four, full, 2, UNIT_FOUR);
}

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
