// Samples of one map at some points.
#pragma once

#include <cmath>

#include "common/cpu_rows.h"
#include "point_sample/cpu.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int kChunk = 128;              // points located at once
constexpr int64_t kWorthThreads = 8192;  // below so many samples a second thread costs more than it brings
static_assert(kChunk % kLanes == 0, "chunks are whole vectors");

inline int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

// Where the points of a chunk lie. Those with four pixels in the map are fast; the others stand in `border`,
// and have an upper left pixel 0 that means nothing.
struct Located {
    int n, borders;
    float right[kChunk], lower[kChunk];  // weights of the right column and of the lower row
    int32_t pixel[kChunk];               // the upper left one
    int32_t border[kChunk];
};

inline void locate(const PointSampleRows& at, int64_t row_stride, const float* points, int n, Located& to) {
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

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
