// What the functions of kernels.cpp are made of: numbers in 16 lanes, codes of a token, and exact sums of products.
//
// The instruction vpdpbusd multiplies unsigned with signed bytes. A signed weight w is therefore read as w + 128 (one
// flipped bit), and 128 times the sum of the token's codes is taken away from the sum of products.

#pragma once

#include "lanes.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr float LARGEST = 127.0f;
constexpr float SMALLEST = 1e-30f;
constexpr int64_t PARALLEL_FROM = 1 << 17;  // multiplications; below, waking the other threads costs more

struct Floats {  // an array of float32 (kind 0), bfloat16 (1) or float16 (2)
    const void* at;
    int64_t kind;
};

// The largest absolute value of n floats, at least SMALLEST; NaN if one of them is NaN. Without their sign, floats are
// ordered as their bits are, with NaN above infinity.
inline float largest(const float* values, int64_t n) {
    const __m512i sign = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i top = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += 16) {
        const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(first(n - i), values + i));
        top = _mm512_max_epi32(top, _mm512_and_si512(bits, sign));
    }
    const int32_t bits = _mm512_reduce_max_epi32(top);
    float value;
    std::memcpy(&value, &bits, 4);
    return value < SMALLEST ? SMALLEST : value;
}

// Codes of n floats by their largest value, zeros up to `width`; returns the sum of the codes.
inline int32_t round_to_codes(const float* values, int64_t n, int64_t width, float top, int8_t* codes) {
    const __m512 scale = _mm512_set1_ps(LARGEST / top);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 value = i < n ? _mm512_maskz_loadu_ps(first(n - i), values + i) : _mm512_setzero_ps();
        const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(value, scale));
        _mm_storeu_si128((__m128i*)(codes + i), _mm512_cvtsepi32_epi8(code));
        sum = _mm512_add_epi32(sum, code);
    }
    return _mm512_reduce_add_epi32(sum);
}

// Lane i of the result is the sum over the lanes of acc[i].
inline __m512i sums(const __m512i* acc) {
    __m512i four[4];
    for (int i = 0; i < 4; i++) {
        const __m512i* a = acc + 4 * i;
        const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
        const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
        four[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    const __m512i one = _mm512_add_epi32(_mm512_shuffle_i32x4(four[0], four[1], 0x88),
                                         _mm512_shuffle_i32x4(four[0], four[1], 0xDD));
    const __m512i two = _mm512_add_epi32(_mm512_shuffle_i32x4(four[2], four[3], 0x88),
                                         _mm512_shuffle_i32x4(four[2], four[3], 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(one, two, 0x88), _mm512_shuffle_i32x4(one, two, 0xDD));
}

// Lane m * NR + n: the product of the codes of token m with (weight row n) + 128. Rows from `rows` on repeat the last.
template <int MR, int NR>
inline __m512i products(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw, int64_t rows, int64_t K) {
    static_assert(MR * NR == 16, "one vector of sums");
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    const int8_t* row[NR];
    for (int n = 0; n < NR; n++) row[n] = w + std::min<int64_t>(n, rows - 1) * ldw;
    __m512i acc[16];
    for (int i = 0; i < 16; i++) acc[i] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 64 <= K; k += 64) {
        __m512i token[MR];
        for (int m = 0; m < MR; m++) token[m] = _mm512_loadu_si512(x + m * ldx + k);
#pragma GCC unroll 16
        for (int n = 0; n < NR; n++) {
            if (MR == 1) _mm_prefetch((const char*)(row[n] + k + 16 * ldw), _MM_HINT_T0);
            const __m512i weight = _mm512_xor_si512(_mm512_loadu_si512(row[n] + k), flip);
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) acc[m * NR + n] = _mm512_dpbusd_epi32(acc[m * NR + n], weight, token[m]);
        }
    }
    if (k < K) {
        const __mmask64 mask = ~0ull >> (64 - (K - k));
        __m512i token[MR];
        for (int m = 0; m < MR; m++) token[m] = _mm512_loadu_si512(x + m * ldx + k);  // the codes end in zeros
#pragma GCC unroll 16
        for (int n = 0; n < NR; n++) {
            const __m512i weight = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row[n] + k), flip);
#pragma GCC unroll 4
            for (int m = 0; m < MR; m++) acc[m * NR + n] = _mm512_dpbusd_epi32(acc[m * NR + n], weight, token[m]);
        }
    }
    return sums(acc);
}

