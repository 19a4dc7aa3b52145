// A thread keeps a point of a row: where it lies is worked out once, then it goes from channel to channel.
// The four pixels of a sample are loaded together.
#include <cmath>

#include "common/simt.h"
#include "point_sample/cuda.h"

namespace detr_fast {
namespace {

constexpr int kThreads = 256;

struct Rows {
    int64_t maps, channels, height, width, sets, rows, points_of_set;
    simt::Global<const float> points;
    simt::Global<const int64_t> map_index, point_index;
    bool has_map_index, has_point_index;
};

// Pixels of a map by strides.
struct Layout {
    int64_t map, channel, row, column;
};

struct Point {
    int64_t row, point, map, set;
    bool known;          // whether the row's map and set exist
    int64_t pixel;       // the upper left one's place in its plane
    float right, lower;  // weights of the right column and of the lower row
    bool inside[2][2];   // which of the four pixels are in the map, by row and column
};

SIMT_DEVICE Point locate(const Rows& at, const Layout& layout, int64_t block) {
    Point p;
    const int64_t blocks = (at.points_of_set + kThreads - 1) / kThreads;
    p.row = block / blocks;
    p.point = block % blocks * kThreads + simt::thread();
    p.map = at.has_map_index ? simt::load(at.map_index, p.row) : p.row;
    p.set = at.has_point_index ? simt::load(at.point_index, p.row) : p.row;
    p.known = p.map >= 0 && p.map < at.maps && p.set >= 0 && p.set < at.sets;
    float x = -2, y = -2;
    const float width = static_cast<float>(at.width), height = static_cast<float>(at.height);
    if (p.known && p.point < at.points_of_set) {
        const auto xy = simt::load_vec<2>(at.points, 2 * (p.set * at.points_of_set + p.point));
        x = xy[0] * width - 0.5f;
        y = xy[1] * height - 0.5f;
    }
    const bool near = x >= -1 && x < width && y >= -1 && y < height;  // false for NaN
    if (!near) x = y = 0;
    const float left = floorf(x), top = floorf(y);
    p.right = x - left;
    p.lower = y - top;
    SIMT_UNROLL
    for (int i = 0; i < 2; ++i) SIMT_UNROLL
    for (int j = 0; j < 2; ++j)
        p.inside[i][j] = near && top + i >= 0 && top + i < height && left + j >= 0 && left + j < width;
    p.pixel = static_cast<int64_t>(top) * layout.row + static_cast<int64_t>(left) * layout.column;
    return p;
}

template <class T, class Out>
SIMT_KERNEL(kThreads)
void point_sample_kernel(const Rows at, const Layout layout, int64_t blocks, simt::Global<const T> maps,
                         simt::Global<Out> out) {
    for (int64_t block = simt::block_x(); block < blocks; block += simt::grid_x()) {
        const Point p = locate(at, layout, block);
        if (p.point >= at.points_of_set) continue;
        for (int64_t c = 0; c < at.channels; ++c) {
            const int64_t first = p.map * layout.map + c * layout.channel + p.pixel;
            float v[2][2];
            SIMT_UNROLL
            for (int i = 0; i < 2; ++i) SIMT_UNROLL
            for (int j = 0; j < 2; ++j)
                v[i][j] = p.inside[i][j]
                              ? to_float(simt::load(maps, first + i * layout.row + j * layout.column))
                              : 0.0f;
            const float above = (1 - p.right) * v[0][0] + p.right * v[0][1];
            const float below = (1 - p.right) * v[1][0] + p.right * v[1][1];
            const float sample = p.known ? (1 - p.lower) * above + p.lower * below : NAN;
            out[(p.row * at.channels + c) * at.points_of_set + p.point] = from_float<Out>(sample);
        }
    }
}

template <class T>
SIMT_KERNEL(kThreads)
void point_spread_kernel(const Rows at, const Layout layout, int64_t blocks, simt::Global<const T> grad_out,
                         simt::Global<float> grad_maps) {
    for (int64_t block = simt::block_x(); block < blocks; block += simt::grid_x()) {
        const Point p = locate(at, layout, block);
        if (p.point >= at.points_of_set) continue;
        for (int64_t c = 0; c < at.channels; ++c) {
            const float grad =
                to_float(simt::load(grad_out, (p.row * at.channels + c) * at.points_of_set + p.point));
            const int64_t first = p.map * layout.map + c * layout.channel + p.pixel;
            SIMT_UNROLL
            for (int i = 0; i < 2; ++i) SIMT_UNROLL
            for (int j = 0; j < 2; ++j)
                if (p.inside[i][j])
                    simt::add_to(grad_maps, first + i * layout.row + j * layout.column,
                                 (i ? p.lower : 1 - p.lower) * ((j ? p.right : 1 - p.right) * grad));
        }
    }
}

Rows rows_of(const PointSampleRows& at) {
    return {at.maps,
            at.channels,
            at.height,
            at.width,
            at.sets,
            at.rows,
            at.points_of_set,
            simt::global(at.points, 2 * at.sets * at.points_of_set),
            simt::global(at.map_index, at.rows),
            simt::global(at.point_index, at.rows),
            at.map_index != nullptr,
            at.point_index != nullptr};
}

// Blocks that a thread each for the points of all rows takes; more than a grid holds take turns.
int64_t blocks_of(const PointSampleRows& at) {
    return at.rows * ((at.points_of_set + kThreads - 1) / kThreads);
}
simt::Grid grid_of(int64_t blocks) {
    constexpr int64_t kMost = 0x7fffffff;
    return simt::Grid(static_cast<unsigned>(blocks < kMost ? blocks : kMost));
}

template <class T, class Out>
void forward(const PointSampleForward& args, const Queue& queue) {
    const PointSampleRows& at = args.at;
    const bool empty = at.maps * at.height * at.width == 0;
    const int64_t reach = (at.maps - 1) * args.map_stride + (at.channels - 1) * args.channel_stride +
                          (at.height - 1) * args.row_stride + (at.width - 1) * args.column_stride + 1;
    const Layout layout{args.map_stride, args.channel_stride, args.row_stride, args.column_stride};
    const simt::UseDevice device(queue.device);
    simt::launch("point_sample", point_sample_kernel<T, Out>, grid_of(blocks_of(at)), kThreads, 0,
                 static_cast<simt::Stream>(queue.stream), rows_of(at), layout, blocks_of(at),
                 simt::global(static_cast<const T*>(args.maps), empty ? 0 : reach),
                 simt::global(static_cast<Out*>(args.out), at.rows * at.channels * at.points_of_set));
}

template <class T>
void backward(const PointSampleRows& at, const void* grad_out, float* grad_maps, const Queue& queue) {
    const int64_t pixels = at.height * at.width;
    const Layout layout{at.channels * pixels, pixels, at.width, 1};
    const simt::UseDevice device(queue.device);
    simt::launch("point_spread", point_spread_kernel<T>, grid_of(blocks_of(at)), kThreads, 0,
                 static_cast<simt::Stream>(queue.stream), rows_of(at), layout, blocks_of(at),
                 simt::global(static_cast<const T*>(grad_out), at.rows * at.channels * at.points_of_set),
                 simt::global(grad_maps, at.maps * at.channels * pixels));
}

}  // namespace

void point_sample_cuda_fwd(const PointSampleForward& args, const Queue& queue) {
    if (args.at.rows * args.at.channels * args.at.points_of_set == 0) return;
    if (args.type == ElementType::u8) return forward<uint8_t, float>(args, queue);
    with_float_type(FloatType(args.type), [&](auto x) { forward<decltype(x), decltype(x)>(args, queue); });
}

void point_sample_cuda_bwd(const PointSampleRows& at, const void* grad_out, FloatType type, float* grad_maps,
                           const Queue& queue) {
    if (at.rows * at.channels * at.points_of_set == 0) return;
    with_float_type(type, [&](auto x) { backward<decltype(x)>(at, grad_out, grad_maps, queue); });
}

}  // namespace detr_fast
