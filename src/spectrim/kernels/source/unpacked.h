/* Codes with their signs, in plain C that a compiler can turn into vectors. */
#pragma once
#include "matrix.h"

/* Set codes; w: where they begin. Three bits go eight codes at a time, and may write up to that. */
static inline void unpacked(const uint8_t *w, int32_t count, const int bits, int8_t *to) {
    if (bits == 8) memcpy(to, w, (size_t)count);
    if (bits == 4)
        for (int32_t k = 0; k < (count + 1) / 2; k++) {
            to[2 * k] = (int8_t)(((w[k] & 15) ^ 8) - 8);
            to[2 * k + 1] = (int8_t)(((w[k] >> 4) ^ 8) - 8);
        }
    if (bits == 1)
        for (int32_t k = 0; k < (count + 7) / 8; k++)
            for (int l = 0; l < 8; l++) to[8 * k + l] = (int8_t)(1 - 2 * (w[k] >> l & 1));
    if (bits == 2)
        for (int32_t k = 0; k < (count + 3) / 4; k++)
            for (int l = 0; l < 4; l++) to[4 * k + l] = (int8_t)(((w[k] >> 2 * l & 3) ^ 2) - 2);
    if (bits == 3)
        for (int32_t k = 0; k < count; k += 8, w += 3) {
            int32_t left = ((count - k) * 3 + 7) / 8;
            uint32_t word = w[0];
            if (left > 1) word |= (uint32_t)w[1] << 8;
            if (left > 2) word |= (uint32_t)w[2] << 16;
            for (int l = 0; l < 8; l++) to[k + l] = (int8_t)(((word >> 3 * l & 7) ^ 4) - 4);
        }
}
