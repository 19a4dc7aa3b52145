#include <pybind11/pybind11.h>

#include "common/bind.h"
#include "operators.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native code of detr_fast.";
    detr_fast::bind_machine(m);
#define BIND_CPU(name) detr_fast::bind_##name##_cpu(m);
    DETR_FAST_CPU_OPERATORS(BIND_CPU)
#if DETR_FAST_WITH_CUDA
#define BIND_CUDA(name) detr_fast::bind_##name##_cuda(m);
    DETR_FAST_CUDA_OPERATORS(BIND_CUDA)
#endif
}
