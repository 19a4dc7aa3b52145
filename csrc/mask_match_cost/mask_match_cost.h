// Matching costs of every target mask against the queries of its own image, from values at points; the
// formulas stand in detr_fast/ops/mask_match_cost.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct MaskMatchCost {
    const void* logits;  // [layers, images, queries, classes]
    FloatType logits_type;
    const void* mask_values;  // [layers, images, queries, points]
    FloatType mask_type;
    const int64_t* target_labels;  // [targets]
    const void* target_values;     // [targets, points], or [layers, targets, points]
    ElementType target_type;
    bool target_values_of_layers;
    const int64_t* first_target;  // [images + 1] on the host, where each image's targets begin
    int64_t layers, images, queries, classes, points;
    bool focal;  // mask term: focal, else binary cross-entropy
    float w_class, w_mask, w_dice, alpha, gamma;
    float* costs;  // [layers, targets, queries]
    int threads;   // on the CPU
};

}  // namespace detr_fast
