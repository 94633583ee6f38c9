// Attention of a step that only decodes, over the pages of a cache, for x86-64 with AVX512. Compiled by
// compiled_attention.py; the formula is that of decoded_with_torch in paged_attention.py. All sums are in float32.

#include "../weave/lanes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t PARALLEL_FROM = 1 << 15;  // multiplications; below, waking the other threads costs more
constexpr int64_t MOST_HEADS = 8;           // queries that share keys are computed so many at a time

// exp(x) for x <= 0: 2^n with a polynomial of degree 6 for the rest, right to about 2 units in the last place; 0 below -87.
inline __m512 exponential(__m512 x) {
    const __m512 low = _mm512_set1_ps(-87.0f);
    const __mmask16 small = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 720);
    for (float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(factor));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), small, _mm512_setzero_ps());
}

// Weights of a softmax over n scores, in place; returns their sum. NaN stays NaN.
float softmax_weights(float* scores, int64_t n) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < n; i += 16)
        top = _mm512_max_ps(top, _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), first(n - i), scores + i));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = first(n - i);
        const __m512 weight = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), largest));
        sum = _mm512_mask_add_ps(sum, mask, sum, weight);
        _mm512_mask_storeu_ps(scores + i, mask, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

}  // namespace

extern "C" {

struct Sequences {  // one query each, and the pages of their keys and values
    int64_t count, heads, key_heads, size;  // of a head
    int64_t kind, cache_kind;               // of queries and the output; of old and new keys and values
    int64_t page;                           // tokens of a page
    int64_t table_stride;                   // from one sequence to the next
    float scaling;
    const int32_t* ends;   // (count + 1,): where the keys of each sequence end, if all stood in one row
    const int32_t* table;  // (count, pages): which pages of the cache a sequence has
};

struct Row {  // a tensor (heads, count, size), whose last axis is contiguous
    void* at;
    int64_t head, token;  // from one to the next
};

int64_t sw_attention_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Puts the new key and value of each sequence at its end in the caches (pages, page, key_heads, size), and writes what
// its query sees to `out` (count, heads, size).
void sw_decode(const Sequences* all, const Row* query, const Row* key, const Row* value, void* keys, void* values,
               void* out) {
    const int64_t size = all->size, group = all->heads / all->key_heads, token_stride = all->key_heads * size;
    const int64_t total = all->ends[all->count] - all->ends[0];
#pragma omp parallel if (total * all->heads * size > PARALLEL_FROM)
    {
        std::vector<float> q(MOST_HEADS * (size + 15)), scores, made(MOST_HEADS * (size + 15));
        const int64_t wide = (size + 15) / 16 * 16;
#pragma omp for schedule(dynamic, 1)
        for (int64_t job = 0; job < all->count * all->key_heads; job++) {
            const int64_t b = job / all->key_heads, own = job % all->key_heads;
            const int64_t length = all->ends[b + 1] - all->ends[b];
            const int32_t* table = all->table + b * all->table_stride;
            const auto place = [&](int64_t t) {
                return ((int64_t)table[t / all->page] * all->page + t % all->page) * token_stride + own * size;
            };
            for (int64_t i = 0; length && i < size; i += 16) {
                const __mmask16 mask = first(size - i);
                const int64_t to = place(length - 1) + i;
                store(keys, all->cache_kind, to, mask, load(key->at, all->cache_kind, own * key->head + b * key->token + i, mask));
                store(values, all->cache_kind, to, mask,
                      load(value->at, all->cache_kind, own * value->head + b * value->token + i, mask));
            }
            scores.resize(MOST_HEADS * length);
            for (int64_t begin = 0; begin < group; begin += MOST_HEADS) {
                const int64_t heads = std::min(MOST_HEADS, group - begin), at = own * group + begin;
                for (int64_t h = 0; h < heads; h++)
                    for (int64_t i = 0; i < size; i += 16) {
                        const int64_t from = (at + h) * query->head + b * query->token + i;
                        const __m512 one = load(query->at, all->kind, from, first(size - i));
                        _mm512_storeu_ps(q.data() + h * wide + i, _mm512_mul_ps(one, _mm512_set1_ps(all->scaling)));
                    }
                for (int64_t t = 0; t < length; t++) {
                    const int64_t from = place(t);
                    __m512 sum[MOST_HEADS];
                    for (int64_t h = 0; h < heads; h++) sum[h] = _mm512_setzero_ps();
                    for (int64_t i = 0; i < size; i += 16) {
                        const __m512 one = load(keys, all->cache_kind, from + i, first(size - i));
                        for (int64_t h = 0; h < heads; h++)
                            sum[h] = _mm512_fmadd_ps(one, _mm512_loadu_ps(q.data() + h * wide + i), sum[h]);
                    }
                    for (int64_t h = 0; h < heads; h++) scores[h * length + t] = _mm512_reduce_add_ps(sum[h]);
                }
                float sums[MOST_HEADS];
                for (int64_t h = 0; h < heads; h++) sums[h] = softmax_weights(scores.data() + h * length, length);
                std::fill(made.begin(), made.end(), 0.0f);
                for (int64_t t = 0; t < length; t++) {
                    const int64_t from = place(t);
                    for (int64_t i = 0; i < size; i += 16) {
                        const __m512 one = load(values, all->cache_kind, from + i, first(size - i));
                        for (int64_t h = 0; h < heads; h++) {
                            float* to = made.data() + h * wide + i;
                            const __m512 weight = _mm512_set1_ps(scores[h * length + t]);
                            _mm512_storeu_ps(to, _mm512_fmadd_ps(weight, one, _mm512_loadu_ps(to)));
                        }
                    }
                }
                for (int64_t h = 0; h < heads; h++)
                    for (int64_t i = 0; i < size; i += 16) {
                        const __m512 mean = length ? _mm512_div_ps(_mm512_loadu_ps(made.data() + h * wide + i),
                                                                   _mm512_set1_ps(sums[h]))
                                                   : _mm512_setzero_ps();
                        store(out, all->kind, (b * all->heads + at + h) * size + i, first(size - i), mean);
                    }
            }
        }
    }
}

}  // extern "C"
