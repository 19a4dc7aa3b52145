// Portable float vectors: GCC/Clang vector extensions at the width of the instruction set that the
// including file is compiled for. Everything lives in that instruction set's namespace.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef DETR_FAST_ISA
#define DETR_FAST_ISA baseline
#endif

namespace detr_fast {
namespace DETR_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
typedef double vdouble __attribute__((vector_size(kLanes * 4)));  // kLanes / 2 lanes
typedef int64_t vlong __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vhalf __attribute__((vector_size(kLanes * 2)));

inline vfloat splat(float x) { return vfloat{} + x; }

inline vfloat load(const float* from) {
    vfloat x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, vfloat x) { std::memcpy(to, &x, sizeof x); }

// bfloat16 is the upper half of a float32.
inline vfloat load_bf16(const uint16_t* from) {
    vhalf half;
    std::memcpy(&half, from, sizeof half);
    const vuint bits = __builtin_convertvector(half, vuint) << 16;
    vfloat x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float bf16_to_float(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Rounds to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float sum(vfloat x) {
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += x[lane];
    return total;
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
