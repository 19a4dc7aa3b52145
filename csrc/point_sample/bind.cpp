#include <vector>

#include "common/arguments.h"
#include "common/in_range.h"
#include "operators.h"
#include "point_sample/cpu.h"
#include "point_sample/cuda.h"

namespace detr_fast {
namespace {

struct Call {
    PointSampleRows at{};
    int64_t maps_size, out_size;
    bool chooses_maps;  // by map_index, whose address is null where it is empty

    // (maps, channels, height, width, sets, points_of_set, rows, points, map_index or None, point_index or
    // None, ...); points may be None where the call `draws` them
    explicit Call(Arguments& in, bool draws = false) {
        at.maps = in.integer("maps");
        at.channels = in.integer("channels");
        at.height = in.integer("height");
        at.width = in.integer("width");
        at.sets = in.integer("sets");
        at.points_of_set = in.integer("points_of_set");
        at.rows = in.integer("rows");
        if (!draws || !in.skip_none())
            at.points = in.array<const float>("points", 2 * at.sets * at.points_of_set);
        chooses_maps = !in.skip_none();
        if (chooses_maps) at.map_index = in.array<const int64_t>("map_index", at.rows);
        const bool chooses_sets = !in.skip_none();
        if (chooses_sets) at.point_index = in.array<const int64_t>("point_index", at.rows);
        maps_size = at.maps * at.channels * at.height * at.width;
        out_size = at.rows * at.channels * at.points_of_set;
        if ((!chooses_maps && at.rows != at.maps) || (!chooses_sets && at.rows != at.sets))
            throw py::type_error("rows: expected one for each map and set without an index");
    }

    // The first row whose map does not exist or, counted on, the first whose set does not; or -1.
    int64_t bad_row() const {
        const int64_t map = at.map_index ? first_out_of_range(at.map_index, at.rows, 0, at.maps) : -1;
        if (map >= 0) return map;
        const int64_t set = at.point_index ? first_out_of_range(at.point_index, at.rows, 0, at.sets) : -1;
        return set >= 0 ? at.rows + set : -1;
    }
};

PointSampleForward read_maps(Arguments& in, const Call& call) {
    PointSampleForward args{};
    args.at = call.at;
    Strides strides;
    const Elements maps = in.elements("maps", call.maps_size, &strides);
    args.maps = maps.data;
    args.type = maps.type;
    args.map_stride = strides.of[0];
    args.channel_stride = strides.of[1];
    args.row_stride = strides.of[2];
    args.column_stride = strides.of[3];
    return args;
}

PointSampleForward read_forward(Arguments& in, const Call& call) {
    PointSampleForward args = read_maps(in, call);
    const Floats out = in.floats("out", call.out_size);
    args.out = out.data;
    args.out_type = out.type;
    return args;
}

}  // namespace

#if DETR_FAST_WITH_CPU
void expect_adjacent_columns(const PointSampleForward& args) {
    if (args.column_stride != 1 && args.at.width > 1) not_ready("maps", "adjacent columns");
}

void bind_point_sample_cpu(py::module_& m) {
    // (..., threads, maps, out) -> the first row whose entry of map_index is out of range or, counted on, of
    // point_index, before any work; or -1
    m.def("point_sample_cpu_fwd", [](const py::args& arguments) {
        Arguments in(arguments);
        Call call(in);
        call.at.threads = static_cast<int>(in.integer("threads"));
        const PointSampleForward args = read_forward(in, call);
        expect_adjacent_columns(args);
        in.end();
        const py::gil_scoped_release release;
        const int64_t bad = call.bad_row();
        if (bad < 0) DETR_FAST_CPU(point_sample_cpu_fwd)(args);
        return bad;
    });
    // (..., threads, maps, chosen, uniform, draws_uniform, seed, points out) with one set of points for each
    // row, the candidates, or None: drawn; -> the same
    m.def("uncertain_points_cpu", [](const py::args& arguments) {
        Arguments in(arguments);
        Call call(in, true);
        call.at.threads = static_cast<int>(in.integer("threads"));
        UncertainPoints args{};
        args.sample = read_maps(in, call);
        expect_adjacent_columns(args.sample);
        args.chosen = in.integer("chosen");
        args.uniform = in.integer("uniform");
        args.draws_uniform = in.flag("draws_uniform");
        args.seed = static_cast<uint64_t>(in.integer("seed"));
        if (call.at.channels != 1 || call.at.sets != call.at.rows || args.uniform < 0 || args.chosen < 0 ||
            args.chosen > call.at.points_of_set)
            throw py::type_error("chosen: expected 0 to as many as there are candidates for each row");
        args.points = in.array<float>("out", 2 * call.at.rows * (args.chosen + args.uniform));
        in.end();
        const py::gil_scoped_release release;
        const int64_t bad = call.bad_row();
        if (bad >= 0) return bad;
        DETR_FAST_CPU(uncertain_points_cpu)(args);
        return bad;
    });
    // (..., threads, grad_out, grad_maps) -> the same
    m.def("point_sample_cpu_bwd", [](const py::args& arguments) {
        Arguments in(arguments);
        Call call(in);
        call.at.threads = static_cast<int>(in.integer("threads"));
        const PointSampleRows& at = call.at;
        PointSampleBackward args{};
        args.at = at;
        const Floats grad_out = in.floats("grad_out", call.out_size);
        args.grad_out = grad_out.data;
        args.type = grad_out.type;
        args.grad_maps = in.array_of(grad_out.type, "grad_maps", call.maps_size);
        in.end();
        const py::gil_scoped_release release;
        const int64_t bad = call.bad_row();
        if (bad >= 0) return bad;
        std::vector<int64_t> order, first_row;
        if (call.chooses_maps) {
            order.resize(at.rows);
            first_row.resize(at.maps + 1);
            group_rows(at.map_index, at.rows, at.maps, order.data(), first_row.data());
            args.order = order.data();
            args.first_row = first_row.data();
        }
        DETR_FAST_CPU(point_sample_cpu_bwd)(args);
        return bad;
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_point_sample_cuda(py::module_& m) {
    // (..., maps, out, device, stream)
    m.def("point_sample_cuda_fwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const PointSampleForward args = read_forward(in, call);
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        point_sample_cuda_fwd(args, queue);
    });
    // (..., grad_out, grad_maps, device, stream)
    m.def("point_sample_cuda_bwd", [](const py::args& arguments) {
        Arguments in(arguments);
        const Call call(in);
        const Floats grad_out = in.floats("grad_out", call.out_size);
        float* const grad_maps = in.array<float>("grad_maps", call.maps_size);
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        point_sample_cuda_bwd(call.at, grad_out.data, grad_out.type, grad_maps, queue);
    });
}
#endif

}  // namespace detr_fast
