// Numbers in 16 lanes: read from float32, bfloat16 or float16, written as float32 or bfloat16.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

inline __mmask16 first(int64_t count) { return count >= 16 ? 0xFFFF : (__mmask16)((1u << count) - 1); }

inline __m512 load(const void* at, int64_t kind, int64_t index, __mmask16 mask) {
    if (kind == 0) return _mm512_maskz_loadu_ps(mask, (const float*)at + index);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t*)at + index);
    if (kind == 2) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Rounds to the nearest bfloat16, ties to even, as torch does.
inline void store(void* at, int64_t kind, int64_t index, __mmask16 mask, __m512 value) {
    if (kind == 0) return _mm512_mask_storeu_ps((float*)at + index, mask, value);
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF)), 16);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC0));
    _mm256_mask_storeu_epi16((uint16_t*)at + index, mask, _mm512_cvtepi32_epi16(rounded));
}

}  // namespace
