// Multi-scale deformable attention. All arrays are contiguous; see the Python docstrings for the meaning.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace detr_fast {

struct MsDeformAttnShape {
    int64_t batch, queries, heads, channels, levels, points;
    int64_t pixels;        // S, over all levels
    const int64_t* sizes;  // [N, 2] (height, width)
    int reference_dims;    // 0: plain; 2 or 4: fused
};

struct MsDeformAttnInputs {
    MsDeformAttnShape shape;
    const void* value;         // [B, S, H, D] float32, or bfloat16
    bool bf16;                 // of value, out, grad_out and grad_value
    const float* coordinates;  // [B, Q, H, N, P, 2] locations, or offsets where fused
    const float* weights;      // [B, Q, H, N, P] weights, or logits where fused
    const float* references;   // [B, Q, N, reference_dims], or nullptr
    int num_threads;
};

// Each gradient may be nullptr: not needed. `reference_parts` [B, Q, H, N, reference_dims] is working
// memory that comes with grad_references.
struct MsDeformAttnGradients {
    const void* grad_out;  // [B, Q, H * D]
    void* grad_value;
    float *grad_coordinates, *grad_weights, *grad_references, *reference_parts;
};

// `ok` becomes false where working memory ran out; outputs are then undefined.
DETR_FAST_DECLARE_CPU(ms_deform_attn_fwd, (const MsDeformAttnInputs& in, void* out, bool& ok))
DETR_FAST_DECLARE_CPU(ms_deform_attn_bwd,
                      (const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, bool& ok))

}  // namespace detr_fast
