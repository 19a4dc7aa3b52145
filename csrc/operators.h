// The operators, for module.cpp and for the tests' module, which executes the CUDA kernels on the host.
#pragma once

#include <pybind11/pybind11.h>

#include "operator_lists.h"  // made by cmake/operators.cmake

// csrc/<operator>/bind.cpp defines bind_<operator>_cpu where it is compiled with DETR_FAST_WITH_CPU, and
// bind_<operator>_cuda where it is compiled with DETR_FAST_WITH_CUDA and there is a cuda.h.
namespace detr_fast {

#define DETR_FAST_DECLARE(name)                   \
    void bind_##name##_cpu(pybind11::module_& m); \
    void bind_##name##_cuda(pybind11::module_& m);
DETR_FAST_CPU_OPERATORS(DETR_FAST_DECLARE)
#undef DETR_FAST_DECLARE

}  // namespace detr_fast
