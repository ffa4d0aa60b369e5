/* What the few codes of a group stand for, in bf16: looked up instead of computed for each. */
#pragma once
#include "matrix.h"

typedef struct { uint16_t of[16]; } VALUES;

static inline VALUES values_of(float scale, float offset, int32_t half) {
    VALUES values;
    for (int32_t k = 0; k < 16; k++) values.of[k] = to_bf16((float)(k - half) * scale + offset);
    return values;
}

static inline void look_up(const int8_t *codes, const VALUES *values, int32_t half, uint16_t *to) {
    for (int k = 0; k < BLOCK; k++) to[k] = values->of[(codes[k] + half) & 15];
}
