#include <cfloat>

#include "box_match_cost/box_match_cost.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int64_t kChunk = 128;  // queries that a thread takes at a time
constexpr float kEps = 1e-8f;
constexpr float kTiny = FLT_MIN;  // smaller areas count as zero

struct Target {
    float cx, cy, w, h;   // as given
    float width, height;  // not below zero
    float area;
    int32_t label;
};
static_assert(sizeof(Target) == 8 * sizeof(float), "workspace_size() counts on it");

// kLanes queries in registers.
struct Queries {
    vfloat cx, cy, w, h, width, height, area;
};

// n numbers as float32: `from` itself where it holds such, else converted into `scratch`.
const float* widen(const void* from, Float type, int64_t offset, int64_t n, float* scratch) {
    if (type == Float::float32) return static_cast<const float*>(from) + offset;
    const uint16_t* half = static_cast<const uint16_t*>(from) + offset;
    int64_t i = 0;
    if (type == Float::bfloat16) {
        for (; i + kLanes <= n; i += kLanes) store(scratch + i, load_bf16(half + i));
        for (; i < n; ++i) scratch[i] = bf16_to_float(half[i]);
    } else {
        for (; i + kLanes <= n; i += kLanes) store(scratch + i, load_fp16(half + i));
        for (; i < n; ++i) scratch[i] = fp16_to_float(half[i]);
    }
    return scratch;
}

// exp(row - shift) into `out`, which holds kLanes at least; returns the sum.
inline __attribute__((always_inline)) float exp_row(const float* row, int64_t classes, float shift,
                                                    float* out) {
    vfloat total{};
    int64_t k = 0;
    for (; k + kLanes <= classes; k += kLanes) {
        const vfloat e = exp(load(row + k) - shift);
        store(out + k, e);
        total += e;
    }
    float result = sum(total);
    if (k < classes) {
        float rest[kLanes] = {};
        for (int64_t i = k; i < classes; ++i) rest[i - k] = row[i] - shift;
        store(out + k, exp(load(rest)));
        for (int64_t i = k; i < classes; ++i) result += out[i];
    }
    return result;
}

// Writes the numerators of softmax(row) and returns the factor that they lack.
float softmax_row(const float* row, int64_t classes, float* out) {
    // Most rows need no shift by their maximum. A sum that shows saturation, underflow or NaN does.
    float total = exp_row(row, classes, 0.0f, out);
    if (!(total > 1e-20f && total < 1e37f)) {
        float highest = row[0];
        for (int64_t k = 1; k < classes; ++k) highest = row[k] > highest ? row[k] : highest;
        total = exp_row(row, classes, highest, out);
    }
    return 1 / total;
}

inline vfloat power(vfloat base, float exponent) {
    if (exponent == 2) return base * base;
    return exp(exponent * log(max(splat(kTiny), base)));
}

inline vfloat focal(vfloat logit, float alpha, float gamma) {
    const vfloat small = exp(-abs(logit)), inverse = 1 / (1 + small);
    const vfloat p = logit > vfloat{} ? inverse : small * inverse;
    const vfloat not_p = logit > vfloat{} ? small * inverse : inverse;
    return (1 - alpha) * power(p, gamma) * log(not_p + kEps) - alpha * power(not_p, gamma) * log(p + kEps);
}

inline vfloat box_cost(const Queries& q, const Target& t, float w_l1, float w_giou) {
    const vfloat dx = abs(q.cx - t.cx), dy = abs(q.cy - t.cy);
    const vfloat l1 = dx + dy + abs(q.w - t.w) + abs(q.h - t.h);
    // overlap and hull from sizes and distances: no digits cancel, as they do among corners of small boxes
    const vfloat sum_x = q.width + t.width, sum_y = q.height + t.height;
    const vfloat overlap_x = min(0.5f * sum_x - dx, min(q.width, splat(t.width)));
    const vfloat overlap_y = min(0.5f * sum_y - dy, min(q.height, splat(t.height)));
    const vfloat hull = (sum_x - overlap_x) * (sum_y - overlap_y);
    const vfloat intersection = max(overlap_x, vfloat{}) * max(overlap_y, vfloat{});
    const vfloat together = q.area + t.area - intersection;
    const vfloat giou =
        intersection / max(together, splat(kTiny)) - (hull - together) / max(hull, splat(kTiny));
    return w_l1 * l1 - w_giou * giou;
}

// kLanes boxes; lanes past `n` repeat the last one.
inline Queries load_queries(const float* boxes, int64_t n) {
    Queries q;
    for (int i = 0; i < kLanes; ++i) {
        const float* box = boxes + 4 * (i < n ? i : n - 1);
        q.cx[i] = box[0];
        q.cy[i] = box[1];
        q.w[i] = box[2];
        q.h[i] = box[3];
    }
    q.width = max(q.w, vfloat{});
    q.height = max(q.h, vfloat{});
    q.area = q.width * q.height;
    return q;
}

