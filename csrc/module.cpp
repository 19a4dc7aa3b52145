// Python binding of detr_fast: thin, one section per operator. Pointers travel as integers; shapes,
// dtypes and devices are checked in Python before a call.
#include <pybind11/pybind11.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <initializer_list>
#include <string>

#include "common/isa.h"
#if DETR_FAST_WITH_CUDA
#include "common/cuda_info.h"
#endif

namespace py = pybind11;
using namespace detr_fast;

namespace {

void bind_machine(py::module_& m) {
    m.def("isa", [] { return isa_name(active_isa()); }, "Instruction set that the CPU operators use.");
    m.def(
        "set_isa",
        [](const std::string& name) {
            for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
                if (name == isa_name(isa)) {
                    if (set_isa(isa)) return;
                    throw py::value_error("this machine cannot run " + name + "; its best is " + isa_name(best_isa()));
                }
            throw py::value_error("isa: expected baseline, avx2 or avx512, got " + name);
        },
        "Restricts the CPU operators to an instruction set: baseline, avx2 or avx512.");
    m.def(
        "omp_max_threads",
        [] {
#ifdef _OPENMP
            return omp_get_max_threads();
#else
            return 0;
#endif
        },
        "Threads of the OpenMP runtime this module is bound to; 0 where built without OpenMP.");
    m.attr("with_cuda") = static_cast<bool>(DETR_FAST_WITH_CUDA);
#if DETR_FAST_WITH_CUDA
    m.def(
        "cuda_info",
        [] {
            const CudaInfo info = cuda_info();
            py::dict d;
            d["runtime_version"] = info.runtime_version;
            d["driver_version"] = info.driver_version;
            d["device_count"] = info.device_count;
            d["error"] = info.error ? py::object(py::str(info.error)) : py::object(py::none());
            d["architectures"] = info.architectures;
            return d;
        },
        "What the CUDA runtime linked into this build sees.");
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native code of detr_fast.";
    bind_machine(m);
}
