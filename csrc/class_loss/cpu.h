// Classification losses of all queries, matched or not; the formulas stand in detr_fast/ops/class_loss.
#pragma once

#include <cstdint>

#include "common/float_types.h"
#include "common/isa.h"

namespace detr_fast {

struct ClassLoss {
    const void* logits;  // [layers, images, queries, classes]; softmax: the last class is "no object"
    FloatType type;
    const int64_t* labels;  // [targets]
    const int64_t* query;   // [layers, targets], -1 where a target has none
    const float*
        target_weights;  // [layers, targets, 2]: of -log p and -log(1 - p) for the wanted class; or null
    const int64_t* first_target;  // [images + 1], where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;
    bool constant;  // the gradient takes the weights of unwanted classes for constants
    float eos_coef, alpha, gamma;
    int threads;
};

// Fill loss [layers], or grad_logits (as logits) from grad_loss [layers]. Return the first target whose label
// is no class of an object or, after all targets, the first entry of `query` outside [-1, queries), counted
// on; -1 where all are good. Nothing is written before that is known.
int64_t class_loss_cpu_fwd(const ClassLoss& args, float* loss);
int64_t class_loss_cpu_bwd(const ClassLoss& args, const float* grad_loss, void* grad_logits);

constexpr int64_t kLossRows = 32;  // rows of logits that a thread takes at a time, all of one layer

// target: [layers * images * queries], which target each row of logits is matched to, or -1.
// sums: for each chunk of each layer.
DETR_FAST_DECLARE_CPU(class_loss_fwd_kernel, (const ClassLoss& args, const int64_t* target, double* sums))
DETR_FAST_DECLARE_CPU(class_loss_bwd_kernel, (const ClassLoss& args, const int64_t* target,
                                              const float* grad_loss, void* grad_logits, bool& ok))

}  // namespace detr_fast
