// Matching costs of masks on a CUDA device. Arrays are aligned to 16 bytes and on the device. Nothing is
// allocated and nothing synchronises; a failed launch throws std::runtime_error.
#pragma once

#include "common/queue.h"
#include "mask_match_cost/mask_match_cost.h"

namespace detr_fast {

// A label outside [0, classes) gives costs that count as non-finite. non_finite is working memory,
// mask_match_cost_cuda_flags(...) numbers.
void mask_match_cost_cuda(const MaskMatchCost& args, int32_t* non_finite, const Queue& queue);
int64_t mask_match_cost_cuda_flags(int64_t layers, int64_t images, int64_t queries);

}  // namespace detr_fast
