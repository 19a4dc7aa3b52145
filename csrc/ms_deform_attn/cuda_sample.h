// What the GPU kernels of multi-scale deformable attention share: how rows are spread over lanes, where
// samples lie and how much they weigh.
//
// A row is one (image, query, head). A group of lanes, a power of two within a warp, serves it: each lane
// prepares every group-th sample of the row and holds some of the D channels.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>

#include "common/cuda_wide_or_narrow.h"
#include "common/simt.h"
#include "ms_deform_attn/cuda.h"

namespace detr_fast {
namespace ms_deform_attn_kernels {

constexpr int kMaxLevels = 128;  // the table travels with every launch: 2.5 of the 4 KB of its parameters
constexpr int kForwardThreads = 512, kBackwardThreads = 256;  // of a block, at most
constexpr int kTogether = 2;  // samples whose loads are in flight together; divides every group
constexpr int kStrip = 8;     // height of a strip of queries, see strip_order

struct Level {
    int start, height, width;  // start: its first pixel among the S
    int first_cell;            // see MsDeformAttnSample
};

struct Shape {
    int64_t queries, pixels;
    int heads, channels, levels;
    int points;   // P, where all levels have the same; else 0
    int samples;  // of a row
    int stride;   // H * D, from pixel to pixel
    int reference_dims;
    int cells;  // of an (image, head); the last is the one outside
    Level level[kMaxLevels];
    int first_sample[kMaxLevels + 1];  // of each level in a row, then their number
};

// How the rows are spread over a grid: a block serves rows of one image and head.
struct Rows {
    int group, group_bits;  // lanes a row, and their logarithm
    int block;              // rows a block
    unsigned tiles;         // blocks that share an (image, head)
    bool strips;            // queries are the pixels themselves
};

inline Shape kernel_shape(const MsDeformAttnShape& from) {
    constexpr int64_t most = INT32_MAX / 4;  // bytes of a float32 fit an int, too
    if (from.levels > kMaxLevels)
        throw std::invalid_argument("spatial_shapes: expected at most " + std::to_string(kMaxLevels) +
                                    " levels on a GPU; got " + std::to_string(from.levels));
    if (from.heads > most || from.channels > most || from.heads * from.channels > most || from.samples > most)
        throw std::invalid_argument("ms_deform_attn: H * D or the sum of P too large for a GPU");
    Shape shape{};
    shape.queries = from.queries;
    shape.pixels = from.pixels;
    shape.heads = static_cast<int>(from.heads);
    shape.channels = static_cast<int>(from.channels);
    shape.levels = static_cast<int>(from.levels);
    shape.points = from.levels ? static_cast<int>(from.points[0]) : 0;
    shape.samples = static_cast<int>(from.samples);
    shape.stride = shape.heads * shape.channels;
    shape.reference_dims = from.reference_dims;
    int start = 0, sample = 0;
    int64_t cell = 0;
    for (int n = 0; n < shape.levels; ++n) {
        const int height = static_cast<int>(from.sizes[2 * n]);
        const int width = static_cast<int>(from.sizes[2 * n + 1]);
        shape.level[n] = {start, height, width, static_cast<int>(cell)};
        shape.first_sample[n] = sample;
        start += height * width;
        cell += (from.sizes[2 * n] + 1) * (from.sizes[2 * n + 1] + 1);
        sample += static_cast<int>(from.points[n]);
        if (from.points[n] != from.points[0]) shape.points = 0;
    }
    shape.first_sample[shape.levels] = sample;
    shape.cells = static_cast<int>(cell + 1);
    return shape;
}

// The grid of `threads` a block, and how its rows lie.
inline simt::Grid row_grid(const MsDeformAttnShape& shape, int group, int threads, Rows& rows) {
    rows = {group, 0, threads / group, 0, shape.queries == shape.pixels};
    while (1 << rows.group_bits < group) ++rows.group_bits;
    const int64_t tiles = (shape.queries + rows.block - 1) / rows.block;
    const int64_t images_heads = shape.batch * shape.heads;
    if (tiles > INT32_MAX / images_heads)
        throw std::invalid_argument("ms_deform_attn: B * Q * H too large for one launch");
    rows.tiles = static_cast<unsigned>(tiles);
    return simt::Grid(static_cast<unsigned>(tiles * images_heads));
}

struct Row {
    bool exists;
    int lane;   // within the group
    int first;  // lane of the group within the warp
    int head;
    int64_t image, query;
    int64_t token;  // image * Q + query
    int64_t index;  // token * H + head
};

// The `rank`-th query where the queries are the pixels: strips of kStrip pixel rows, column by column, so
// that the rows of a block lie in a square and sample the same pixels.
SIMT_DEVICE int64_t strip_order(const Shape& shape, int64_t rank) {
    int n = 0;
    while (n + 1 < shape.levels && rank >= shape.level[n + 1].start) ++n;
    const unsigned width = shape.level[n].width,
                   in_level = static_cast<unsigned>(rank) - shape.level[n].start;
    const unsigned top = in_level / (kStrip * width) * kStrip, in_strip = in_level - top * width;
    const unsigned left_over = shape.level[n].height - top, height = left_over < kStrip ? left_over : kStrip;
    const unsigned x = in_strip / height;
    return shape.level[n].start + (top + in_strip - x * height) * width + x;
}

SIMT_DEVICE Row find_row(const Shape& shape, const Rows& rows) {
    const unsigned block = simt::block_x(), thread = simt::thread();
    const unsigned tile_image = block / shape.heads;  // heads of a tile run side by side
    const int64_t rank =
        static_cast<int64_t>(tile_image % rows.tiles) * rows.block + (thread >> rows.group_bits);
    Row row;
    row.exists = rank < shape.queries;
    row.lane = simt::lane() & (rows.group - 1);
    row.first = simt::lane() - row.lane;
    row.head = block % shape.heads;
    row.image = tile_image / rows.tiles;
    row.query = row.exists ? (rows.strips ? strip_order(shape, rank) : rank) : 0;
    row.token = row.image * shape.queries + row.query;
    row.index = row.token * shape.heads + row.head;
    return row;
}

// Sum over a group, the same in all its lanes.
SIMT_DEVICE float group_sum(float v, int group) {
    for (int lanes = 1; lanes < group; lanes *= 2) v += simt::shuffle_xor(v, lanes);
    return v;
}

// weight = exp(logit - largest) * scale
struct Softmax {
    float largest, scale;
};

SIMT_DEVICE float softmax_weight(const Softmax& softmax, float logit) {
    return simt::fast_exp(logit - softmax.largest) * softmax.scale;
}

template <class T>
SIMT_DEVICE Softmax row_softmax(const Shape& shape, const Rows& rows, const Row& row,
                                const WideOrNarrow<T>& logits) {
    const int64_t base = row.index * shape.samples;
    float largest = -INFINITY, sum = 0;
    if (row.exists)
        for (int i = row.lane; i < shape.samples; i += rows.group)
            largest = fmaxf(largest, logits.at(base + i));
    for (int lanes = 1; lanes < rows.group; lanes *= 2)
        largest = fmaxf(largest, simt::shuffle_xor(largest, lanes));
    if (row.exists)
        for (int i = row.lane; i < shape.samples; i += rows.group)
            sum += simt::fast_exp(logits.at(base + i) - largest);
    return {largest, 1 / group_sum(sum, rows.group)};
}

// A sample: weight * bilinear interpolation between the pixels (left, top) and (left + 1, top + 1).
struct Sample {
    bool inside;  // of reach of the level; else nothing but `weight` is defined
    int left, top;
    float right, lower;      // shares of the right column and of the lower row
    float weight;            // after softmax, where fused
    float scale_x, scale_y;  // pixels a unit of coordinate
};

// The sample at `x`, `y` in pixels. Far coordinates and NaN never become integers.
SIMT_DEVICE void place(Sample& sample, const Level& level, float x, float y) {
    sample.inside =
        x >= -1 && x < static_cast<float>(level.width) && y >= -1 && y < static_cast<float>(level.height);
    const float left = sample.inside ? floorf(x) : 0, top = sample.inside ? floorf(y) : 0;
    sample.left = static_cast<int>(left);
    sample.top = static_cast<int>(top);
    sample.right = sample.inside ? x - left : 0;
    sample.lower = sample.inside ? y - top : 0;
}

// The level of sample i of a row.
SIMT_DEVICE int level_of(const Shape& shape, int i) {
    if (shape.points) return i / shape.points;
    int n = 0;
    while (i >= shape.first_sample[n + 1]) ++n;
    return n;
}

// The part of a reference box that a unit of offset spans on level n: P of them span half a box.
SIMT_DEVICE float unit_offset(const Shape& shape, int n) {
    const int points = shape.first_sample[n + 1] - shape.first_sample[n];
    return 0.5f / static_cast<float>(shape.points ? shape.points : points);
}

// Sample i, of level n, of a row that exists.
template <bool kFused, class T>
SIMT_DEVICE Sample find_sample(const Shape& shape, const Row& row, int n, int i, const Softmax& softmax,
                               const WideOrNarrow<T>& coordinates, const WideOrNarrow<T>& weights,
                               simt::Global<const float> references) {
    const int64_t at = row.index * shape.samples + i;
    const simt::Vec<float, 2> coordinate = coordinates.template group<2>(at);
    const float width = static_cast<float>(shape.level[n].width);
    const float height = static_cast<float>(shape.level[n].height);
    Sample sample;
    sample.weight = weights.at(at);
    sample.scale_x = width;
    sample.scale_y = height;
    float x0 = 0, y0 = 0;
    if constexpr (kFused) {
        sample.weight = softmax_weight(softmax, sample.weight);
        const int64_t reference = (row.token * shape.levels + n) * shape.reference_dims;
        x0 = simt::load(references, reference) * width;
        y0 = simt::load(references, reference + 1) * height;
        sample.scale_x = sample.scale_y = 1;
        if (shape.reference_dims == 4) {
            const float unit = unit_offset(shape, n);
            sample.scale_x = unit * simt::load(references, reference + 2) * width;
            sample.scale_y = unit * simt::load(references, reference + 3) * height;
        }
    }
    place(sample, shape.level[n], coordinate[0] * sample.scale_x + (x0 - 0.5f),
          coordinate[1] * sample.scale_y + (y0 - 0.5f));
    return sample;
}

// What a lane must know of a sample to read or to change its four pixels: top left, top right, bottom left,
// bottom right. A corner outside the level takes no part, whatever its value and weight.
struct Taps {
    int pixel;        // the first corner's, in the image; may lie outside
    unsigned layout;  // width of the level and, from bit 28 on, which corners exist
    float share[4];

