// Matching costs on a CUDA device. Arrays are aligned to 16 bytes and on the device; boxes are float32 or of
// the type of logits. Nothing is allocated and nothing synchronises; a failed launch throws
// std::runtime_error.
#pragma once

#include "box_match_cost/box_match_cost.h"
#include "common/queue.h"

namespace detr_fast {

// A label outside [0, classes) gives costs that count as non-finite. non_finite is working memory,
// box_match_cost_cuda_flags(...) numbers.
void box_match_cost_cuda(const BoxMatchCost& args, int32_t* non_finite, const Queue& queue);
int64_t box_match_cost_cuda_flags(int64_t layers, int64_t images, int64_t queries);

}  // namespace detr_fast
