/* A block of the Llama family as it decodes one token: what stands between its products.
 *
 *   before: norm, q, k, v, norms of heads (Qwen 3), rotary positions
 *   after:  attention, o, residual, norm, gate, up, silu, down, residual
 *
 * Between them the caller puts keys and values into its cache. Everything in between is float32.
 * All blocks in one call, with a cache that has room, are a stack (kernels.c).
 */
#pragma once
#include "products.h"

typedef struct {
    Map q, k, v, o, gate, up, down;
    const uint16_t *norm, *middle_norm;      /* bf16 [hidden] */
    const uint16_t *query_norm, *key_norm;   /* bf16 [head] or NULL */
    float eps, scaling;
    int32_t hidden, heads, key_heads, head;
} Block;

static inline float exponential(float x) { /* to 2e-7 of itself; 0 below -87 */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}

static inline float sum_of(const float *x, int32_t count) { /* in 16 sums of their own */
    float sums[16] = {0};
    int32_t at = 0;
    for (; at + 16 <= count; at += 16)
        for (int l = 0; l < 16; l++) sums[l] += x[at + l];
    for (; at < count; at++) sums[at % 16] += x[at];
    float whole = 0;
    for (int l = 0; l < 16; l++) whole += sums[l];
    return whole;
}

static inline float product_of(const float *x, const float *y, int32_t count) {
    float sums[16] = {0};
    int32_t at = 0;
    for (; at + 16 <= count; at += 16)
        for (int l = 0; l < 16; l++) sums[l] += x[at + l] * y[at + l];
    for (; at < count; at++) sums[at % 16] += x[at] * y[at];
    return sum_of(sums, 16);
}

static inline void root_mean_square(const float *x, const uint16_t *weight, float eps, float *to,
                                    int32_t count) {
    float inverse = 1.0f / sqrtf(product_of(x, x, count) / (float)count + eps);
    for (int32_t k = 0; k < count; k++) to[k] = x[k] * inverse * from_bf16(weight[k]);
}

/* Turn a head's pairs (k, k + head / 2) by their angles. */
static inline void rotate(const float *x, const uint16_t *cosine, const uint16_t *sine,
                          uint16_t *to, int32_t head) {
    int32_t half = head / 2;
    for (int32_t k = 0; k < half; k++) {
        float one = x[k], other = x[k + half];
        to[k] = to_bf16(one * from_bf16(cosine[k]) - other * from_bf16(sine[k]));
        to[k + half] = to_bf16(other * from_bf16(cosine[k + half]) + one * from_bf16(sine[k + half]));
    }
}

/* Rows of a norm, and what stands between gate, up and down, for many tokens. */
typedef struct {
    Team team;
    const uint16_t *x, *other;
    float eps;
    int64_t rows, columns;
    uint16_t *to;
} Elements;

typedef struct {
    const Block *block;
    Team team;
    Products products;
    const uint16_t *hidden, *cosine, *sine;
    uint16_t *queries, *keys, *values; /* of this token */
    int64_t stride;                    /* from a head of keys or values to the next */
} Before;

static inline void turned_head(Before *call, int64_t at) {
    const Block *b = call->block;
    int key = at >= b->heads;
    int64_t own = at - (key ? b->heads : 0);
    float *x = call->products.out[key] + own * b->head;
    uint16_t *to = key ? call->keys + own * call->stride : call->queries + own * b->head;
    const uint16_t *norm = key ? b->key_norm : b->query_norm;
    if (norm) root_mean_square(x, norm, b->eps, x, b->head);
    rotate(x, call->cosine, call->sine, to, b->head);
}

static void before_work(void *what) {
    Before *call = what;
    const Block *b = call->block;
    Products *p = &call->products;
    Team *team = &call->team;
    int stage = 0;
    if (own_number() == 0) {
        float *x = p->inputs->x;
        read_bf16(call->hidden, x, b->hidden);
        root_mean_square(x, b->norm, b->eps, x, b->hidden);
        if (any_packed(p)) quantize(p->inputs, b->hidden);
    }
    barrier(team);
    multiply(team, &stage, p);
    int turned = b->heads + b->key_heads;
    for (Portion at; portion(team, stage, turned + b->key_heads, 1, &at);)
        for (int64_t k = at.begin; k < at.end; k++) {
            int64_t own = k - turned;
            if (own < 0) turned_head(call, k);
            else write_bf16(p->out[2] + own * b->head, call->values + own * call->stride, b->head);
        }
}

