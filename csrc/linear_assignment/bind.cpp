#include <algorithm>
#include <new>
#include <numeric>
#include <vector>

#include "common/arguments.h"
#include "linear_assignment/cpu.h"
#include "linear_assignment/cuda.h"
#include "operators.h"

namespace detr_fast {
namespace {

AssignmentBatch read(Arguments& in, const Targets& targets) {
    AssignmentBatch batch{};
    batch.first = targets.first.data();
    batch.images = targets.images();
    batch.layers = in.integer("layers");
    batch.queries = in.integer("queries");
    batch.costs =
        in.float_or_double(batch.is_double, "costs", batch.layers * targets.count() * batch.queries);
    batch.layer_stride = in.integer("layer_stride");
    batch.target_stride = in.integer("target_stride");
    batch.query_stride = in.integer("query_stride");
    batch.query = in.array<int64_t>("query", batch.layers * targets.count());
    return batch;
}

}  // namespace

#if DETR_FAST_WITH_CPU
namespace {

// Images, those with most targets first.
std::vector<int64_t> most_targets_first(const Targets& targets) {
    std::vector<int64_t> order(targets.images());
    std::iota(order.begin(), order.end(), 0);
    const auto count = [&](int64_t image) { return targets.first[image + 1] - targets.first[image]; };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return count(a) > count(b); });
    return order;
}

// The first problem that has no finite assignment, or -1.
int64_t first_infeasible(const int32_t* status, int64_t problems) {
    int64_t infeasible = -1;
    for (int64_t p = problems - 1; p >= 0; --p) {
        if (status[p] == static_cast<int32_t>(AssignmentStatus::out_of_memory)) throw std::bad_alloc();
        if (status[p] == static_cast<int32_t>(AssignmentStatus::infeasible)) infeasible = p;
    }
    return infeasible;
}

}  // namespace

void bind_linear_assignment_cpu(py::module_& m) {
    // (sizes, layers, queries, costs, its three strides, query, status or None, threads) -> the first
    // infeasible problem, counted over layers and images, or -1
    m.def("linear_assignment_cpu", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        AssignmentBatch batch = read(in, targets);
        const int64_t problems = batch.layers * batch.images;
        const bool without_status = in.skip_none();
        std::vector<int32_t> own_status(without_status ? problems : 0);
        batch.status = without_status ? own_status.data() : in.array<int32_t>("status", problems);
        const int threads = static_cast<int>(in.integer("threads"));
        in.end();
        const py::gil_scoped_release release;
        DETR_FAST_CPU(linear_assignment_cpu)(batch, most_targets_first(targets).data(), threads);
        return first_infeasible(batch.status, problems);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
void bind_linear_assignment_cuda(py::module_& m) {
    // (sizes, layers, queries, is_double, shared_bytes) -> bytes
    m.def("linear_assignment_cuda_workspace", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const int64_t layers = in.integer("layers"), queries = in.integer("queries");
        const bool is_double = in.flag("is_double");
        const int64_t shared_bytes = in.integer("shared_bytes");
        in.end();
        return linear_assignment_cuda_workspace(is_double, layers, targets.images(), queries,
                                                targets.first.data(), shared_bytes);
    });
    // (sizes, layers, queries, costs, its three strides, query, status, by_auction, shared_bytes, workspace,
    // device, stream)
    m.def("linear_assignment_cuda", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        AssignmentBatch batch = read(in, targets);
        batch.status = in.array<int32_t>("status", batch.layers * batch.images);
        const bool by_auction = in.flag("by_auction");
        const int64_t shared_bytes = in.integer("shared_bytes");
        void* const workspace = in.array<uint8_t>(
            "workspace", linear_assignment_cuda_workspace(batch.is_double, batch.layers, batch.images,
                                                          batch.queries, batch.first, shared_bytes));
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        linear_assignment_cuda(batch, by_auction, shared_bytes, workspace, queue);
    });
}
#endif

}  // namespace detr_fast
