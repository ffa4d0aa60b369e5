/* Products of a few maps that read one input, such as q, k and v, by all threads of a team. */
#pragma once
#include "rows.h"
#include "team.h"

#define TOGETHER 3       /* maps of one input, at most */
#define LEAST_ROWS 16    /* that a thread takes at a time */

/* A few maps at work: their inputs, their outputs, and what lies between two factors. */
typedef struct {
    const Map *maps[TOGETHER];
    int count, tokens;
    Activations *inputs;            /* [tokens] */
    Activations *scaled[TOGETHER];  /* [tokens]; the inputs times the scales of a map that has such */
    Activations *middle[TOGETHER];  /* [tokens]; x is what ``first`` makes */
    float *out[TOGETHER];           /* [tokens, out] */
} Products;

static inline int is_packed(const Matrix *m) { return m->rows && m->bits != 16; }

static inline int any_packed(const Products *p) { /* whether the input has to be quantised */
    for (int i = 0; i < p->count; i++)
        if (!p->maps[i]->input_scale && (is_packed(&p->maps[i]->direct) || is_packed(&p->maps[i]->first)))
            return 1;
    return 0;
}

static inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

static inline Activations *activations_of(char **room, int tokens, int32_t columns) {
    Activations *found = (Activations *)*room;
    *room += aligned((size_t)tokens * sizeof(Activations));
    for (int t = 0; t < tokens; t++) {
        found[t] = activations_in(*room, columns);
        *room += aligned(activation_bytes(columns));
    }
    return found;
}

static inline size_t room_of(const Map *map, int tokens) { /* bytes that a map at work needs, at most */
    size_t between = aligned(activation_bytes(map->first.rows)) + aligned(sizeof(Activations)) + 64;
    if (map->input_scale) between += aligned(activation_bytes(map->in)) + aligned(sizeof(Activations)) + 64;
    return (size_t)tokens * (between + aligned(4 * (size_t)map->out)) + 256;
}

static inline void place(Products *p, int i, const Map *map, char **room) {
    p->maps[i] = map;
    p->middle[i] = activations_of(room, p->tokens, map->first.rows);
    p->scaled[i] = map->input_scale ? activations_of(room, p->tokens, map->in) : NULL;
    p->out[i] = (float *)*room;
    *room += aligned(4 * (size_t)map->out * (size_t)p->tokens);
}

static inline float with_bias(const Map *map, int32_t at, float value) {
    return map->bias ? value + from_bf16(map->bias[at]) : value;
}

#define RUN 64 /* rows at a time */

/* Some rows of what reads the input: of ``direct`` or, behind its rows, of ``first``. */
static inline void first_rows(Products *p, int i, int32_t row, int32_t count) {
    const Map *map = p->maps[i];
    float found[RUN];
    int direct = row < map->direct.rows;
    int32_t own = direct ? row : row - map->direct.rows;
    for (int t = 0; t < p->tokens; t++) {
        float *out = p->out[i] + (size_t)t * map->out, *middle = p->middle[i][t].x;
        const Activations *inputs = map->input_scale ? &p->scaled[i][t] : &p->inputs[t];
        row_products(direct ? &map->direct : &map->first, own, count, inputs, found);
        for (int32_t k = 0; k < count; k++) {
            int32_t at = direct || !map->places ? own + k : map->places[own + k];
            if (direct || map->places) out[at] = with_bias(map, at, found[k]);
            if (!direct) middle[own + k] = found[k];
        }
    }
}

static inline void second_rows(Products *p, int i, int32_t row, int32_t count) {
    const Map *map = p->maps[i];
    float found[RUN];
    for (int t = 0; t < p->tokens; t++) {
        float *out = p->out[i] + (size_t)t * map->out;
        row_products(&map->second, row, count, &p->middle[i][t], found);
        for (int32_t k = 0; k < count; k++) {
            int32_t at = map->places ? map->places[map->first.rows + row + k] : row + k;
            if (map->direct.rows) out[at] += found[k];
            else out[at] = with_bias(map, at, found[k]);
        }
    }
}

/* The rows of a map that belong to a stage, from begin to end, no run across two matrices. */
static inline void some_rows(Products *p, int i, int second, int32_t begin, int32_t end) {
    int32_t edge = second ? 0 : p->maps[i]->direct.rows;
    while (begin < end) {
        int32_t stop = begin < edge && edge < end ? edge : end;
        stop = stop - begin > RUN ? begin + RUN : stop;
        (second ? second_rows : first_rows)(p, i, begin, stop - begin);
        begin = stop;
    }
}

static inline int32_t rows_in(const Map *map, int second) {
    return second ? map->second.rows : map->direct.rows + map->first.rows;
}

static inline void all_rows(Team *team, int stage, Products *p, int second) {
    int64_t whole = 0;
    for (int i = 0; i < p->count; i++) whole += rows_in(p->maps[i], second);
    for (Portion at; portion(team, stage, whole, LEAST_ROWS, &at);) {
        int64_t begin = 0;
        for (int i = 0; i < p->count; i++) {
            int64_t own = rows_in(p->maps[i], second);
            int64_t from = at.begin > begin ? at.begin : begin;
            int64_t stop = at.end < begin + own ? at.end : begin + own;
            if (from < stop) some_rows(p, i, second, (int32_t)(from - begin), (int32_t)(stop - begin));
            begin += own;
        }
    }
}

/* Make the inputs of maps that scale them. */
static inline void scale_inputs(Team *team, int *stage, Products *p) {
    int scales = 0, whole = p->count * p->tokens;
    for (int i = 0; i < p->count; i++) scales |= p->maps[i]->input_scale != NULL;
    if (!scales) return;
    for (Portion at; portion(team, *stage, whole, 1, &at);)
        for (int64_t k = at.begin; k < at.end; k++) {
            const Map *map = p->maps[k / p->tokens];
            if (!map->input_scale) continue;
            Activations *to = &p->scaled[k / p->tokens][k % p->tokens];
            const float *from = p->inputs[k % p->tokens].x;
            for (int32_t j = 0; j < map->in; j++) to->x[j] = from[j] * from_bf16(map->input_scale[j]);
            quantize(to, map->in);
        }
    (*stage)++;
    barrier(team);
}

/* Compute all outputs from inputs that are ready; all threads of the team are here together. */
static inline void multiply(Team *team, int *stage, Products *p) {
    scale_inputs(team, stage, p);
    all_rows(team, (*stage)++, p, 0);
    barrier(team);
    int chained = 0;
    for (int i = 0; i < p->count; i++) chained |= p->maps[i]->second.rows;
    if (!chained) return;
    int whole = p->count * p->tokens;
    for (Portion at; portion(team, *stage, whole, 1, &at);)
        for (int64_t k = at.begin; k < at.end; k++) {
            const Map *map = p->maps[k / p->tokens];
            Activations *middle = &p->middle[k / p->tokens][k % p->tokens];
            if (is_packed(&map->second)) quantize(middle, map->second.columns);
        }
    (*stage)++;
    barrier(team);
    all_rows(team, (*stage)++, p, 1);
    barrier(team);
}

static inline void read_bf16(const uint16_t *from, float *to, int64_t count) {
    for (int64_t k = 0; k < count; k++) to[k] = from_bf16(from[k]);
}

static inline void write_bf16(const float *from, uint16_t *to, int64_t count) {
    for (int64_t k = 0; k < count; k++) to[k] = to_bf16(from[k]);
}
