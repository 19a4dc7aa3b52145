#include "common/arguments.h"
#include "common/in_range.h"
#include "mask_match_cost/cpu.h"
#include "mask_match_cost/cuda.h"
#include "operators.h"

namespace detr_fast {
namespace {

MaskMatchCost read(Arguments& in, const Targets& targets) {
    MaskMatchCost args{};
    args.first_target = targets.first.data();
    args.images = targets.images();
    args.layers = in.integer("layers");
    args.queries = in.integer("queries");
    args.classes = in.integer("classes");
    args.points = in.integer("points");
    args.target_values_of_layers = in.flag("target_values_of_layers");
    const int64_t rows = args.layers * args.images * args.queries;
    const Floats logits = in.floats("logits", rows * args.classes);
    const Floats masks = in.floats("mask_values", rows * args.points);
    args.logits = logits.data;
    args.logits_type = logits.type;
    args.mask_values = masks.data;
    args.mask_type = masks.type;
    args.target_labels = in.array<const int64_t>("target_labels", targets.count());
    const int64_t copies = args.target_values_of_layers ? args.layers : 1;
    const Elements values = in.elements("target_values", copies * targets.count() * args.points);
    args.target_values = values.data;
    args.target_type = values.type;
    args.focal = in.flag("focal");
    args.w_class = in.number("w_class");
    args.w_mask = in.number("w_mask");
    args.w_dice = in.number("w_dice");
    args.alpha = in.number("alpha");
    args.gamma = in.number("gamma");
    args.costs = in.array<float>("costs", args.layers * targets.count() * args.queries);
    return args;
}

}  // namespace

#if DETR_FAST_WITH_CPU
void bind_mask_match_cost_cpu(py::module_& m) {
    // (sizes, layers, queries, classes, points, target_values_of_layers, logits, mask_values, target_labels,
    // target_values, focal, w_class, w_mask, w_dice, alpha, gamma, costs, threads) -> the first target whose
    // label is no class, before any work, or -1
    m.def("mask_match_cost_cpu", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        MaskMatchCost args = read(in, targets);
        args.threads = static_cast<int>(in.integer("threads"));
        in.end();
        const int64_t bad = first_out_of_range(args.target_labels, targets.count(), 0, args.classes);
        if (bad >= 0) return bad;
        const py::gil_scoped_release release;
        DETR_FAST_CPU(mask_match_cost_cpu)(args);
        return bad;
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_mask_match_cost_cuda(py::module_& m) {
    m.def("mask_match_cost_cuda_flags", mask_match_cost_cuda_flags);
    // (sizes, ..., costs, non_finite, device, stream)
    m.def("mask_match_cost_cuda", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const MaskMatchCost args = read(in, targets);
        int32_t* const non_finite = in.array<int32_t>(
            "non_finite", mask_match_cost_cuda_flags(args.layers, args.images, args.queries));
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        mask_match_cost_cuda(args, non_finite, queue);
    });
}
#endif

}  // namespace detr_fast
