// A task is a block of queries of one (layer, image). It goes through the points in tiles: the target values
// of a tile become float32 once, then each pair of queries has its nonlinear terms computed into the first
// cache level and multiplied with all targets. Nothing of the size of the masks is ever written.
#include "mask_match_cost/cpu.h"

#include "common/cpu_class_scores.h"
#include "common/cpu_match_cost.h"
#include "common/cpu_parallel.h"
#include "common/cpu_rows.h"
#include "common/cpu_scratch.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int64_t kTile = 64 * kLanes;  // points; see log_of_products
constexpr int64_t kBlock = 32;          // queries that a task takes at most
constexpr int64_t kWorthThreads =
    100000;                        // below so many mask values a second thread costs more than it brings
constexpr float kOutside = -1e4f;  // the mask logit of padding: it adds nothing where its target is zero

// What the points of all tiles so far add up to, for one query.
struct QuerySums {
    double negative = 0;  // mask losses, were all targets zero
    double probability = 0;
};

// For two queries and one target: difference of mask losses (target zero, less target one) and probability,
// each weighted by the target.
struct Products {
    double difference[2], probability[2];
};
static_assert(sizeof(Products) == 4 * sizeof(double), "four sums side by side");

// The terms of one query and tile that are multiplied with targets.
struct PointTerms {
    alignas(64) float logits[kTile];  // where they had to be widened or padded
    alignas(64) float difference[kTile];
    alignas(64) float probability[kTile];
};

// Per-point terms of a tile of n logits, a multiple of kLanes; returns the row of differences. Meanwhile
// fetches the row `next`, of numbers of `width` bytes: a tile is too short for the hardware to see what
// comes.
const float* cross_entropy_terms(const float* logits, int64_t n, const char* next, int64_t width,
                                 PointTerms& terms, QuerySums& sums) {
    vfloat linear{}, total{}, product = splat(1);
    for (int64_t i = 0; i < n; i += kLanes) {
        __builtin_prefetch(next + i * width);
        const vfloat x = load(logits + i), small = exp(-abs(x)), one_more = 1 + small;
        const vfloat inverse = 1 / one_more;
        const vfloat p = x > vfloat{} ? inverse : small * inverse;
        // softplus(x) = max(x, 0) + log(1 + exp(-|x|)); the logarithms of a lane are taken together, for a
        // product of 64 factors up to 2 stays finite
        linear += max(vfloat{}, x);
        product *= one_more;
        total += p;
        store(terms.probability + i, p);
    }
    sums.negative += sum(linear) + sum(log(product));
    sums.probability += sum(total);
    return logits;  // softplus(x) - softplus(-x) = x
}

const float* focal_terms(const float* logits, int64_t n, const char* next, int64_t width, float alpha,
                         float gamma, PointTerms& terms, QuerySums& sums) {
    const float of_positive = alpha < 0 ? 1 : alpha, of_negative = alpha < 0 ? 1 : 1 - alpha;
    vfloat negatives{}, total{};
    for (int64_t i = 0; i < n; i += kLanes) {
        __builtin_prefetch(next + i * width);
        const vfloat x = load(logits + i), small = exp(-abs(x)), inverse = 1 / (1 + small);
        const vfloat p = x > vfloat{} ? inverse : small * inverse;
        const vfloat not_p = x > vfloat{} ? small * inverse : inverse;
        const vfloat both = log(1 + small);  // softplus(x) = max(x, 0) + log(1 + exp(-|x|))
        const vfloat negative = of_negative * power(p, gamma) * (max(vfloat{}, x) + both);
        const vfloat positive = of_positive * power(not_p, gamma) * (max(vfloat{}, -x) + both);
        negatives += negative;
        total += p;
        store(terms.difference + i, negative - positive);
        store(terms.probability + i, p);
    }
    sums.negative += sum(negatives);
    sums.probability += sum(total);
    return terms.difference;
}

