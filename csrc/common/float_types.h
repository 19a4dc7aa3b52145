// 16-bit floats as kernels store them; arithmetic is float32 everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DETR_FAST_BOTH __host__ __device__ __forceinline__
#else
#define DETR_FAST_BOTH inline
#endif

namespace detr_fast {

enum class FloatType : int { f32, bf16, f16 };
enum class ElementType : int { f32, bf16, f16, u8 };  // the first three as FloatType

struct BFloat16 {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};

DETR_FAST_BOTH float to_float(float x) { return x; }
DETR_FAST_BOTH float to_float(uint8_t x) { return x; }

// bfloat16 is the upper half of a float32.
DETR_FAST_BOTH float to_float(BFloat16 x) {
    const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float result;
    memcpy(&result, &wide, sizeof result);
    return result;
}

// Rounds to nearest even; NaN stays NaN.
template <class T>
DETR_FAST_BOTH T from_float(float x);

template <>
DETR_FAST_BOTH float from_float<float>(float x) {
    return x;
}

template <>
DETR_FAST_BOTH BFloat16 from_float<BFloat16>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

#if defined(__CUDACC__)

DETR_FAST_BOTH float to_float(Half x) { return __half2float(__half(__half_raw{x.bits})); }

template <>
DETR_FAST_BOTH Half from_float<Half>(float x) {
    return {static_cast<uint16_t>(__half_raw(__float2half_rn(x)).x)};
}

#else

// IEEE binary16 by hand: not every host compiler has the type.
inline float to_float(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t exponent = (x.bits >> 10) & 0x1fu, fraction = x.bits & 0x3ffu;
    float magnitude;
    if (exponent == 0) {
        magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    } else {
        const uint32_t wide =
            exponent == 31 ? 0x7f800000u | (fraction << 13) : ((exponent + 112) << 23) | (fraction << 13);
        std::memcpy(&magnitude, &wide, sizeof magnitude);
    }
    uint32_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    return magnitude;
}

template <>
inline Half from_float<Half>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal: from 2^-14
        half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    } else {  // adding 0.5 leaves the multiple of 2^-24 in the lowest bits, rounded to even
        float shifted;
        std::memcpy(&shifted, &magnitude, sizeof shifted);
        shifted += 0.5f;
        std::memcpy(&half, &shifted, sizeof half);
        half -= 0x3f000000u;
    }
    return {static_cast<uint16_t>(sign | half)};
}

#endif

// Calls use(a number of the type).
template <class Use>
void with_float_type(FloatType type, const Use& use) {
    switch (type) {
        case FloatType::f32:
            return use(float{});
        case FloatType::bf16:
            return use(BFloat16{});
        case FloatType::f16:
            return use(Half{});
    }
}

}  // namespace detr_fast
