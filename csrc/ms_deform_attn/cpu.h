#pragma once

#include "common/isa.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace detr_fast {

// Each gradient may be nullptr: not needed. `reference_parts` [B, Q, H, N, reference_dims] is working
// memory that comes with grad_references.
struct MsDeformAttnCpuGradients {
    const void* grad_out;  // [B, Q, H * D], of value's type
    void* grad_value;      // of value's type
    float *grad_coordinates, *grad_weights, *grad_references, *reference_parts;
};

// value is float32, bfloat16 or float16, everything else float32.
DETR_FAST_DECLARE_CPU(ms_deform_attn_cpu_fwd, (const MsDeformAttnInputs& in, int threads, void* out))
DETR_FAST_DECLARE_CPU(ms_deform_attn_cpu_bwd,
                      (const MsDeformAttnInputs& in, int threads, const MsDeformAttnCpuGradients& grad))

}  // namespace detr_fast
