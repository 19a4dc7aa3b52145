// L1 distance and 1 - GIoU of matched boxes; the formulas stand in detr_fast/ops/box_loss.
#pragma once

#include <cstdint>

namespace detr_fast {

struct BoxLoss {
    const float* boxes;           // [layers, images, queries, 4] (cx, cy, w, h)
    const float* target_boxes;    // [targets, 4]
    const int64_t* query;         // [layers, targets], -1 where a target has none
    const int64_t* first_target;  // [images + 1], where each image's targets begin
    int64_t layers, images, queries;
};

// Fill losses [2, layers] (L1, 1 - GIoU), or add the gradient to grad_boxes (as boxes) from grad_losses. They
// return the first entry of `query` outside [-1, queries), before any work, or -1. On one thread: a batch has
// a few thousand pairs of some 50 ns.
int64_t box_loss_cpu_fwd(const BoxLoss& args, float* losses);
int64_t box_loss_cpu_bwd(const BoxLoss& args, const float* grad_losses, float* grad_boxes);

}  // namespace detr_fast