// out[m]: the products of token m with 16 weight rows, each + 128. Returns the number of tokens, at most `tokens`.
inline int sixteen(const int8_t* x, int64_t ldx, int64_t tokens, const int8_t* w, int64_t ldw, int64_t rows, int64_t K,
                   __m512i* out) {
    if (tokens >= 4) {
        __m512i part[4];
        for (int j = 0; j < 4; j++) {  // rows past the end are computed again from the last one, and never stored
            const int64_t at = std::min<int64_t>(4 * j, rows - 1);
            part[j] = products<4, 4>(x, ldx, w + at * ldw, ldw, std::max<int64_t>(rows - at, 1), K);
        }
        const __m512i a = _mm512_shuffle_i32x4(part[0], part[1], 0x44), b = _mm512_shuffle_i32x4(part[2], part[3], 0x44);
        const __m512i c = _mm512_shuffle_i32x4(part[0], part[1], 0xEE), d = _mm512_shuffle_i32x4(part[2], part[3], 0xEE);
        out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
        out[1] = _mm512_shuffle_i32x4(a, b, 0xDD);
        out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
        out[3] = _mm512_shuffle_i32x4(c, d, 0xDD);
        return 4;
    }
    if (tokens >= 2) {
        const int64_t at = std::min<int64_t>(8, rows - 1);
        const __m512i a = products<2, 8>(x, ldx, w, ldw, rows, K);
        const __m512i b = products<2, 8>(x, ldx, w + at * ldw, ldw, std::max<int64_t>(rows - at, 1), K);
        out[0] = _mm512_shuffle_i32x4(a, b, 0x44);
        out[1] = _mm512_shuffle_i32x4(a, b, 0xEE);
        return 2;
    }
    out[0] = products<1, 16>(x, ldx, w, ldw, rows, K);
    return 1;
}

// Four codes of a token, in every lane.
inline __m512i four_codes(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

// acc[i], lane n: the product of the codes of token i with (code n of each of the `fours` groups of four) + 128.
template <int MR>
inline void lanes(const int8_t* codes, int64_t stride, const uint8_t* weight, int64_t step, __mmask16 mask,
                  int64_t fours, __m512i* acc) {
    __m512i even[MR], odd[MR];  // two sums for each token, so that one does not wait for the other
    for (int i = 0; i < MR; i++) even[i] = odd[i] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 2 <= fours; k += 2) {
        const __m512i one = _mm512_maskz_loadu_epi32(mask, weight + k * step);
        const __m512i two = _mm512_maskz_loadu_epi32(mask, weight + (k + 1) * step);
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++) {
            even[i] = _mm512_dpbusd_epi32(even[i], one, four_codes(codes + i * stride + 4 * k));
            odd[i] = _mm512_dpbusd_epi32(odd[i], two, four_codes(codes + i * stride + 4 * k + 4));
        }
    }
    if (k < fours) {
        const __m512i one = _mm512_maskz_loadu_epi32(mask, weight + k * step);
        for (int i = 0; i < MR; i++) even[i] = _mm512_dpbusd_epi32(even[i], one, four_codes(codes + i * stride + 4 * k));
    }
    for (int i = 0; i < MR; i++) acc[i] = _mm512_add_epi32(even[i], odd[i]);
}

// The same for `count` tokens, 1 to 4, without the 128: `sum` has the sum of the codes of each token.
__attribute__((always_inline)) inline void lanes_of(int64_t count, const int8_t* codes, int64_t stride, const int32_t* sum,
                            const uint8_t* weight, int64_t step, __mmask16 mask, int64_t fours, __m512i* acc) {
    switch (count) {
        case 1: lanes<1>(codes, stride, weight, step, mask, fours, acc); break;
        case 2: lanes<2>(codes, stride, weight, step, mask, fours, acc); break;
        case 3: lanes<3>(codes, stride, weight, step, mask, fours, acc); break;
        default: lanes<4>(codes, stride, weight, step, mask, fours, acc);
    }
    for (int64_t i = 0; i < count; i++)
        acc[i] = _mm512_sub_epi32(acc[i], _mm512_set1_epi32((int32_t)(128u * (uint32_t)sum[i])));
}

inline int64_t padded(int64_t n) { return (n + 63) / 64 * 64; }

}  // namespace
