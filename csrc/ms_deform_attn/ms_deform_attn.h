// Multi-scale deformable attention. All arrays are contiguous; see the Python docstrings for the meaning.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct MsDeformAttnShape {
    int64_t batch, queries, heads, channels, levels;
    int64_t pixels;         // S, over all levels
    int64_t samples;        // of a row: the sum of P over all levels
    const int64_t* sizes;   // [N, 2] (height, width) on the host
    const int64_t* points;  // [N] P of each level, on the host
    int reference_dims;     // 0: plain; 2 or 4: fused
};

struct MsDeformAttnInputs {
    MsDeformAttnShape shape;
    const void* value;  // [B, S, H, D]
    FloatType value_type;
    const void* coordinates;    // [B, Q, H, samples, 2] locations, or offsets where fused
    const void* weights;        // [B, Q, H, samples] weights, or logits where fused
    FloatType coordinate_type;  // of both
    const float* references;    // [B, Q, N, reference_dims], or nullptr
};

}  // namespace detr_fast
