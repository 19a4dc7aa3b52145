#include "box_loss/cpu.h"
#include "common/arguments.h"
#include "operators.h"

namespace detr_fast {
namespace {

BoxLoss read(Arguments& in, const Targets& targets) {
    BoxLoss args{};
    args.first_target = targets.first.data();
    args.images = targets.images();
    args.layers = in.integer("layers");
    args.queries = in.integer("queries");
    args.boxes = in.array<const float>("boxes", 4 * args.layers * args.images * args.queries);
    args.target_boxes = in.array<const float>("target_boxes", 4 * targets.count());
    args.query = in.array<const int64_t>("query", args.layers * targets.count());
    return args;
}

}  // namespace

void bind_box_loss_cpu(py::module_& m) {
    // (sizes, layers, queries, boxes, target_boxes, query, losses) -> first entry of query out of range, or
    // -1
    m.def("box_loss_cpu_fwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets);
        float* const losses = in.array<float>("losses", 2 * args.layers);
        in.end();
        const py::gil_scoped_release release;
        return box_loss_cpu_fwd(args, losses);
    });
    // (sizes, layers, queries, boxes, target_boxes, query, grad_losses, grad_boxes) -> the same
    m.def("box_loss_cpu_bwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets);
        const float* const grad_losses = in.array<const float>("grad_losses", 2 * args.layers);
        float* const grad_boxes = in.array<float>("grad_boxes", 4 * args.layers * args.images * args.queries);
        in.end();
        const py::gil_scoped_release release;
        return box_loss_cpu_bwd(args, grad_losses, grad_boxes);
    });
}

}  // namespace detr_fast