    SIMT_DEVICE bool exists(int corner) const { return (layout & 0x10000000u << corner) != 0; }
    // The corner's channels in an array of S * stride elements.
    template <class T>
    SIMT_DEVICE simt::Global<T> in(simt::Global<T> pixels, int stride, int corner) const {
        auto at = simt::advance(pixels, pixel, stride);
        if (corner & 2) at = simt::advance(at, layout & 0xfffffff, stride);
        return corner & 1 ? at + stride : at;
    }
};

SIMT_DEVICE Taps make_taps(const Sample& sample, const Level& level) {
    if (!sample.inside) return {};
    const bool columns[2] = {sample.left >= 0, sample.left + 1 < level.width};
    const bool lines[2] = {sample.top >= 0, sample.top + 1 < level.height};
    const float across[2] = {1 - sample.right, sample.right};
    const float down[2] = {sample.weight * (1 - sample.lower), sample.weight * sample.lower};
    Taps taps;
    taps.pixel = level.start + sample.top * level.width + sample.left;
    taps.layout = level.width;
    SIMT_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
        const bool exists = columns[corner & 1] && lines[corner >> 1];
        taps.layout |= static_cast<unsigned>(exists) << (28 + corner);
        taps.share[corner] = exists ? down[corner >> 1] * across[corner & 1] : 0;
    }
    return taps;
}

// The taps of sample i, none where it does not exist.
template <bool kFused, class T>
SIMT_DEVICE Taps find_taps(const Shape& shape, const Row& row, int i, const Softmax& softmax,
                           const WideOrNarrow<T>& coordinates, const WideOrNarrow<T>& weights,
                           simt::Global<const float> references) {
    if (!row.exists || i >= shape.samples) return {};
    const int n = level_of(shape, i);
    return make_taps(find_sample<kFused>(shape, row, n, i, softmax, coordinates, weights, references),
                     shape.level[n]);
}

SIMT_DEVICE Taps shuffle_taps(const Taps& from, int lane) {
    return {simt::shuffle(from.pixel, lane),
            simt::shuffle(from.layout, lane),
            {simt::shuffle(from.share[0], lane), simt::shuffle(from.share[1], lane),
             simt::shuffle(from.share[2], lane), simt::shuffle(from.share[3], lane)}};
}

// Without corners for lanes that have no use for them.
SIMT_DEVICE Taps taps_if(bool used, Taps taps) {
    if (!used) taps.layout = 0;
    return taps;
}

// kVec channels of the four corners; zeros for corners that do not exist. `pixels` starts with the channels.
template <int kVec, class T>
SIMT_DEVICE void load_corners(simt::Global<const T> pixels, const Taps& taps, int stride,
                              simt::Vec<T, kVec> (&corners)[4]) {
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c)
        corners[c] = simt::load_vec_if<kVec>(taps.exists(c), taps.in(pixels, stride, c), 0);
}

}  // namespace ms_deform_attn_kernels
}  // namespace detr_fast