// A row of n numbers, followed by `padding` up to a whole vector: in `scratch` unless n is such.
const float* pad(const float* row, int64_t n, float padding, float* scratch) {
    if (n % kLanes == 0) return row;
    if (row != scratch) std::memcpy(scratch, row, n * sizeof(float));
    for (int64_t i = n; i % kLanes; ++i) scratch[i] = padding;
    return scratch;
}

// Target values [targets, n] of a tile as float32, rows kTile apart, padded with zeros; adds up each row.
void load_targets(const MaskMatchCost& args, int64_t first, int64_t targets, int64_t n, float* to,
                  double* totals) {
    for (int64_t t = 0; t < targets; ++t, to += kTile, first += args.points) {
        if (args.target_type == ElementType::u8) {
            const uint8_t* from = static_cast<const uint8_t*>(args.target_values) + first;
            for (int64_t i = 0; i < n; ++i) to[i] = from[i];
        } else {
            const float* row = widen(args.target_values, FloatType(args.target_type), first, n, to);
            if (row != to) std::memcpy(to, row, n * sizeof(float));
        }
        pad(to, n, 0, to);
        vfloat total{};
        for (int64_t i = 0; i < n; i += kLanes) total += load(to + i);
        totals[t] += sum(total);
    }
}

// Four rows times a group of targets, in registers.
template <int Targets>
inline void multiply(const float* const (&rows)[4], const float* targets, int64_t n, Products* products) {
    vfloat sums[Targets][4] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        const vfloat row[4] = {load(rows[0] + i), load(rows[1] + i), load(rows[2] + i), load(rows[3] + i)};
        for (int t = 0; t < Targets; ++t) {
            const vfloat value = load(targets + t * kTile + i);
            for (int k = 0; k < 4; ++k) sums[t][k] += row[k] * value;
        }
    }
    for (int t = 0; t < Targets; ++t) {
        const vquad four = sum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        for (int k = 0; k < 2; ++k) {
            products[t].difference[k] += four[k];
            products[t].probability[k] += four[k + 2];
        }
    }
}

// Targets are multiplied three at a time: twelve sums hide the latency of an addition, and fit sixteen
// registers. The last four are two and two, because one alone waits for its sums.
int64_t group_size(int64_t left) { return left == 3 || left > 4 ? 3 : left == 1 ? 1 : 2; }

void multiply_all(const float* const (&rows)[4], const float* targets, int64_t count, int64_t n,
                  Products* products) {
    for (int64_t t = 0, size; t < count; t += size) {
        size = group_size(count - t);
        if (size == 3)
            multiply<3>(rows, targets + t * kTile, n, products + t);
        else if (size == 2)
            multiply<2>(rows, targets + t * kTile, n, products + t);
        else
            multiply<1>(rows, targets + t * kTile, n, products + t);
    }
}

// Working memory of a task, for `targets` targets.
struct Scratch {
    Products* products;  // [pairs of queries, targets]
    double* totals;      // [targets], of each one's values
    float* values;       // [targets, kTile]
    float* scores;       // [classes], for a softmax
    float* row;          // [classes], widened

    static int64_t bytes(int64_t targets, int64_t classes) {
        const int64_t doubles = targets * (kBlock / 2 * 4 + 1);
        return 8 * doubles + 4 * (targets * kTile + 2 * (classes + kLanes)) + 64;
    }
    Scratch(void* memory, int64_t targets, int64_t classes) {
        products = static_cast<Products*>(memory);
        totals = reinterpret_cast<double*>(products + kBlock / 2 * targets);
        values = reinterpret_cast<float*>(totals + targets + (targets & 1));
        scores = values + targets * kTile;
        row = scores + classes + kLanes;
    }
};

