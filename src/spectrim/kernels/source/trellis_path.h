/* Columns of a matrix coded as paths through a trellis, each error passed on to the columns behind it.
 *
 * Along a column the path of least weighted squares is found by Viterbi's algorithm; from column to
 * column errors go as GPTQ has them. States are kept with their bits the other way round, newest bit
 * lowest, so that the states that lead to one lie a stride apart and go through whole vectors.
 */
#pragma once
#include "choice.h"
#include "trellis.h"

#define STATES (1 << STATE_BITS)

typedef struct {
    float *left;            /* [columns, rows], what each number would be: changed */
    const float *weights;   /* [rows], of the squares */
    const float *row_scale; /* [rows] */
    float *column_scale;    /* [columns]: written, rounded to bf16 */
    const float *coupling;  /* [columns, columns]: an error of column a takes error x [a, j] from j */
    float *values;          /* [columns, rows]: written */
    uint8_t *codes;         /* [columns, column_bytes], zeros: written */
    float spread;           /* of what codes stand for, to that of a column's numbers */
    float clip;             /* standard deviations of codes that its largest number lies at, at most */
    int32_t columns, rows, rate;
    int64_t column_bytes;
} Paths;

/* What a search works in. Its arrays lie in one structure so that a compiler knows them apart. */
typedef struct {
    float cost[2][STATES];  /* of the best path to every state, before and behind a row */
    float table[2][STATES]; /* codes in units of their standard deviation, of even and odd rows */
    uint32_t *states;       /* [rows] */
    float *wanted;          /* [rows] */
    uint8_t *back;          /* [rows, STATES]: which state led here, at most so many */
} Search;

typedef uint8_t Bytes __attribute__((vector_size(ROWS_AT_ONCE)));

static inline Lanes all_of(const float *from) {
    Lanes to;
    memcpy(&to, from, sizeof to);
    return to;
}

#define CODE_SPREAD 147.8f /* standard deviation of a sum of four bytes */

static inline uint32_t turned_bits(uint32_t state) {
    uint32_t found = 0;
    for (int k = 0; k < STATE_BITS; k++) found |= (state >> k & 1) << (STATE_BITS - 1 - k);
    return found;
}

static inline void fill_table(float table[2][STATES]) {
    for (int64_t row = 0; row < 2; row++)
        for (uint32_t state = 0; state < STATES; state++)
            table[row][state] =
                (float)(sum_of_bytes(code_bytes(turned_bits(state), row)) - CODE_MIDDLE) / CODE_SPREAD;
}

static inline int fresh_bits(const Paths *p, int64_t row) { /* that a row has and the one before has not */
    return row ? (int)(row * p->rate / LANE_ROWS - (row - 1) * p->rate / LANE_ROWS) : 0;
}

/* Add the cost of a row to that of every state, where its path is as before. */
static inline void stay(Search *r, int now, int64_t row, float wanted, float weight) {
    for (int s = 0; s < STATES; s++) {
        float error = wanted - r->table[row & 1][s];
        r->cost[now][s] += weight * error * error;
    }
}

/* The same where every state has 2^fresh successors. */
static inline __attribute__((always_inline)) void advance(Search *r, int now, int64_t row, float wanted,
                                                          float weight, const int fresh) {
    const int ends = STATES >> fresh, successors = 1 << fresh;
    const float *cost = r->cost[now], *table = r->table[row & 1];
    float *next = r->cost[!now];
    uint8_t *back = r->back + row * STATES;
    for (int s = 0; s < ends; s += ROWS_AT_ONCE) {
        Lanes least = all_of(cost + s);
        Places from = {0};
        for (int p = 1; p < successors; p++) {
            Lanes other = all_of(cost + p * ends + s);
            Places less = other < least;
            least = (Lanes)(((Places)other & less) | ((Places)least & ~less));
            from = (p & less) | (from & ~less);
        }
        Bytes narrow = __builtin_convertvector(from, Bytes);
        memcpy(back + s, &narrow, sizeof narrow);
        for (int q = 0; q < successors; q++) {
            int at = (s << fresh) + q * ROWS_AT_ONCE;
            Lanes error = wanted - all_of(table + at), sum;
            for (int k = 0; k < ROWS_AT_ONCE; k++) sum[k] = least[(q * ROWS_AT_ONCE + k) >> fresh];
            sum += weight * error * error;
            memcpy(next + at, &sum, sizeof sum);
        }
    }
}

