// Classification losses of all queries, matched or not; the formulas stand in detr_fast/ops/class_loss.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct ClassLoss {
    const void* logits;  // [layers, images, queries, classes]; softmax: the last class is "no object"
    FloatType type;
    const int64_t* labels;  // [targets]
    const int64_t* query;   // [layers, targets], -1 where a target has none
    // [layers, targets, 2]: of -log p and -log(1 - p) for the wanted class; or null
    const float* target_weights;
    const int64_t* first_target;  // [images + 1] on the host, where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;
    bool constant;  // the gradient takes the weights of unwanted classes for constants
    float eos_coef, alpha, gamma;
    int threads;  // on the CPU
};

}  // namespace detr_fast
