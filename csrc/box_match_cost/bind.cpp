#include "box_match_cost/cpu.h"
#include "box_match_cost/cuda.h"
#include "common/arguments.h"
#include "operators.h"

namespace detr_fast {
namespace {

BoxMatchCost read(Arguments& in, const Targets& targets) {
    BoxMatchCost args{};
    args.first_target = targets.first.data();
    args.images = targets.images();
    args.layers = in.integer("layers");
    args.queries = in.integer("queries");
    args.classes = in.integer("classes");
    const int64_t rows = args.layers * args.images * args.queries;
    const Floats logits = in.floats("logits", rows * args.classes), boxes = in.floats("boxes", 4 * rows);
    args.logits = logits.data;
    args.logits_type = logits.type;
    args.boxes = boxes.data;
    args.boxes_type = boxes.type;
    args.target_labels = in.array<const int64_t>("target_labels", targets.count());
    args.target_boxes = in.array<const float>("target_boxes", 4 * targets.count());
    args.focal = in.flag("focal");
    args.w_class = in.number("w_class");
    args.w_l1 = in.number("w_l1");
    args.w_giou = in.number("w_giou");
    args.alpha = in.number("alpha");
    args.gamma = in.number("gamma");
    args.costs = in.array<float>("costs", args.layers * targets.count() * args.queries);
    return args;
}

}  // namespace

#if DETR_FAST_WITH_CPU
void bind_box_match_cost_cpu(py::module_& m) {
    // (sizes, layers, queries, classes, logits, boxes, target_labels, target_boxes, focal, w_class, w_l1,
    // w_giou, alpha, gamma, costs, threads) -> the first target whose label is no class, or -1
    m.def("box_match_cost_cpu", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxMatchCost args = read(in, targets);
        const int threads = static_cast<int>(in.integer("threads"));
        in.end();
        const py::gil_scoped_release release;
        return box_match_cost_cpu(args, threads);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_box_match_cost_cuda(py::module_& m) {
    m.def("box_match_cost_cuda_flags", box_match_cost_cuda_flags);
    // (sizes, ..., costs, non_finite, device, stream)
    m.def("box_match_cost_cuda", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const BoxMatchCost args = read(in, targets);
        int32_t* const non_finite = in.array<int32_t>(
            "non_finite", box_match_cost_cuda_flags(args.layers, args.images, args.queries));
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        box_match_cost_cuda(args, non_finite, queue);
    });
}
#endif

}  // namespace detr_fast
