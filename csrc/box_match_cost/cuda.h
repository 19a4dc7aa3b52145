// Matching costs on a CUDA device. All arrays are contiguous, aligned to 16 bytes and on the device, but for
// `first_target`, which is read on the host during the call. Nothing is allocated and nothing synchronises;
// a failed launch throws std::runtime_error.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct BoxMatchCostCuda {
    const void* logits;  // [layers, images, queries, classes]
    FloatType logits_type;
    const void* boxes;  // [layers, images, queries, 4] (cx, cy, w, h): float32, or logits_type
    FloatType boxes_type;
    const int64_t* target_labels;  // [targets]
    const float* target_boxes;     // [targets, 4]
    const int64_t* first_target;   // [images + 1] on the host, where each image's targets begin
    int64_t layers, images, queries, classes;
    bool focal;  // class term: focal, else softmax
    float w_class, w_l1, w_giou, alpha, gamma;
    float* costs;         // [layers, targets, queries]
    int32_t* non_finite;  // working memory, box_match_cost_flags(...) numbers
    int device;
    void* stream;  // cudaStream_t
};

int64_t box_match_cost_flags(int64_t layers, int64_t images, int64_t queries);

// A label outside [0, classes) gives costs that count as non-finite.
void box_match_cost_cuda(const BoxMatchCostCuda& args);

}  // namespace detr_fast
