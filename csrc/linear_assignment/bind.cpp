#include <pybind11/numpy.h>

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

// (costs [layers, sum of sizes, queries] or without the layers, query, ...)
AssignmentBatch read(Arguments& in, const Targets& targets) {
    AssignmentBatch batch{};
    batch.first = targets.first.data();
    batch.images = targets.images();
    const Sizes sizes = in.sizes("costs", 2);
    batch.layers = sizes.dims == 2 ? 1 : sizes.of[0];
    batch.queries = sizes.of[sizes.dims == 2 ? 1 : 2];
    Strides strides;
    batch.costs =
        in.float_or_double(batch.is_double, "costs", batch.layers * targets.count() * batch.queries, strides);
    batch.layer_stride = strides.of[1];
    batch.target_stride = strides.of[2];
    batch.query_stride = strides.of[3];
    batch.query = in.array<int64_t>("query", batch.layers * targets.count());
    return batch;
}

}  // namespace

#if DETR_FAST_WITH_CPU
namespace {

// Images, those with most targets first, so that threads end together.
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

// A NumPy matrix as a batch of one problem: its rows are targets.
AssignmentBatch one_problem(const py::array& costs, bool is_double, const int64_t* first, int32_t* status) {
    AssignmentBatch batch{};
    batch.is_double = is_double;
    const py::ssize_t size = costs.itemsize();
    batch.costs = costs.data();
    batch.target_stride = costs.strides(0) / size;
    batch.query_stride = costs.strides(1) / size;
    if (costs.strides(0) % size || costs.strides(1) % size || reinterpret_cast<uintptr_t>(batch.costs) % size)
        not_ready("costs", "elements at multiples of their size");
    batch.layers = batch.images = 1;
    batch.queries = costs.shape(1);
    batch.first = first;
    batch.status = status;
    return batch;
}

}  // namespace

void bind_linear_assignment_cpu(py::module_& m) {
    // (float32 or float64 [n, m]) -> rows, columns of min(n, m) pairs, as
    // scipy.optimize.linear_sum_assignment
    m.def("linear_sum_assignment_cpu", [](const py::object& matrix) {
        const bool is_double = py::isinstance<py::array_t<double>>(matrix);
        if (!is_double && !py::isinstance<py::array_t<float>>(matrix))
            not_ready("costs", "an array of float32 or float64");
        const auto costs = py::reinterpret_borrow<py::array>(matrix);
        if (costs.ndim() != 2)
            throw py::value_error("expected a matrix (2-D array), got a " + std::to_string(costs.ndim()) +
                                  " array");
        const int64_t n = costs.shape(0), pairs = std::min<int64_t>(n, costs.shape(1)), first[] = {0, n};
        int32_t status = 0;
        AssignmentBatch batch = one_problem(costs, is_double, first, &status);
        batch.refuses = true;
        py::array_t<int64_t> rows(pairs), columns(pairs);
        int64_t *const row = rows.mutable_data(), *const column = columns.mutable_data();
        std::vector<int64_t> of_row(n > pairs ? n : 0);
        batch.query = n > pairs ? of_row.data() : column;
        const auto solve = [&] { DETR_FAST_CPU(linear_assignment_cpu)(batch, nullptr, 1); };
        if (n * batch.queries < 1000) {  // as fast as handing the GIL over
            solve();
        } else {
            const py::gil_scoped_release release;
            solve();
        }
        if (status == static_cast<int32_t>(AssignmentStatus::out_of_memory)) throw std::bad_alloc();
        if (status == static_cast<int32_t>(AssignmentStatus::refused))
            throw py::value_error("matrix contains invalid numeric entries");
        if (status) throw py::value_error("cost matrix is infeasible");
        for (int64_t i = 0, k = 0; i < n; ++i) {
            if (batch.query[i] < 0) continue;
            row[k] = i;
            column[k++] = batch.query[i];
        }
        return py::make_tuple(std::move(rows), std::move(columns));
    });

    // (sizes, costs, query, status or None, threads) -> the first infeasible problem, counted over layers and
    // images, or -1
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
        std::vector<int64_t> order;
        if (threads > 1 && targets.images() > 1) order = most_targets_first(targets);
        DETR_FAST_CPU(linear_assignment_cpu)(batch, order.empty() ? nullptr : order.data(), threads);
        return first_infeasible(batch.status, problems);
    });
}
#endif

#if DETR_FAST_WITH_CUDA
namespace {

// Of what the launch asks for. A status of the problems' own lies behind it.
int64_t workspace_bytes(bool is_double, int64_t layers, const Targets& targets, int64_t queries,
                        int64_t shared_bytes) {
    return linear_assignment_cuda_workspace(is_double, layers, targets.images(), queries,
                                            targets.first.data(), shared_bytes);
}
int64_t status_bytes(int64_t problems) { return problems * static_cast<int64_t>(sizeof(int32_t)); }

}  // namespace

void bind_linear_assignment_cuda(py::module_& m) {
    // (sizes, layers, queries, is_double, shared_bytes) -> bytes, with room for a status that nobody asks for
    m.def("linear_assignment_cuda_workspace", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        const int64_t layers = in.integer("layers"), queries = in.integer("queries");
        const bool is_double = in.flag("is_double");
        const int64_t shared_bytes = in.integer("shared_bytes");
        in.end();
        return workspace_bytes(is_double, layers, targets, queries, shared_bytes) +
               status_bytes(layers * targets.images());
    });
    // (sizes, costs, query, status or None, by_auction, shared_bytes, workspace, device, stream)
    m.def("linear_assignment_cuda", [](const py::args& call) {
        Arguments in(call);
        const Targets targets = in.targets("sizes");
        AssignmentBatch batch = read(in, targets);
        const int64_t problems = batch.layers * batch.images;
        if (!in.skip_none()) batch.status = in.array<int32_t>("status", problems);
        const bool by_auction = in.flag("by_auction");
        const int64_t shared_bytes = in.integer("shared_bytes");
        const int64_t bytes =
            workspace_bytes(batch.is_double, batch.layers, targets, batch.queries, shared_bytes);
        uint8_t* const workspace = in.array<uint8_t>("workspace", bytes + status_bytes(problems));
        if (!batch.status) batch.status = reinterpret_cast<int32_t*>(workspace + bytes);
        const Queue queue = in.queue();
        in.end();
        const py::gil_scoped_release release;
        if (problems) linear_assignment_cuda(batch, by_auction, shared_bytes, workspace, queue);
    });
}
#endif

}  // namespace detr_fast
