// Integer products of a few to some thousand tokens, for x86-64 with AVX512 VNNI. Compiled by compiled.py.
//
// The formulas are those of int8.py (sw_linear; sw_codes, sw_finish) and linear.py (sw_into_rank, sw_out_of_rank). Every
// sum of products is exact modulo 2^32, and no instruction here saturates it. How the sums are made is in products.h.

#include "products.h"

extern "C" {

struct Layer {  // a linear layer in int8
    const int8_t* weight;       // (out, in)
    const float* weight_scale;  // (out,)
    Floats outlier_weight;      // (outliers, out), with outlier_stride from one outlier to the next
    int64_t outlier_stride;
    Floats bias;  // (out,), or null
    int64_t out;
    void* y;  // (tokens, out)
};

struct Segment {  // the factors of one pack for a group, and the rows that use it
    const uint8_t* B;       // blocks of 16 ranks below each other, each (ceil(in / 4), 16, 4), as sw_widen makes them
    int64_t rank;           // of all modules of the group together
    const float* unsmooth;  // (in,), or null
    const int64_t* rows;    // null: all rows
    int64_t count;
};

struct Part {  // one module's part of a Segment
    int64_t column;           // its first rank
    int64_t rank;             // 0: the pack does not change this module
    const float* B_scale;     // (rank,)
    const uint8_t* A;         // blocks of 16 outputs below each other, each (ceil(rank / 4), 16, 4)
    Floats A_scale;           // (out,), or null for 1
};

int64_t sw_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

// The codes (tokens, stride) of the input x (tokens, in) of layers in int8, with max|x| and the sum of the codes of each
// token, and its outlier channels (tokens, kept_count) as floats. This is the work for token m.
static void take_codes(const void* x, int64_t kind, int64_t m, int64_t in, const float* unsmooth,
                       const int64_t* outliers, int64_t kept_count, int64_t stride, float* values, int8_t* codes,
                       float* top, int32_t* sum, float* kept) {
    for (int64_t i = 0; i < in; i += 16) {
        const __mmask16 mask = first(in - i);
        __m512 value = load(x, kind, m * in + i, mask);
        if (unsmooth) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, unsmooth + i));
        _mm512_mask_storeu_ps(values + i, mask, value);
    }
    for (int64_t j = 0; j < kept_count; j++) {
        kept[m * kept_count + j] = _mm512_cvtss_f32(load(x, kind, m * in + outliers[j], 1));
        values[outliers[j]] = 0.0f;
    }
    top[m] = largest(values, in);
    int8_t* own = codes + m * stride;
    // The codes are written sixteen at a time: the last ones by way of a buffer, unless the row has room for them.
    const int64_t whole = stride >= padded(in) ? stride : in / 16 * 16;
    int32_t total = round_to_codes(values, std::min(in, whole), whole, top[m], own);
    if (whole < in) {
        int8_t last[16];
        total += round_to_codes(values + whole, in - whole, 16, top[m], last);
        std::memcpy(own + whole, last, in - whole);
    }
    sum[m] = total;
}

// The weights (outliers, 16) of the outlier channels for 16 channels from n on, as floats.
static inline void read_outliers(const Layer& layer, int64_t n, int64_t kept_count, float* weights) {
    const __mmask16 mask = first(layer.out - n);
    const Floats& held = layer.outlier_weight;
    for (int64_t j = 0; j < kept_count; j++)
        _mm512_storeu_ps(weights + 16 * j, load(held.at, held.kind, j * layer.outlier_stride + n, mask));
}

// The outputs of `count` tokens (at most 4) from token m on in 16 channels from n on, given the exact sums, and the
// weights of the outlier channels as read_outliers gives them.
static inline void finish(const Layer& layer, int64_t kind, int64_t m, int count, int64_t n, const __m512i* acc,
                          const float* top, const float* kept, int64_t kept_count, const float* weights) {
    const __mmask16 mask = first(layer.out - n);
    const __m512 scale = _mm512_maskz_loadu_ps(mask, layer.weight_scale + n);
    __m512 y[4];
    for (int i = 0; i < count; i++)
        y[i] = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[i]), scale), _mm512_set1_ps(top[m + i]));
    const float* own = kept + m * kept_count;
    if (count == 4) {
        for (int64_t j = 0; j < kept_count; j++) {
            const __m512 weight = _mm512_loadu_ps(weights + 16 * j);
            for (int i = 0; i < 4; i++) y[i] = _mm512_fmadd_ps(_mm512_set1_ps(own[i * kept_count + j]), weight, y[i]);
        }
    } else {
        for (int64_t j = 0; j < kept_count; j++) {
            const __m512 weight = _mm512_loadu_ps(weights + 16 * j);
            for (int i = 0; i < count; i++)
                y[i] = _mm512_fmadd_ps(_mm512_set1_ps(own[i * kept_count + j]), weight, y[i]);
        }
    }
    if (layer.bias.at) {
        const __m512 bias = load(layer.bias.at, layer.bias.kind, n, mask);
        for (int i = 0; i < count; i++) y[i] = _mm512_add_ps(y[i], bias);
    }
    for (int i = 0; i < count; i++) store(layer.y, kind, (m + i) * layer.out + n, mask, y[i]);
}

