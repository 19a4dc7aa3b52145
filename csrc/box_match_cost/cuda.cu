// A block takes kChunk queries of one layer and image: a warp reduces each query's logits to its softmax
// statistics, then every lane keeps one query and the warps share the targets. What a cost needs of logits
// beyond the statistics is one gathered number, which the reduction has just brought into L1.
#include <cfloat>
#include <cmath>
#include <stdexcept>

#include "box_match_cost/cuda.h"
#include "common/cuda_match_cost.h"
#include "common/cuda_scores.h"
#include "common/cuda_wide_or_narrow.h"
#include "common/simt.h"

namespace detr_fast {
namespace {

constexpr int kChunk = 32;  // queries of a block: a lane each
constexpr int kWarps = 4;
constexpr float kEps = 1e-8f;
constexpr float kTiny = FLT_MIN;  // smaller areas count as zero

struct Weights {
    bool focal;
    float w_class, w_l1, w_giou, alpha, gamma;
};

SIMT_DEVICE float focal_term(float logit, float alpha, float gamma) {
    const float small = expf(-fabsf(logit)), inverse = 1 / (1 + small);
    const float p = logit > 0 ? inverse : small * inverse;
    const float not_p = logit > 0 ? small * inverse : inverse;
    return (1 - alpha) * power(p, gamma) * logf(not_p + kEps) - alpha * power(not_p, gamma) * logf(p + kEps);
}

// GIoU from sizes and distances: no digits cancel, as they do among corners of small boxes.
SIMT_DEVICE float giou(const simt::Vec<float, 4>& a, const simt::Vec<float, 4>& b, float dx, float dy) {
    const float a_width = a[2] > 0 ? a[2] : 0, a_height = a[3] > 0 ? a[3] : 0;
    const float b_width = b[2] > 0 ? b[2] : 0, b_height = b[3] > 0 ? b[3] : 0;
    const float sum_x = a_width + b_width, sum_y = a_height + b_height;
    const float overlap_x = fminf(0.5f * sum_x - dx, fminf(a_width, b_width));
    const float overlap_y = fminf(0.5f * sum_y - dy, fminf(a_height, b_height));
    const float hull = (sum_x - overlap_x) * (sum_y - overlap_y);
    const float intersection = fmaxf(overlap_x, 0) * fmaxf(overlap_y, 0);
    const float together = a_width * a_height + b_width * b_height - intersection;
    return intersection / fmaxf(together, kTiny) - (hull - together) / fmaxf(hull, kTiny);
}

template <class T>
SIMT_KERNEL(32 * kWarps)
void box_match_cost_kernel(const ProblemLaunch launch, const Weights weights, simt::Global<const T> logits,
                           WideOrNarrow<T> boxes, simt::Global<const int64_t> labels,
                           simt::Global<const float> target_boxes, simt::Global<float> costs,
                           simt::Global<int32_t> non_finite) {
    SIMT_SHARED(float, largest, kChunk);
    SIMT_SHARED(float, factor, kChunk);
    const Problem problem = find_problem(launch, launch.chunks);
    if (problem.begin == problem.end) return;
    const int64_t first_query = static_cast<int64_t>(problem.chunk) * kChunk;
    const int64_t first_row = problem.index * launch.queries + first_query;
    const int64_t left = launch.queries - first_query;
    const int n = left < kChunk ? static_cast<int>(left) : kChunk;
    if (!weights.focal)
        for (int row = simt::warp(); row < n; row += kWarps) {
            const Softmax softmax = softmax_of_row(logits, first_row + row, launch.classes);
            if (simt::lane() != 0) continue;
            largest[row] = softmax.largest;
            factor[row] = -weights.w_class / softmax.total;
        }
    simt::sync_block();

    const int lane = simt::lane();
    bool all_finite = true;
    if (lane < n) {
        const simt::Vec<float, 4> box = boxes.template group<4>(first_row + lane);
        const float most = weights.focal ? 0 : static_cast<float>(largest[lane]);
        const float scale = weights.focal ? weights.w_class : static_cast<float>(factor[lane]);
        for (int t = problem.begin + simt::warp(); t < problem.end; t += kWarps) {
            const int64_t label = simt::load(labels, t);
            float term = NAN;
            if (label >= 0 && label < launch.classes) {
                const float logit = to_float(simt::load(logits, (first_row + lane) * launch.classes + label));
                term = scale *
                       (weights.focal ? focal_term(logit, weights.alpha, weights.gamma) : expf(logit - most));
            }
            const simt::Vec<float, 4> target = simt::load_vec<4>(target_boxes, 4 * static_cast<int64_t>(t));
            const float dx = fabsf(box[0] - target[0]), dy = fabsf(box[1] - target[1]);
            const float l1 = dx + dy + fabsf(box[2] - target[2]) + fabsf(box[3] - target[3]);
            const float cost = term + weights.w_l1 * l1 - weights.w_giou * giou(box, target, dx, dy);
            all_finite = all_finite && is_finite(cost);
            costs[(problem.layer * launch.targets + t) * launch.queries + first_query + lane] = cost;
        }
    }
    const bool any = simt::sync_block_or(!all_finite);
    if (simt::thread() == 0) non_finite[problem.index * launch.chunks + problem.chunk] = any;
}

int64_t chunks_of(int64_t queries) { return (queries + kChunk - 1) / kChunk; }

template <class T>
void launch_all(const BoxMatchCost& args, int32_t* non_finite, const Queue& queue) {
    const simt::UseDevice use(queue.device);
    const int64_t targets = args.first_target[args.images], chunks = chunks_of(args.queries);
    const int64_t rows = args.layers * args.images * args.queries;
    const simt::Stream stream = static_cast<simt::Stream>(queue.stream);
    const auto logits = simt::global(static_cast<const T*>(args.logits), rows * args.classes);
    const auto boxes = wide_or_narrow<T>(args.boxes, 4 * rows, args.boxes_type);
    const auto labels = simt::global(args.target_labels, targets);
    const auto target_boxes = simt::global(args.target_boxes, 4 * targets);
    const auto costs = simt::global(args.costs, args.layers * targets * args.queries);
    const int64_t flags = box_match_cost_cuda_flags(args.layers, args.images, args.queries);
    if (targets > INT32_MAX || args.layers * kMostImages * chunks > INT32_MAX)
        throw std::invalid_argument("box_match_cost: sumT or L * Q too large for one launch");
    const Weights weights{args.focal, args.w_class, args.w_l1, args.w_giou, args.alpha, args.gamma};
    for_each_launch(args, chunks, [&](const ProblemLaunch& launch) {
        const unsigned blocks = static_cast<unsigned>(args.layers * launch.images * chunks);
        simt::launch("box_match_cost", box_match_cost_kernel<T>, simt::Grid(blocks), 32 * kWarps, 0, stream,
                     launch, weights, logits, boxes, labels, target_boxes, costs,
                     simt::global(non_finite, flags));
        repair_match_costs(launch, args.layers, non_finite, costs, stream);
    });
}

}  // namespace

int64_t box_match_cost_cuda_flags(int64_t layers, int64_t images, int64_t queries) {
    return layers * images * chunks_of(queries);
}

void box_match_cost_cuda(const BoxMatchCost& args, int32_t* non_finite, const Queue& queue) {
    if (args.layers == 0 || args.queries == 0 || args.first_target[args.images] == 0) return;
    with_float_type(args.logits_type, [&](auto x) { launch_all<decltype(x)>(args, non_finite, queue); });
}

}  // namespace detr_fast
