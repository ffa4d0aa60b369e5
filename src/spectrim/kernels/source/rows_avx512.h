/* Rows with 64-byte vectors: products of four bytes at once (VNNI) and shifts by bytes (VBMI). */
#pragma once
#define UNIT_TWO 256 /* codes in a vector */
#define UNIT_FOUR 128
#include <immintrin.h>
#include "activations.h"
#define AT_ONCE 4 /* rows, which share the loads of their input */
/* Rows that are fetched into the second cache before they are needed: a processor that sees four rows
 * at a time fetches too little by itself, and each large row begins on a page that it has not seen. */
#define AHEAD 8
#define INLINE static inline __attribute__((always_inline))
#define LANES _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

/* Sums of a row as they grow: of products, and of the middles of the groups' ranges. */
typedef struct { __m512 whole, middle; } Sums;

/* Where in a row the scales of a SUPER's 16 blocks lie: which ones, and which each block has. */
typedef struct {
    int32_t first, stride;
    __mmask16 there;
    __m512i spread;
} Groups;

static inline Groups groups_in(const Matrix *m, int32_t super) {
    int shift = m->group ? __builtin_ctz((unsigned)m->group) - 5 : 31;
    int32_t first = m->group ? super << 4 >> shift : 0, all = groups_of(m);
    int32_t count = all - first < 16 ? all - first : 16;
    __m512i spread = _mm512_srl_epi32(LANES, _mm_cvtsi32_si128(shift));
    return (Groups){first, all, (__mmask16)((1u << count) - 1), spread};
}

/* Set scale codes, and offsets less half the range in units of the scale, of 16 blocks. */
INLINE void scales_of(const Matrix *m, int64_t row, const Groups *g, const int bits,
                      __m512 *scale, __m512 *centre) {
    int64_t at = row * g->stride + g->first;
    const __m512 half = _mm512_set1_ps((float)half_range(bits));
    *scale = _mm512_set1_ps(1);
    *centre = bits == 1 ? _mm512_set1_ps(-0.5f) : _mm512_sub_ps(_mm512_setzero_ps(), half);
    if (m->scale_code) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(g->there, m->scale_code + at));
        *scale = _mm512_permutexvar_ps(g->spread, _mm512_cvtepi32_ps(code));
    }
    if (m->offset_code) {
        __m512i code = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(g->there, m->offset_code + at));
        const __m512 reach = _mm512_set1_ps((float)(1 << bits) / 128);
        __m512 offset = _mm512_fmsub_ps(_mm512_cvtepi32_ps(code), reach, half);
        *centre = _mm512_permutexvar_ps(g->spread, offset);
    }
}

/* Return 64 codes of 3 bits, from 0 up, of 24 bytes. */
static inline __m512i three(__m512i bytes) {
    const __m512i places = _mm512_set_epi8(
        23, 23, 23, 23, 23, 23, 22, 21, 20, 20, 20, 20, 20, 20, 19, 18, 17, 17, 17, 17, 17, 17, 16, 15,
        14, 14, 14, 14, 14, 14, 13, 12, 11, 11, 11, 11, 11, 11, 10, 9, 8, 8, 8, 8, 8, 8, 7, 6,
        5, 5, 5, 5, 5, 5, 4, 3, 2, 2, 2, 2, 2, 2, 1, 0);
    __m512i words = _mm512_permutexvar_epi8(places, bytes);
    __m512i moved = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x15120f0c09060300LL), words);
    return _mm512_ternarylogic_epi32(moved, _mm512_set1_epi8(7), _mm512_set1_epi8(4), 0x6a);
}

/* Return 64 signs of 8 bytes: 1 where a bit is not set, and 0. */
static inline __m512i signs(__m512i bytes) {
    uint64_t set = (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(bytes));
    return _mm512_maskz_set1_epi8(~set, 1);
}

/* Return (bytes & mask) ^ half. */
#define CODES(bytes, mask, half) \
    _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi8(mask), _mm512_set1_epi8(half), 0x6a)

