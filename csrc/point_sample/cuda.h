// Samples of maps at points, and their adjoint, on a CUDA device. Nothing is allocated and nothing
// synchronises; a failed launch throws std::runtime_error. A row whose map or set of points does not exist is
// NaN, and its gradient goes nowhere.
#pragma once

#include "common/queue.h"
#include "point_sample/point_sample.h"

namespace detr_fast {

void point_sample_cuda_fwd(const PointSampleForward& args, const Queue& queue);
// Adds grad_out [rows, channels, points_of_set] to grad_maps [maps, channels, height, width], in any order.
void point_sample_cuda_bwd(const PointSampleRows& at, const void* grad_out, FloatType type, float* grad_maps,
                           const Queue& queue);

}  // namespace detr_fast
