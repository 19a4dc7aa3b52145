// grad_value without atomics: samples are binned by the cell that they fall into, and every pixel is summed
// by one warp, or one block, in an order that depends on the inputs alone.
#pragma once

#include "common/simt.h"
#include "ms_deform_attn/cuda.h"
#include "ms_deform_attn/cuda_sample.h"

namespace detr_fast {
namespace ms_deform_attn_kernels {

constexpr int kBinThreads = 256;
// A block owns a square of pixels, one a warp: neighbours share half of their samples, which L1 then holds.
constexpr int kTileSide = 4;
constexpr int kGatherWarps = kTileSide * kTileSide;
constexpr int kGatherThreads = kGatherWarps * 32;
constexpr int kGatherBlocks = 2;  // three would spill registers
// Longer lists of samples are spread over the warps of the block.
constexpr int kLongList = 1024;

template <bool kFused, class T>
SIMT_KERNEL(kBinThreads)
void bin_kernel(Shape shape, Rows rows, WideOrNarrow<T> coordinates, WideOrNarrow<T> weights,
                simt::Global<const float> references, simt::Global<int32_t> cells,
                simt::Global<MsDeformAttnSample> samples) {
    const Row row = find_row(shape, rows);
    Softmax softmax{};
    if constexpr (kFused) softmax = row_softmax(shape, rows, row, weights);
    if (!row.exists) return;
    const int first_cell = static_cast<int>(row.image * shape.heads + row.head) * shape.cells;
    for (int i = row.lane, n = 0; i < shape.samples; i += rows.group) {
        while (i >= shape.first_sample[n + 1]) ++n;
        const Sample s = find_sample<kFused>(shape, row, n, i, softmax, coordinates, weights, references);
        const Level level = shape.level[n];
        const int64_t at = row.index * shape.samples + i;
        cells[at] = first_cell + (s.inside ? level.first_cell + (s.top + 1) * (level.width + 1) + s.left + 1
                                           : shape.cells - 1);
        samples[at] = MsDeformAttnSample{s.right, s.lower, s.weight, static_cast<int32_t>(row.query)};
    }
}

// How the pixels are spread over a grid: a block serves a tile of one image and head.
struct Tiles {
    unsigned count;  // of an (image, head)
    int group;       // lanes a row of grad_out
};

inline unsigned tiles_of(const MsDeformAttnShape& shape) {
    int64_t tiles = 0;
    for (int64_t n = 0; n < shape.levels; ++n) {
        const auto along = [&](int64_t side) { return (side + kTileSide - 1) / kTileSide; };
        tiles += along(shape.sizes[2 * n]) * along(shape.sizes[2 * n + 1]);
    }
    return static_cast<unsigned>(tiles);
}

struct Tile {
    int image_head, level, top, left;
};

// Levels come last to first: the coarse ones have the longest lists and had better start early.
SIMT_DEVICE Tile find_tile(const Shape& shape, const Tiles& tiles) {
    int rank = static_cast<int>(simt::block_x() % tiles.count), level = shape.levels - 1;
    for (;; --level) {
        const int across = (shape.level[level].width + kTileSide - 1) / kTileSide;
        const int count = across * ((shape.level[level].height + kTileSide - 1) / kTileSide);
        if (rank < count)
            return {static_cast<int>(simt::block_x() / tiles.count), level, rank / across * kTileSide,
                    rank % across * kTileSide};
        rank -= count;
    }
}

// A pixel of a tile and the samples that touch it: those of the cell row above its centre, then of the row
// below. In a row the left cell comes first.
struct Pixel {
    int index;                     // in the image; negative beyond the level
    int above_first, above_right;  // where the row and its right cell begin in the sorted order
    int below_first, below_right;
    int above, count;
};

SIMT_DEVICE Pixel find_pixel(const Level& level, const Tile& tile, int k, int first_cell,
                             simt::Global<const int32_t> cell_starts) {
    const int x = tile.left + k % kTileSide, y = tile.top + k / kTileSide, columns = level.width + 1;
    if (x >= level.width || y >= level.height) return {-1, 0, 0, 0, 0, 0, 0};
    const int above = first_cell + y * columns + x, below = above + columns;
    Pixel pixel;
    pixel.index = level.start + y * level.width + x;
    pixel.above_first = simt::load(cell_starts, above);
    pixel.above_right = simt::load(cell_starts, above + 1);
    pixel.above = simt::load(cell_starts, above + 2) - pixel.above_first;
    pixel.below_first = simt::load(cell_starts, below);
    pixel.below_right = simt::load(cell_starts, below + 1);
    pixel.count = pixel.above + simt::load(cell_starts, below + 2) - pixel.below_first;
    return pixel;
}

struct SortedSamples {
    simt::Global<const int64_t> order;
    simt::Global<const MsDeformAttnSample> samples;
};

// Sums share * grad_out over every `step`-th batch of 32 samples from batch `first` on. `rows` are
// grad_out's, from the lane's channels on, and `stride` vectors apart; groups of lanes take the rows of a
// batch in turn, and all groups get the sum.
template <int V, class T>
SIMT_DEVICE simt::Vec<float, V> sum_samples(const Pixel& pixel, const SortedSamples& sorted,
                                            simt::Global<const T> rows, unsigned stride, int group, int first,
                                            int step) {
    constexpr int kRowsAhead = V > 4 ? 2 : 4;  // in flight for each group; eight sums leave fewer registers
    const int groups = 32 / group, own = simt::lane() / group;
    simt::Vec<float, V> sum{};
    for (int batch = first * 32; batch < pixel.count; batch += step * 32) {
        const int size = pixel.count - batch < 32 ? pixel.count - batch : 32;
        float share = 0;
        unsigned row = 0;
        if (simt::lane() < size) {
            const int i = batch + simt::lane();
            const bool below = i >= pixel.above;
            const int at = below ? pixel.below_first + (i - pixel.above) : pixel.above_first + i;
            const bool left = at < (below ? pixel.below_right : pixel.above_right);
            const MsDeformAttnSample s = simt::load(sorted.samples, simt::load(sorted.order, at));
            share = s.weight * (below ? 1 - s.lower : s.lower) * (left ? s.right : 1 - s.right);
            row = static_cast<unsigned>(s.query) * stride;
        }
        // Groups without a row load the last one, so that loads need no condition, and do not add it.
        for (int turn = own; turn - own < size; turn += kRowsAhead * groups) {
            float shares[kRowsAhead];
            simt::Vec<T, V> grads[kRowsAhead];
            SIMT_UNROLL
            for (int k = 0; k < kRowsAhead; ++k) {
                const int j = turn + k * groups < size ? turn + k * groups : size - 1;
                shares[k] = simt::shuffle(share, j);
                grads[k] = simt::load_vec<V>(rows, static_cast<int64_t>(simt::shuffle(row, j)) * V);
            }
            SIMT_UNROLL
            for (int k = 0; k < kRowsAhead; ++k) {
                if (turn + k * groups >= size) continue;
                SIMT_UNROLL
                for (int v = 0; v < V; ++v) sum[v] += shares[k] * to_float(grads[k][v]);
            }
        }
    }
    for (int apart = group; apart < 32; apart *= 2) {
        SIMT_UNROLL
        for (int v = 0; v < V; ++v) sum[v] += simt::shuffle_xor(sum[v], apart);
    }
    return sum;
}

template <class T, int V>
SIMT_DEVICE void store_narrow(simt::Global<T> to, int64_t at, const simt::Vec<float, V>& wide) {
    simt::Vec<T, V> narrow;
    SIMT_UNROLL
    for (int v = 0; v < V; ++v) narrow[v] = from_float<T>(wide[v]);
    simt::store_vec(to, at, narrow);
}

// Sums over the warps of the block, for the first of them.
template <int V>
SIMT_DEVICE void add_warps(simt::Vec<float, V>& sum, simt::Shared<float> partial) {
    SIMT_UNROLL
    for (int v = 0; v < V; ++v) partial[v * kGatherThreads + simt::thread()] = sum[v];
    simt::sync_block();
    for (int thread = simt::thread() + 32; simt::warp() == 0 && thread < kGatherThreads; thread += 32) {
        SIMT_UNROLL
        for (int v = 0; v < V; ++v) sum[v] += partial[v * kGatherThreads + thread];
    }
    simt::sync_block();
}

template <class T, int V>
SIMT_KERNEL(kGatherThreads, kGatherBlocks)
void gather_kernel(Shape shape, Tiles tiles, simt::Global<const T> grad_out,
                   simt::Global<const int32_t> cell_starts, SortedSamples sorted,
                   simt::Global<T> grad_value) {
    SIMT_SHARED(float, partial, (kGatherThreads * V));
    const Tile tile = find_tile(shape, tiles);
    const Level level = shape.level[tile.level];
    const int first_cell = tile.image_head * shape.cells + level.first_cell;
    const int64_t stride = static_cast<int64_t>(shape.heads) * shape.channels;
    const unsigned row_stride = static_cast<unsigned>(stride) / V;
    const int64_t image = tile.image_head / shape.heads, head = tile.image_head % shape.heads;
    const int first_channel = (simt::lane() & (tiles.group - 1)) * V;
    grad_out = grad_out + (image * shape.queries * stride + head * shape.channels);
    grad_value = grad_value + (image * shape.pixels * stride + head * shape.channels);

    const Pixel own = find_pixel(level, tile, simt::warp(), first_cell, cell_starts);
    const bool is_long = own.count > kLongList;
    if (own.index >= 0 && !is_long)
        for (int channel = first_channel; channel - first_channel < shape.channels;
             channel += tiles.group * V) {
            const bool active = channel < shape.channels;
            const auto sum =
                sum_samples<V>(own, sorted, grad_out + (active ? channel : 0), row_stride, tiles.group, 0, 1);
            if (active && simt::lane() < tiles.group)
                store_narrow(grad_value, own.index * stride + channel, sum);
        }
    if (!simt::sync_block_or(is_long)) return;
    for (int k = 0; k < kGatherWarps; ++k) {
        const Pixel pixel = find_pixel(level, tile, k, first_cell, cell_starts);
        if (pixel.count <= kLongList) continue;
        for (int channel = first_channel; channel - first_channel < shape.channels;
             channel += tiles.group * V) {
            const bool active = channel < shape.channels;
            auto sum = sum_samples<V>(pixel, sorted, grad_out + (active ? channel : 0), row_stride,
                                      tiles.group, simt::warp(), kGatherWarps);
            add_warps(sum, partial);
            if (active && simt::thread() < tiles.group)
                store_narrow(grad_value, pixel.index * stride + channel, sum);
        }
    }
}

}  // namespace ms_deform_attn_kernels
}  // namespace detr_fast
