// Softmax of a row and powers of probabilities: what match costs and losses share.
#pragma once

#include <cmath>

#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

// exp(row - shift) into `out`, which holds kLanes at least; returns the sum.
inline __attribute__((always_inline)) float exp_row(const float* row, int64_t classes, float shift,
                                                    float* out) {
    float padded[kLanes];
    if (classes < kLanes) {
        for (int i = 0; i < kLanes; ++i) padded[i] = i < classes ? row[i] : -INFINITY;
        row = padded;
        classes = kLanes;
    }
    vfloat total{};
    int64_t k = 0;
    for (; k + kLanes <= classes; k += kLanes) {
        const vfloat e = exp(load(row + k) - shift);
        store(out + k, e);
        total += e;
    }
    if (k < classes) {  // the last vector overlaps the one before; its new lanes count
        const int seen = static_cast<int>(k + kLanes - classes);
        const vfloat e = exp(load(row + classes - kLanes) - shift);
        store(out + classes - kLanes, e);
        total += lane_index() >= seen ? e : vfloat{};
    }
    return sum(total);
}

struct Softmax {
    float total, shift;  // the sum of exp(row - shift)
};

// Writes exp(row - shift), the numerators of softmax(row), into `out`, which holds kLanes at least.
inline __attribute__((noinline)) Softmax softmax_row(const float* row, int64_t classes, float* out) {
    // Most rows need no shift by their maximum. A sum that shows saturation, underflow or NaN does.
    const float total = exp_row(row, classes, 0.0f, out);
    if (total > 1e-20f && total < 1e37f) return {total, 0.0f};
    float highest = row[0];
    for (int64_t k = 1; k < classes; ++k) highest = row[k] > highest ? row[k] : highest;
    return {exp_row(row, classes, highest, out), highest};
}

// base^exponent for base >= 0.
inline vfloat power(vfloat base, float exponent) {
    if (exponent == 2) return base * base;
    return exp(exponent * log(max(splat(1.17549435e-38f), base)));
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
