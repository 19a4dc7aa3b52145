#include <vector>

#include "common/arguments.h"
#include "ms_deform_attn/cpu.h"
#include "ms_deform_attn/cuda.h"
#include "operators.h"

namespace detr_fast {
namespace {

// The inputs of a call, and how many elements its arrays have.
struct Call {
    std::vector<int64_t> sides, points;
    MsDeformAttnInputs inputs{};
    int64_t value, out, samples, references = 0, reference_parts;

    // (sides, points or None, value, coordinates, weights, references or None, ...): each level has two
    // sides, height and width, and its own number of points; None where all have that of the coordinates.
    // These shapes are checked; of the tensors that follow the elements are counted.
    explicit Call(Arguments& in) : sides(in.integers("sides")) {
        const bool equal_points = in.skip_none();
        if (!equal_points) points = in.integers("points");
        MsDeformAttnShape& s = inputs.shape;
        s.levels = static_cast<int64_t>(sides.size()) / 2;
        if (sides.size() % 2) throw py::value_error("sides: expected two for each level");
        s.sizes = sides.data();
        for (int64_t n = 0; n < s.levels; ++n) {
            s.pixels += sides[2 * n] * sides[2 * n + 1];
            if (s.pixels >= int64_t{1} << 31)
                throw py::value_error("sides: expected fewer than 2**31 pixels");
        }
        const Sizes of_value = in.sizes("value", 4);
        s.batch = of_value.of[0];
        s.heads = of_value.of[2];
        s.channels = of_value.of[3];
        in.expect("value", {s.batch, s.pixels, s.heads, s.channels});
        value = s.batch * s.pixels * s.heads * s.channels;
        const Floats values = in.floats("value", value);
        inputs.value = values.data;
        inputs.value_type = values.type;

        const Sizes of_coordinates = in.sizes("coordinates", equal_points ? 6 : 5);
        s.queries = of_coordinates.of[1];
        const int64_t points_each = of_coordinates.of[4];
        if (equal_points) points.assign(s.levels, points_each);
        bool good = static_cast<int64_t>(points.size()) == s.levels;
        for (int64_t count : points) {
            good = good && count >= 0;
            s.samples += count;
        }
        if (!good) throw py::value_error("points: expected a count >= 0 for each level");
        s.points = points.data();
        out = s.batch * s.queries * s.heads * s.channels;
        samples = s.batch * s.queries * s.heads * s.samples;

        if (equal_points) {
            in.expect("coordinates", {s.batch, s.queries, s.heads, s.levels, points_each, 2});
        } else {
            in.expect("coordinates", {s.batch, s.queries, s.heads, s.samples, 2});
        }
        const Floats coordinates = in.floats("coordinates", 2 * samples);
        inputs.coordinates = coordinates.data;
        inputs.coordinate_type = coordinates.type;
        if (equal_points) {
            in.expect("weights", {s.batch, s.queries, s.heads, s.levels, points_each});
        } else {
            in.expect("weights", {s.batch, s.queries, s.heads, s.samples});
        }
        inputs.weights = in.array_of(coordinates.type, "weights", samples);
        if (!in.skip_none()) {
            s.reference_dims = in.sizes("references", 4).of[3] == 4 ? 4 : 2;
            in.expect("references", {s.batch, s.queries, s.levels, s.reference_dims});
            references = s.batch * s.queries * s.levels * s.reference_dims;
            inputs.references = in.array<const float>("references", references);
        }
        reference_parts = references * s.heads;
    }
    Call(const Call&) = delete;
};

// Or nullptr for None, a gradient that is not needed.
template <class T = void, class Type>
T* gradient(Arguments& in, Type type, const char* name, int64_t count) {
    return in.skip_none() ? nullptr : static_cast<T*>(in.array_of(type, name, count));
}

}  // namespace

#if DETR_FAST_WITH_CPU
void bind_ms_deform_attn_cpu(py::module_& m) {
    // (..., threads, out)
    m.def("ms_deform_attn_cpu_fwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const int threads = static_cast<int>(in.integer("threads"));
        void* const out = in.array_of(call.inputs.value_type, "out", call.out);
        in.end();
        const py::gil_scoped_release release;
        DETR_FAST_CPU(ms_deform_attn_cpu_fwd)(call.inputs, threads, out);
    });
    // (..., threads, grad_out, grad_value, grad_coordinates, grad_weights, grad_references, reference_parts),
    // each of the last five or None
    m.def("ms_deform_attn_cpu_bwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const FloatType type = call.inputs.value_type, f32 = FloatType::f32;
        const int threads = static_cast<int>(in.integer("threads"));
        MsDeformAttnCpuGradients grad{};
        grad.grad_out = in.array_of(type, "grad_out", call.out);
        grad.grad_value = gradient(in, type, "grad_value", call.value);
        grad.grad_coordinates = gradient<float>(in, f32, "grad_coordinates", 2 * call.samples);
        grad.grad_weights = gradient<float>(in, f32, "grad_weights", call.samples);
        grad.grad_references = gradient<float>(in, f32, "grad_references", call.references);
        grad.reference_parts = gradient<float>(in, f32, "reference_parts", call.reference_parts);
        in.end();
        const py::gil_scoped_release release;
        DETR_FAST_CPU(ms_deform_attn_cpu_bwd)(call.inputs, threads, grad);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
// The GIL is released although a launch takes microseconds: it waits where the queue of the stream is full,
// perhaps for a host callback that needs the GIL. That costs 0.05 us.
void bind_ms_deform_attn_cuda(py::module_& m) {
    // (..., device, stream, out)
    m.def("ms_deform_attn_cuda_fwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const Queue queue = in.queue();
        void* const out = in.array_of(call.inputs.value_type, "out", call.out);
        in.end();
        const py::gil_scoped_release release;
        ms_deform_attn_cuda_fwd(call.inputs, queue, out);
    });
    // (..., device, stream, grad_out, grad_value, grad_coordinates, grad_weights, reference_parts), each of
    // the last four or None
    m.def("ms_deform_attn_cuda_bwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const FloatType type = call.inputs.coordinate_type, f32 = FloatType::f32;
        const Queue queue = in.queue();
        MsDeformAttnCudaGradients grad{};
        grad.grad_out = in.array_of(call.inputs.value_type, "grad_out", call.out);
        grad.grad_value = gradient<float>(in, f32, "grad_value", call.value);
        grad.grad_coordinates = gradient(in, type, "grad_coordinates", 2 * call.samples);
        grad.grad_weights = gradient(in, type, "grad_weights", call.samples);
        grad.reference_parts = gradient<float>(in, f32, "reference_parts", call.reference_parts);
        in.end();
        const py::gil_scoped_release release;
        ms_deform_attn_cuda_bwd(call.inputs, queue, grad);
    });
    // (sides) -> cells of an image and head
    m.def("ms_deform_attn_cuda_cells", [](const py::args& arguments) {
        Arguments in(arguments);
        const std::vector<int64_t> sides = in.integers("sides");
        in.end();
        return ms_deform_attn_cuda_cells(static_cast<int64_t>(sides.size()) / 2, sides.data());
    });
    // (..., device, stream, cells, records)
    m.def("ms_deform_attn_cuda_bin", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const Queue queue = in.queue();
        int32_t* const cells = in.array<int32_t>("cells", call.samples);
        float* const records = in.array<float>("records", call.samples * 4);
        in.end();
        const py::gil_scoped_release release;
        ms_deform_attn_cuda_bin(call.inputs, queue, cells, reinterpret_cast<MsDeformAttnSample*>(records));
    });
    // (..., device, stream, grad_out, cell_starts, order, records, grad_value)
    m.def("ms_deform_attn_cuda_gather", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const MsDeformAttnShape& s = call.inputs.shape;
        const int64_t cells = s.batch * s.heads * ms_deform_attn_cuda_cells(s.levels, s.sizes);
        const Queue queue = in.queue();
        const void* const grad_out = in.array_of(call.inputs.value_type, "grad_out", call.out);
        const int32_t* const starts = in.array<const int32_t>("cell_starts", cells + 1);
        const int64_t* const order = in.array<const int64_t>("order", call.samples);
        const float* const records = in.array<const float>("records", call.samples * 4);
        void* const grad_value = in.array_of(call.inputs.value_type, "grad_value", call.value);
        in.end();
        const py::gil_scoped_release release;
        ms_deform_attn_cuda_gather(call.inputs, queue, grad_out, starts, order,
                                   reinterpret_cast<const MsDeformAttnSample*>(records), grad_value);
    });
}
#endif

}  // namespace detr_fast
