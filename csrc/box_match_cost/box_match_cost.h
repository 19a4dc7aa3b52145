// Matching costs of every target against the queries of its own image; the formulas stand in
// detr_fast/ops/box_match_cost.
#pragma once

#include <cstdint>

#include "common/float_types.h"
#include "common/isa.h"

namespace detr_fast {

struct BoxMatchCost {
    const void* logits;  // [layers, images, queries, classes]
    FloatType logits_type;
    const void* boxes;  // [layers, images, queries, 4] (cx, cy, w, h)
    FloatType boxes_type;
    const int64_t* target_labels;  // [targets]
    const float* target_boxes;     // [targets, 4]
    const int64_t* first_target;   // [images + 1], where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;  // class term: focal, else softmax
    float w_class, w_l1, w_giou, alpha, gamma;
    float* costs;  // [layers, targets, queries]
    int threads;
};

// Fills costs. Returns the first target whose label is not in [0, classes), before any work, or -1.
int64_t box_match_cost(const BoxMatchCost& args);

// What all layers share: worked out once, then read by the kernel.
struct BoxMatchPlan {
    struct Target {
        float cx, cy, w, h;         // as given
        float width, height, area;  // not below zero
        int32_t slot;               // of its label among the labels of its image
    };
    const Target* targets;
    const int32_t* labels;    // the distinct labels of each image, from first_target[image] on
    const int64_t* n_labels;  // [images]
    float* scratch;           // scratch_size floats for each thread
    int64_t scratch_size;
    int64_t row_size;  // floats between rows of classes in scratch
};

constexpr int kChunk = 64;     // queries that a thread takes at a time
constexpr int kMaxLanes = 16;  // SIMD lanes of the widest instruction set

DETR_FAST_DECLARE_CPU(box_match_cost_kernel, (const BoxMatchCost& args, const BoxMatchPlan& plan))

}  // namespace detr_fast
