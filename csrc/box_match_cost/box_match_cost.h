// Matching costs of every target against the queries of its own image; the formulas stand in
// detr_fast/ops/box_match_cost.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

// All arrays are contiguous.
struct BoxMatchCost {
    const void* logits;  // [layers, images, queries, classes]
    FloatType logits_type;
    const void* boxes;  // [layers, images, queries, 4] (cx, cy, w, h)
    FloatType boxes_type;
    const int64_t* target_labels;  // [targets]
    const float* target_boxes;     // [targets, 4]
    const int64_t* first_target;   // [images + 1] on the host, where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;  // class term: focal, else softmax
    float w_class, w_l1, w_giou, alpha, gamma;
    float* costs;  // [layers, targets, queries]
};

}  // namespace detr_fast
