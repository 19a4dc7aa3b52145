// The operators, for module.cpp and for the tests' module, which executes the CUDA kernels on the host.
#pragma once

#include <pybind11/pybind11.h>

// csrc/<operator>/bind.cpp defines bind_<operator>_cpu, where it is compiled with DETR_FAST_WITH_CPU ...
#define DETR_FAST_CPU_OPERATORS(use)                                                              \
    use(box_loss) use(box_match_cost) use(class_loss) use(linear_assignment) use(mask_match_cost) \
        use(ms_deform_attn) use(point_sample)

// ... and bind_<operator>_cuda, where it is compiled with DETR_FAST_WITH_CUDA.
#define DETR_FAST_CUDA_OPERATORS(use)                                                             \
    use(box_loss) use(box_match_cost) use(class_loss) use(linear_assignment) use(mask_match_cost) \
        use(ms_deform_attn) use(point_sample)

namespace detr_fast {

#define DETR_FAST_DECLARE(name)                   \
    void bind_##name##_cpu(pybind11::module_& m); \
    void bind_##name##_cuda(pybind11::module_& m);
DETR_FAST_CPU_OPERATORS(DETR_FAST_DECLARE)
#undef DETR_FAST_DECLARE

}  // namespace detr_fast
