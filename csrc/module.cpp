// Python binding of detr_fast: thin, one section per operator. Pointers travel as integers; shapes,
// dtypes and devices are checked in Python before a call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <array>
#include <initializer_list>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "box_loss/box_loss.h"
#include "box_match_cost/box_match_cost.h"
#include "class_loss/class_loss.h"
#include "common/isa.h"
#include "linear_assignment/linear_assignment.h"
#include "mask_match_cost/mask_match_cost.h"
#include "ms_deform_attn/ms_deform_attn.h"
#include "point_sample/point_sample.h"
#if DETR_FAST_WITH_CUDA
#include "bind_gpu.h"
#include "common/cuda_info.h"
#endif

namespace py = pybind11;
using namespace detr_fast;

namespace {

// Where the targets of each image begin, and the end.
std::vector<int64_t> first_of(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> first(sizes.size() + 1);
    std::partial_sum(sizes.begin(), sizes.end(), first.begin() + 1);
    return first;
}

void bind_machine(py::module_& m) {
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

void bind_linear_assignment(py::module_& m) {
    m.def(
        "linear_assignment",
        [](uintptr_t costs, bool is_double, std::array<int64_t, 3> strides, int64_t layers, int64_t queries,
           const std::vector<int64_t>& sizes, uintptr_t query, uintptr_t status, int threads) {
            const int64_t images = static_cast<int64_t>(sizes.size()), problems = layers * images;
            std::vector<int64_t> first(images + 1), order(images);
            std::partial_sum(sizes.begin(), sizes.end(), first.begin() + 1);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(),
                             [&](int64_t a, int64_t b) { return sizes[a] > sizes[b]; });
            std::vector<int32_t> own_status(status ? 0 : problems);
            AssignmentBatch batch{reinterpret_cast<const void*>(costs),
                                  is_double,
                                  strides[0],
                                  strides[1],
                                  strides[2],
                                  layers,
                                  images,
                                  first[images],
                                  queries,
                                  first.data(),
                                  order.data(),
                                  reinterpret_cast<int64_t*>(query),
                                  status ? reinterpret_cast<int32_t*>(status) : own_status.data(),
                                  threads};
            {
                py::gil_scoped_release release;
                DETR_FAST_CPU(linear_assignment)(batch);
            }
            int64_t infeasible = -1;
            for (int64_t p = problems - 1; p >= 0; --p) {
                if (batch.status[p] == static_cast<int32_t>(AssignmentStatus::out_of_memory))
                    throw std::bad_alloc();
                if (batch.status[p] == static_cast<int32_t>(AssignmentStatus::infeasible)) infeasible = p;
            }
            return infeasible;
        },
        "costs [layers, targets, queries], element strides -> query [layers, targets], status [layers, "
        "images] or 0; "
        "returns the first infeasible problem, counted over layers and images, or -1.");
}

void bind_box_match_cost(py::module_& m) {
    m.def(
        "box_match_cost",
        [](uintptr_t logits, int logits_type, uintptr_t boxes, int boxes_type, uintptr_t target_labels,
           uintptr_t target_boxes, const std::vector<int64_t>& sizes, int64_t layers, int64_t queries,
           int64_t classes, bool focal, float w_class, float w_l1, float w_giou, float alpha, float gamma,
           uintptr_t costs, int threads) -> int64_t {
            const std::vector<int64_t> first = first_of(sizes);
            const BoxMatchCost args{reinterpret_cast<const void*>(logits),
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
                                    threads};
            py::gil_scoped_release release;
            return box_match_cost(args);
        },
        "Fills costs [layers, targets, queries]; returns the first target whose label is no class, or -1.");
}

void bind_mask_match_cost(py::module_& m) {
    m.def(
        "mask_match_cost",
        [](uintptr_t logits, int logits_type, uintptr_t mask_values, int mask_type, uintptr_t target_labels,
           uintptr_t target_values, int target_type, bool target_values_of_layers,
           const std::vector<int64_t>& sizes, int64_t layers, int64_t queries, int64_t classes,
           int64_t points, bool focal, float w_class, float w_mask, float w_dice, float alpha, float gamma,
           uintptr_t costs, int threads) {
            std::vector<int64_t> first(sizes.size() + 1);
            std::partial_sum(sizes.begin(), sizes.end(), first.begin() + 1);
            const MaskMatchCost args{reinterpret_cast<const void*>(logits),
                                     FloatType(logits_type),
                                     reinterpret_cast<const void*>(mask_values),
                                     FloatType(mask_type),
                                     reinterpret_cast<const int64_t*>(target_labels),
                                     reinterpret_cast<const void*>(target_values),
                                     TargetType(target_type),
                                     target_values_of_layers,
                                     first.data(),
                                     layers,
                                     static_cast<int64_t>(sizes.size()),
                                     queries,
                                     classes,
                                     points,
                                     focal,
                                     w_class,
                                     w_mask,
                                     w_dice,
                                     alpha,
                                     gamma,
                                     reinterpret_cast<float*>(costs),
                                     threads};
            bool ok = true;
            {
                py::gil_scoped_release release;
                DETR_FAST_CPU(mask_match_cost)(args, ok);
            }
            if (!ok) throw std::bad_alloc();
        },
        "Fills costs [layers, targets, queries].");
}

void bind_class_loss(py::module_& m) {
    // shape: L, Q, K; options: no_object, alpha, gamma
    const auto call = [](const std::array<int64_t, 3>& shape, const std::vector<int64_t>& sizes,
                         uintptr_t logits, int type, uintptr_t labels, uintptr_t query, bool focal,
                         const std::array<float, 3>& options, int threads, const auto& run) -> int64_t {
        const std::vector<int64_t> first = first_of(sizes);
        const ClassLoss args{reinterpret_cast<const void*>(logits),
                             FloatType(type),
                             reinterpret_cast<const int64_t*>(labels),
                             reinterpret_cast<const int64_t*>(query),
                             first.data(),
                             shape[0],
                             static_cast<int64_t>(sizes.size()),
                             shape[1],
                             shape[2],
                             focal,
                             options[0],
                             options[1],
                             options[2],
                             threads};
        py::gil_scoped_release release;
        return run(args);
    };
    m.def("class_loss_fwd", [call](const std::array<int64_t, 3>& shape, const std::vector<int64_t>& sizes,
                                   uintptr_t logits, int type, uintptr_t labels, uintptr_t query, bool focal,
                                   const std::array<float, 3>& options, int threads, uintptr_t loss) {
        return call(
            shape, sizes, logits, type, labels, query, focal, options, threads,
            [&](const ClassLoss& args) { return class_loss_fwd(args, reinterpret_cast<float*>(loss)); });
    });
    m.def("class_loss_bwd",
          [call](const std::array<int64_t, 3>& shape, const std::vector<int64_t>& sizes, uintptr_t logits,
                 int type, uintptr_t labels, uintptr_t query, bool focal, const std::array<float, 3>& options,
                 int threads, uintptr_t grad_loss, uintptr_t grad_logits) {
              return call(shape, sizes, logits, type, labels, query, focal, options, threads,
                          [&](const ClassLoss& args) {
                              return class_loss_bwd(args, reinterpret_cast<const float*>(grad_loss),
                                                    reinterpret_cast<void*>(grad_logits));
                          });
          });
}

void bind_box_loss(py::module_& m) {
    const auto arguments = [](int64_t layers, int64_t queries, const std::vector<int64_t>& first,
                              uintptr_t boxes, uintptr_t target_boxes, uintptr_t query) {
        return BoxLoss{reinterpret_cast<const float*>(boxes),
                       reinterpret_cast<const float*>(target_boxes),
                       reinterpret_cast<const int64_t*>(query),
                       first.data(),
                       layers,
                       static_cast<int64_t>(first.size()) - 1,
                       queries};
    };
    m.def("box_loss_fwd",
          [arguments](int64_t layers, int64_t queries, const std::vector<int64_t>& sizes, uintptr_t boxes,
                      uintptr_t target_boxes, uintptr_t query, uintptr_t losses) {
              const std::vector<int64_t> first = first_of(sizes);
              py::gil_scoped_release release;
              return box_loss_fwd(arguments(layers, queries, first, boxes, target_boxes, query),
                                  reinterpret_cast<float*>(losses));
          });
    m.def("box_loss_bwd",
          [arguments](int64_t layers, int64_t queries, const std::vector<int64_t>& sizes, uintptr_t boxes,
                      uintptr_t target_boxes, uintptr_t query, uintptr_t grad_losses, uintptr_t grad_boxes) {
              const std::vector<int64_t> first = first_of(sizes);
              py::gil_scoped_release release;
              return box_loss_bwd(arguments(layers, queries, first, boxes, target_boxes, query),
                                  reinterpret_cast<const float*>(grad_losses),
                                  reinterpret_cast<float*>(grad_boxes));
          });
}

void bind_ms_deform_attn(py::module_& m) {
    // shape: B, Q, H, D, N, P, S, reference_dims, followed by the N pairs (height, width)
    const auto inputs = [](const std::vector<int64_t>& shape, bool bf16, uintptr_t value,
                           uintptr_t coordinates, uintptr_t weights, uintptr_t references, int threads) {
        return MsDeformAttnInputs{{shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6],
                                   shape.data() + 8, static_cast<int>(shape[7])},
                                  reinterpret_cast<const void*>(value),
                                  bf16,
                                  reinterpret_cast<const float*>(coordinates),
                                  reinterpret_cast<const float*>(weights),
                                  reinterpret_cast<const float*>(references),
                                  threads};
    };
    m.def("ms_deform_attn_fwd",
          [inputs](const std::vector<int64_t>& shape, bool bf16, uintptr_t value, uintptr_t coordinates,
                   uintptr_t weights, uintptr_t references, int threads, uintptr_t out) {
              bool ok = true;
              {
                  py::gil_scoped_release release;
                  const auto in = inputs(shape, bf16, value, coordinates, weights, references, threads);
                  DETR_FAST_CPU(ms_deform_attn_fwd)(in, reinterpret_cast<void*>(out), ok);
              }
              if (!ok) throw std::bad_alloc();
          });
    m.def("ms_deform_attn_bwd",
          [inputs](const std::vector<int64_t>& shape, bool bf16, uintptr_t value, uintptr_t coordinates,
                   uintptr_t weights, uintptr_t references, int threads, uintptr_t grad_out,
                   uintptr_t grad_value, uintptr_t grad_coordinates, uintptr_t grad_weights,
                   uintptr_t grad_references, uintptr_t reference_parts) {
              bool ok = true;
              {
                  py::gil_scoped_release release;
                  const auto in = inputs(shape, bf16, value, coordinates, weights, references, threads);
                  const MsDeformAttnGradients grad{
                      reinterpret_cast<const void*>(grad_out),    reinterpret_cast<void*>(grad_value),
                      reinterpret_cast<float*>(grad_coordinates), reinterpret_cast<float*>(grad_weights),
                      reinterpret_cast<float*>(grad_references),  reinterpret_cast<float*>(reference_parts)};
                  DETR_FAST_CPU(ms_deform_attn_bwd)(in, grad, ok);
              }
              if (!ok) throw std::bad_alloc();
          });
}