// Int8Linear's output of layers that share the input x (tokens, in) and its outlier channels.
void sw_linear(const void* x, int64_t kind, int64_t tokens, int64_t in, const float* unsmooth, const int64_t* outliers,
               int64_t kept_count, const Layer* layers, int64_t layer_count) {
    const int64_t width = padded(in);
    int64_t out = 0, blocks = 0;
    for (int64_t l = 0; l < layer_count; l++) out += layers[l].out, blocks += (layers[l].out + 15) / 16;
    std::vector<int8_t> codes(tokens * width);
    std::vector<int32_t> sum(tokens);
    std::vector<float> top(tokens), kept(tokens * kept_count);
#pragma omp parallel if (tokens * in * out > PARALLEL_FROM)
    {
        std::vector<float> values(in), weights(16 * kept_count);
#pragma omp for
        for (int64_t m = 0; m < tokens; m++)
            take_codes(x, kind, m, in, unsmooth, outliers, kept_count, width, values.data(), codes.data(), top.data(),
                       sum.data(), kept.data());
#pragma omp for nowait
        for (int64_t block = 0; block < blocks; block++) {
            int64_t l = 0, within = block;
            while (within >= (layers[l].out + 15) / 16) within -= (layers[l++].out + 15) / 16;
            const Layer& layer = layers[l];
            const int64_t n = 16 * within;
            read_outliers(layer, n, kept_count, weights.data());
            for (int64_t m = 0; m < tokens;) {
                __m512i acc[4];
                const int count = sixteen(codes.data() + m * width, width, tokens - m, layer.weight + n * in, in,
                                          layer.out - n, in, acc);
                for (int i = 0; i < count; i++)
                    acc[i] = _mm512_sub_epi32(acc[i], _mm512_set1_epi32((int32_t)(128u * (uint32_t)sum[m + i])));
                finish(layer, kind, m, count, n, acc, top.data(), kept.data(), kept_count, weights.data());
                m += count;
            }
        }
    }
}

// The first part of sw_linear, for products that are computed elsewhere: codes (tokens, in), top and kept.
void sw_codes(const void* x, int64_t kind, int64_t tokens, int64_t in, const float* unsmooth, const int64_t* outliers,
              int64_t kept_count, int8_t* codes, float* top, float* kept) {
    std::vector<int32_t> sum(tokens);
#pragma omp parallel if (tokens * in > PARALLEL_FROM)
    {
        std::vector<float> values(in);
#pragma omp for
        for (int64_t m = 0; m < tokens; m++)
            take_codes(x, kind, m, in, unsmooth, outliers, kept_count, in, values.data(), codes, top, sum.data(), kept);
    }
}

// The last part of sw_linear: the layers' outputs from the exact sums (tokens, sum_stride), side by side in their order.
void sw_finish(const int32_t* sums, int64_t sum_stride, int64_t kind, int64_t tokens, const float* top,
               const float* kept, int64_t kept_count, const Layer* layers, int64_t layer_count) {
    // A stripe of channels goes through all tokens, so that the weights of its outliers are read once.
    constexpr int64_t STRIPE = 64;
    int64_t stripes = 0;
    for (int64_t l = 0; l < layer_count; l++) stripes += (layers[l].out + STRIPE - 1) / STRIPE;
#pragma omp parallel if (tokens * sum_stride > PARALLEL_FROM)
    {
        std::vector<float> weights(STRIPE * kept_count);
#pragma omp for
        for (int64_t stripe = 0; stripe < stripes; stripe++) {
            int64_t l = 0, begin = STRIPE * stripe, column = 0;
            while (begin >= layers[l].out) {
                begin -= (layers[l].out + STRIPE - 1) / STRIPE * STRIPE;
                column += layers[l++].out;
            }
            const Layer& layer = layers[l];
            const int64_t end = std::min(begin + STRIPE, layer.out);
            for (int64_t n = begin; n < end; n += 16)
                read_outliers(layer, n, kept_count, weights.data() + (n - begin) * kept_count);
            for (int64_t m = 0; m < tokens; m += 4) {
                const int count = (int)std::min<int64_t>(4, tokens - m);
                for (int64_t n = begin; n < end; n += 16) {
                    __m512i acc[4];
                    for (int i = 0; i < count; i++)
                        acc[i] = _mm512_maskz_loadu_epi32(first(layer.out - n), sums + (m + i) * sum_stride + column + n);
                    finish(layer, kind, m, count, n, acc, top, kept, kept_count,
                           weights.data() + (n - begin) * kept_count);
                }
            }
        }
    }
}

