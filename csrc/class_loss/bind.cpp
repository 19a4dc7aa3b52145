#include "class_loss/cpu.h"
#include "class_loss/cuda.h"
#include "common/arguments.h"
#include "operators.h"

namespace detr_fast {
namespace {

ClassLoss read(Arguments& in, const Targets& targets) {
    ClassLoss args{};
    args.first_target = targets.first.data();
    args.images = targets.images();
    args.layers = in.integer("layers");
    args.queries = in.integer("queries");
    args.classes = in.integer("classes");
    const Floats logits = in.floats("logits", args.layers * args.images * args.queries * args.classes);
    args.logits = logits.data;
    args.type = logits.type;
    args.labels = in.array<const int64_t>("labels", targets.count());
    args.query = in.array<const int64_t>("query", args.layers * targets.count());
    if (!in.skip_none())
        args.target_weights = in.array<const float>("target_weights", args.layers * targets.count() * 2);
    args.focal = in.flag("focal");
    args.constant = in.flag("constant");
    args.eos_coef = in.number("eos_coef");
    args.alpha = in.number("alpha");
    args.gamma = in.number("gamma");
    return args;
}

}  // namespace

#if DETR_FAST_WITH_CPU
void bind_class_loss_cpu(py::module_& m) {
    // (sizes, layers, queries, classes, logits, labels, query, target_weights or None, focal, constant,
    // eos_coef, alpha, gamma, threads, loss)
    // -> the first label that is no class or, after all labels, the first entry of query out of range, or -1
    m.def("class_loss_cpu_fwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        ClassLoss args = read(in, targets);
        args.threads = static_cast<int>(in.integer("threads"));
        float* const loss = in.array<float>("loss", args.layers);
        in.end();
        const py::gil_scoped_release release;
        return class_loss_cpu_fwd(args, loss);
    });
    // (..., threads, grad_loss, grad_logits) -> the same
    m.def("class_loss_cpu_bwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        ClassLoss args = read(in, targets);
        args.threads = static_cast<int>(in.integer("threads"));
        const float* const grad_loss = in.array<const float>("grad_loss", args.layers);
        void* const grad_logits =
            in.array_of(args.type, "grad_logits", args.layers * args.images * args.queries * args.classes);
        in.end();
        const py::gil_scoped_release release;
        return class_loss_cpu_bwd(args, grad_loss, grad_logits);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_class_loss_cuda(py::module_& m) {
    m.def("class_loss_cuda_sums", class_loss_cuda_sums);
    // (sizes, ..., gamma, sums, device, stream)
    m.def("class_loss_cuda_fwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const ClassLoss args = read(in, targets);
        float* const sums =
            in.array<float>("sums", args.layers * class_loss_cuda_sums(args.images, args.queries));
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        class_loss_cuda_fwd(args, sums, queue);
    });
    // (sizes, ..., gamma, grad_loss, grad_logits, device, stream)
    m.def("class_loss_cuda_bwd", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const ClassLoss args = read(in, targets);
        const float* const grad_loss = in.array<const float>("grad_loss", args.layers);
        void* const grad_logits =
            in.array_of(args.type, "grad_logits", args.layers * args.images * args.queries * args.classes);
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        class_loss_cuda_bwd(args, grad_loss, grad_logits, queue);
    });
}
#endif

}  // namespace detr_fast
