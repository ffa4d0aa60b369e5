/* Everything that is computed, compiled once for each instruction set: ISA names it. */
#include "kernels.h"

#define JOINED(name, isa) name##_##isa
#define NAMED(name, isa) JOINED(name, isa)

static _Thread_local struct { char *begin; size_t size; } kept; /* a thread's scratch memory */

static char *scratch(size_t bytes) {
    if (kept.size < bytes) {
        free(kept.begin);
        kept.begin = malloc(bytes + 64);
        kept.size = kept.begin ? bytes : 0;
    }
    return kept.begin ? kept.begin + (64 - (uintptr_t)kept.begin % 64) : NULL;
}

static size_t input_room(int tokens, int32_t columns) {
    return (size_t)tokens * (aligned(activation_bytes(columns)) + 128) + 256;
}

typedef struct {
    Team team;
    Products products;
    const uint16_t *x;
    uint16_t *y;
} Product;

static void product_work(void *what) {
    Product *call = what;
    Products *p = &call->products;
    const Map *map = p->maps[0];
    int stage = 0;
    for (Portion at; portion(&call->team, stage, p->tokens, 1, &at);)
        for (int64_t t = at.begin; t < at.end; t++) {
            read_bf16(call->x + t * map->in, p->inputs[t].x, map->in);
            if (any_packed(p)) quantize(&p->inputs[t], map->in);
        }
    stage++;
    barrier(&call->team);
    multiply(&call->team, &stage, p);
    int64_t whole = (int64_t)p->tokens * map->out;
    for (Portion at; portion(&call->team, stage, whole, 4096, &at);)
        write_bf16(p->out[0] + at.begin, call->y + at.begin, at.end - at.begin);
}

static int product(const Map *map, const uint16_t *x, uint16_t *y, int tokens, int threads) {
    char *room = scratch(room_of(map, tokens) + input_room(tokens, map->in));
    if (!room) return 1;
    Product call = {.x = x, .y = y, .products = {.count = 1, .tokens = tokens}};
    call.products.inputs = activations_of(&room, tokens, map->in);
    place(&call.products, 0, map, &room);
    run(&call.team, product_work, &call, threads);
    return 0;
}

static int before(const Block *block, const uint16_t *hidden, const uint16_t *cosine,
                  const uint16_t *sine, uint16_t *queries, uint16_t *keys_values, int threads) {
    const Map *maps[3] = {&block->q, &block->k, &block->v};
    size_t bytes = input_room(1, block->hidden);
    for (int i = 0; i < 3; i++) bytes += room_of(maps[i], 1);
    char *room = scratch(bytes);
    if (!room) return 1;
    Before call = {.block = block, .hidden = hidden, .cosine = cosine, .sine = sine,
                   .queries = queries, .keys = keys_values,
                   .values = keys_values + (int64_t)block->key_heads * block->head,
                   .products = {.count = 3, .tokens = 1}};
    call.products.inputs = activations_of(&room, 1, block->hidden);
    for (int i = 0; i < 3; i++) place(&call.products, i, maps[i], &room);
    run(&call.team, before_work, &call, threads);
    return 0;
}

static int after(const Block *block, const uint16_t *hidden, const uint16_t *queries,
                 const uint16_t *keys, const uint16_t *values, int64_t length, uint16_t *out,
                 int threads) {
    size_t scores = aligned(4 * (size_t)block->heads * (size_t)length);
    size_t bytes = scores + aligned(4 * (size_t)block->hidden);
    const Map *maps[4] = {&block->o, &block->gate, &block->up, &block->down};
    for (int i = 0; i < 4; i++) bytes += room_of(maps[i], 1) + input_room(1, maps[i]->in);
    char *room = scratch(bytes);
    if (!room) return 1;
    After call = {.block = block, .hidden = hidden, .queries = queries, .keys = keys,
                  .values = values, .length = length, .out = out,
                  .o = {.count = 1, .tokens = 1}, .gate_up = {.count = 2, .tokens = 1},
                  .down = {.count = 1, .tokens = 1}};
    call.scores = (float *)room, room += scores;
    call.residual = (float *)room, room += aligned(4 * (size_t)block->hidden);
    call.o.inputs = activations_of(&room, 1, block->o.in);
    call.gate_up.inputs = activations_of(&room, 1, block->hidden);
    call.down.inputs = activations_of(&room, 1, block->down.in);
    place(&call.o, 0, &block->o, &room);
    place(&call.gate_up, 0, &block->gate, &room);
    place(&call.gate_up, 1, &block->up, &room);
    place(&call.down, 0, &block->down, &room);
    run(&call.team, after_work, &call, threads);
    return 0;
}

typedef struct {
    Team team;
    const Matrix *matrix;
    const int64_t *index; /* which rows; NULL: those from ``begin`` on */
    int64_t begin, count;
    uint16_t *to;
} Rows;

static void rows_work(void *what) {
    Rows *call = what;
    for (Portion at; portion(&call->team, 0, call->count, LEAST_ROWS, &at);)
        for (int64_t k = at.begin; k < at.end; k++) {
            int64_t row = call->index ? call->index[k] : call->begin + k;
            dense_row(call->matrix, row, call->to + k * call->matrix->columns);
        }
}

static int rows(const Matrix *matrix, const int64_t *index, int64_t begin, int64_t count,
                uint16_t *to, int threads) {
    Rows call = {.matrix = matrix, .index = index, .begin = begin, .count = count, .to = to};
    run(&call.team, rows_work, &call, count < 64 ? 1 : threads);
    return 0;
}

static void norm_work(void *what) {
    Elements *call = what;
    float *x = (float *)scratch(4 * (size_t)call->columns);
    for (Portion at; x && portion(&call->team, 0, call->rows, 8, &at);)
        for (int64_t row = at.begin; row < at.end; row++) {
            read_bf16(call->x + row * call->columns, x, call->columns);
            root_mean_square(x, call->other, call->eps, x, (int32_t)call->columns);
            write_bf16(x, call->to + row * call->columns, call->columns);
        }
}

static int norm(const uint16_t *x, const uint16_t *weight, float eps, uint16_t *to, int64_t rows_,
                int64_t columns, int threads) {
    if (!scratch(4 * (size_t)columns)) return 1;
    Elements call = {.x = x, .other = weight, .eps = eps, .rows = rows_, .columns = columns, .to = to};
    run(&call.team, norm_work, &call, rows_ < 16 ? 1 : threads);
    return 0;
}

static void gated_work(void *what) {
    Elements *call = what;
    for (Portion at; portion(&call->team, 0, call->columns, 1024, &at);)
        for (int64_t k = at.begin; k < at.end; k++) {
            float gate = from_bf16(call->x[k]);
            call->to[k] = to_bf16(gate / (1.0f + exponential(-gate)) * from_bf16(call->other[k]));
        }
}

static int gated(const uint16_t *gate, const uint16_t *up, uint16_t *to, int64_t count, int threads) {
    Elements call = {.x = gate, .other = up, .columns = count, .to = to};
    run(&call.team, gated_work, &call, count < 16384 ? 1 : threads);
    return 0;
}

const Kernels NAMED(kernels, ISA) = {product, before, after, rows, norm, gated};
