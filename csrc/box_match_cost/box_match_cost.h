// Matching costs of every target against the queries of its own image; the formulas stand in
// detr_fast/ops/box_match_cost.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace detr_fast {

enum class Float : int { float32, bfloat16, float16 };

struct BoxMatchCost {
    const void* logits;  // [layers, images, queries, classes]
    Float logits_type;
    const void* boxes;  // [layers, images, queries, 4] (cx, cy, w, h)
    Float boxes_type;
    const int64_t* target_labels;  // [targets], each in [0, classes)
    const float* target_boxes;     // [targets, 4]
    const int64_t* first_target;   // [images + 1], where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;  // class term: focal, else softmax
    float w_class, w_l1, w_giou, alpha, gamma;
    float* costs;      // [layers, targets, queries]
    float* workspace;  // workspace_size() floats, uninitialised
    int threads;

    // For each target 8 numbers, then for each thread a row of classes for each SIMD lane and one more.
    int64_t row_stride() const { return (classes + 15) / 16 * 16; }
    int64_t workspace_size() const { return 8 * first_target[images] + threads * 17 * row_stride(); }
};

DETR_FAST_DECLARE_CPU(box_match_cost, (const BoxMatchCost& args))

}  // namespace detr_fast
