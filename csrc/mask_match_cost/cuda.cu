// A block takes kQueries queries of a layer and image, and up to 32 targets at a time. It goes through the
// points in tiles: lanes work out the terms of a point each and leave them in shared memory, then a lane
// keeps a query and its warp multiplies the terms with kPer targets' values, in registers. Products of a tile
// are added to zero first: an error grows with the tiles, not with the points. Full float32, as the sums
// cancel.
#include <cmath>

#include "common/cuda_any_numbers.h"
#include "common/cuda_match_cost.h"
#include "common/cuda_scores.h"
#include "mask_match_cost/cuda.h"

namespace detr_fast {
namespace {

constexpr int kQueries = 32, kPoints = 32, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kRowsOfWarp = kQueries / kWarps;

struct Masks {
    int64_t points, layer_stride;  // of target values
    bool focal;
    float w_class, w_mask, w_dice, positive, negative, gamma;
};

struct Terms {
    float p, where_zero;  // probability, loss where the target is zero
    float excess;         // of that over the loss where it is one
};

SIMT_DEVICE Terms terms_of(float x, const Masks& masks) {
    const float small = expf(-fabsf(x)), inverse = 1 / (1 + small);
    // softplus(x) = max(x, 0) + log(1 + exp(-|x|)); a maximum may lose a NaN, the logarithm has it
    const float both = logf(1 + small);
    const float p = x > 0 ? inverse : small * inverse;
    const float where_zero = fmaxf(x, 0) + both;
    if (!masks.focal) return {p, where_zero, x};
    const float not_p = x > 0 ? small * inverse : inverse;
    const float zero = masks.negative * power(p, masks.gamma) * where_zero;
    return {p, zero, zero - masks.positive * power(not_p, masks.gamma) * (fmaxf(-x, 0) + both)};
}

SIMT_DEVICE float sum_of_warp(float x) {
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) x += simt::shuffle_xor(x, lanes);
    return x;
}

// Without a number of blocks to aim at, registers are spent on reading ahead in shared memory.
template <class T, int kPer>
SIMT_KERNEL(kThreads, kPer == 4 ? 5 : 4)
void mask_match_cost_kernel(const ProblemLaunch launch, const Masks masks, AnyNumbers logits,
                            simt::Global<const T> mask_values, simt::Global<const int64_t> labels,
                            AnyNumbers target_values, simt::Global<float> costs,
                            simt::Global<int32_t> non_finite) {
    constexpr int kTargets = kWarps * kPer, kVectors = kPer / 4;            // vectors of four targets a warp
    constexpr int kTermsRow = kQueries + 1, kValuesRow = kTargets / 4 + 1;  // padded: fewer bank conflicts
    using Pair = simt::Vec<float, 2>;                                       // p, excess
    using Four = simt::Vec<float, 4>;
    SIMT_SHARED(Pair, terms, kPoints * kTermsRow);
    SIMT_SHARED(Four, values, kPoints * kValuesRow);
    SIMT_SHARED(float, losses_of, kQueries);
    SIMT_SHARED(float, probabilities_of, kQueries);
    SIMT_SHARED(float, values_of, kTargets);
    SIMT_SHARED(float, largest, kQueries);
    SIMT_SHARED(float, scale, kQueries);
    const Problem problem = find_problem(launch, launch.chunks);
    if (problem.begin == problem.end) return;
    const int lane = simt::lane(), warp = simt::warp();
    const int64_t first_query = static_cast<int64_t>(problem.chunk) * kQueries;
    const int64_t first_row = problem.index * launch.queries + first_query;
    const int64_t left = launch.queries - first_query;
    const int n = left < kQueries ? static_cast<int>(left) : kQueries;
    for (int q = warp; q < n; q += kWarps) {
        const Softmax softmax = softmax_of_row(logits, first_row + q, launch.classes);
        if (lane != 0) continue;
        largest[q] = softmax.largest;
        scale[q] = -masks.w_class / softmax.total;
    }

    bool all_finite = true;
    for (int first = problem.begin; first < problem.end; first += kTargets) {
        float losses[kRowsOfWarp] = {}, probabilities[kRowsOfWarp] = {},
              sums[kPer] = {};                        // of this lane's points
        float excess[kPer] = {}, overlap[kPer] = {};  // of this lane's query
        for (int64_t tile = 0; tile < masks.points; tile += kPoints) {
            const int64_t point = tile + lane;
            const bool inside = point < masks.points;
            float x[kRowsOfWarp], t[kPer];
            SIMT_UNROLL
            for (int r = 0; r < kRowsOfWarp; ++r) {
                const int q = warp + r * kWarps;
                x[r] = inside && q < n
                           ? to_float(simt::load(mask_values, (first_row + q) * masks.points + point))
                           : 0.0f;
            }
            SIMT_UNROLL
            for (int r = 0; r < kPer; ++r) {
                const int64_t target = first + warp * kPer + r;
                t[r] =
                    inside && target < problem.end
                        ? target_values.at(problem.layer * masks.layer_stride + target * masks.points + point)
                        : 0.0f;
            }
            simt::sync_block();  // the tile before is done with
            SIMT_UNROLL
            for (int r = 0; r < kRowsOfWarp; ++r) {
                Terms found = terms_of(x[r], masks);
                if (!inside) found = Terms{0, 0, 0};
                losses[r] += found.where_zero;
                probabilities[r] += found.p;
                terms[lane * kTermsRow + warp + r * kWarps] = Pair{{found.p, found.excess}};
            }
            SIMT_UNROLL
            for (int v = 0; v < kVectors; ++v)
                values[lane * kValuesRow + warp * kVectors + v] =
                    Four{{t[4 * v], t[4 * v + 1], t[4 * v + 2], t[4 * v + 3]}};
            SIMT_UNROLL
            for (int r = 0; r < kPer; ++r) sums[r] += t[r];
            simt::sync_block();
            float tile_excess[kPer] = {}, tile_overlap[kPer] = {};
            SIMT_UNROLL
            for (int i = 0; i < kPoints; ++i) {
                const Pair term = terms[i * kTermsRow + lane];
                SIMT_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    const Four four = values[i * kValuesRow + warp * kVectors + v];
                    SIMT_UNROLL
                    for (int k = 0; k < 4; ++k) {
                        tile_overlap[4 * v + k] += four[k] * term[0];
                        tile_excess[4 * v + k] += four[k] * term[1];
                    }
                }
            }
            SIMT_UNROLL
            for (int r = 0; r < kPer; ++r) {
                excess[r] += tile_excess[r];
                overlap[r] += tile_overlap[r];
            }
        }
        SIMT_UNROLL
        for (int r = 0; r < kRowsOfWarp; ++r) {
            const float loss = sum_of_warp(losses[r]), probability = sum_of_warp(probabilities[r]);
            if (lane == 0) {
                losses_of[warp + r * kWarps] = loss;
                probabilities_of[warp + r * kWarps] = probability;
            }
        }
        SIMT_UNROLL
        for (int r = 0; r < kPer; ++r) {
            const float sum = sum_of_warp(sums[r]);
            if (lane == 0) values_of[warp * kPer + r] = sum;
        }
        simt::sync_block();
        if (lane < n) {
            const float factor = scale[lane], most = largest[lane];
            const float loss = losses_of[lane], probability = probabilities_of[lane];
            SIMT_UNROLL
            for (int r = 0; r < kPer; ++r) {
                const int target = first + warp * kPer + r;
                if (target >= problem.end) continue;
                const int64_t label = simt::load(labels, target);
                float cost = NAN;
                if (label >= 0 && label < launch.classes)
                    cost = factor * expf(logits.at((first_row + lane) * launch.classes + label) - most);
                cost += masks.w_mask * ((loss - excess[r]) / static_cast<float>(masks.points));
                const float both = probability + static_cast<float>(values_of[warp * kPer + r]) + 1;
                cost += masks.w_dice * (1 - (2 * overlap[r] + 1) / both);
                all_finite = all_finite && is_finite(cost);
                costs[(problem.layer * launch.targets + target) * launch.queries + first_query + lane] = cost;
            }
        }
    }
    const bool any = simt::sync_block_or(!all_finite);
    if (simt::thread() == 0) non_finite[problem.index * launch.chunks + problem.chunk] = any;
}

