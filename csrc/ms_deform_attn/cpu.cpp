#include "ms_deform_attn/cpu_backward.h"
#include "ms_deform_attn/cpu_forward.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// Whether any sample reads any pixel into any channel.
bool reads_nothing(const MsDeformAttnShape& s) {
    return !(s.batch && s.queries && s.heads && s.channels && s.samples && s.pixels);
}

void zero(void* data, size_t bytes) {
    if (data && bytes) std::memset(data, 0, bytes);
}

}  // namespace

void ms_deform_attn_cpu_fwd(const MsDeformAttnInputs& in, int threads, void* out, bool& ok) {
    const MsDeformAttnShape& s = in.shape;
    const bool bf16 = in.value_type == FloatType::bf16;
    if (reads_nothing(s))
        zero(out, s.batch * s.queries * s.heads * s.channels * (bf16 ? 2 : 4));
    else if (bf16)
        forward(in, threads, static_cast<uint16_t*>(out), ok);
    else
        forward(in, threads, static_cast<float*>(out), ok);
}

void ms_deform_attn_cpu_bwd(const MsDeformAttnInputs& in, int threads, const MsDeformAttnCpuGradients& grad,
                            bool& ok) {
    const MsDeformAttnShape& s = in.shape;
    const bool bf16 = in.value_type == FloatType::bf16;
    if (!grad.grad_value && !grad.grad_coordinates && !grad.grad_weights && !grad.grad_references) return;
    if (reads_nothing(s)) {
        const int64_t tokens = s.batch * s.queries, samples = tokens * s.heads * s.samples;
        zero(grad.grad_value, s.batch * s.pixels * s.heads * s.channels * (bf16 ? 2 : 4));
        zero(grad.grad_coordinates, 2 * samples * sizeof(float));
        zero(grad.grad_weights, samples * sizeof(float));
        zero(grad.grad_references, tokens * s.levels * s.reference_dims * sizeof(float));
    } else if (bf16) {
        backward<uint16_t>(in, threads, grad, ok);
    } else {
        backward<float>(in, threads, grad, ok);
    }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