// Queries [query, query + n) of a (layer, image) against its targets [begin, begin + targets).
void fill_block(const MaskMatchCost& args, int64_t layer, int64_t image, int64_t query, int64_t n,
                const Scratch& scratch) {
    const int64_t begin = args.first_target[image], targets = args.first_target[image + 1] - begin;
    const int64_t all_targets = args.first_target[args.images];
    const int64_t first_row = (layer * args.images + image) * args.queries + query;
    const int64_t target_row = (args.target_values_of_layers ? layer * all_targets : 0) + begin;
    QuerySums sums[kBlock];
    std::memset(scratch.products, 0, (n + 1) / 2 * targets * sizeof(Products));
    std::memset(scratch.totals, 0, targets * sizeof(double));
    PointTerms terms[2];
    const int64_t width = args.mask_type == FloatType::f32 ? 4 : 2;
    for (int64_t x = 0; x < args.points; x += kTile) {
        const int64_t points = args.points - x < kTile ? args.points - x : kTile;
        const int64_t padded = (points + kLanes - 1) / kLanes * kLanes;
        load_targets(args, target_row * args.points + x, targets, points, scratch.values, scratch.totals);
        for (int64_t q = 0; q < n; q += 2) {
            const float* rows[4];
            for (int k = 0; k < 2; ++k) {
                if (q + k == n) {  // the last query alone: it takes both places
                    rows[1] = rows[0];
                    rows[3] = rows[2];
                    break;
                }
                const int64_t at = (first_row + q + k) * args.points + x;
                const float* logits =
                    pad(widen(args.mask_values, args.mask_type, at, points, terms[k].logits), points,
                        kOutside, terms[k].logits);
                // what comes two rows later: of this tile, or the first rows of the next
                const int64_t to_next = q + k + 2 < n ? 2 * args.points : kTile - q * args.points;
                const char* next = static_cast<const char*>(args.mask_values) + (at + to_next) * width;
                rows[k] = args.focal
                              ? focal_terms(logits, padded, next, width, args.alpha, args.gamma, terms[k],
                                            sums[q + k])
                              : cross_entropy_terms(logits, padded, next, width, terms[k], sums[q + k]);
                rows[k + 2] = terms[k].probability;
            }
            multiply_all(rows, scratch.values, targets, padded, scratch.products + q / 2 * targets);
        }
    }
    for (int64_t q = 0; q < n; ++q) {
        const float* row =
            widen(args.logits, args.logits_type, (first_row + q) * args.classes, args.classes, scratch.row);
        const float factor = -args.w_class / softmax_row(row, args.classes, scratch.scores).total;
        for (int64_t t = 0; t < targets; ++t) {
            const Products& product = scratch.products[q / 2 * targets + t];
            const double mask = (sums[q].negative - product.difference[q % 2]) / args.points;
            const double dice =
                1 - (2 * product.probability[q % 2] + 1) / (sums[q].probability + scratch.totals[t] + 1);
            args.costs[(layer * all_targets + begin + t) * args.queries + query + q] =
                static_cast<float>(factor * scratch.scores[args.target_labels[begin + t]] +
                                   args.w_mask * mask + args.w_dice * dice);
        }
    }
}

}  // namespace

void mask_match_cost_cpu(const MaskMatchCost& args) {
    const int64_t blocks = (args.queries + kBlock - 1) / kBlock;
    const int64_t tasks = args.layers * args.images * blocks;
    int64_t most_targets = 0;
    for (int64_t image = 0; image < args.images; ++image) {
        const int64_t targets = args.first_target[image + 1] - args.first_target[image];
        most_targets = targets > most_targets ? targets : most_targets;
    }
    if (tasks == 0 || most_targets == 0) return;
    const int64_t size = (args.queries + blocks - 1) / blocks;
    const bool parallel = args.layers * args.images * args.queries * args.points >= kWorthThreads;
    parallel_for(parallel ? args.threads : 1, tasks, [&](int64_t task) {
        const int64_t problem = task / blocks, query = task % blocks * size;
        const int64_t image = problem % args.images;
        const int64_t targets = args.first_target[image + 1] - args.first_target[image];
        if (targets == 0 || query >= args.queries) return;
        const int64_t n = args.queries - query < size ? args.queries - query : size;
        void* memory = scratch(ScratchSlot::rows, Scratch::bytes(most_targets, args.classes));
        fill_block(args, problem / args.images, image, query, n, Scratch(memory, targets, args.classes));
    });
    penalise_non_finite(args.costs, args.first_target, args.layers, args.images, args.queries);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
