// Python binding of the GPU launchers: in detr_fast._C where that is built with CUDA, and in the tests'
// module that executes the same kernels on the host. Pointers and the stream travel as integers; shapes,
// dtypes, devices and alignment are checked in Python before a call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <numeric>
#include <vector>

#include "box_match_cost/cuda.h"
#include "linear_assignment/cuda.h"
#include "ms_deform_attn/cuda.h"

namespace detr_fast {

// What every launcher of ms_deform_attn takes, as one list of integers: device, stream, FloatType of value
// and of coordinates, the pointers to value, coordinates, weights and references (or 0), then
// B, Q, H, D, N, P, S, reference_dims and the N pairs (height, width).
using MsDeformAttnCall = std::vector<int64_t>;

inline MsDeformAttnCudaInputs ms_deform_attn_inputs(const MsDeformAttnCall& call) {
    const auto pointer = [&](int i) { return reinterpret_cast<void*>(static_cast<uintptr_t>(call[i])); };
    const int64_t* shape = &call[8];
    return {{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6], shape + 8,
             static_cast<int>(shape[7])},
            FloatType(call[2]),
            FloatType(call[3]),
            pointer(4),
            pointer(5),
            pointer(6),
            static_cast<const float*>(pointer(7)),
            static_cast<int>(call[0]),
            pointer(1)};
}

// The GIL is released although a launch takes microseconds: it waits where the queue of the stream is full,
// perhaps for a host callback that needs the GIL. That costs 0.05 us.
inline void bind_ms_deform_attn_gpu(pybind11::module_& m) {
    using Call = MsDeformAttnCall;
    using Unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
    m.def(
        "ms_deform_attn_cuda_fwd",
        [](const Call& call, uintptr_t out) {
            ms_deform_attn_cuda_fwd(ms_deform_attn_inputs(call), reinterpret_cast<void*>(out));
        },
        Unlocked());
    m.def(
        "ms_deform_attn_cuda_bwd",
        [](const Call& call, uintptr_t grad_out, uintptr_t grad_value, uintptr_t grad_coordinates,
           uintptr_t grad_weights, uintptr_t reference_parts) {
            ms_deform_attn_cuda_bwd(
                ms_deform_attn_inputs(call),
                {reinterpret_cast<const void*>(grad_out), reinterpret_cast<float*>(grad_value),
                 reinterpret_cast<void*>(grad_coordinates), reinterpret_cast<void*>(grad_weights),
                 reinterpret_cast<float*>(reference_parts)});
        },
        Unlocked());
    m.def("ms_deform_attn_cuda_cells",
          [](const Call& call) { return ms_deform_attn_cells(ms_deform_attn_inputs(call).shape); });
    m.def(
        "ms_deform_attn_cuda_bin",
        [](const Call& call, uintptr_t cells, uintptr_t samples) {
            ms_deform_attn_cuda_bin(ms_deform_attn_inputs(call), reinterpret_cast<int32_t*>(cells),
                                    reinterpret_cast<MsDeformAttnSample*>(samples));
        },
        Unlocked());
    m.def(
        "ms_deform_attn_cuda_gather",
        [](const Call& call, uintptr_t grad_out, uintptr_t cell_starts, uintptr_t order, uintptr_t samples,
           uintptr_t grad_value) {
            ms_deform_attn_cuda_gather(
                ms_deform_attn_inputs(call), reinterpret_cast<const void*>(grad_out),
                reinterpret_cast<const int32_t*>(cell_starts), reinterpret_cast<const int64_t*>(order),
                reinterpret_cast<const MsDeformAttnSample*>(samples), reinterpret_cast<void*>(grad_value));
        },
        Unlocked());
}

inline void bind_box_match_cost_gpu(pybind11::module_& m) {
    m.def("box_match_cost_cuda_flags", box_match_cost_flags);
    m.def(
        "box_match_cost_cuda",
        [](int device, uintptr_t stream, uintptr_t logits, int logits_type, uintptr_t boxes, int boxes_type,
           uintptr_t target_labels, uintptr_t target_boxes, const std::vector<int64_t>& sizes, int64_t layers,
           int64_t queries, int64_t classes, bool focal, float w_class, float w_l1, float w_giou, float alpha,
           float gamma, uintptr_t costs, uintptr_t non_finite) {
            std::vector<int64_t> first(sizes.size() + 1);
            std::partial_sum(sizes.begin(), sizes.end(), first.begin() + 1);
            box_match_cost_cuda({reinterpret_cast<const void*>(logits),
                                 FloatType(logits_type),
                                 reinterpret_cast<const void*>(boxes),
                                 FloatType(boxes_type),
                                 reinterpret_cast<const int64_t*>(target_labels),
                                 reinterpret_cast<const float*>(target_boxes),
                                 first.data(),
                                 layers,
                                 static_cast<int64_t>(sizes.size()),
                                 queries,
                                 classes,
                                 focal,
                                 w_class,
                                 w_l1,
                                 w_giou,
                                 alpha,
                                 gamma,
                                 reinterpret_cast<float*>(costs),
                                 reinterpret_cast<int32_t*>(non_finite),
                                 device,
                                 reinterpret_cast<void*>(stream)});
        },
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

inline void bind_linear_assignment_gpu(pybind11::module_& m) {
    using Sizes = std::vector<int64_t>;
    const auto first_targets_of = [](const Sizes& sizes) {
        Sizes first(sizes.size() + 1);
        std::partial_sum(sizes.begin(), sizes.end(), first.begin() + 1);
        return first;
    };
    m.def("linear_assignment_cuda_workspace",
          [=](bool is_double, int64_t layers, int64_t queries, const Sizes& sizes, int64_t shared_bytes) {
              const Sizes first = first_targets_of(sizes);
              AssignmentCudaBatch batch{};
              batch.is_double = is_double;
              batch.layers = layers;
              batch.images = static_cast<int64_t>(sizes.size());
              batch.queries = queries;
              batch.first = first.data();
              batch.shared_bytes = shared_bytes;
              return linear_assignment_cuda_workspace(batch);
          });
    m.def(
        "linear_assignment_cuda",
        [=](int device, uintptr_t stream, uintptr_t costs, bool is_double, bool by_auction,
            std::array<int64_t, 3> strides, int64_t layers, int64_t queries, const Sizes& sizes,
            int64_t shared_bytes, uintptr_t query, uintptr_t status, uintptr_t workspace) {
            const Sizes first = first_targets_of(sizes);
            linear_assignment_cuda({reinterpret_cast<const void*>(costs), is_double, by_auction, strides[0],
                                    strides[1], strides[2], layers, static_cast<int64_t>(sizes.size()),
                                    queries, first.data(), reinterpret_cast<int64_t*>(query),
                                    reinterpret_cast<int32_t*>(status), reinterpret_cast<void*>(workspace),
                                    shared_bytes, device, reinterpret_cast<void*>(stream)});
        },
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace detr_fast
