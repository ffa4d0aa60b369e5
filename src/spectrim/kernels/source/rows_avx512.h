/* Rows with 64-byte vectors: products of four bytes at once (VNNI) and shifts by bytes (VBMI). */
#pragma once
#define UNIT_TWO 256 /* codes in a vector */
#define UNIT_FOUR 128
#include <immintrin.h>
#include "activations.h"

#define COPIES(shift) /* lane -> lane >> shift: which of 16 blocks a lane's codes belong to */ \
    _mm512_srli_epi32(LANES, shift)
#define LANES _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

static inline __m512 rounded(__m512 value) { /* to bf16 and back */
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000)));
}

/* Set the scales and the offsets of the 16 blocks of a SUPER. */
static inline void scales_of(const Matrix *m, int64_t row, int32_t super, int32_t groups,
                             __m512 *scale, __m512 *offset) {
    __m512 unit = _mm512_set1_ps(from_bf16(m->row_scale[row]));
    int shift = 0, first = 0;
    if (m->group) {
        shift = __builtin_ctz((unsigned)m->group) - 5;
        first = (int)((int64_t)super * SUPER / m->group);
    }
    int64_t at = row * groups + first;
    int count = groups - first < 16 ? groups - first : 16;
    __mmask16 there = (__mmask16)((1u << count) - 1);
    __m512i spread = m->group ? _mm512_srl_epi32(LANES, _mm_cvtsi32_si128(shift))
                              : _mm512_setzero_si512();
    if (m->group >= SUPER) spread = _mm512_setzero_si512();
    *scale = unit;
    if (m->scale_code) {
        __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, m->scale_code + at));
        __m512 part = _mm512_div_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(LARGEST));
        *scale = rounded(_mm512_mul_ps(unit, _mm512_permutexvar_ps(spread, part)));
    }
    *offset = _mm512_setzero_ps();
    if (m->offset_code) {
        __m512i code = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(there, m->offset_code + at));
        __m512 reach = _mm512_set1_ps((float)(1 << m->bits) / 128);
        __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(code), reach);
        *offset = rounded(_mm512_mul_ps(*scale, _mm512_permutexvar_ps(spread, part)));
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

static inline __attribute__((always_inline)) float packed_row(const Matrix *m, int64_t row,
                                                              const Activations *a,
                                                              const int bits) {
    const int bytes = bits == 3 ? 24 : 64, parts = SUPER * bits / 8 / bytes;
    const uint8_t *at = m->codes + row * m->row_bytes;
    int64_t left = m->row_bytes;
    int32_t groups = groups_of(m);
    __m512 whole = _mm512_setzero_ps(), other = whole, middle = whole, scale, offset;
    const __m512 half = _mm512_set1_ps((float)half_range(bits));
    for (int32_t super = 0; left > 0; super++) {
        scales_of(m, row, super, groups, &scale, &offset);
        __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(a->scale + super * 16));
        __m512 centre = _mm512_fnmadd_ps(half, scale, offset);
        middle = _mm512_fmadd_ps(centre, _mm512_loadu_ps(a->sum + super * 16), middle);
#pragma GCC unroll 8
        for (int part = 0; part < parts; part++) {
            if (left <= 0) break;
            __mmask64 there = left >= bytes ? ~0ull >> (64 - bytes) : (1ull << left) - 1;
            __m512i w = _mm512_maskz_loadu_epi8(there, at);
            if (part & 1) other = vector_of(a, bits, super, part, w, factor, other);
            else whole = vector_of(a, bits, super, part, w, factor, whole);
            at += bytes, left -= bytes;
        }
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(whole, other), middle));
}

/* Unpack codes of 3 bits; begin is a multiple of 8. */
static inline void unpacked_three(const uint8_t *codes, int32_t count, int8_t *to) {
    for (int32_t k = 0; k < count; k += 64) {
        int32_t left = ((count - k) * 3 + 7) / 8;
        __mmask64 there = left >= 24 ? 0xffffff : (1ull << left) - 1;
        __mmask64 kept = count - k >= 64 ? ~0ull : (1ull << (count - k)) - 1;
        __m512i found = three(_mm512_maskz_loadu_epi8(there, codes + (int64_t)k * 3 / 8));
        _mm512_mask_storeu_epi8(to + k, kept, _mm512_sub_epi8(found, _mm512_set1_epi8(4)));
    }
}
