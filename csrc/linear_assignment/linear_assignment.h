// Exact linear assignment of ragged batches (see detr_fast/ops/linear_assignment).
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace detr_fast {

enum class AssignmentStatus : int32_t { solved = 0, infeasible = 1, out_of_memory = 2 };

struct AssignmentBatch {
    const void* costs;  // [layers, targets of all images, queries], float or double
    bool is_double;
    int64_t layer_stride, target_stride, query_stride;  // in elements
    int64_t layers, images, targets, queries;
    const int64_t* first;  // [images + 1]: the targets of image b are first[b] .. first[b + 1] - 1
    const int64_t* order;  // [images]: images in the order of solving, those with most targets first
    int64_t* query;        // [layers, targets]: out, the query of each target or -1
    int32_t* status;       // [layers, images]: out, an AssignmentStatus each
    int threads;
};

DETR_FAST_DECLARE_CPU(linear_assignment, (const AssignmentBatch& batch))

}  // namespace detr_fast
