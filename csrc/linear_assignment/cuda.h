// Exact linear assignment of ragged batches on a CUDA device (see detr_fast/ops/linear_assignment). Nothing
// is allocated and nothing synchronises; a failed launch throws std::runtime_error.
#pragma once

#include <cstdint>

#include "linear_assignment/linear_assignment.h"

namespace detr_fast {

struct AssignmentCudaBatch {
    const void* costs;  // [layers, targets of all images, queries], float or double
    bool is_double;
    bool by_auction;                                    // tries gpu_auction.h first
    int64_t layer_stride, target_stride, query_stride;  // in elements
    int64_t layers, images, queries;
    const int64_t* first;  // on the host, [images + 1]: image b has targets first[b] .. first[b + 1] - 1
    int64_t* query;        // [layers, targets]: out, the query of each target or -1
    int32_t* status;       // [layers, images]: out, an AssignmentStatus each
    void* workspace;       // linear_assignment_cuda_workspace bytes, aligned to 16, any contents
    int64_t shared_bytes;  // most shared memory that a block may have on this device
    int device;
    void* stream;  // cudaStream_t
};

// Depends on the sizes, the dtype and shared_bytes alone.
int64_t linear_assignment_cuda_workspace(const AssignmentCudaBatch& batch);

// One launch, whatever the sizes, for up to kMostImages images (common/first_targets.h); else one for every
// so many. Numbers of targets and of queries are below 2^31.
void linear_assignment_cuda(const AssignmentCudaBatch& batch);

}  // namespace detr_fast
