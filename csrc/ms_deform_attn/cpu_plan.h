// Where samples lie and how much their corners weigh, for a block of queries, before any value is read.
//
// A sample at pixel coordinate (x, y) reads a 2x2 window whose first pixel is clamped into the level, so
// that no corner needs a test. The share of a pixel is the tent max(0, 1 - |distance|) of both axes: that
// is bilinear interpolation inside, and pixels of the window that the sample does not touch get zero.
#pragma once

#include <cmath>
#include <cstring>

#include "common/cpu_scratch.h"
#include "common/simd.h"
#include "ms_deform_attn/cpu.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline vint truncate(vfloat x) { return __builtin_convertvector(x, vint); }
inline vfloat to_float(vint x) { return __builtin_convertvector(x, vfloat); }
// zero for NaN
inline vfloat tent(vfloat t) { return max(1.0f - abs(t), splat(0)); }
inline float tent(float t) { return t > -1 && t < 1 ? (t < 0 ? 1 + t : 1 - t) : 0.0f; }

// Whether bilinear interpolation reads the pixel at distance -t, be it with zero share.
inline bool touches(float t) { return t >= -1 && t < 1; }

// All lanes zero; false for NaN.
inline bool all_zero(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(x, splat(0), _CMP_NEQ_UQ) == 0;
#elif defined(__AVX__)
    return _mm256_testz_si256((__m256i)(x != 0.0f), (__m256i)(x != 0.0f));
#else
    const vint nonzero = x != 0.0f;
    uint64_t words[kLanes / 2], any = 0;
    std::memcpy(words, &nonzero, sizeof words);
    for (uint64_t word : words) any |= word;
    return any == 0;
#endif
}

// Samples of one level, and the row distances of its window; 0 where it has but one column or line, or no
// pixel.
struct Window {
    int64_t points, right, below;
};

struct Plan {
    // A row holds the samples of one query over `heads` heads, `samples` a head, padded to vectors.
    int64_t heads, samples, row, queries;

    int64_t levels, stride;  // elements from one pixel's row of channels to the next
    Window* windows;         // [N]

    // constants of a row's samples
    float *last_x, *last_y;  // largest coordinate of the window's first pixel
    float *next_x, *next_y;  // distance to its second pixel: 1, or infinite where the level has but one
    float *base_x, *base_y;  // -infinity where the level has no pixel
    int32_t *columns, *start;

    float* unit;  // [N] the part of a reference box that a unit of offset spans; 0 without points

    // [queries][row]; pixel coordinate = coordinate * scale + base
    float *scale_x, *scale_y;
    float *x, *y;  // relative to the window's first pixel
    float* weight;
    float* share;    // [queries][row][4] weight times bilinear share: top left, top right, bottom left, ...
    int32_t* pixel;  // the window's first pixel
};

inline bool has_pixels(const MsDeformAttnShape& s, int64_t n) { return s.sizes[2 * n] && s.sizes[2 * n + 1]; }

// The smallest row of `heads` heads.
inline int64_t plan_row(const MsDeformAttnShape& s, int64_t heads) {
    return round_up(heads * s.samples, kLanes);
}