static inline void step(Search *r, int now, int64_t row, float wanted, float weight, int fresh) {
    switch (fresh) {
    case 1: advance(r, now, row, wanted, weight, 1); break;
    case 2: advance(r, now, row, wanted, weight, 2); break;
    case 3: advance(r, now, row, wanted, weight, 3); break;
    case 4: advance(r, now, row, wanted, weight, 4); break;
    case 5: advance(r, now, row, wanted, weight, 5); break;
    default: stay(r, now, row, wanted, weight);
    }
}

/* Set the states of a column's best path. */
static inline void best_path(Search *r, const Paths *p) {
    int now = 0;
    memset(r->cost[now], 0, sizeof r->cost[now]);
    for (int64_t row = 0; row < p->rows; row++) {
        int fresh = fresh_bits(p, row);
        step(r, now, row, r->wanted[row], p->weights[row], fresh);
        now ^= fresh > 0;
    }
    uint32_t state = 0;
    for (uint32_t s = 1; s < STATES; s++)
        if (r->cost[now][s] < r->cost[now][state]) state = s;
    for (int64_t row = p->rows - 1; row >= 0; row--) {
        int fresh = fresh_bits(p, row);
        r->states[row] = state;
        if (!fresh) continue;
        uint32_t kept = state >> fresh;
        state = kept + ((uint32_t)r->back[row * STATES + kept] << (STATE_BITS - fresh));
    }
}

static inline void write_path(const Search *r, const Paths *p, uint8_t *to) {
    for (int64_t row = 0; row < p->rows; row++) {
        int64_t at = row * p->rate / LANE_ROWS;
        uint32_t word = turned_bits(r->states[row]) << (at & 7);
        for (int k = 0; k < 3; k++)
            if ((at >> 3) + k < p->column_bytes) to[(at >> 3) + k] |= (uint8_t)(word >> 8 * k);
    }
}

static inline float in_row_units(const Paths *p, const float *numbers, int32_t row) {
    return p->row_scale[row] > 0 ? numbers[row] / p->row_scale[row] : 0; /* rows of zeros */
}

/* Return the scale of a column: by its spread, or such that codes reach its largest number. */
static inline float scale_of(const Paths *p, const float *wanted) {
    double squares = 0;
    float most = 0;
    for (int32_t row = 0; row < p->rows; row++) {
        float part = fabsf(in_row_units(p, wanted, row));
        squares += (double)part * part;
        most = part > most ? part : most;
    }
    float spread = p->spread * (float)sqrt(squares / p->rows), reach = most / p->clip;
    float scale = from_bf16(to_bf16((spread > reach ? spread : reach) / CODE_SPREAD));
    return scale > 0 ? scale : 0;
}

static inline void code_column(Search *r, const Paths *p, int32_t column) {
    float *left = p->left + (int64_t)column * p->rows, *values = p->values + (int64_t)column * p->rows;
    float scale = scale_of(p, left);
    p->column_scale[column] = scale;
    float unit = scale > 0 ? 1 / (scale * CODE_SPREAD) : 0;
    for (int32_t row = 0; row < p->rows; row++) r->wanted[row] = in_row_units(p, left, row) * unit;
    best_path(r, p);
    write_path(r, p, p->codes + column * p->column_bytes);
    for (int32_t row = 0; row < p->rows; row++) {
        float code = r->table[row & 1][r->states[row]] * CODE_SPREAD;
        values[row] = p->row_scale[row] * scale * code;
        left[row] -= values[row];
    }
    const float *coupling = p->coupling + (int64_t)column * p->columns;
    for (int32_t j = column + 1; j < p->columns; j++) {
        float *to = p->left + (int64_t)j * p->rows;
        for (int32_t row = 0; row < p->rows; row++) to[row] -= coupling[j] * left[row];
    }
}
