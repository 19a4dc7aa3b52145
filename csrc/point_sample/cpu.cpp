#include "point_sample/cpu.h"

#include <cmath>

#include "common/cpu_rows.h"
#include "common/cpu_scratch.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int kChunk = 128;              // points located at once
constexpr int64_t kBlock = 1 << 14;      // points of a task
constexpr int64_t kWorthThreads = 8192;  // below so many samples a second thread costs more than it brings
static_assert(kChunk % kLanes == 0, "chunks are whole vectors");

int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

// Where the points of a chunk lie. Those with four pixels in the map are fast; the others stand in `border`,
// and have an upper left pixel 0 that means nothing.
struct Located {
    int n, borders;
    float right[kChunk], lower[kChunk];  // weights of the right column and of the lower row
    int32_t pixel[kChunk];               // the upper left one
    int32_t border[kChunk];
};

void locate(const PointSampleRows& at, int64_t row_stride, const float* points, int n, Located& to) {
    float x[kChunk], y[kChunk];
    for (int i = 0; i < n; ++i) {
        x[i] = points[2 * i];
        y[i] = points[2 * i + 1];
    }
    const int padded = (n + kLanes - 1) / kLanes * kLanes;
    for (int i = n; i < padded; ++i) x[i] = y[i] = 0.5f;
    const float width = static_cast<float>(at.width), height = static_cast<float>(at.height);
    // the pixel's number must fit its 32 bits
    const bool fast = at.width > 1 && at.height > 1 && at.height * row_stride < (int64_t{1} << 31);
    const float most_x = fast ? width - 1 : 0, most_y = fast ? height - 1 : 0;
    to.n = n;
    to.borders = 0;
    for (int i = 0; i < padded; i += kLanes) {
        vfloat u = load(x + i) * width - 0.5f, v = load(y + i) * height - 0.5f;
        const vint within = (u >= 0.0f) & (u < most_x) & (v >= 0.0f) & (v < most_y);  // false for NaN
        u = bit_cast<vfloat>(bit_cast<vint>(u) & within);
        v = bit_cast<vfloat>(bit_cast<vint>(v) & within);
        const vint left = __builtin_convertvector(u, vint), top = __builtin_convertvector(v, vint);
        store(to.right + i, u - __builtin_convertvector(left, vfloat));
        store(to.lower + i, v - __builtin_convertvector(top, vfloat));
        const vint pixel = top * static_cast<int32_t>(fast ? row_stride : 0) + left;
        std::memcpy(to.pixel + i, &pixel, sizeof pixel);
        for (unsigned out = ~lanes_set(within) & ((1u << kLanes) - 1); out; out &= out - 1) {
            const int lane = i + __builtin_ctz(out);
            if (lane < n) to.border[to.borders++] = lane;
        }
    }
}

// Calls use(pixel, weight) for each pixel in the map around a point.
template <class Use>
void for_corners(const PointSampleRows& at, int64_t row_stride, const float* point, Use use) {
    const float width = static_cast<float>(at.width), height = static_cast<float>(at.height);
    const float x = point[0] * width - 0.5f, y = point[1] * height - 0.5f;
    if (!(x >= -1 && x < width && y >= -1 && y < height)) return;
    const int64_t left = static_cast<int64_t>(floorf(x)), top = static_cast<int64_t>(floorf(y));
    const float right = x - static_cast<float>(left), lower = y - static_cast<float>(top);
    for (int row = 0; row < 2; ++row)
        for (int column = 0; column < 2; ++column)
            if (top + row >= 0 && top + row < at.height && left + column >= 0 && left + column < at.width)
                use((top + row) * row_stride + left + column,
                    (column ? right : 1 - right) * (row ? lower : 1 - lower));
}

inline float to_float(const float* from) { return *from; }
inline float to_float(const BFloat16* from) { return bf16_to_float(from->bits); }
inline float to_float(const Half* from) { return fp16_to_float(from->bits); }
inline float to_float(const uint8_t* from) { return *from; }

inline const float* widened(const float* from, int, float*) { return from; }
inline const float* widened(const BFloat16* from, int n, float* to) {
    return widen(from, FloatType::bf16, 0, n, to);
}
inline const float* widened(const Half* from, int n, float* to) {
    return widen(from, FloatType::f16, 0, n, to);
}
inline const float* widened(const uint8_t* from, int n, float* to) {
    for (int i = 0; i < n; ++i) to[i] = from[i];
    return to;
}

template <class T>
void sample(const PointSampleForward& args, const T* plane, const float* points, int n, float* out) {
    Located located;
    locate(args.at, args.row_stride, points, n, located);
    T upper[2 * kChunk], lower[2 * kChunk];  // pairs of pixels
    if (located.borders < n)
        for (int i = 0; i < n; ++i) {
            const T* pixel = plane + located.pixel[i];
            std::memcpy(upper + 2 * i, pixel, 2 * sizeof(T));
            std::memcpy(lower + 2 * i, pixel + args.row_stride, 2 * sizeof(T));
        }
    float wide_upper[2 * kChunk], wide_lower[2 * kChunk];
    const float* a = widened(upper, 2 * n, wide_upper);
    const float* b = widened(lower, 2 * n, wide_lower);
    for (int i = 0; i < n; ++i) {
        const float right = located.right[i], left = 1 - right;
        const float above = left * a[2 * i] + right * a[2 * i + 1];
        const float below = left * b[2 * i] + right * b[2 * i + 1];
        out[i] = (1 - located.lower[i]) * above + located.lower[i] * below;
    }
    for (int b = 0; b < located.borders; ++b) {
        const int i = located.border[b];
        float sum = 0;
        for_corners(args.at, args.row_stride, points + 2 * i,
                    [&](int64_t pixel, float weight) { sum += weight * to_float(plane + pixel); });
        out[i] = sum;
    }
}

