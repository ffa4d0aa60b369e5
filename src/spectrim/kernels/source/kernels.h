/* What the library offers, once for each instruction set. */
#pragma once
#include "block.h"
#include "choice.h"
#include "trellis_path.h"

/* Blocks one behind the other, and their keys and values, bf16 [blocks, 2, key heads, room, head]. */
typedef struct {
    const Block *const *blocks;
    uint16_t *cache;
    int64_t room; /* tokens */
    int32_t count;
} Stack;

typedef struct {
    int (*product)(const Map *, const uint16_t *x, uint16_t *y, int tokens, int threads);
    int (*before)(const Block *, const uint16_t *hidden, const uint16_t *cosine,
                  const uint16_t *sine, uint16_t *queries, uint16_t *keys_values, int threads);
    int (*after)(const Block *, const uint16_t *hidden, const uint16_t *queries,
                 const uint16_t *keys, const uint16_t *values, int64_t length, uint16_t *out,
                 int threads);
    int (*stack)(const Stack *, const uint16_t *hidden, const uint16_t *cosine,
                 const uint16_t *sine, int64_t length, uint16_t *out, int threads);
    int (*rows)(const Matrix *, const int64_t *index, int64_t begin, int64_t count, uint16_t *to,
                int threads);
    int (*norm)(const uint16_t *x, const uint16_t *weight, float eps, uint16_t *to, int64_t rows,
                int64_t columns, int threads);
    int (*gated)(const uint16_t *gate, const uint16_t *up, uint16_t *to, int64_t count,
                 int threads);
    int (*choose)(const Choice *, int threads);
    int (*columns)(const Matrix *, int64_t begin, int64_t count, uint16_t *to, int threads);
    int (*paths)(const Paths *);
} Kernels;
