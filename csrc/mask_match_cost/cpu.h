// Matching costs of every target mask against the queries of its own image, from values at points; the
// formulas stand in detr_fast/ops/mask_match_cost.
#pragma once

#include <cstdint>

#include "common/float_types.h"
#include "common/isa.h"

namespace detr_fast {

struct MaskMatchCost {
    const void* logits;  // [layers, images, queries, classes]
    FloatType logits_type;
    const void* mask_values;  // [layers, images, queries, points]
    FloatType mask_type;
    const int64_t* target_labels;  // [targets], in [0, classes)
    const void* target_values;     // [targets, points], or [layers, targets, points]
    ElementType target_type;
    bool target_values_of_layers;
    const int64_t* first_target;  // [images + 1], where each image's targets begin
    int64_t layers, images, queries, classes, points;
    bool focal;  // mask term: focal, else binary cross-entropy
    float w_class, w_mask, w_dice, alpha, gamma;
    float* costs;  // [layers, targets, queries]
    int threads;
};

// Fills costs; ok turns false where memory ran out.
DETR_FAST_DECLARE_CPU(mask_match_cost_cpu, (const MaskMatchCost& args, bool& ok))

}  // namespace detr_fast
