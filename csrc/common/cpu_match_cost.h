// What the matching costs do about costs that are not finite.
#pragma once

#include "common/penalty.h"
#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

inline bool is_finite(float x) { return x - x == 0; }

// In costs [layers, targets, queries], replaces the non-finite entries of each block of one layer and image
// by a number above what any assignment of its finite ones costs.
inline void penalise_non_finite(float* costs, const int64_t* first_target, int64_t layers, int64_t images,
                                int64_t queries) {
    for (int64_t layer = 0; layer < layers; ++layer)
        for (int64_t image = 0; image < images; ++image) {
            const int64_t targets = first_target[image + 1] - first_target[image];
            float* block = costs + (layer * first_target[images] + first_target[image]) * queries;
            float low = FLT_MAX, high = -FLT_MAX;
            int64_t finite = 0;
            for (int64_t i = 0; i < targets * queries; ++i)
                if (is_finite(block[i])) {
                    ++finite;
                    low = block[i] < low ? block[i] : low;
                    high = block[i] > high ? block[i] : high;
                }
            if (finite == targets * queries) continue;
            const float penalty = finite ? non_finite_penalty(low, high, targets) : 0;
            for (int64_t i = 0; i < targets * queries; ++i)
                if (!is_finite(block[i])) block[i] = penalty;
        }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
