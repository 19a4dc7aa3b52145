// What kernels make of class logits.
#pragma once

#include <cmath>

#include "common/cuda_any_numbers.h"
#include "common/simt.h"

namespace detr_fast {

SIMT_DEVICE float power(float base, float exponent) {
    return exponent == 2 ? base * base : powf(base, exponent);
}

template <class T>
SIMT_DEVICE float number_at(const simt::Global<const T>& numbers, int64_t i) {
    return to_float(simt::load(numbers, i));
}
SIMT_DEVICE float number_at(const AnyNumbers& numbers, int64_t i) { return numbers.at(i); }

struct Softmax {
    float largest, total;  // sum of exp(logit - largest)
};

// Of a row of logits, by a warp, for all of its lanes.
template <class Logits>
SIMT_DEVICE Softmax softmax_of_row(const Logits& logits, int64_t row, int64_t classes) {
    Softmax result{-INFINITY, 0};
    for (int64_t k = simt::lane(); k < classes; k += 32)
        result.largest = fmaxf(result.largest, number_at(logits, row * classes + k));
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2)
        result.largest = fmaxf(result.largest, simt::shuffle_xor(result.largest, lanes));
    for (int64_t k = simt::lane(); k < classes; k += 32)
        result.total += expf(number_at(logits, row * classes + k) - result.largest);
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) result.total += simt::shuffle_xor(result.total, lanes);
    return result;
}

}  // namespace detr_fast
