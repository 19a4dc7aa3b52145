// The losses of matched boxes on the CPU.
#pragma once

#include "box_loss/box_loss.h"

namespace detr_fast {

// Fill losses [2, layers] (L1, 1 - GIoU), or add the gradient to grad_boxes (as boxes) from grad_losses. They
// return the first entry of `query` outside [-1, queries), before any work, or -1. On one thread: a batch has
// a few thousand pairs of some 50 ns.
int64_t box_loss_cpu_fwd(const BoxLoss& args, float* losses);
int64_t box_loss_cpu_bwd(const BoxLoss& args, const float* grad_losses, float* grad_boxes);

}  // namespace detr_fast
