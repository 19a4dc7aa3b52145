// What the matching costs on a CUDA device share: which problem a block works for, and a second launch that
// replaces costs that are not finite.
#pragma once

#include <cmath>
#include <stdexcept>

#include "common/cuda_first_targets.h"
#include "common/penalty.h"
#include "common/simt.h"

namespace detr_fast {

// One launch: up to kMostImages images, from first_image on.
struct MatchLaunch {
    FirstTargets first;
    int64_t targets, queries, classes;  // targets: of the whole batch
    int images, first_image, all_images, chunks;
};

// The layer and image that a block works for, and the chunk of queries.
struct MatchProblem {
    int64_t index;  // layer * all_images + image
    int64_t layer;
    int begin, end, chunk;  // its targets
};

SIMT_DEVICE MatchProblem find_problem(const MatchLaunch& launch, int chunks) {
    const int64_t block = simt::block_x();
    const int64_t problem = block / chunks;
    const int image = static_cast<int>(problem % launch.images);
    const int64_t layer = problem / launch.images;
    return {layer * launch.all_images + launch.first_image + image, layer, launch.first.of[image],
            launch.first.of[image + 1], static_cast<int>(block % chunks)};
}

SIMT_DEVICE bool is_finite(float x) { return x - x == 0; }

// One block a layer and image: leaves at once unless a cost there is not finite, and else replaces these.
template <int kThreads>
SIMT_KERNEL(kThreads)
void match_cost_repair_kernel(const MatchLaunch launch, simt::Global<const int32_t> non_finite,
                              simt::Global<float> costs) {
    SIMT_SHARED(float, lows, kThreads / 32);
    SIMT_SHARED(float, highs, kThreads / 32);
    const MatchProblem problem = find_problem(launch, 1);
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

inline void repair_match_costs(const MatchLaunch& launch, int64_t layers, const int32_t* non_finite,
                               simt::Global<float> costs, simt::Stream stream) {
    constexpr int kThreads = 256;
    simt::launch("match_cost_repair", match_cost_repair_kernel<kThreads>,
                 simt::Grid(static_cast<unsigned>(layers * launch.images)), kThreads, 0, stream, launch,
                 simt::global(non_finite, layers * launch.all_images * launch.chunks), costs);
}

// Calls use(launch) for every kMostImages images; `args` as those of the operators.
template <class Args, class Use>
void for_each_match_launch(const Args& args, int64_t chunks, const Use& use) {
    const int64_t targets = args.first_target[args.images];
    if (targets > INT32_MAX || args.layers * kMostImages * chunks > INT32_MAX)
        throw std::invalid_argument("matching costs: sumT or L * Q too large for one launch");
    for (int64_t image = 0; image < args.images; image += kMostImages) {
        const int64_t left = args.images - image, images = left < kMostImages ? left : kMostImages;
        use(MatchLaunch{first_targets(args.first_target, image, images), targets, args.queries, args.classes,
                        static_cast<int>(images), static_cast<int>(image), static_cast<int>(args.images),
                        static_cast<int>(chunks)});
    }
}

}  // namespace detr_fast
