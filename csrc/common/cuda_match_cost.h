// What the matching costs on a CUDA device share: a second launch that replaces costs that are not finite.
#pragma once

#include <cmath>

#include "common/cuda_problems.h"
#include "common/penalty.h"

namespace detr_fast {

SIMT_DEVICE bool is_finite(float x) { return x - x == 0; }

// One block a layer and image: leaves at once unless a cost there is not finite, and else replaces these.
template <int kThreads>
SIMT_KERNEL(kThreads)
void match_cost_repair_kernel(const ProblemLaunch launch, simt::Global<const int32_t> non_finite,
                              simt::Global<float> costs) {
    SIMT_SHARED(float, lows, kThreads / 32);
    SIMT_SHARED(float, highs, kThreads / 32);
    const Problem problem = find_problem(launch, 1);
    if (problem.begin == problem.end) return;
    bool found = false;
    for (int c = simt::thread(); c < launch.chunks; c += kThreads)
        found = found || simt::load(non_finite, problem.index * launch.chunks + c) != 0;
    if (!simt::sync_block_or(found)) return;

    const int64_t first = (problem.layer * launch.targets + problem.begin) * launch.queries;
    const int64_t count = (problem.end - problem.begin) * launch.queries;
    float low = INFINITY, high = -INFINITY;
    for (int64_t i = simt::thread(); i < count; i += kThreads) {
        const float cost = costs[first + i];
        if (!is_finite(cost)) continue;
        low = fminf(low, cost);
        high = fmaxf(high, cost);
    }
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        low = fminf(low, simt::shuffle_xor(low, lanes));
        high = fmaxf(high, simt::shuffle_xor(high, lanes));
    }
    if (simt::lane() == 0) {
        lows[simt::warp()] = low;
        highs[simt::warp()] = high;
    }
    simt::sync_block();
    for (int w = 0; w < kThreads / 32; ++w) {
        low = fminf(low, lows[w]);
        high = fmaxf(high, highs[w]);
    }
    const float penalty = low <= high ? non_finite_penalty(low, high, problem.end - problem.begin) : 0;
    for (int64_t i = simt::thread(); i < count; i += kThreads) {
        const float cost = costs[first + i];
        if (!is_finite(cost)) costs[first + i] = penalty;
    }
}

inline void repair_match_costs(const ProblemLaunch& launch, int64_t layers, const int32_t* non_finite,
                               simt::Global<float> costs, simt::Stream stream) {
    constexpr int kThreads = 256;
    simt::launch("match_cost_repair", match_cost_repair_kernel<kThreads>,
                 simt::Grid(static_cast<unsigned>(layers * launch.images)), kThreads, 0, stream, launch,
                 simt::global(non_finite, layers * launch.all_images * launch.chunks), costs);
}

}  // namespace detr_fast