void bind_point_sample(py::module_& m) {
    // shape: M, C, h, w, R, P
    const auto rows = [](const std::array<int64_t, 6>& shape, uintptr_t points, uintptr_t map_index,
                         uintptr_t point_index, int threads) {
        return PointSampleRows{shape[0],
                               shape[1],
                               shape[2],
                               shape[3],
                               reinterpret_cast<const float*>(points),
                               reinterpret_cast<const int64_t*>(map_index),
                               reinterpret_cast<const int64_t*>(point_index),
                               shape[4],
                               shape[5],
                               threads};
    };
    m.def("point_sample_fwd", [rows](const std::array<int64_t, 6>& shape, uintptr_t points,
                                     uintptr_t map_index, uintptr_t point_index, int threads, uintptr_t maps,
                                     int type, std::array<int64_t, 3> strides, uintptr_t out, int out_type) {
        const PointSampleForward args{rows(shape, points, map_index, point_index, threads),
                                      reinterpret_cast<const void*>(maps),
                                      MapType(type),
                                      strides[0],
                                      strides[1],
                                      strides[2],
                                      reinterpret_cast<void*>(out),
                                      FloatType(out_type)};
        py::gil_scoped_release release;
        DETR_FAST_CPU(point_sample_fwd)(args);
    });
    m.def("point_sample_bwd",
          [rows](const std::array<int64_t, 6>& shape, uintptr_t points, uintptr_t map_index,
                 uintptr_t point_index, int threads, uintptr_t grad_out, uintptr_t grad_maps, int type) {
              bool ok = true;
              {
                  py::gil_scoped_release release;
                  const PointSampleRows at = rows(shape, points, map_index, point_index, threads);
                  std::vector<int64_t> order(at.rows), first_row(at.maps + 1);
                  if (at.map_index)
                      group_rows(at.map_index, at.rows, at.maps, order.data(), first_row.data());
                  const bool chosen = at.map_index || at.rows == 0;
                  const PointSampleBackward args{at,
                                                 order.data(),
                                                 chosen ? first_row.data() : nullptr,
                                                 reinterpret_cast<const void*>(grad_out),
                                                 reinterpret_cast<void*>(grad_maps),
                                                 FloatType(type)};
                  DETR_FAST_CPU(point_sample_bwd)(args, ok);
              }
              if (!ok) throw std::bad_alloc();
          });
    m.def("first_out_of_range", [](uintptr_t index, int64_t rows, int64_t count) {
        return first_out_of_range(reinterpret_cast<const int64_t*>(index), rows, count);
    });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native code of detr_fast.";
    bind_machine(m);
    bind_ms_deform_attn(m);
    bind_box_match_cost(m);
    bind_class_loss(m);
    bind_box_loss(m);
    bind_mask_match_cost(m);
    bind_linear_assignment(m);
    bind_point_sample(m);
#if DETR_FAST_WITH_CUDA
    bind_ms_deform_attn_gpu(m);
    bind_box_match_cost_gpu(m);
    bind_linear_assignment_gpu(m);
#endif
}
