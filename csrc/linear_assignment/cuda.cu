// A block for each problem. Its warps find every row's cheapest columns and bid together; what is left is a
// chain of dependent steps, which one warp walks without barriers where rows are few, else the block. All
// problems of a training step are resident at once, so that even the smallest ones gain by a whole block.
#include <algorithm>

#include "common/cuda_first_targets.h"
#include "common/simt.h"
#include "linear_assignment/cuda.h"
#include "linear_assignment/cuda_auction.h"
#include "linear_assignment/cuda_bid.h"
#include "linear_assignment/cuda_paths.h"

namespace detr_fast {
namespace linear_assignment_kernels {

constexpr int kBiddingRounds = 4;    // after the first, which looks at no prices
constexpr int kRowsOfOneWarp = 128;  // from here on barriers cost less than four slots a lane
constexpr int kFewThreads = 256, kManyThreads = 512;

// Where in a layer's cores those of each image of a launch begin: no image takes more room than its own rows
// squared, whatever the others have.
struct FirstCores {
    int64_t of[kMostImages];
};

template <class Cost>
struct Call {
    simt::Global<const Cost> costs;
    int64_t layer_stride, target_stride, query_stride;
    int64_t targets, all_images;  // of a layer
    int images, first_image;      // of this launch
    int queries;
    bool by_auction;
    simt::Global<int64_t> query;
    simt::Global<int32_t> status;
    int64_t cores_of_layer;
    simt::Global<Cost> cores;      // [layers, cores_of_layer]
    simt::Global<int> of_columns;  // [layers, 2 (targets + all_images queries)]
    simt::Global<double> doubles;  // the state where shared memory has no room for it
    simt::Global<int> ints;
};

struct Problem {
    int64_t first_target, number;      // counted over layers
    int64_t first_core, first_column;  // elements
    int targets;
    bool targets_are_rows;
};

template <class Cost, class State, class Team>
SIMT_DEVICE void write(const Call<Cost>& call, const Problem& problem, const State& state,
                       const Tables<Cost>& tables, const Team& team, bool solved) {
    for (int t = team.rank(); t < problem.targets; t += team.size()) {
        int slot = kNone, query = -1;
        if (solved) {
            if (problem.targets_are_rows)
                slot = state.slot(t);
            else
                slot = tables.slot_of[t];
        }
        if (slot != kNone) {
            if (problem.targets_are_rows)
                query = state.column(slot);
            else
                query = state.owner(slot);
        }
        call.query[problem.first_target + t] = query;
    }
    if (team.rank() == 0)
        call.status[problem.number] =
            static_cast<int32_t>(solved ? AssignmentStatus::solved : AssignmentStatus::infeasible);
}

template <int kThreads, class Cost, class State>
SIMT_DEVICE void solve(const Call<Cost>& call, const Problem& problem, Costs<Cost>& costs,
                       const State& state) {
    SIMT_SHARED(double, least_values, 2 * kThreads / 32);
    SIMT_SHARED(int, least_at, 2 * kThreads / 32);
    SIMT_SHARED(int, slots_of_block, 1);
    BlockTeam<kThreads> block(least_values, least_at);
    const Tables<Cost> tables{call.of_columns + problem.first_column,
                              call.of_columns + (problem.first_column + costs.columns),
                              call.cores + problem.first_core};
    int slots;
    for (bool by_auction = call.by_auction;; by_auction = false) {
        prepare(costs, state, tables, block);
        const double epsilon = by_auction ? auction_epsilon(costs, state, block) : 0;
        if (by_auction && epsilon == 0) continue;
        const int rounds = by_auction ? kAuctionRounds : kBiddingRounds;
        const bool all = hold_auction(costs, state, tables, block, rounds, epsilon, slots);
        if (all && (!by_auction || is_optimal(costs, state, tables, block, costs.rows * epsilon)))
            return write(call, problem, state, tables, block, true);
        if (!by_auction) break;
        block.sync();
    }
    if (costs.rows <= kRowsOfOneWarp) {
        if (simt::warp() != 0) return;
        WarpTeam warp;
        const bool solved = Paths<Cost, State, WarpTeam>(costs, state, tables, warp).run(slots);
        return write(call, problem, state, tables, warp, solved);
    }
    if (block.rank() == 0) slots_of_block[0] = slots;
    block.sync();
    slots = slots_of_block[0];
    const bool solved = Paths<Cost, State, BlockTeam<kThreads>>(costs, state, tables, block).run(slots);
    write(call, problem, state, tables, block, solved);
}

// One block on a multiprocessor will do; without saying so, some compilers spill registers to fit more.
template <class Cost, int kThreads, bool kStateInShared>
SIMT_KERNEL(kThreads, 1)
void linear_assignment_kernel(Call<Cost> call, FirstTargets first, FirstCores first_core) {
    const int image = static_cast<int>(simt::block_x() % call.images);
    const int64_t layer = simt::block_x() / call.images;
    const int begin = first.of[image], targets = first.of[image + 1] - begin;
    const int64_t number = layer * call.all_images + call.first_image + image;
    const int64_t first_target = layer * call.targets + begin;
    const Problem problem{first_target,
                          number,
                          layer * call.cores_of_layer + first_core.of[image],
                          2 * (first_target + number * call.queries),
                          targets,
                          targets <= call.queries};
    const bool as_rows = problem.targets_are_rows;
    Costs<Cost> costs{call.costs + (layer * call.layer_stride + begin * call.target_stride),
                      as_rows ? call.target_stride : call.query_stride,
                      as_rows ? call.query_stride : call.target_stride,
                      as_rows ? targets : call.queries,
                      as_rows ? call.queries : targets,
                      kInf,
                      1};
    if (costs.rows == 0) {
        for (int t = simt::thread(); t < targets; t += kThreads) call.query[problem.first_target + t] = -1;
        if (simt::thread() == 0) call.status[problem.number] = static_cast<int32_t>(AssignmentStatus::solved);
        return;
    }
    if constexpr (kStateInShared) {
        SIMT_DYNAMIC_SHARED(double, doubles);
        SIMT_DYNAMIC_SHARED(int, ints);
        using Shared = State<simt::Shared<double>, simt::Shared<int>>;
        solve<kThreads>(call, problem, costs,
                        Shared{doubles, ints + 2 * Shared::kDoubles * costs.rows, costs.rows});
    } else {
        using Far = State<simt::Global<double>, simt::Global<int>>;
        solve<kThreads>(call, problem, costs,
                        Far{call.doubles + problem.first_target * Far::kDoubles,
                            call.ints + problem.first_target * Far::kInts, costs.rows});
    }
}

int64_t rows_of(const int64_t* first, int64_t image, int64_t queries) {
    return std::min(first[image + 1] - first[image], queries);
}

// What follows from the sizes: the parts of the workspace and the shape of the launch.
struct Plan {
    int64_t targets, most_rows = 0, cores_of_layer = 0;
    int64_t cores, of_columns, doubles, ints;  // elements
    int64_t shared_bytes;                      // for the state; 0 where it lies in the workspace
    int64_t workspace_bytes;