// The costs of `n` <= kChunk queries from `first` on, a row of [layers * images * queries], against the
// targets of their image. Returns whether all are finite.
bool chunk_costs(const BoxMatchCost& args, int64_t first, int64_t n, const Target* targets, int64_t n_targets,
                 float* costs, float* scratch) {
    const int64_t classes = args.classes, stride = args.row_stride();
    float box_scratch[4 * kChunk];
    const float* boxes = widen(args.boxes, args.boxes_type, 4 * first, 4 * n, box_scratch);
    vfloat nan_if_any{};
    for (int64_t q = 0; q < n; q += kLanes) {
        const int64_t lanes = n - q < kLanes ? n - q : kLanes;
        const Queries queries = load_queries(boxes + 4 * q, lanes);
        const float* rows[kLanes];
        vfloat class_factor = splat(args.w_class);
        for (int i = 0; i < kLanes; ++i) {
            if (i >= lanes) {
                rows[i] = rows[i - 1];
                class_factor[i] = class_factor[i - 1];
                continue;
            }
            float* out = scratch + i * stride;
            rows[i] = widen(args.logits, args.logits_type, (first + q + i) * classes, classes,
                            args.focal ? out : scratch + kLanes * stride);
            if (!args.focal) {
                class_factor[i] = -args.w_class * softmax_row(rows[i], classes, out);
                rows[i] = out;
            }
        }
        for (int64_t t = 0; t < n_targets; ++t) {
            const Target& target = targets[t];
            vfloat gathered;
            for (int i = 0; i < kLanes; ++i) gathered[i] = rows[i][target.label];
            if (args.focal) gathered = focal(gathered, args.alpha, args.gamma);
            const vfloat cost = class_factor * gathered + box_cost(queries, target, args.w_l1, args.w_giou);
            nan_if_any += cost * 0;
            float* to = costs + t * args.queries + q;
            if (lanes == kLanes)
                store(to, cost);
            else
                std::memcpy(to, &cost, lanes * sizeof(float));
        }
    }
    return sum(nan_if_any) == 0;
}

bool is_finite(float x) { return x - x == 0; }

// Replaces the non-finite entries of one block by a number above what any assignment of the others costs.
void penalise_non_finite(float* costs, int64_t n_targets, int64_t queries) {
    float low = FLT_MAX, high = -FLT_MAX;
    bool any_finite = false;
    for (int64_t i = 0; i < n_targets * queries; ++i)
        if (is_finite(costs[i])) {
            any_finite = true;
            low = costs[i] < low ? costs[i] : low;
            high = costs[i] > high ? costs[i] : high;
        }
    // above n_targets * high - (n_targets - 1) * low, by a margin that rounding cannot swallow
    const double size = high < 0 ? -double(high) : double(high);
    double penalty = high + n_targets * (double(high) - low) + (size > 1 ? size : 1);
    if (penalty > FLT_MAX) penalty = FLT_MAX;
    for (int64_t i = 0; i < n_targets * queries; ++i)
        if (!is_finite(costs[i])) costs[i] = any_finite ? static_cast<float>(penalty) : 0;
}

void prepare_targets(const BoxMatchCost& args, Target* targets) {
    for (int64_t t = 0; t < args.first_target[args.images]; ++t) {
        const float* box = args.target_boxes + 4 * t;
        const float width = box[2] > 0 ? box[2] : 0, height = box[3] > 0 ? box[3] : 0;
        targets[t] = {box[0], box[1], box[2],         box[3],
                      width,  height, width * height, static_cast<int32_t>(args.target_labels[t])};
    }
}

}  // namespace

void box_match_cost(const BoxMatchCost& args) {
    const int64_t queries = args.queries, n_targets = args.first_target[args.images];
    const int64_t chunks = (queries + kChunk - 1) / kChunk;
    const int64_t tasks = args.layers * args.images * chunks;
    Target* targets = reinterpret_cast<Target*>(args.workspace);
    prepare_targets(args, targets);
    int all_finite = 1;
#pragma omp parallel num_threads(args.threads) if (args.threads > 1)
    {
        float* scratch = args.workspace + 8 * n_targets;
#ifdef _OPENMP
        scratch += omp_get_thread_num() * 17 * args.row_stride();
#endif
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t problem = task / chunks, q = task % chunks * kChunk;
            const int64_t image = problem % args.images, layer = problem / args.images;
            const int64_t t = args.first_target[image], count = args.first_target[image + 1] - t;
            if (count == 0) continue;
            const int64_t n = queries - q < kChunk ? queries - q : kChunk;
            if (!chunk_costs(args, problem * queries + q, n, targets + t, count,
                             args.costs + (layer * n_targets + t) * queries + q, scratch)) {
#pragma omp atomic write
                all_finite = 0;
            }
        }
    }
    if (all_finite) return;
    for (int64_t layer = 0; layer < args.layers; ++layer)
        for (int64_t image = 0; image < args.images; ++image) {
            const int64_t t = args.first_target[image];
            penalise_non_finite(args.costs + (layer * n_targets + t) * queries,
                                args.first_target[image + 1] - t, queries);
        }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