/* Return the products of one vector of codes with its inputs, four (or more) to a lane. */
INLINE __m512i products_of(const int bits, __m512i w, const __m512i *x) {
    __m512i sum = _mm512_setzero_si512();
    if (bits == 2) {
        sum = _mm512_dpbusd_epi32(sum, CODES(w, 3, 2), x[0]);
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 2), 3, 2), x[1]);
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 4), 3, 2), x[2]);
        return _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 6), 3, 2), x[3]);
    }
    if (bits == 4) {
        sum = _mm512_dpbusd_epi32(sum, CODES(w, 15, 8), x[0]);
        return _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 4), 15, 8), x[1]);
    }
    __m512i codes = bits == 1 ? signs(w) : bits == 3 ? three(w) : _mm512_xor_si512(w, _mm512_set1_epi8(-128));
    return _mm512_dpbusd_epi32(sum, codes, x[0]);
}

/* Add a SUPER of some rows, or what is left of one: then ``left`` bytes, else -1. */
INLINE void add_super(Sums *sums, const Matrix *m, int64_t row, const int count, int32_t super,
                      const Activations *a, const int bits, int64_t left) {
    const int bytes = bits == 1 ? 8 : bits == 3 ? 24 : 64, parts = SUPER * bits / 8 / bytes;
    const int vectors = bits == 2 ? 4 : bits == 4 ? 2 : 1, shift = bits == 2 ? 1 : bits == 4 ? 2 : 3;
    const int8_t *inputs = (bits == 2 ? a->two : bits == 4 ? a->four : a->codes) + (int64_t)super * SUPER;
    const uint8_t *codes = m->codes + row * m->row_bytes + (int64_t)super * (SUPER * bits / 8);
    const __m512i block = _mm512_srli_epi32(LANES, shift); /* which of 16 blocks a lane is of */
    Groups groups = groups_in(m, super);
    __m512 input = _mm512_loadu_ps(a->scale + super * 16), sum = _mm512_loadu_ps(a->sum + super * 16);
    __m512 factor[AT_ONCE];
    for (int r = 0; r < count; r++) {
        __m512 scale, centre;
        scales_of(m, row + r, &groups, bits, &scale, &centre);
        factor[r] = _mm512_mul_ps(scale, input);
        sums[r].middle = _mm512_fmadd_ps(centre, _mm512_mul_ps(scale, sum), sums[r].middle);
    }
#pragma GCC unroll 8
    for (int part = 0; part < parts; part++, codes += bytes) {
        __m512i x[4];
        __m512i own = _mm512_add_epi32(block, _mm512_set1_epi32((16 >> shift) * part));
        for (int v = 0; v < vectors; v++)
            x[v] = _mm512_loadu_si512(inputs + (part * vectors + v) * 64);
        __mmask64 there = ~0ull;
        if (left >= 0) {
            if (left <= part * bytes) return;
            int64_t more = left - part * bytes;
            there = more >= bytes ? ~0ull >> (64 - bytes) : (1ull << more) - 1;
        }
        for (int r = 0; r < count; r++) {
            const uint8_t *at = codes + r * m->row_bytes;
            _mm_prefetch((const char *)at + AHEAD * m->row_bytes, _MM_HINT_T1);
            __m512i w = left < 0 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi8(there, at);
            __m512 found = _mm512_cvtepi32_ps(products_of(bits, w, x));
            __m512 scale = _mm512_permutexvar_ps(own, factor[r]);
            sums[r].whole = _mm512_fmadd_ps(found, scale, sums[r].whole);
        }
    }
}

