// The test-only module `_simt`: the CUDA sources compiled for the host, bound as in detr_fast._C, and the
// kernels that test the SIMT layer itself.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/arguments.h"
#include "common/simt.h"
#include "kernels.h"
#include "operators.h"

using namespace detr_fast;

PYBIND11_MODULE(_simt, m) {
    m.def("use_tensors_of", use_tensors_of);
    m.def("set_seed", simt::host::set_seed, "Fixes the order of blocks and threads of the launches to come.");
    m.def("set_most_shared", simt::host::set_most_shared,
          "Shared memory of a block on the simulated device.");
    m.def("faulty_kernels", faulty_kernels);
    m.def("run_faulty", run_faulty);
    m.def("run_empty", run_empty);
    m.def("reduction", [](uintptr_t numbers, int64_t blocks, uintptr_t shared, uintptr_t shuffles) {
        run_reduction(reinterpret_cast<const int*>(numbers), blocks, reinterpret_cast<int*>(shared),
                      reinterpret_cast<int*>(shuffles));
    });
    m.def("histogram", [](uintptr_t numbers, int64_t n, int bins, uintptr_t counts, uintptr_t taken) {
        run_histogram(reinterpret_cast<const int*>(numbers), n, bins, reinterpret_cast<int*>(counts),
                      reinterpret_cast<int*>(taken));
    });
#define BIND_CUDA(name) bind_##name##_cuda(m);
    DETR_FAST_CUDA_OPERATORS(BIND_CUDA)
}