typedef struct {
    const Block *block;
    Team team;
    Products o, gate_up, down;
    const uint16_t *hidden, *queries, *keys, *values; /* keys, values: [key heads, stride] */
    int64_t length, stride;
    float *scores;   /* [heads, length] */
    float *residual; /* [hidden] */
    uint16_t *out;
} After;

#define WIDEST 1024 /* head */
#define STRIP 64

static inline void attention_of(const After *call, int64_t head) {
    const Block *b = call->block;
    int64_t length = call->length, size = b->head, group = head / (b->heads / b->key_heads);
    const uint16_t *keys = call->keys + group * call->stride;
    const uint16_t *values = call->values + group * call->stride;
    float *scores = call->scores + head * length, *to = call->o.inputs->x + head * size;
    float query[WIDEST], most = -INFINITY;
    read_bf16(call->queries + head * size, query, size);
    for (int64_t k = 0; k < size; k++) query[k] *= b->scaling;
    bf16_products(keys, (int32_t)size, length, query, scores);
    for (int64_t t = 0; t < length; t++) most = scores[t] > most ? scores[t] : most;
    for (int64_t t = 0; t < length; t++) scores[t] = exponential(scores[t] - most);
    float inverse = 1.0f / sum_of(scores, (int32_t)length);
    for (int64_t begin = 0; begin < size; begin += STRIP) {
        float sums[STRIP] = {0};
        int64_t wide = size - begin < STRIP ? size - begin : STRIP;
        const uint16_t *from = values + begin;
        if (wide == STRIP) /* as many as a compiler can keep in registers */
            for (int64_t t = 0; t < length; t++)
                for (int k = 0; k < STRIP; k++) sums[k] += scores[t] * from_bf16(from[t * size + k]);
        else
            for (int64_t t = 0; t < length; t++)
                for (int64_t k = 0; k < wide; k++) sums[k] += scores[t] * from_bf16(from[t * size + k]);
        for (int64_t k = 0; k < wide; k++) to[begin + k] = sums[k] * inverse;
    }
}

static void after_work(void *what) {
    After *call = what;
    const Block *b = call->block;
    Team *team = &call->team;
    int stage = 0, alone = own_number() == 0;
    for (Portion at; portion(team, stage, b->heads, 1, &at);)
        for (int64_t k = at.begin; k < at.end; k++) attention_of(call, k);
    stage++;
    barrier(team);
    if (alone && any_packed(&call->o)) quantize(call->o.inputs, b->o.in);
    barrier(team);
    multiply(team, &stage, &call->o);
    if (alone) {
        float *x = call->gate_up.inputs->x, *sum = call->residual;
        read_bf16(call->hidden, sum, b->hidden);
        for (int32_t k = 0; k < b->hidden; k++) sum[k] += call->o.out[0][k];
        root_mean_square(sum, b->middle_norm, b->eps, x, b->hidden);
        if (any_packed(&call->gate_up)) quantize(call->gate_up.inputs, b->hidden);
    }
    barrier(team);
    multiply(team, &stage, &call->gate_up);
    const float *gate = call->gate_up.out[0], *up = call->gate_up.out[1];
    float *x = call->down.inputs->x;
    for (Portion at; portion(team, stage, b->down.in, 256, &at);)
        for (int64_t k = at.begin; k < at.end; k++)
            x[k] = gate[k] / (1.0f + exponential(-gate[k])) * up[k];
    stage++;
    barrier(team);
    if (alone && any_packed(&call->down)) quantize(call->down.inputs, b->down.in);
    barrier(team);
    multiply(team, &stage, &call->down);
    if (alone)
        for (int32_t k = 0; k < b->hidden; k++)
            call->out[k] = to_bf16(call->residual[k] + call->down.out[0][k]);
}
