/* Rows with 64-byte vectors: products of four bytes at once (VNNI) and shifts by bytes (VBMI). */
#pragma once
#define UNIT_TWO 256 /* codes in a vector */
#define UNIT_FOUR 128
#include <immintrin.h>
#include "activations.h"

#define COPIES(shift) /* lane -> lane >> shift: which of 16 blocks a lane's codes belong to */ \
    _mm512_srli_epi32(LANES, shift)
#define LANES _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

/* Set scale codes, and offsets less half the range in units of the scale, of a SUPER's 16 blocks. */
static inline void scales_of(const Matrix *m, int64_t row, int32_t super, int32_t groups,
                             const int bits, __m512 *scale, __m512 *centre) {
    int shift = m->group ? __builtin_ctz((unsigned)m->group) - 5 : 31;
    int32_t first = m->group ? (int32_t)((int64_t)super * SUPER / m->group) : 0;
    int64_t at = row * groups + first;
    int count = groups - first < 16 ? groups - first : 16;
    __mmask16 there = (__mmask16)((1u << count) - 1);
    __m512i spread = _mm512_srl_epi32(LANES, _mm_cvtsi32_si128(shift));
    __m512 half = _mm512_set1_ps((float)half_range(bits));
    *scale = _mm512_set1_ps(1), *centre = _mm512_sub_ps(_mm512_setzero_ps(), half);
    if (m->scale_code) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, m->scale_code + at));
        *scale = _mm512_permutexvar_ps(spread, _mm512_cvtepi32_ps(code));
    }
    if (m->offset_code) {
        __m512i code = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(there, m->offset_code + at));
        __m512 reach = _mm512_set1_ps((float)(1 << bits) / 128);
        __m512 offset = _mm512_fmsub_ps(_mm512_cvtepi32_ps(code), reach, half);
        *centre = _mm512_permutexvar_ps(spread, offset);
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

/* Return (bytes & mask) ^ half. */
#define CODES(bytes, mask, half) \
    _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi8(mask), _mm512_set1_epi8(half), 0x6a)

#define X(order, at) _mm512_loadu_si512(order + (at))

/* Add the products of one vector of codes, each lane's with its block's factor, to sofar. */
static inline __attribute__((always_inline)) __m512 vector_of(const Activations *a, const int bits, int32_t super, int part,
                               __m512i w, __m512 factor, __m512 sofar) {
    int64_t begin = (int64_t)super * SUPER;
    __m512i sum = _mm512_setzero_si512(), block;
    if (bits == 2) {
        const int8_t *x = a->two + begin + part * 256;
        sum = _mm512_dpbusd_epi32(sum, CODES(w, 3, 2), X(x, 0));
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 2), 3, 2), X(x, 64));
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 4), 3, 2), X(x, 128));
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 6), 3, 2), X(x, 192));
        block = _mm512_add_epi32(COPIES(1), _mm512_set1_epi32(8 * part));
    } else if (bits == 4) {
        const int8_t *x = a->four + begin + part * 128;
        sum = _mm512_dpbusd_epi32(sum, CODES(w, 15, 8), X(x, 0));
        sum = _mm512_dpbusd_epi32(sum, CODES(_mm512_srli_epi16(w, 4), 15, 8), X(x, 64));
        block = _mm512_add_epi32(COPIES(2), _mm512_set1_epi32(4 * part));
    } else {
        __m512i codes = bits == 3 ? three(w) : _mm512_xor_si512(w, _mm512_set1_epi8(-128));
        sum = _mm512_dpbusd_epi32(sum, codes, X(a->codes, begin + part * 64));
        block = _mm512_add_epi32(COPIES(3), _mm512_set1_epi32(2 * part));
    }
    __m512 own = _mm512_permutexvar_ps(block, factor);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), own, sofar);
}

/* Sums of a row as they grow: two of products, as one addition waits for another, and centres. */
typedef struct { __m512 even, odd, middle; } Sums;

/* Add the products of a SUPER, or of what is left of one: bytes, of which the last may be no more. */
static inline __attribute__((always_inline)) void add_super(Sums *sums, const Matrix *m,
                                                            int64_t row, int32_t super,
                                                            const Activations *a, const int bits,
                                                            const uint8_t *at, const int whole) {
    const int bytes = bits == 3 ? 24 : 64, parts = SUPER * bits / 8 / bytes;
    int64_t left = m->row_bytes - (int64_t)super * (SUPER * bits / 8);
    __m512 scale, centre;
    scales_of(m, row, super, groups_of(m), bits, &scale, &centre);
    __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(a->scale + super * 16));
    __m512 share = _mm512_mul_ps(scale, _mm512_loadu_ps(a->sum + super * 16));
    sums->middle = _mm512_fmadd_ps(centre, share, sums->middle);
#pragma GCC unroll 8
    for (int part = 0; part < parts; part++, at += bytes, left -= bytes) {
        __m512i w;
        if (whole) {
            w = _mm512_loadu_si512(at);
        } else {
            if (left <= 0) return;
            w = _mm512_maskz_loadu_epi8(left >= bytes ? ~0ull >> (64 - bytes) : (1ull << left) - 1, at);
        }
        __m512 *sum = part & 1 ? &sums->odd : &sums->even;
        *sum = vector_of(a, bits, super, part, w, factor, *sum);
    }
}

static inline __attribute__((always_inline)) float packed_row(const Matrix *m, int64_t row,
                                                              const Activations *a,
                                                              const int bits) {
    const int each = SUPER * bits / 8, beyond = bits == 3 ? 40 : 0; /* bytes that a load reads too far */
    const uint8_t *codes = m->codes + row * m->row_bytes;
    Sums sums = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    int32_t super = 0;
    for (; (int64_t)(super + 1) * each + beyond <= m->row_bytes; super++)
        add_super(&sums, m, row, super, a, bits, codes + (int64_t)super * each, 1);
    for (; (int64_t)super * each < m->row_bytes; super++)
        add_super(&sums, m, row, super, a, bits, codes + (int64_t)super * each, 0);
    __m512 all = _mm512_add_ps(_mm512_add_ps(sums.even, sums.odd), sums.middle);
    return _mm512_reduce_add_ps(all) * unit_of(m, row);
}

/* Set 64 codes with their signs at a time; all of ``to`` up to a multiple of 64 may be written. */
static inline void unpacked(const uint8_t *w, int32_t count, const int bits, int8_t *to) {
    const __m512i half = _mm512_set1_epi8((char)(bits == 8 ? 0 : half_range(bits)));
    const int bytes = 8 * bits;
    for (int32_t k = 0; k < count; k += 64, w += bytes) {
        int64_t left = ((int64_t)(count - k) * bits + 7) / 8;
        __mmask64 there = left >= bytes ? ~0ull >> (64 - bytes) : (1ull << left) - 1;
        __m512i raw = _mm512_maskz_loadu_epi8(there, w), codes = raw;
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
