// Exact linear assignment of ragged batches (see detr_fast/ops/linear_assignment).
#pragma once

#include <cstdint>

namespace detr_fast {

enum class AssignmentStatus : int32_t { solved = 0, infeasible = 1, out_of_memory = 2, refused = 3 };

struct AssignmentBatch {
    const void* costs;  // [layers, targets of all images, queries], float or double
    bool is_double;
    int64_t layer_stride, target_stride, query_stride;  // in elements
    int64_t layers, images, queries;
    const int64_t* first;  // [images + 1] on the host: image b has targets first[b] .. first[b + 1] - 1
    int64_t* query;        // [layers, targets]: out, the query of each target or -1
    int32_t* status;       // [layers, images]: out, an AssignmentStatus each
    bool refuses;          // on the CPU: problems with NaN or -inf are refused, as scipy does
};

}  // namespace detr_fast
