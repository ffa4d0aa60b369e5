/* Rows block by block, 32 codes at a time: AVX2 on x86, NEON on Arm. */
#pragma once
#define AT_ONCE 1 /* rows */
#define UNIT_TWO 32
#define UNIT_FOUR 32
#include "activations.h"

#if defined(__AVX2__)
#include <immintrin.h>
typedef __m256 Sums;
static inline Sums no_sums(void) { return _mm256_setzero_ps(); }
static inline float total(Sums s) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Return the codes of a block, from 0 up; those of 8 bits are signed. */
static inline __m256i codes_of(const uint8_t *w, const int bits) {
    if (bits == 8) return _mm256_loadu_si256((const __m256i *)w);
    if (bits == 4) {
        __m128i low = _mm_loadu_si128((const __m128i *)w), high = _mm_srli_epi16(low, 4);
        __m256i both = _mm256_and_si256(_mm256_set_m128i(high, low), _mm256_set1_epi8(15));
        return _mm256_xor_si256(both, _mm256_set1_epi8(8));
    }
    if (bits == 1) { /* each byte of a lane gets the byte that holds its sign */
        int32_t word;
        memcpy(&word, w, 4);
        const __m256i places = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
        __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(word), places);
        __m256i plus = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), _mm256_setzero_si256());
        return _mm256_and_si256(plus, _mm256_set1_epi8(1));
    }
    if (bits == 2) {
        int64_t word;
        memcpy(&word, w, 8);
        __m256i all = _mm256_srlv_epi64(_mm256_set1_epi64x(word), _mm256_setr_epi64x(0, 2, 4, 6));
        return _mm256_xor_si256(_mm256_and_si256(all, _mm256_set1_epi8(3)), _mm256_set1_epi8(2));
    }
    /* Each 32-bit lane gets the two bytes that hold its four codes, then each code its byte. */
    __m128i raw = _mm_loadu_si128((const __m128i *)w);
    const __m256i places = _mm256_setr_epi8(0, 1, -1, -1, 1, 2, -1, -1, 3, 4, -1, -1, 4, 5, -1, -1,
                                            6, 7, -1, -1, 7, 8, -1, -1, 9, 10, -1, -1, 10, 11, -1, -1);
    __m256i v = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(raw), places);
    v = _mm256_srlv_epi32(v, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    __m256i first = _mm256_and_si256(v, _mm256_set1_epi32(7));
    __m256i second = _mm256_and_si256(_mm256_slli_epi32(v, 5), _mm256_set1_epi32(0x700));
    __m256i third = _mm256_and_si256(_mm256_slli_epi32(v, 10), _mm256_set1_epi32(0x70000));
    __m256i fourth = _mm256_and_si256(_mm256_slli_epi32(v, 15), _mm256_set1_epi32(0x7000000));
    __m256i all = _mm256_or_si256(_mm256_or_si256(first, second), _mm256_or_si256(third, fourth));
    return _mm256_xor_si256(all, _mm256_set1_epi8(4));
}

static inline Sums add_block(Sums sofar, const uint8_t *w, const int8_t *x, float factor,
                             const int bits) {
    __m256i codes = codes_of(w, bits), inputs = _mm256_loadu_si256((const __m256i *)x), sum;
    if (bits == 8) {
        __m256i low = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)),
                                        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(inputs)));
        __m256i high = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1)),
                                         _mm256_cvtepi8_epi16(_mm256_extracti128_si256(inputs, 1)));
        sum = _mm256_add_epi32(low, high);
    } else {
        sum = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, inputs), _mm256_set1_epi16(1));
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(factor), sofar);
}
#else
#include <arm_neon.h>
typedef float32x4_t Sums;
static inline Sums no_sums(void) { return vdupq_n_f32(0); }
static inline float total(Sums s) { return vaddvq_f32(s); }

static inline int32x4_t dot(int32x4_t sum, int8x16_t one, int8x16_t other) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, one, other);
#else
    sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(one), vget_low_s8(other)));
    return vpadalq_s16(sum, vmull_high_s8(one, other));
#endif
}

