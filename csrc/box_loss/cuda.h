// The losses of matched boxes on a CUDA device. Arrays are aligned to 16 bytes and on the device. Nothing is
// allocated and nothing synchronises; a failed launch throws std::runtime_error. A query that does not exist
// counts as none. Sums are added up in a fixed order.
#pragma once

#include "box_loss/box_loss.h"
#include "common/queue.h"

namespace detr_fast {

// Fill losses [2, layers] (L1, 1 - GIoU), or grad_boxes (as boxes, all of it) from grad_losses [2, layers].
void box_loss_cuda_fwd(const BoxLoss& args, float* losses, const Queue& queue);
void box_loss_cuda_bwd(const BoxLoss& args, const float* grad_losses, void* grad_boxes, const Queue& queue);

}  // namespace detr_fast