template <class T>
void forward(const PointSampleForward& args) {
    const PointSampleRows& at = args.at;
    const int64_t blocks = (at.points_of_set + kBlock - 1) / kBlock;
    const int64_t tasks = at.rows * at.channels * blocks;
    prefer_huge_pages(args.out, at.rows * at.channels * at.points_of_set *
                                    static_cast<int64_t>(args.out_type == FloatType::f32 ? 4 : 2));
    [[maybe_unused]] const int threads =
        at.rows * at.channels * at.points_of_set < kWorthThreads ? 1 : at.threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t block = task % blocks, channel = task / blocks % at.channels;
        const int64_t row = task / blocks / at.channels;
        const int64_t map = at.map_index ? at.map_index[row] : row;
        const int64_t set = at.point_index ? at.point_index[row] : row;
        const T* plane =
            static_cast<const T*>(args.maps) + map * args.map_stride + channel * args.channel_stride;
        const float* points = at.points + 2 * set * at.points_of_set;
        const int64_t first_out = (row * at.channels + channel) * at.points_of_set;
        const int64_t end = at_most(at.points_of_set, (block + 1) * kBlock);
        for (int64_t p = block * kBlock; p < end; p += kChunk) {
            const int n = static_cast<int>(at_most(end - p, kChunk));
            float out[kChunk];
            sample(args, plane, points + 2 * p, n, out);
            narrow(out, n, args.out, args.out_type, first_out + p);
        }
    }
}

// Adds a chunk's gradients to the pixels around its points, in the order of the points.
void spread(const PointSampleRows& at, const float* points, const float* grad, int n, float* plane) {
    Located located;
    locate(at, at.width, points, n, located);
    for (int b = 0; b < located.borders; ++b) {
        const int i = located.border[b];
        for_corners(at, at.width, points + 2 * i,
                    [&](int64_t pixel, float weight) { plane[pixel] += weight * grad[i]; });
    }
    if (located.borders == n) return;
    float shares[4 * kChunk];
    for (int i = 0; i < n; ++i) {
        const float right = located.right[i], lower = located.lower[i];
        shares[4 * i] = (1 - lower) * (1 - right) * grad[i];
        shares[4 * i + 1] = (1 - lower) * right * grad[i];
        shares[4 * i + 2] = lower * (1 - right) * grad[i];
        shares[4 * i + 3] = lower * right * grad[i];
    }
    for (int b = 0; b < located.borders; ++b)
        for (int k = 0; k < 4; ++k) shares[4 * located.border[b] + k] = 0;
    for (int i = 0; i < n; ++i) {
        float* upper = plane + located.pixel[i];
        float* lower = upper + at.width;
        upper[0] += shares[4 * i];
        upper[1] += shares[4 * i + 1];
        lower[0] += shares[4 * i + 2];
        lower[1] += shares[4 * i + 3];
    }
}

}  // namespace

void point_sample_cpu_fwd(const PointSampleForward& args) {
    switch (args.type) {
        case ElementType::f32:
            return forward<float>(args);
        case ElementType::bf16:
            return forward<BFloat16>(args);
        case ElementType::f16:
            return forward<Half>(args);
        case ElementType::u8:
            return forward<uint8_t>(args);
    }
}

void point_sample_cpu_bwd(const PointSampleBackward& args, bool& ok) {
    const PointSampleRows& at = args.at;
    const int64_t pixels = at.height * at.width, planes = at.maps * at.channels;
    if (pixels * planes == 0) return;
    const size_t item = args.type == FloatType::f32 ? 4 : 2;
    prefer_huge_pages(args.grad_maps, planes * pixels * item);
    int enough = 1;
#pragma omp parallel num_threads(at.threads) if (at.threads > 1 && planes > 1)
    {
        float* own = args.type == FloatType::f32
                         ? nullptr
                         : static_cast<float*>(scratch(ScratchSlot::rows, pixels * sizeof(float)));
        if (args.type != FloatType::f32 && !own) {
#pragma omp atomic write
            enough = 0;
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < planes; ++task) {
            const int64_t map = task / at.channels, channel = task % at.channels;
            if (args.type != FloatType::f32 && !own) continue;
            float* plane = own ? own : static_cast<float*>(args.grad_maps) + task * pixels;
            std::memset(plane, 0, pixels * sizeof(float));
            const int64_t first = args.first_row ? args.first_row[map] : map;
            const int64_t end = args.first_row ? args.first_row[map + 1] : map + 1;
            for (int64_t r = first; r < end; ++r) {
                const int64_t row = args.first_row ? args.order[r] : r;
                const int64_t set = at.point_index ? at.point_index[row] : row;
                const int64_t first_grad = (row * at.channels + channel) * at.points_of_set;
                for (int64_t p = 0; p < at.points_of_set; p += kChunk) {
                    const int n = static_cast<int>(at_most(at.points_of_set - p, kChunk));
                    float wide[kChunk];
                    const float* grad = widen(args.grad_out, args.type, first_grad + p, n, wide);
                    spread(at, at.points + 2 * (set * at.points_of_set + p), grad, n, plane);
                }
            }
            if (own) narrow(own, pixels, args.grad_maps, args.type, task * pixels);
        }
    }
    ok = enough;
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
