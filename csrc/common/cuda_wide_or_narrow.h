// An array whose elements are float32 or of another array's own 16-bit type: decided at run time by one
// uniform branch, so that kernels need no second template parameter.
#pragma once

#include "common/simt.h"

namespace detr_fast {

template <class T>
struct WideOrNarrow {
    simt::Global<const float> wide;
    simt::Global<const T> narrow;

    SIMT_DEVICE float at(int64_t i) const {
        return wide ? simt::load(wide, i) : to_float(simt::load(narrow, i));
    }
    // The i-th Count elements.
    template <int Count>
    SIMT_DEVICE simt::Vec<float, Count> group(int64_t i) const {
        if (wide) return simt::load_vec<Count>(wide, Count * i);
        const simt::Vec<T, Count> v = simt::load_vec<Count>(narrow, Count * i);
        simt::Vec<float, Count> result;
        SIMT_UNROLL
        for (int k = 0; k < Count; ++k) result[k] = to_float(v[k]);
        return result;
    }
};

template <class T>
WideOrNarrow<T> wide_or_narrow(const void* data, int64_t count, FloatType type) {
    if (type == FloatType::f32) return {simt::global(static_cast<const float*>(data), count), {}};
    return {{}, simt::global(static_cast<const T*>(data), count)};
}

}  // namespace detr_fast
