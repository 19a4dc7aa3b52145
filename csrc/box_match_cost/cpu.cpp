#include "box_match_cost/cpu.h"

#include <cfloat>
#include <cmath>

#include "common/cpu_class_scores.h"
#include "common/cpu_match_cost.h"
#include "common/cpu_parallel.h"
#include "common/cpu_rows.h"
#include "common/cpu_scratch.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr float kEps = 1e-8f;
constexpr float kTiny = FLT_MIN;  // smaller areas count as zero
static_assert(kChunk % kLanes == 0 && kMaxLanes % kLanes == 0, "chunks and padded rows are whole vectors");

inline vfloat focal(vfloat logit, float alpha, float gamma) {
    const vfloat small = exp(-abs(logit)), inverse = 1 / (1 + small);
    const vfloat p = logit > vfloat{} ? inverse : small * inverse;
    const vfloat not_p = logit > vfloat{} ? small * inverse : inverse;
    return (1 - alpha) * power(p, gamma) * log(not_p + kEps) - alpha * power(not_p, gamma) * log(p + kEps);
}

// The weighted class terms of `n` queries, from `first` on among [layers * images * queries]: a row of kChunk
// for each of the labels.
void class_terms(const BoxMatchCost& args, int64_t first, int n, const int32_t* labels, int64_t n_labels,
                 int64_t row_size, float* rows, float* terms) {
    const int64_t classes = args.classes;
    for (int q = 0; q < n; q += kLanes) {
        float denominators[kLanes];
        const float* row[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            if (q + i >= n) {  // lanes past the end repeat the last query
                row[i] = row[i - 1];
                denominators[i] = denominators[i - 1];
                continue;
            }
            float* own = rows + i * row_size;
            row[i] = widen(args.logits, args.logits_type, (first + q + i) * classes, classes,
                           args.focal ? own : rows + kLanes * row_size);
            if (args.focal) continue;
            denominators[i] = softmax_row(row[i], classes, own).total;
            row[i] = own;
        }
        const vfloat factor = args.focal ? splat(args.w_class) : -args.w_class / load(denominators);
        for (int64_t slot = 0; slot < n_labels; ++slot) {
            vfloat term;
            for (int i = 0; i < kLanes; ++i) term[i] = row[i][labels[slot]];
            if (args.focal) term = focal(term, args.alpha, args.gamma);
            store(terms + slot * kChunk + q, factor * term);
        }
    }
}

// Boxes of a chunk, a row for each quantity.
struct QueryBoxes {
    float cx[kChunk], cy[kChunk], w[kChunk], h[kChunk];  // as given
    float width[kChunk], height[kChunk], area[kChunk];   // not below zero
};

void load_boxes(const BoxMatchCost& args, int64_t first, int n, QueryBoxes& q) {
    float scratch[4 * kChunk];
    const float* boxes = widen(args.boxes, args.boxes_type, 4 * first, 4 * n, scratch);
    for (int i = 0; i < kChunk; ++i) {
        const float* box = boxes + 4 * (i < n ? i : n - 1);
        q.cx[i] = box[0];
        q.cy[i] = box[1];
        q.w[i] = box[2];
        q.h[i] = box[3];
        q.width[i] = box[2] > 0 ? box[2] : 0;
        q.height[i] = box[3] > 0 ? box[3] : 0;
        q.area[i] = q.width[i] * q.height[i];
    }
}

// One target against the queries of a chunk. Returns zeros, or NaN where a cost is not finite.
vfloat target_costs(const BoxMatchPlan::Target& target, const QueryBoxes& q, const float* class_terms, int n,
                    float w_l1, float w_giou, float* costs) {
    const vfloat cx = splat(target.cx), cy = splat(target.cy), w = splat(target.w), h = splat(target.h);
    const vfloat width = splat(target.width), height = splat(target.height), area = splat(target.area);
    vfloat nan_if_any{};
    for (int i = 0; i < n; i += kLanes) {
        const vfloat dx = abs(load(q.cx + i) - cx), dy = abs(load(q.cy + i) - cy);
        const vfloat l1 = dx + dy + abs(load(q.w + i) - w) + abs(load(q.h + i) - h);
        // overlap and hull from sizes and distances: no digits cancel, as they do among corners of small
        // boxes
        const vfloat sum_x = load(q.width + i) + width, sum_y = load(q.height + i) + height;
        const vfloat overlap_x = min(0.5f * sum_x - dx, min(load(q.width + i), width));
        const vfloat overlap_y = min(0.5f * sum_y - dy, min(load(q.height + i), height));
        const vfloat hull = (sum_x - overlap_x) * (sum_y - overlap_y);
        const vfloat intersection = max(overlap_x, vfloat{}) * max(overlap_y, vfloat{});
        const vfloat together = load(q.area + i) + area - intersection;
        const vfloat giou =
            intersection / max(together, splat(kTiny)) - (hull - together) / max(hull, splat(kTiny));
        const vfloat cost = load(class_terms + i) + w_l1 * l1 - w_giou * giou;
        nan_if_any += cost * 0;
        if (i + kLanes <= n)
            store(costs + i, cost);
        else
            std::memcpy(costs + i, &cost, (n - i) * sizeof(float));
    }
    return nan_if_any;
}

}  // namespace

void box_match_cost_cpu_kernel(const BoxMatchCost& args, const BoxMatchPlan& plan, int threads) {
    const int64_t queries = args.queries, n_targets = args.first_target[args.images];
    const int64_t chunks = (queries + kChunk - 1) / kChunk;
    bool all_finite = true;
    parallel_for(threads, args.layers * args.images * chunks, [&](int64_t task) {
        const int64_t problem = task / chunks, q = task % chunks * kChunk;
        const int64_t image = problem % args.images, layer = problem / args.images;
        const int64_t begin = args.first_target[image], end = args.first_target[image + 1];
        if (begin == end) return;
        const int n = static_cast<int>(queries - q < kChunk ? queries - q : kChunk);
        float* const rows =
            static_cast<float*>(scratch(ScratchSlot::rows, sizeof(float) * plan.scratch_size));
        float* const terms = rows + (kMaxLanes + 1) * plan.row_size;
        class_terms(args, problem * queries + q, n, plan.labels + begin, plan.n_labels[image], plan.row_size,
                    rows, terms);
        QueryBoxes boxes;
        load_boxes(args, problem * queries + q, n, boxes);
        vfloat nan_if_any{};
        for (int64_t t = begin; t < end; ++t) {
            const BoxMatchPlan::Target& target = plan.targets[t];
            nan_if_any += target_costs(target, boxes, terms + target.slot * kChunk, n, args.w_l1, args.w_giou,
                                       args.costs + (layer * n_targets + t) * queries + q);
        }
        if (sum(nan_if_any) != 0) __atomic_store_n(&all_finite, false, __ATOMIC_RELAXED);
    });
    if (!all_finite) penalise_non_finite(args.costs, args.first_target, args.layers, args.images, queries);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