    Plan(bool is_double, int64_t layers, int64_t images, int64_t queries, const int64_t* first,
         int64_t most_shared_bytes)
        : targets(first[images]) {
        for (int64_t b = 0; b < images; ++b) {
            const int64_t rows = rows_of(first, b, queries);
            most_rows = std::max(most_rows, rows);
            cores_of_layer += rows * rows;
        }
        constexpr int64_t kStatic = 1024;  // at least what the kernels declare
        const int64_t state = most_rows * kStateBytes;
        shared_bytes = state + kStatic <= most_shared_bytes ? state : 0;
        cores = layers * cores_of_layer;
        of_columns = layers * 2 * (targets + images * queries);  // an image's columns: at most T + Q
        doubles = shared_bytes ? 0 : layers * targets * State<double*, int*>::kDoubles;
        ints = shared_bytes ? 0 : layers * targets * State<double*, int*>::kInts;
        workspace_bytes = doubles * 8 + cores * (is_double ? 8 : 4) + (of_columns + ints) * 4;
    }
};

static_assert(sizeof(Call<double>) + sizeof(FirstTargets) + sizeof(FirstCores) <= 4096,
              "the parameters of a kernel");

template <class Cost>
void launch(const AssignmentBatch& batch, bool by_auction, int64_t shared_bytes, void* workspace,
            const Queue& queue) {
    const Plan plan(batch.is_double, batch.layers, batch.images, batch.queries, batch.first, shared_bytes);
    double* const doubles = static_cast<double*>(workspace);
    Cost* const cores = reinterpret_cast<Cost*>(doubles + plan.doubles);
    int* const of_columns = reinterpret_cast<int*>(cores + plan.cores);
    const bool empty = batch.layers * plan.targets * batch.queries == 0;
    const int64_t reach = (batch.layers - 1) * batch.layer_stride + (plan.targets - 1) * batch.target_stride +
                          (batch.queries - 1) * batch.query_stride + 1;
    const bool few = !plan.shared_bytes || plan.most_rows <= kRowsOfOneWarp;
    const auto kernel = !plan.shared_bytes ? linear_assignment_kernel<Cost, kFewThreads, false>
                        : few              ? linear_assignment_kernel<Cost, kFewThreads, true>
                                           : linear_assignment_kernel<Cost, kManyThreads, true>;
    const simt::UseDevice device(queue.device);
    int64_t next_core = 0;
    for (int64_t image = 0; image < batch.images; image += kMostImages) {
        const int64_t images = std::min<int64_t>(batch.images - image, kMostImages);
        FirstCores first_core{};
        for (int64_t i = 0; i < images; ++i) {
            const int64_t rows = rows_of(batch.first, image + i, batch.queries);
            first_core.of[i] = next_core;
            next_core += rows * rows;
        }
        const Call<Cost> call{simt::global(static_cast<const Cost*>(batch.costs), empty ? 0 : reach),
                              batch.layer_stride,
                              batch.target_stride,
                              batch.query_stride,
                              plan.targets,
                              batch.images,
                              static_cast<int>(images),
                              static_cast<int>(image),
                              static_cast<int>(batch.queries),
                              by_auction,
                              simt::global(batch.query, batch.layers * plan.targets),
                              simt::global(batch.status, batch.layers * batch.images),
                              plan.cores_of_layer,
                              simt::global(cores, plan.cores),
                              simt::global(of_columns, plan.of_columns),
                              simt::global(doubles, plan.doubles),
                              simt::global(of_columns + plan.of_columns, plan.ints)};
        simt::launch("linear_assignment", kernel, simt::Grid(static_cast<unsigned>(batch.layers * images)),
                     few ? kFewThreads : kManyThreads, static_cast<size_t>(plan.shared_bytes),
                     static_cast<simt::Stream>(queue.stream), call, first_targets(batch.first, image, images),
                     first_core);
    }
}

}  // namespace linear_assignment_kernels

int64_t linear_assignment_cuda_workspace(bool is_double, int64_t layers, int64_t images, int64_t queries,
                                         const int64_t* first, int64_t shared_bytes) {
    using namespace linear_assignment_kernels;
    return Plan(is_double, layers, images, queries, first, shared_bytes).workspace_bytes;
}

void linear_assignment_cuda(const AssignmentBatch& batch, bool by_auction, int64_t shared_bytes,
                            void* workspace, const Queue& queue) {
    if (batch.layers * batch.images == 0) return;
    using namespace linear_assignment_kernels;
    if (batch.is_double)
        launch<double>(batch, by_auction, shared_bytes, workspace, queue);
    else
        launch<float>(batch, by_auction, shared_bytes, workspace, queue);
}

}  // namespace detr_fast
