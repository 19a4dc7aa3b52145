#include "ms_deform_attn/cpu_backward.h"
#include "ms_deform_attn/cpu_forward.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// Whether any sample reads any pixel into any channel.
bool reads_nothing(const MsDeformAttnShape& s) {
    return !(s.batch && s.queries && s.heads && s.channels && s.samples && s.pixels);
}

size_t bytes_of(FloatType type) { return type == FloatType::f32 ? 4 : 2; }

void zero(void* data, size_t bytes) {
    if (data && bytes) std::memset(data, 0, bytes);
}

}  // namespace

void ms_deform_attn_cpu_fwd(const MsDeformAttnInputs& in, int threads, void* out) {
    const MsDeformAttnShape& s = in.shape;
    if (reads_nothing(s))
        return zero(out, s.batch * s.queries * s.heads * s.channels * bytes_of(in.value_type));
    switch (in.value_type) {
        case FloatType::f32:
            return forward(in, threads, static_cast<float*>(out));
        case FloatType::bf16:
            return forward(in, threads, static_cast<BFloat16*>(out));
        case FloatType::f16:
            return forward(in, threads, static_cast<Half*>(out));
    }
}

void ms_deform_attn_cpu_bwd(const MsDeformAttnInputs& in, int threads, const MsDeformAttnCpuGradients& grad) {
    const MsDeformAttnShape& s = in.shape;
    if (!grad.grad_value && !grad.grad_coordinates && !grad.grad_weights && !grad.grad_references) return;
    if (reads_nothing(s)) {
        const int64_t tokens = s.batch * s.queries, samples = tokens * s.heads * s.samples;
        zero(grad.grad_value, s.batch * s.pixels * s.heads * s.channels * bytes_of(in.value_type));
        zero(grad.grad_coordinates, 2 * samples * sizeof(float));
        zero(grad.grad_weights, samples * sizeof(float));
        zero(grad.grad_references, tokens * s.levels * s.reference_dims * sizeof(float));
        return;
    }
    switch (in.value_type) {
        case FloatType::f32:
            return backward<float>(in, threads, grad);
        case FloatType::bf16:
            return backward<BFloat16>(in, threads, grad);
        case FloatType::f16:
            return backward<Half>(in, threads, grad);
    }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
