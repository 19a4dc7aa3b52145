#pragma once

#include "common/isa.h"
#include "linear_assignment/linear_assignment.h"

namespace detr_fast {

// order: [images], in the order of solving, those with most targets first; or nullptr for any order.
DETR_FAST_DECLARE_CPU(linear_assignment_cpu,
                      (const AssignmentBatch& batch, const int64_t* order, int threads))

}  // namespace detr_fast
