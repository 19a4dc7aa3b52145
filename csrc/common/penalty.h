// What replaces a non-finite cost, on every backend.
#pragma once

#include <cfloat>

#if defined(__CUDACC__)
#define DETR_FAST_PENALTY static inline __host__ __device__
#else
#define DETR_FAST_PENALTY static inline  // internal: each instruction set compiles its own
#endif

namespace detr_fast {

// A number above what any assignment of `targets` finite costs between low and high adds up to,
// targets * high - (targets - 1) * low, by a margin that rounding cannot swallow.
DETR_FAST_PENALTY float non_finite_penalty(float low, float high, long long targets) {
    const double size = high < 0 ? -static_cast<double>(high) : static_cast<double>(high);
    const double penalty = high + targets * (static_cast<double>(high) - low) + (size > 1 ? size : 1);
    return penalty > FLT_MAX ? FLT_MAX : static_cast<float>(penalty);
}

}  // namespace detr_fast