// Up to four tokens of one segment, which are computed together.
struct Tile {
    int64_t segment;
    int64_t begin, count;         // of the tokens of the segment
    int64_t h_at, token_at;       // where h of the segment begins, and top
};

static int64_t tokens_of(const Segment& segment, int64_t rows, int64_t per_row) {
    return (segment.rows ? segment.count : rows) * per_row;
}

static std::vector<Tile> tiles_of(const Segment* segments, int64_t segment_count, int64_t rows, int64_t per_row) {
    std::vector<Tile> tiles;
    int64_t h_at = 0, token_at = 0;
    for (int64_t s = 0; s < segment_count; s++) {
        const int64_t tokens = tokens_of(segments[s], rows, per_row);
        for (int64_t begin = 0; begin < tokens; begin += 4)
            tiles.push_back({s, begin, std::min<int64_t>(4, tokens - begin), h_at, token_at});
        h_at += tokens * segments[s].rank, token_at += tokens;
    }
    return tiles;
}

// The place of a token of a segment in a tensor (rows, per_row, ...).
static int64_t place(const Segment& segment, int64_t token, int64_t per_row) {
    const int64_t row = token / per_row;
    return (segment.rows ? segment.rows[row] : row) * per_row + token % per_row;
}

// h and top of the tokens of each segment, one segment after the other; a token has as many h as its segment has ranks.
void sw_into_rank(const void* x, int64_t kind, int64_t rows, int64_t per_row, int64_t in, const Segment* segments,
                  int64_t segment_count, int32_t* h, float* top) {
    const int64_t width = padded(in), fours = (in + 3) / 4;
    const std::vector<Tile> tiles = tiles_of(segments, segment_count, rows, per_row);
    int64_t work = 0;
    for (const Tile& tile : tiles) work += tile.count * in * segments[tile.segment].rank;
#pragma omp parallel if (work > PARALLEL_FROM)
    {
        std::vector<float> values(in);
        std::vector<int8_t> codes(4 * width);
#pragma omp for
        for (size_t at = 0; at < tiles.size(); at++) {
            const Tile& tile = tiles[at];
            const Segment& segment = segments[tile.segment];
            int32_t sum[4];
            for (int64_t i = 0; i < tile.count; i++) {
                const int64_t from = place(segment, tile.begin + i, per_row) * in;
                for (int64_t k = 0; k < in; k += 16) {
                    const __mmask16 mask = first(in - k);
                    __m512 value = load(x, kind, from + k, mask);
                    if (segment.unsmooth) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, segment.unsmooth + k));
                    _mm512_mask_storeu_ps(values.data() + k, mask, value);
                }
                const float own = largest(values.data(), in);
                top[tile.token_at + tile.begin + i] = own;
                sum[i] = round_to_codes(values.data(), in, width, own, codes.data() + i * width);
            }
            for (int64_t n = 0; n < segment.rank; n += 16) {
                const __mmask16 mask = first(segment.rank - n);
                const int64_t ranks = std::min<int64_t>(16, segment.rank - n);
                __m512i acc[4];
                lanes_of(tile.count, codes.data(), width, sum, segment.B + n * 4 * fours, 4 * ranks, mask, fours, acc);
                for (int64_t i = 0; i < tile.count; i++)
                    _mm512_mask_storeu_epi32(h + tile.h_at + (tile.begin + i) * segment.rank + n, mask, acc[i]);
            }
        }
    }
}