// Finds room for a plan of up to `queries` queries, whose rows lie `stride` apart, and for `extra` floats
// more, zeroed, which it returns.
inline float* make_plan(Plan& plan, const MsDeformAttnShape& s, int64_t heads, int64_t stride,
                        int64_t queries, int64_t extra) {
    plan.heads = heads;
    plan.samples = s.samples;
    plan.row = plan_row(s, heads);
    plan.queries = queries;
    plan.levels = s.levels;
    plan.stride = stride;
    const int64_t block = plan.row * queries;
    const int64_t windows = round_up(sizeof(Window) / sizeof(float) * s.levels, kLanes);
    const size_t bytes =
        sizeof(float) * (windows + 8 * plan.row + 10 * block + plan.samples + s.levels + extra);
    float* memory = static_cast<float*>(scratch(ScratchSlot::plan, bytes));
    std::memset(memory, 0, bytes);
    plan.windows = reinterpret_cast<Window*>(memory);
    memory += windows;
    for (int64_t n = 0; n < s.levels; ++n) {
        const int64_t height = s.sizes[2 * n], width = s.sizes[2 * n + 1];
        plan.windows[n] = {s.points[n], width > 1 && height > 0 ? stride : 0,
                           height > 1 ? width * stride : 0};
    }
    auto take = [&](int64_t count) {
        float* taken = memory;
        memory += count;
        return taken;
    };
    float** constants[] = {&plan.last_x, &plan.last_y, &plan.next_x,
                           &plan.next_y, &plan.base_x, &plan.base_y};
    for (float** field : constants) *field = take(plan.row);
    plan.columns = reinterpret_cast<int32_t*>(take(plan.row));
    plan.start = reinterpret_cast<int32_t*>(take(plan.row));
    float** varying[] = {&plan.scale_x, &plan.scale_y, &plan.x, &plan.y, &plan.weight};
    for (float** field : varying) *field = take(block);
    plan.share = take(4 * block);
    plan.pixel = reinterpret_cast<int32_t*>(take(block + plan.samples));  // prefetching looks a head further
    // the last, so that what comes before stays aligned with the vectors of a row
    plan.unit = memory + extra;

    constexpr float out_of_reach = HUGE_VALF;  // no finite coordinate is near it
    for (int64_t i = 0, head = 0; head < heads; ++head) {
        int64_t first = 0;
        for (int64_t n = 0; n < s.levels; ++n) {
            const int64_t height = s.sizes[2 * n], width = s.sizes[2 * n + 1];
            plan.unit[n] = s.points[n] ? 0.5f / static_cast<float>(s.points[n]) : 0;
            for (int64_t p = 0; p < s.points[n]; ++p, ++i) {
                plan.last_x[i] = width > 1 ? static_cast<float>(width - 2) : 0;
                plan.last_y[i] = height > 1 ? static_cast<float>(height - 2) : 0;
                plan.next_x[i] = width > 1 ? 1 : out_of_reach;
                plan.next_y[i] = height > 1 ? 1 : out_of_reach;
                plan.base_x[i] = plan.base_y[i] = has_pixels(s, n) ? -0.5f : -out_of_reach;
                plan.columns[i] = static_cast<int32_t>(width);
                plan.start[i] = static_cast<int32_t>(has_pixels(s, n) ? first : 0);
                for (int64_t q = 0; q < queries; ++q) {
                    plan.scale_x[q * plan.row + i] = s.reference_dims == 2 ? 1 : static_cast<float>(width);
                    plan.scale_y[q * plan.row + i] = s.reference_dims == 2 ? 1 : static_cast<float>(height);
                }
            }
            first += height * width;
        }
    }
    return memory;
}

// Sets base (and, for boxes, scale) of a row from one query's reference points [N, reference_dims].
inline void place_references(const Plan& plan, const MsDeformAttnShape& s, const float* reference,
                             int64_t row) {
    float *scale_x = plan.scale_x + row, *scale_y = plan.scale_y + row;
    int64_t i = 0;
    for (int64_t n = 0; n < s.levels; ++n, reference += s.reference_dims) {
        const float height = static_cast<float>(s.sizes[2 * n]),
                    width = static_cast<float>(s.sizes[2 * n + 1]);
        const float x = has_pixels(s, n) ? reference[0] * width - 0.5f : -HUGE_VALF;
        const float y = has_pixels(s, n) ? reference[1] * height - 0.5f : -HUGE_VALF;
        const int64_t end = i + s.points[n];
        for (int64_t k = i; k < end; ++k) {
            plan.base_x[k] = x;
            plan.base_y[k] = y;
        }
        if (s.reference_dims == 4) {
            const float unit_x = plan.unit[n] * reference[2] * width,
                        unit_y = plan.unit[n] * reference[3] * height;
            for (int64_t k = i; k < end; ++k) {
                scale_x[k] = unit_x;
                scale_y[k] = unit_y;
            }
        }
        i = end;
    }
    for (; i < plan.heads * plan.samples; i += plan.samples) {
        const size_t bytes = sizeof(float) * plan.samples;
        std::memcpy(plan.base_x + i, plan.base_x, bytes);
        std::memcpy(plan.base_y + i, plan.base_y, bytes);
        if (s.reference_dims == 4) {
            std::memcpy(scale_x + i, scale_x, bytes);
            std::memcpy(scale_y + i, scale_y, bytes);
        }
    }
}

