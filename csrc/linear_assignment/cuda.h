// Exact linear assignment of ragged batches on a CUDA device. Nothing is allocated and nothing synchronises;
// a failed launch throws std::runtime_error.
#pragma once

#include "common/queue.h"
#include "linear_assignment/linear_assignment.h"

namespace detr_fast {

// The workspace depends on the sizes, the dtype and shared_bytes, the most shared memory that a block may
// have on the device; it has room for the square of each image's min(targets, queries), so that it is hardly
// larger than the costs.
int64_t linear_assignment_cuda_workspace(bool is_double, int64_t layers, int64_t images, int64_t queries,
                                         const int64_t* first, int64_t shared_bytes);

// One launch, whatever the sizes, for up to kMostImages images (common/cuda_first_targets.h); else one for
// every so many. Numbers of targets and of queries are below 2^31. by_auction tries cuda_auction.h first.
// The workspace is aligned to 16 bytes and may hold anything.
void linear_assignment_cuda(const AssignmentBatch& batch, bool by_auction, int64_t shared_bytes,
                            void* workspace, const Queue& queue);

}  // namespace detr_fast
