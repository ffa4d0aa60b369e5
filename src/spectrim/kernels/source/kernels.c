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

static size_t before_room(const Block *block) {
    return input_room(1, block->hidden) + room_of(&block->q, 1) + room_of(&block->k, 1) +
           room_of(&block->v, 1);
}

/* Give a call its place to work in; the rest of it is set. */
static void set_before(Before *call, char *room) {
    const Block *block = call->block;
    const Map *maps[3] = {&block->q, &block->k, &block->v};
    call->products = (Products){.count = 3, .tokens = 1};
    call->products.inputs = activations_of(&room, 1, block->hidden);
    for (int i = 0; i < 3; i++) place(&call->products, i, maps[i], &room);
}

static int before(const Block *block, const uint16_t *hidden, const uint16_t *cosine,
                  const uint16_t *sine, uint16_t *queries, uint16_t *keys_values, int threads) {
    char *room = scratch(before_room(block));
    if (!room) return 1;
    Before call = {.block = block, .hidden = hidden, .cosine = cosine, .sine = sine, .queries = queries,
                   .keys = keys_values, .stride = block->head,
                   .values = keys_values + (int64_t)block->key_heads * block->head};
    set_before(&call, room);
    run(&call.team, before_work, &call, threads);
    return 0;
}

static size_t scores_of(const Block *block, int64_t length) {
    return aligned(4 * (size_t)block->heads * (size_t)length);
}

static size_t after_room(const Block *block, int64_t length) {
    const Map *maps[4] = {&block->o, &block->gate, &block->up, &block->down};
    size_t bytes = scores_of(block, length) + aligned(4 * (size_t)block->hidden);
    for (int i = 0; i < 4; i++) bytes += room_of(maps[i], 1) + input_room(1, maps[i]->in);
    return bytes;
}

static void set_after(After *call, char *room) {
    const Block *block = call->block;
    call->o = (Products){.count = 1, .tokens = 1};
    call->gate_up = (Products){.count = 2, .tokens = 1};
    call->down = (Products){.count = 1, .tokens = 1};
    call->scores = (float *)room, room += scores_of(block, call->length);
    call->residual = (float *)room, room += aligned(4 * (size_t)block->hidden);
    call->o.inputs = activations_of(&room, 1, block->o.in);
    call->gate_up.inputs = activations_of(&room, 1, block->hidden);
    call->down.inputs = activations_of(&room, 1, block->down.in);
    place(&call->o, 0, &block->o, &room);
    place(&call->gate_up, 0, &block->gate, &room);
    place(&call->gate_up, 1, &block->up, &room);
    place(&call->down, 0, &block->down, &room);
}

static int after(const Block *block, const uint16_t *hidden, const uint16_t *queries,
                 const uint16_t *keys, const uint16_t *values, int64_t length, uint16_t *out,
                 int threads) {
    char *room = scratch(after_room(block, length));
    if (!room) return 1;
    After call = {.block = block, .hidden = hidden, .queries = queries, .keys = keys, .values = values,
                  .length = length, .stride = length * block->head, .out = out};
    set_after(&call, room);
    run(&call.team, after_work, &call, threads);
    return 0;
}

/* A block in a stack: its two calls, whose counters of portions are its own. */
typedef struct {
    Before before;
    After after;
} Floor;

typedef struct {
    Team team;
    const Stack *stack;
    Floor *floors;
    char *before_at, *after_at; /* where all blocks work, one after the other */
} Climb;

/* All blocks by one team. Behind the last barrier of a block only the first thread still reads what
 * the block made, and the first thread prepares the next one. */
static void stack_work(void *what) {
    Climb *call = what;
    int threads = atomic_load(&call->team.threads);
    for (int32_t k = 0; k < call->stack->count; k++) {
        Before *before = &call->floors[k].before;
        After *after = &call->floors[k].after;
        if (own_number() == 0) {
            set_before(before, call->before_at);
            set_after(after, call->after_at);
        }
        atomic_store(&before->team.threads, threads); /* each thread for itself, the same number */
        atomic_store(&after->team.threads, threads);
        before_work(before);
        barrier(&call->team);
        after_work(after);
    }
}

