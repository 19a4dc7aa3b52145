// Multi-scale deformable attention on a CUDA device. Arrays are aligned to 16 bytes and on the device.
// Nothing is allocated and nothing synchronises; a failed launch throws std::runtime_error.
#pragma once

#include "common/queue.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace detr_fast {

// Each gradient may be nullptr: not needed.
struct MsDeformAttnCudaGradients {
    const void* grad_out;    // [B, Q, H * D]
    float* grad_value;       // [B, S, H, D], zeroed by the caller; summed in no fixed order
    void* grad_coordinates;  // [B, Q, H, samples, 2], of coordinate_type, as the next
    void* grad_weights;      // [B, Q, H, samples]
    float* reference_parts;  // [B, Q, H, N, reference_dims]: the caller sums them over H
};

// coordinate_type is float32 or value_type. Where there are no samples, the forward pass writes zeros and the
// others write nothing.
void ms_deform_attn_cuda_fwd(const MsDeformAttnInputs& in, const Queue& queue, void* out);
void ms_deform_attn_cuda_bwd(const MsDeformAttnInputs& in, const Queue& queue,
                             const MsDeformAttnCudaGradients& grad);

// grad_value in a fixed order: `bin` writes for each sample the cell that it falls
// into; the caller sorts the cells, stably; `gather` sums for every pixel the samples of the four cells
// around it, in the sorted order, and writes grad_value whole, in value_type. A cell lies between four
// pixels, beyond the border too: (height + 1) * (width + 1) a level, then one for the samples outside of all,
// for each (image, head). B * H * ms_deform_attn_cuda_cells(shape) and B * Q * H * samples must fit int32.
struct alignas(16) MsDeformAttnSample {
    float right, lower;  // shares of the right column and the lower row
    float weight;        // after softmax, where fused
    int32_t query;
};
int64_t ms_deform_attn_cuda_cells(int64_t levels, const int64_t* sizes);
void ms_deform_attn_cuda_bin(const MsDeformAttnInputs& in, const Queue& queue, int32_t* cells,
                             MsDeformAttnSample* samples);
// order: the indices of the sort; cell_starts: where each cell begins in it, and the number of samples.
void ms_deform_attn_cuda_gather(const MsDeformAttnInputs& in, const Queue& queue, const void* grad_out,
                                const int32_t* cell_starts, const int64_t* order,
                                const MsDeformAttnSample* samples, void* grad_value);

}  // namespace detr_fast