/* Return 16 codes of 3 bits, from 0 up, of six bytes from a place on. */
static inline uint8x16_t three(uint8x16_t raw, int from) {
    static const uint8_t PLACES[16] = {0, 1, 255, 255, 1, 2, 255, 255, 3, 4, 255, 255, 4, 5, 255, 255};
    static const int32_t SHIFTS[4] = {0, -4, 0, -4};
    uint8x16_t places = vld1q_u8(PLACES);
    places = vaddq_u8(places, vandq_u8(vdupq_n_u8((uint8_t)from), vcltq_u8(places, vdupq_n_u8(16))));
    uint32x4_t v = vshlq_u32(vreinterpretq_u32_u8(vqtbl1q_u8(raw, places)), vld1q_s32(SHIFTS));
    uint32x4_t all = vandq_u32(v, vdupq_n_u32(7));
    all = vorrq_u32(all, vandq_u32(vshlq_n_u32(v, 5), vdupq_n_u32(0x700)));
    all = vorrq_u32(all, vandq_u32(vshlq_n_u32(v, 10), vdupq_n_u32(0x70000)));
    all = vorrq_u32(all, vandq_u32(vshlq_n_u32(v, 15), vdupq_n_u32(0x7000000)));
    return veorq_u8(vreinterpretq_u8_u32(all), vdupq_n_u8(4));
}

static inline Sums add_block(Sums sofar, const uint8_t *w, const int8_t *x, float factor,
                             const int bits) {
    int8x16_t low, high;
    if (bits == 8) {
        low = vld1q_s8((const int8_t *)w), high = vld1q_s8((const int8_t *)w + 16);
    } else if (bits == 4) {
        uint8x16_t raw = vld1q_u8(w), half = vdupq_n_u8(8);
        low = vreinterpretq_s8_u8(veorq_u8(vandq_u8(raw, vdupq_n_u8(15)), half));
        high = vreinterpretq_s8_u8(veorq_u8(vshrq_n_u8(raw, 4), half));
    } else if (bits == 1) {
        static const uint8_t BITS[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        uint8x16_t bit = vld1q_u8(BITS), one = vdupq_n_u8(1);
        uint8x16_t first = vcombine_u8(vdup_n_u8(w[0]), vdup_n_u8(w[1]));
        uint8x16_t last = vcombine_u8(vdup_n_u8(w[2]), vdup_n_u8(w[3]));
        low = vreinterpretq_s8_u8(vbicq_u8(one, vtstq_u8(first, bit)));
        high = vreinterpretq_s8_u8(vbicq_u8(one, vtstq_u8(last, bit)));
    } else if (bits == 2) {
        uint8x8_t raw = vld1_u8(w);
        uint8x16_t two_bits = vdupq_n_u8(3), half = vdupq_n_u8(2);
        uint8x16_t first = vcombine_u8(raw, vshr_n_u8(raw, 2));
        uint8x16_t last = vcombine_u8(vshr_n_u8(raw, 4), vshr_n_u8(raw, 6));
        low = vreinterpretq_s8_u8(veorq_u8(vandq_u8(first, two_bits), half));
        high = vreinterpretq_s8_u8(veorq_u8(vandq_u8(last, two_bits), half));
    } else {
        uint8x16_t raw = vld1q_u8(w);
        low = vreinterpretq_s8_u8(three(raw, 0)), high = vreinterpretq_s8_u8(three(raw, 6));
    }
    int32x4_t sum = dot(dot(vdupq_n_s32(0), low, vld1q_s8(x)), high, vld1q_s8(x + 16));
    return vmlaq_n_f32(sofar, vcvtq_f32_s32(sum), factor);
}
#endif

static inline __attribute__((always_inline)) float packed_row(const Matrix *m, int64_t row,
                                                              const Activations *a,
                                                              const int bits) {
    const int each = BLOCK * bits / 8, read = bits == 3 ? 16 : each; /* bytes */
    const uint8_t *codes = m->codes + row * m->row_bytes;
    const int8_t *x = bits == 2 ? a->two : bits == 4 ? a->four : a->codes;
    const float half = bits == 8 ? 0 : (float)half_range(bits);
    const int32_t groups = groups_of(m);
    int64_t left = m->row_bytes;
    float scale = 0, centre = 0, middle = 0;
    Sums sums = no_sums();
    for (int32_t block = 0; left > 0; block++, left -= each) {
        if (!block || (m->group && block * BLOCK % m->group == 0)) {
            int32_t group = block ? block * BLOCK / m->group : 0;
            scale = code_scale(m, row, group, groups);
            centre = scale * code_centre(m, row, group, groups, half);
        }
        uint8_t last[32] = {0};
        const uint8_t *w = codes + (int64_t)block * each;
        if (left < read) w = memcpy(last, w, (size_t)(left < each ? left : each));
        sums = add_block(sums, w, x + block * BLOCK, scale * a->scale[block], bits);
        middle += centre * a->sum[block];
    }
    return (total(sums) + middle) * unit_of(m, row);
}

static inline void packed_rows(const Matrix *m, int64_t row, int count, const Activations *a,
                               const int bits, float *to) {
    for (int r = 0; r < count; r++) to[r] = packed_row(m, row + r, a, bits);
}

static inline void bf16_rows(const uint16_t *w, int32_t columns, const float *x, float *to) {
    to[0] = bf16_row(w, x, columns);
}