static int stack(const Stack *asked, const uint16_t *hidden, const uint16_t *cosine,
                 const uint16_t *sine, int64_t length, uint16_t *out, int threads) {
    size_t floors = aligned((size_t)asked->count * sizeof(Floor)), first = 0, second = 0, most = 0;
    for (int32_t k = 0; k < asked->count; k++) {
        const Block *b = asked->blocks[k];
        size_t one = aligned(before_room(b)), other = after_room(b, length);
        size_t queries = aligned(2 * (size_t)b->heads * (size_t)b->head);
        first = one > first ? one : first;
        second = other > second ? other : second;
        most = queries > most ? queries : most;
    }
    char *begin = scratch(floors + most + first + second);
    if (!begin) return 1;
    memset(begin, 0, floors);
    Climb call = {.stack = asked, .floors = (Floor *)begin, .before_at = begin + floors + most,
                  .after_at = begin + floors + most + first};
    uint16_t *queries = (uint16_t *)(begin + floors);
    for (int32_t k = 0; k < asked->count; k++) {
        const Block *b = asked->blocks[k];
        int64_t stride = asked->room * b->head, whole = b->key_heads * stride;
        uint16_t *keys = asked->cache + 2 * k * whole, *values = keys + whole;
        Before *before = &call.floors[k].before;
        After *after = &call.floors[k].after;
        before->block = after->block = b;
        before->hidden = after->hidden = k ? out : hidden;
        before->cosine = cosine, before->sine = sine;
        before->queries = queries, after->queries = queries;
        before->keys = keys + (length - 1) * b->head, before->values = values + (length - 1) * b->head;
        after->keys = keys, after->values = values;
        before->stride = after->stride = stride;
        after->length = length, after->out = out;
    }
    run(&call.team, stack_work, &call, threads);
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

static int choose(const Choice *choice, int threads) {
    threads = choice->rows < 4 * ROWS_AT_ONCE ? 1 : threads;
    size_t one = (size_t)choice->columns * sizeof(Lanes);
    char *room = scratch(one * (size_t)(threads < 1 ? 1 : threads));
    if (!room) return 1;
    Choosing call = {.choice = choice, .room = (float *)room};
    run(&call.team, choose_work, &call, threads);
    return 0;
}

static void columns_work(void *what) {
    Rows *call = what;
    for (Portion at; portion(&call->team, 0, call->count, LEAST_ROWS, &at);)
        trellis_columns(call->matrix, call->begin + at.begin, at.end - at.begin,
                        call->to + at.begin * call->matrix->rows);
}

static int columns(const Matrix *matrix, int64_t begin, int64_t count, uint16_t *to, int threads) {
    Rows call = {.matrix = matrix, .begin = begin, .count = count, .to = to};
    run(&call.team, columns_work, &call, count < 64 ? 1 : threads);
    return 0;
}

/* One thread's: a column waits for those before it, so that whole matrices go side by side. What it
 * works in is given back, as it is large, and a thread that comes for one matrix only keeps nothing. */
static int paths(const Paths *asked) {
    size_t row = aligned(4 * (size_t)asked->rows), found = aligned(sizeof(Search));
    char *held = malloc(found + 2 * row + (size_t)asked->rows * STATES + 64);
    if (!held) return 1;
    char *room = held + (64 - (uintptr_t)held % 64);
    Search *search = (Search *)room;
    search->states = (uint32_t *)(room + found);
    search->wanted = (float *)(room + found + row);
    search->back = (uint8_t *)(room + found + 2 * row);
    fill_table(search->table);
    for (int32_t column = 0; column < asked->columns; column++) code_column(search, asked, column);
    free(held);
    return 0;
}

const Kernels NAMED(kernels, ISA) = {product, before, after, stack, rows, norm, gated, choose,
                                     columns, paths};
