// Classification losses on a CUDA device. Arrays are aligned to 16 bytes and on the device. Nothing is
// allocated and nothing synchronises; a failed launch throws std::runtime_error. A label that is no class of
// an object makes what its image adds to NaN, a query that does not exist counts as none.
#pragma once

#include "class_loss/class_loss.h"
#include "common/queue.h"

namespace detr_fast {

// How many sums the losses of a layer come in.
int64_t class_loss_cuda_sums(int64_t images, int64_t queries);
// Fill sums [layers, class_loss_cuda_sums], or grad_logits (as logits) from grad_loss [layers].
void class_loss_cuda_fwd(const ClassLoss& args, float* sums, const Queue& queue);
void class_loss_cuda_bwd(const ClassLoss& args, const float* grad_loss, void* grad_logits,
                         const Queue& queue);

}  // namespace detr_fast
