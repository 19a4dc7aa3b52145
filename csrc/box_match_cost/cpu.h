#pragma once

#include "box_match_cost/box_match_cost.h"
#include "common/isa.h"

namespace detr_fast {

// Fills costs. Returns the first target whose label is not in [0, classes), before any work, or -1.
int64_t box_match_cost_cpu(const BoxMatchCost& args, int threads);

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
    int64_t scratch_size;     // floats that a piece works in
    int64_t row_size;         // floats between its rows of classes
};

constexpr int kChunk = 64;     // queries that a thread takes at a time
constexpr int kMaxLanes = 16;  // SIMD lanes of the widest instruction set

DETR_FAST_DECLARE_CPU(box_match_cost_cpu_kernel,
                      (const BoxMatchCost& args, const BoxMatchPlan& plan, int threads))

}  // namespace detr_fast
