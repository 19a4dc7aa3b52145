#include "class_loss/cpu.h"

#include <cmath>
#include <cstdlib>

#include "common/cpu_class_scores.h"
#include "common/cpu_parallel.h"
#include "common/cpu_rows.h"
#include "common/cpu_scratch.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// What each thread writes rows to: as float32, and exponentials or gradients.
struct Rows {
    float *wide, *out;
};

// Two rows of whole vectors.
Rows reserve(int64_t classes) {
    const int64_t size = (classes + 2 * kLanes - 1) / kLanes * kLanes;
    float* const rows = static_cast<float*>(scratch(ScratchSlot::rows, 2 * size * sizeof(float)));
    return {rows, rows + size};
}

// ln(1 + x) for x in [0, 1], to 1e-7 relative: 2 artanh(x / (2 + x)).
inline vfloat log1p(vfloat x) {
    const vfloat z = x / (2 + x), square = z * z;
    vfloat p = square * (1.0f / 13) + 1.0f / 11;
    p = p * square + 1.0f / 9;
    p = p * square + 1.0f / 7;
    p = p * square + 1.0f / 5;
    p = p * square + 1.0f / 3;
    return 2 * z * (p * square + 1);
}

// Probabilities of the two answers and -log of each, from the logit of the right one.
struct Binary {
    vfloat right, wrong, surprise, other_surprise;
};

inline Binary binary(vfloat right) {
    const vfloat small = exp(-abs(right)), inverse = 1 / (1 + small), least = log1p(small);
    const vint likely = right > vfloat{};
    return {likely ? inverse : small * inverse, likely ? small * inverse : inverse,
            max(vfloat{}, -right) + least, max(vfloat{}, right) + least};
}

// What a row of logits wants.
struct Wanted {
    int32_t label;         // out of range where focal and unmatched
    const float* weights;  // of -log p and -log(1 - p) for it; null: those of the focal loss
};

inline Wanted wanted_by(const ClassLoss& args, int64_t layer, int64_t target) {
    if (target < 0) return {static_cast<int32_t>(args.focal ? args.classes : args.classes - 1), nullptr};
    const int64_t i = layer * args.first_target[args.images] + target;
    return {static_cast<int32_t>(args.labels[target]),
            args.target_weights ? args.target_weights + 2 * i : nullptr};
}

// The losses of up to kLanes classes, or their gradients by the logits; `here` marks the wanted class.
inline vfloat focal(vfloat logit, vint here, const float* weights, const ClassLoss& args) {
    const Binary b = binary(here ? logit : -logit);
    const vfloat weight = here ? splat(args.alpha) : splat(1 - args.alpha);
    const vfloat loss = weight * power(b.wrong, args.gamma) * b.surprise;
    if (!weights) return loss;
    return here ? weights[0] * b.surprise + weights[1] * b.other_surprise : loss;
}

inline vfloat focal_gradient(vfloat logit, vint here, const float* weights, const ClassLoss& args) {
    const Binary b = binary(here ? logit : -logit);
    const vfloat weight = here ? splat(-args.alpha) : splat(1 - args.alpha);
    const vfloat slope = args.constant ? b.wrong : args.gamma * b.right * b.surprise + b.wrong;
    const vfloat gradient = weight * power(b.wrong, args.gamma) * slope;
    if (!weights) return gradient;
    return here ? weights[1] * b.right - weights[0] * b.wrong : gradient;
}

// A row padded to whole vectors in `to`, so that the last vector needs no case of its own.
inline void padded(const float* row, int64_t classes, float* to) {
    if (row != to) std::memcpy(to, row, classes * sizeof(float));
    for (int64_t k = classes; k < classes + kLanes - 1; ++k) to[k] = 0;
}

inline float focal_row(const float* row, Wanted wanted, const ClassLoss& args) {
    vfloat total{};
    for (int64_t k = 0; k < args.classes; k += kLanes) {
        const vint index = lane_index() + static_cast<int32_t>(k);
        const vfloat loss = focal(load(row + k), index == wanted.label, wanted.weights, args);
        total += index < static_cast<int32_t>(args.classes) ? loss : vfloat{};
    }
    return sum(total);
}

}  // namespace

void class_loss_fwd_kernel(const ClassLoss& args, const int64_t* target, double* sums) {
    const int64_t rows_a_layer = args.images * args.queries, classes = args.classes;
    const int64_t chunks = (rows_a_layer + kLossRows - 1) / kLossRows;
    parallel_for(args.threads, args.layers * chunks, [&](int64_t task) {
        const int64_t layer = task / chunks, first = task % chunks * kLossRows;
        const int64_t last = first + kLossRows < rows_a_layer ? first + kLossRows : rows_a_layer;
        const Rows rows = reserve(classes);
        double total = 0;
        for (int64_t r = first; r < last; ++r) {
            const int64_t i = layer * rows_a_layer + r;
            const Wanted wanted = wanted_by(args, layer, target[i]);
            const float* row = widen(args.logits, args.type, i * classes, classes, rows.wide);
            if (args.focal) {
                padded(row, classes, rows.wide);
                total += focal_row(rows.wide, wanted, args);
            } else {
                const Softmax softmax = softmax_row(row, classes, rows.out);
                const float weight = wanted.label == classes - 1 ? args.eos_coef : 1;
                total += weight * (std::log(softmax.total) + (softmax.shift - row[wanted.label]));
            }
        }
        sums[task] = total;
    });
}

void class_loss_bwd_kernel(const ClassLoss& args, const int64_t* target, const float* grad_loss,
                           void* grad_logits) {
    const int64_t rows_a_layer = args.images * args.queries, classes = args.classes;
    const int64_t chunks = (rows_a_layer + kLossRows - 1) / kLossRows;
    parallel_for(args.threads, args.layers * chunks, [&](int64_t task) {
        const int64_t layer = task / chunks, first = task % chunks * kLossRows;
        const int64_t last = first + kLossRows < rows_a_layer ? first + kLossRows : rows_a_layer;
        const Rows rows = reserve(classes);
        for (int64_t r = first; r < last; ++r) {
            const int64_t i = layer * rows_a_layer + r;
            const Wanted wanted = wanted_by(args, layer, target[i]);
            const float* row = widen(args.logits, args.type, i * classes, classes, rows.wide);
            if (args.focal) {
                padded(row, classes, rows.wide);
                const vfloat scale = splat(grad_loss[layer]);
                for (int64_t k = 0; k < classes; k += kLanes) {
                    const vint here = lane_index() + static_cast<int32_t>(k) == wanted.label;
                    const vfloat by_logit = focal_gradient(load(rows.wide + k), here, wanted.weights, args);
                    store(rows.out + k, scale * by_logit);
                }
            } else {
                const Softmax softmax = softmax_row(row, classes, rows.out);
                const float scale = (wanted.label == classes - 1 ? args.eos_coef : 1) * grad_loss[layer];
                const vfloat factor = splat(scale / softmax.total);
                for (int64_t k = 0; k < classes; k += kLanes)
                    store(rows.out + k, factor * load(rows.out + k));
                rows.out[wanted.label] -= scale;
            }
            narrow(rows.out, classes, grad_logits, args.type, i * classes);
        }
    });
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