/* Set the products of some rows, one or AT_ONCE. */
INLINE void packed_rows(const Matrix *m, int64_t row, const int count, const Activations *a,
                        const int bits, float *to) {
    const int each = SUPER * bits / 8, beyond = bits == 1 ? 56 : bits == 3 ? 40 : 0; /* what a load reads too far */
    Sums sums[AT_ONCE];
    for (int r = 0; r < count; r++) sums[r].whole = sums[r].middle = _mm512_setzero_ps();
    int64_t left = m->row_bytes;
    int32_t super = 0;
    for (; left >= each + beyond; super++, left -= each)
        add_super(sums, m, row, count, super, a, bits, -1);
    for (; left > 0; super++, left -= each)
        add_super(sums, m, row, count, super, a, bits, left);
    for (int r = 0; r < count; r++)
        to[r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[r].whole, sums[r].middle)) * unit_of(m, row + r);
}

/* Set 64 codes with their signs at a time; all of ``to`` up to a multiple of 64 may be written. */
static inline void unpacked(const uint8_t *w, int32_t count, const int bits, int8_t *to) {
    const __m512i half = _mm512_set1_epi8((char)(bits == 8 ? 0 : half_range(bits)));
    const int bytes = 8 * bits;
    for (int32_t k = 0; k < count; k += 64, w += bytes) {
        int64_t left = ((int64_t)(count - k) * bits + 7) / 8;
        __mmask64 there = left >= bytes ? ~0ull >> (64 - bytes) : (1ull << left) - 1;
        __m512i raw = _mm512_maskz_loadu_epi8(there, w), codes = raw;
        if (bits == 1) {
            __m512i both = _mm512_add_epi8(signs(raw), signs(raw)); /* 0 and 2, less 1 */
            _mm512_storeu_si512(to + k, _mm512_sub_epi8(both, half));
            continue;
        }
        if (bits == 4) {
            __m512i wide = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(raw));
            codes = CODES(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), 15, 8);
        } else if (bits == 2) {
            __m512i wide = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(raw));
            wide = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 6));
            codes = CODES(_mm512_or_si512(wide, _mm512_slli_epi32(wide, 12)), 3, 2);
        } else if (bits == 3) {
            codes = three(raw);
        }
        _mm512_storeu_si512(to + k, _mm512_sub_epi8(codes, half));
    }
}

/* Set the products of AT_ONCE rows of bf16 numbers. */
INLINE void bf16_rows(const uint16_t *w, int32_t columns, const float *x, float *to) {
    __m512 sums[AT_ONCE];
    for (int r = 0; r < AT_ONCE; r++) sums[r] = _mm512_setzero_ps();
    for (int32_t at = 0; at < columns; at += 16) {
        __mmask16 there = columns - at >= 16 ? 0xffff : (__mmask16)((1u << (columns - at)) - 1);
        __m512 input = _mm512_maskz_loadu_ps(there, x + at);
        for (int r = 0; r < AT_ONCE; r++) {
            const uint16_t *from = w + (int64_t)r * columns + at;
            if (!(at & 31)) _mm_prefetch((const char *)(from + (int64_t)AHEAD * columns), _MM_HINT_T1);
            __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from));
            __m512 numbers = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
            sums[r] = _mm512_fmadd_ps(numbers, input, sums[r]);
        }
    }
    for (int r = 0; r < AT_ONCE; r++) to[r] = _mm512_reduce_add_ps(sums[r]);
}

/* What the few codes of a group stand for, in bf16, in the order of codes from 0 up. */
typedef struct { __m512i of; } VALUES;

static inline VALUES values_of(float scale, float offset, int32_t half) {
    __m512 codes = _mm512_cvtepi32_ps(_mm512_sub_epi32(LANES, _mm512_set1_epi32(half)));
    __m512 all = _mm512_add_ps(_mm512_mul_ps(codes, _mm512_set1_ps(scale)), _mm512_set1_ps(offset));
    __m512i bits = _mm512_castps_si512(all);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
    return (VALUES){_mm512_castsi256_si512(words)};
}

static inline void look_up(const int8_t *codes, const VALUES *values, int32_t half, uint16_t *to) {
    __m256i own = _mm256_add_epi8(_mm256_loadu_si256((const __m256i *)codes),
                                  _mm256_set1_epi8((char)half));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_cvtepi8_epi16(own), values->of));
}