int64_t chunks_of(int64_t queries) { return (queries + kQueries - 1) / kQueries; }

template <class T>
void launch_all(const MaskMatchCost& args, int32_t* non_finite, const Queue& queue) {
    const simt::UseDevice use(queue.device);
    const int64_t targets = args.first_target[args.images], chunks = chunks_of(args.queries);
    const int64_t rows = args.layers * args.images * args.queries, of_layer = targets * args.points;
    int64_t most = 0;
    for (int64_t b = 0; b < args.images; ++b) {
        const int64_t of_image = args.first_target[b + 1] - args.first_target[b];
        most = most > of_image ? most : of_image;
    }
    const auto kernel = most <= 4 * kWarps ? mask_match_cost_kernel<T, 4> : mask_match_cost_kernel<T, 8>;
    const bool balanced = args.alpha >= 0;
    const Masks masks{args.points,
                      args.target_values_of_layers ? of_layer : 0,
                      args.focal,
                      args.w_class,
                      args.w_mask,
                      args.w_dice,
                      balanced ? args.alpha : 1,
                      balanced ? 1 - args.alpha : 1,
                      args.gamma};
    const simt::Stream stream = static_cast<simt::Stream>(queue.stream);
    const auto costs = simt::global(args.costs, args.layers * targets * args.queries);
    for_each_launch(args, chunks, [&](const ProblemLaunch& launch) {
        const unsigned blocks = static_cast<unsigned>(args.layers * launch.images * chunks);
        simt::launch(
            "mask_match_cost", kernel, simt::Grid(blocks), kThreads, 0, stream, launch, masks,
            any_numbers(args.logits, rows * args.classes, ElementType(args.logits_type)),
            simt::global(static_cast<const T*>(args.mask_values), rows * args.points),
            simt::global(args.target_labels, targets),
            any_numbers(args.target_values, (masks.layer_stride ? args.layers : 1) * of_layer,
                        args.target_type),
            costs,
            simt::global(non_finite, mask_match_cost_cuda_flags(args.layers, args.images, args.queries)));
        repair_match_costs(launch, args.layers, non_finite, costs, stream);
    });
}

}  // namespace

int64_t mask_match_cost_cuda_flags(int64_t layers, int64_t images, int64_t queries) {
    return layers * images * chunks_of(queries);
}

void mask_match_cost_cuda(const MaskMatchCost& args, int32_t* non_finite, const Queue& queue) {
    if (args.layers == 0 || args.queries == 0 || args.first_target[args.images] == 0) return;
    with_float_type(args.mask_type, [&](auto x) { launch_all<decltype(x)>(args, non_finite, queue); });
}

}  // namespace detr_fast
