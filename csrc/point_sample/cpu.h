// Bilinear samples of many maps at points, and their adjoint; the meaning stands in
// detr_fast/ops/point_sample.
#pragma once

#include <cstdint>

#include "common/float_types.h"
#include "common/isa.h"

namespace detr_fast {

struct PointSampleRows {
    int64_t maps, channels, height, width;
    const float* points;         // [sets, points_of_set, 2] (x, y) in 0..1
    const int64_t* map_index;    // [rows] in [0, maps), or nullptr: each row its own
    const int64_t* point_index;  // [rows] in [0, sets), or nullptr
    int64_t rows, points_of_set;
    int threads;
};

struct PointSampleForward {
    PointSampleRows at;
    const void* maps;  // a pixel at map * map_stride + channel * channel_stride + row * row_stride + column
    ElementType type;
    int64_t map_stride, channel_stride, row_stride;
    void* out;  // [rows, channels, points_of_set]
    FloatType out_type;
};

struct PointSampleBackward {
    PointSampleRows at;
    const int64_t* order;      // [rows]: the rows of map m are order[first_row[m] .. first_row[m + 1])
    const int64_t* first_row;  // [maps + 1]; nullptr where map_index is
    const void* grad_out;      // [rows, channels, points_of_set]
    void* grad_maps;           // [maps, channels, height, width]
    FloatType type;            // of both
};

// Fills order and first_row of PointSampleBackward; the rows of a map keep their order.
void group_rows(const int64_t* map_index, int64_t rows, int64_t maps, int64_t* order, int64_t* first_row);

DETR_FAST_DECLARE_CPU(point_sample_cpu_fwd, (const PointSampleForward& args))
// `ok` becomes false where working memory ran out; grad_maps is then undefined.
DETR_FAST_DECLARE_CPU(point_sample_cpu_bwd, (const PointSampleBackward& args, bool& ok))

}  // namespace detr_fast
