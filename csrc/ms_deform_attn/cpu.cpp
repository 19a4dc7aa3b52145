#include "ms_deform_attn/backward.h"
#include "ms_deform_attn/forward.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

void ms_deform_attn_fwd(const MsDeformAttnInputs& in, void* out, bool& ok) {
    if (in.bf16)
        forward(in, static_cast<uint16_t*>(out), ok);
    else
        forward(in, static_cast<float*>(out), ok);
}

void ms_deform_attn_bwd(const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, bool& ok) {
    if (in.bf16)
        backward<uint16_t>(in, grad, ok);
    else
        backward<float>(in, grad, ok);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
