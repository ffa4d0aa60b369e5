/* Codes chosen column by column, what each choice changes being passed on to the columns behind it.
 *
 * Rows know nothing of each other, so that ROWS_AT_ONCE of them lie side by side in a register and
 * every portion is one thread's from the first column to the last.
 */
#pragma once
#include <stdint.h>
#include <string.h>
#include "team.h"

#define ROWS_AT_ONCE 16

/* Columns of a matrix; all arrays but the last three are [columns, rows]. */
typedef struct {
    const float *wanted;   /* what each number would be */
    const float *before;   /* what it is now; NULL: it is what is wanted */
    const float *scale, *offset; /* value = scale x level + offset */
    uint8_t *places;       /* which level it gets: written */
    float *values, *changes; /* its value, and value - before: written */
    const float *coupling; /* [columns, columns]: a change of column a takes change x [a, j] from j */
    const float *levels, *edges; /* ascending [levels], and what lies halfway [levels - 1] */
    int32_t columns, levels_count;
    int64_t rows;
} Choice;

typedef struct {
    Team team;
    const Choice *choice;
    float *room; /* [threads, columns, ROWS_AT_ONCE] */
} Choosing;

/* Numbers of neighbouring rows, one register where the processor has such wide ones. */
typedef float Lanes __attribute__((vector_size(4 * ROWS_AT_ONCE)));
typedef int32_t Places __attribute__((vector_size(4 * ROWS_AT_ONCE)));

static inline Lanes some_of(const float *from, size_t lanes) { /* the others are 0 */
    Lanes to = {0};
    memcpy(&to, from, 4 * lanes);
    return to;
}

/* Choose one number of each of some rows; return by how much they change. */
static inline Lanes choose_column(const Choice *c, Lanes wanted, int64_t at, size_t lanes) {
    Lanes step = some_of(c->scale + at, lanes), offset = some_of(c->offset + at, lanes), level = {0};
    Places scaled = (Places)((wanted - offset) / step) & ~(step == 0), place = {0};
    for (int32_t edge = 0; edge < c->levels_count - 1; edge++) place -= (Lanes)scaled > c->edges[edge];
    for (size_t k = 0; k < lanes; k++) {
        level[k] = c->levels[place[k]];
        c->places[at + (int64_t)k] = (uint8_t)place[k];
    }
    Lanes value = level * step + offset;
    Lanes change = value - (c->before ? some_of(c->before + at, lanes) : wanted);
    memcpy(c->values + at, &value, 4 * lanes);
    memcpy(c->changes + at, &change, 4 * lanes);
    return change;
}

static inline void choose_rows(const Choice *c, int64_t row, size_t lanes, Lanes *wanted) {
    for (int32_t a = 0; a < c->columns; a++) wanted[a] = some_of(c->wanted + a * c->rows + row, lanes);
    for (int32_t a = 0; a < c->columns; a++) {
        Lanes change = choose_column(c, wanted[a], a * c->rows + row, lanes);
        const float *coupling = c->coupling + (int64_t)a * c->columns;
        for (int32_t j = a + 1; j < c->columns; j++) wanted[j] -= coupling[j] * change;
    }
}

static void choose_work(void *what) {
    Choosing *call = what;
    const Choice *c = call->choice;
    Lanes *wanted = (Lanes *)call->room + (int64_t)own_number() * c->columns;
    for (Portion at; portion(&call->team, 0, c->rows, ROWS_AT_ONCE, &at);)
        for (int64_t row = at.begin; row < at.end; row += ROWS_AT_ONCE) {
            if (at.end - row >= ROWS_AT_ONCE) choose_rows(c, row, ROWS_AT_ONCE, wanted);
            else choose_rows(c, row, (size_t)(at.end - row), wanted);
        }
}
