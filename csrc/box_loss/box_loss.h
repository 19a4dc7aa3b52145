// L1 distance and 1 - GIoU of matched boxes; the formulas stand in detr_fast/ops/box_loss.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct BoxLoss {
    const void* boxes;            // [layers, images, queries, 4] (cx, cy, w, h)
    FloatType type;               // of boxes and their gradient; float32 on the CPU
    const float* target_boxes;    // [targets, 4]
    const int64_t* query;         // [layers, targets], -1 where a target has none
    const int64_t* first_target;  // [images + 1] on the host, where each image's targets begin
    int64_t layers, images, queries;
};

}  // namespace detr_fast