// Adds what the packs change to the output y (rows, per_row, out) of one module, given what sw_into_rank made.
void sw_out_of_rank(void* y, int64_t kind, int64_t rows, int64_t per_row, int64_t out, const Segment* segments,
                    const Part* parts, int64_t segment_count, const int32_t* h, const float* top) {
    const std::vector<Tile> tiles = tiles_of(segments, segment_count, rows, per_row);
    int64_t work = 0, widest = 0;
    for (const Tile& tile : tiles) work += tile.count * out * (parts[tile.segment].rank + 8);
    for (int64_t s = 0; s < segment_count; s++) widest = std::max(widest, padded(parts[s].rank));
#pragma omp parallel if (work > PARALLEL_FROM)
    {
        std::vector<float> values(widest);
        std::vector<int8_t> codes(4 * widest);
#pragma omp for
        for (size_t at = 0; at < tiles.size(); at++) {
            const Tile& tile = tiles[at];
            const Segment& segment = segments[tile.segment];
            const Part& part = parts[tile.segment];
            if (part.rank == 0) continue;
            int64_t to[4];
            int32_t sum[4];
            __m512 scale[4];
            for (int64_t i = 0; i < tile.count; i++) {
                const int32_t* own = h + tile.h_at + (tile.begin + i) * segment.rank + part.column;
                for (int64_t r = 0; r < part.rank; r++) values[r] = (float)own[r] * part.B_scale[r];
                const float second = largest(values.data(), part.rank);
                sum[i] = round_to_codes(values.data(), part.rank, padded(part.rank), second, codes.data() + i * widest);
                scale[i] = _mm512_set1_ps(top[tile.token_at + tile.begin + i] * second / (LARGEST * LARGEST));
                to[i] = place(segment, tile.begin + i, per_row) * out;
            }
            const int64_t fours = (part.rank + 3) / 4;
            for (int64_t n = 0; n < out; n += 16) {
                const __mmask16 mask = first(out - n);
                const int64_t outputs = std::min<int64_t>(16, out - n);
                __m512i acc[4];
                lanes_of(tile.count, codes.data(), widest, sum, part.A + n * 4 * fours, 4 * outputs, mask, fours, acc);
                for (int64_t i = 0; i < tile.count; i++) {
                    __m512 change = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i]), scale[i]);
                    if (part.A_scale.at)
                        change = _mm512_mul_ps(change, load(part.A_scale.at, part.A_scale.kind, n, mask));
                    store(y, kind, to[i] + n, mask, _mm512_add_ps(load(y, kind, to[i] + n, mask), change));
                }
            }
        }
    }
}

// Codes (rows, n) of `bits` bits as they are stored, 8 or 4 (two in a byte), and where they go: into blocks of 16 rows, each
// (fours, 16, 4), each code + 128. There they have the rows from `row` on of `all`, and the groups of four codes from
// `four` on of `fours`. The last block has the rows that are left.
struct Block {
    int64_t stored, bits, rows, n, row, all, four, fours;
    int64_t made;  // where the first block begins
};

// Four codes, given as they are stored, each + 128.
static inline uint32_t four_stored(const uint8_t* stored, int64_t bits) {
    uint32_t four = 0;
    std::memcpy(&four, stored, bits / 2);
    if (bits == 8) return four ^ 0x80808080u;
    four = (four | four << 8) & 0x00FF00FFu;
    four = (four | four << 4) & 0x0F0F0F0Fu;
    return (four ^ 0x08080808u) + 0x78787878u;  // no byte carries into the next
}

// Widens the codes of one block, whose `bits` are a constant where this is called.
__attribute__((always_inline)) static inline void widen(const uint8_t* stored, const Block& block, int64_t bits,
                                                        uint8_t* made) {
    const int64_t whole = block.n / 4, left = block.n % 4, width = (block.n * bits + 7) / 8, end = block.row + block.rows;
    const uint32_t mask = (1u << 8 * left) - 1;
    const uint8_t* from = stored + block.stored;
    for (int64_t begin = block.row; begin < end;) {
        const int64_t first = begin / 16 * 16, step = 4 * std::min<int64_t>(16, block.all - first);
        const int64_t rows = std::min(first + 16, end) - begin;
        uint8_t* to = made + block.made + first * 4 * block.fours + block.four * step + 4 * (begin - first);
        for (int64_t k = 0; k < whole; k++, to += step)
            for (int64_t r = 0; r < rows; r++) {
                const uint32_t four = four_stored(from + r * width + k * bits / 2, bits);
                std::memcpy(to + 4 * r, &four, 4);
            }
        for (int64_t r = 0; left && r < rows; r++) {  // a code that is not there counts as 0, which is 128 here
            uint8_t last[4] = {};
            std::memcpy(last, from + r * width + whole * bits / 2, width - whole * bits / 2);
            const uint32_t four = (four_stored(last, bits) & mask) | (0x80808080u & ~mask);
            std::memcpy(to + 4 * r, &four, 4);
        }
        from += rows * width;
        begin += rows;
    }
}

// Widens the codes of all blocks of a pack.
void sw_widen(const uint8_t* stored, const Block* blocks, int64_t count, uint8_t* made) {
    int64_t work = 0;
    for (int64_t at = 0; at < count; at++) work += blocks[at].rows * blocks[at].n;
#pragma omp parallel for schedule(dynamic, 4) if (work > PARALLEL_FROM)
    for (int64_t at = 0; at < count; at++) {
        if (blocks[at].bits == 8)
            widen(stored, blocks[at], 8, made);
        else
            widen(stored, blocks[at], 4, made);
    }
}

}  // extern "C"
