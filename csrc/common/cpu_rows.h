// Rows of float32, bfloat16 or float16 numbers, read and written as float32.
#pragma once

#include "common/float_types.h"
#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

// n numbers as float32: `from` itself where it holds such, else converted into `scratch`.
inline const float* widen(const void* from, FloatType type, int64_t offset, int64_t n, float* scratch) {
    if (type == FloatType::f32) return static_cast<const float*>(from) + offset;
    const uint16_t* half = static_cast<const uint16_t*>(from) + offset;
    int64_t i = 0;
    if (type == FloatType::bf16) {
        for (; i + kLanes <= n; i += kLanes) store(scratch + i, load_bf16(half + i));
        for (; i < n; ++i) scratch[i] = bf16_to_float(half[i]);
    } else {
        for (; i + kLanes <= n; i += kLanes) store(scratch + i, load_fp16(half + i));
        for (; i < n; ++i) scratch[i] = fp16_to_float(half[i]);
    }
    return scratch;
}

// Writes n numbers, rounded to nearest even. `to` may be where `from` is, for float32.
inline void narrow(const float* from, int64_t n, void* to, FloatType type, int64_t offset) {
    if (type == FloatType::f32) {
        float* out = static_cast<float*>(to) + offset;
        if (out != from) std::memcpy(out, from, n * sizeof(float));
    } else if (type == FloatType::bf16) {
        uint16_t* out = static_cast<uint16_t*>(to) + offset;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store_bf16(out + i, load(from + i));
        for (; i < n; ++i) out[i] = float_to_bf16(from[i]);
    } else {
        uint16_t* out = static_cast<uint16_t*>(to) + offset;
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) store_fp16(out + i, load(from + i));
        if (i == n) return;
        float rest[kLanes] = {};
        uint16_t halves[kLanes];
        std::memcpy(rest, from + i, (n - i) * sizeof(float));
        store_fp16(halves, load(rest));
        std::memcpy(out + i, halves, (n - i) * sizeof(uint16_t));
    }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