// weight[heads][samples] = softmax of logits over samples; `row` floats may be written.
inline void softmax(const float* logits, int64_t heads, int64_t samples, int64_t row, float* weight) {
    for (int64_t h = 0; h < heads; ++h) {
        const float* from = logits + h * samples;
        float largest = from[0];
        for (int64_t k = 1; k < samples; ++k) largest = from[k] > largest ? from[k] : largest;
        for (int64_t k = 0; k < samples; ++k) weight[h * samples + k] = from[k] - largest;
    }
    for (int64_t i = heads * samples; i < row; ++i) weight[i] = 0;
    for (int64_t i = 0; i < row; i += kLanes) {
        const vfloat x = load(weight + i);
        store(weight + i, x < -87.0f ? splat(0) : exp(x));
    }
    for (int64_t h = 0; h < heads; ++h) {
        float* w = weight + h * samples;
        float total = 0;
        for (int64_t k = 0; k < samples; ++k) total += w[k];
        const float scale = 1 / total;
        for (int64_t k = 0; k < samples; ++k) w[k] *= scale;
    }
}

// Coordinates (x, y) to pixels of their level.
inline void to_pixels(int64_t count, const float* __restrict coordinates, const float* __restrict scale_x,
                      const float* __restrict base_x, const float* __restrict scale_y,
                      const float* __restrict base_y, float* __restrict x, float* __restrict y) {
    for (int64_t i = 0; i < count; ++i) {
        x[i] = coordinates[2 * i] * scale_x[i] + base_x[i];
        y[i] = coordinates[2 * i + 1] * scale_y[i] + base_y[i];
    }
}

// Fills row `q` of the plan from one query's coordinates, weights and references, from its first head on.
// Returns whether all shares are finite.
inline bool plan_query(const Plan& plan, const MsDeformAttnShape& s, const float* coordinates,
                       const float* weights, const float* reference, int64_t q) {
    const int64_t row = q * plan.row, used = plan.heads * plan.samples;
    float *xs = plan.x + row, *ys = plan.y + row, *weight = plan.weight + row;
    if (reference) {
        place_references(plan, s, reference, row);
        softmax(weights, plan.heads, plan.samples, plan.row, weight);
    } else {
        std::memcpy(weight, weights, sizeof(float) * used);
    }
    to_pixels(used, coordinates, plan.scale_x + row, plan.base_x, plan.scale_y + row, plan.base_y, xs, ys);
    vfloat bad = splat(0);
    for (int64_t i = 0; i < used; i += kLanes) {
        // a NaN coordinate becomes pixel 0 with zero shares
        vfloat x = load(xs + i), y = load(ys + i);
        const vint column = truncate(min(max(x, splat(0)), load(plan.last_x + i)));
        const vint line = truncate(min(max(y, splat(0)), load(plan.last_y + i)));
        x -= to_float(column);
        y -= to_float(line);
        store(xs + i, x);
        store(ys + i, y);
        vint columns, start;
        std::memcpy(&columns, plan.columns + i, sizeof columns);
        std::memcpy(&start, plan.start + i, sizeof start);
        const vint pixel = start + line * columns + column;
        std::memcpy(plan.pixel + row + i, &pixel, sizeof pixel);
        const vfloat w = load(weight + i);
        const vfloat left = tent(x), right = tent(x - load(plan.next_x + i));
        const vfloat top = tent(y) * w, bottom = tent(y - load(plan.next_y + i)) * w;
        vfloat shares[4] = {top * left, top * right, bottom * left, bottom * right};
        for (const vfloat& share : shares) bad += share - share;
        store_interleaved(plan.share + 4 * (row + i), shares);
    }
    return all_zero(bad);
}

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
