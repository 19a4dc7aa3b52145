#include "common/bind.h"

#include <pybind11/stl.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "common/arguments.h"
#include "common/isa.h"
#if DETR_FAST_WITH_CUDA
#include "common/cuda_info.h"
#endif

namespace detr_fast {

void bind_machine(py::module_& m) {
    m.def("use_tensors_of", use_tensors_of, "Says once, by the module torch, how to read tensors.");
    m.def("isa", [] { return isa_name(active_isa()); }, "Instruction set that the CPU operators use.");
    m.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
                if (isa <= best_isa()) names.push_back(isa_name(isa));
            return names;
        },
        "The instruction sets that this machine runs, best last.");
    m.def(
        "set_isa",
        [](const std::string& name) {
            for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
                if (name == isa_name(isa)) {
                    if (set_isa(isa)) return;
                    throw py::value_error("isa: expected at most " + std::string(isa_name(best_isa())) +
                                          ", the best of this machine; got " + name);
                }
            throw py::value_error("isa: expected baseline, avx2 or avx512; got " + name);
        },
        "Restricts the CPU operators to an instruction set: baseline, avx2 or avx512.");
    m.attr("with_cuda") = static_cast<bool>(DETR_FAST_WITH_CUDA);
    m.attr("why_not_cuda") = DETR_FAST_WHY_NOT_CUDA;
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
    m.def(
        "cuda_device",
        [](int index) {
            const CudaDevice device = cuda_device(index);
            return py::make_tuple(device.capability, device.error);
        },
        "Compute capability (90 for 9.0) of a device, and None or why it cannot run this build's kernels.");
#endif
}

}  // namespace detr_fast
