// Samples of maps at points, and their adjoint, on the CPU.
#pragma once

#include "common/isa.h"
#include "point_sample/point_sample.h"

namespace detr_fast {

struct PointSampleBackward {
    PointSampleRows at;
    const int64_t* order;      // [rows]: the rows of map m are order[first_row[m] .. first_row[m + 1])
    const int64_t* first_row;  // [maps + 1]; nullptr where map_index is
    const void* grad_out;      // [rows, channels, points_of_set]
    void* grad_maps;           // [maps, channels, height, width]
    FloatType type;            // of both
};

// For each row the `chosen` of its candidates where its map is nearest to zero, in their order, the first
// among equals; then `uniform` points.
struct UncertainPoints {
    PointSampleForward
        sample;  // of one channel; points [rows, points_of_set, 2] are the candidates, or nullptr: drawn
    int64_t chosen, uniform;  // chosen <= points_of_set
    bool draws_uniform;       // else they are left as they are
    uint64_t seed;
    float* points;  // [rows, chosen + uniform, 2]
};

// Fills order and first_row of PointSampleBackward; the rows of a map keep their order.
void group_rows(const int64_t* map_index, int64_t rows, int64_t maps, int64_t* order, int64_t* first_row);

// Columns lie side by side.
DETR_FAST_DECLARE_CPU(point_sample_cpu_fwd, (const PointSampleForward& args))
DETR_FAST_DECLARE_CPU(point_sample_cpu_bwd, (const PointSampleBackward& args))
DETR_FAST_DECLARE_CPU(uncertain_points_cpu, (const UncertainPoints& args))

}  // namespace detr_fast
