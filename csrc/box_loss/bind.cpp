#include "box_loss/cpu.h"
#include "box_loss/cuda.h"
#include "common/arguments.h"
#include "operators.h"

namespace detr_fast {
namespace {

int64_t boxes_size(const BoxLoss& args) { return 4 * args.layers * args.images * args.queries; }

BoxLoss read(Arguments& in, const Targets& targets, bool narrow) {
    BoxLoss args{};
    args.first_target = targets.first.data();
    args.images = targets.images();
    args.layers = in.integer("layers");
    args.queries = in.integer("queries");
    const Floats boxes = narrow ? in.floats("boxes", boxes_size(args))
                                : Floats{in.array<float>("boxes", boxes_size(args)), FloatType::f32};
    args.boxes = boxes.data;
    args.type = boxes.type;
    args.target_boxes = in.array<const float>("target_boxes", 4 * targets.count());
    args.query = in.array<const int64_t>("query", args.layers * targets.count());
    return args;
}

}  // namespace

#if DETR_FAST_WITH_CPU
void bind_box_loss_cpu(py::module_& m) {
    // (sizes, layers, queries, boxes, target_boxes, query, losses) -> first entry of query out of range, or
    // -1
    m.def("box_loss_cpu_fwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets, false);
        float* const losses = in.array<float>("losses", 2 * args.layers);
        in.end();
        const py::gil_scoped_release release;
        return box_loss_cpu_fwd(args, losses);
    });
    // (sizes, layers, queries, boxes, target_boxes, query, grad_losses, grad_boxes) -> the same
    m.def("box_loss_cpu_bwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets, false);
        const float* const grad_losses = in.array<const float>("grad_losses", 2 * args.layers);
        float* const grad_boxes = in.array<float>("grad_boxes", boxes_size(args));
        in.end();
        const py::gil_scoped_release release;
        return box_loss_cpu_bwd(args, grad_losses, grad_boxes);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_box_loss_cuda(py::module_& m) {
    // (sizes, layers, queries, boxes, target_boxes, query, losses, device, stream)
    m.def("box_loss_cuda_fwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets, true);
        float* const losses = in.array<float>("losses", 2 * args.layers);
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        box_loss_cuda_fwd(args, losses, queue);
    });
    // (sizes, layers, queries, boxes, target_boxes, query, grad_losses, grad_boxes, device, stream)
    m.def("box_loss_cuda_bwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxLoss args = read(in, targets, true);
        const float* const grad_losses = in.array<const float>("grad_losses", 2 * args.layers);
        void* const grad_boxes = in.array_of(args.type, "grad_boxes", boxes_size(args));
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        box_loss_cuda_bwd(args, grad_losses, grad_boxes, queue);
    });
}
#endif

}  // namespace detr_fast
