// Bilinear samples of many maps at points; the meaning stands in detr_fast/ops/point_sample.
#pragma once

#include <cstdint>

#include "common/float_types.h"

namespace detr_fast {

struct PointSampleRows {
    int64_t maps, channels, height, width, sets;
    const float* points;         // [sets, points_of_set, 2] (x, y) in 0..1
    const int64_t* map_index;    // [rows] in [0, maps), or nullptr: each row its own
    const int64_t* point_index;  // [rows] in [0, sets), or nullptr
    int64_t rows, points_of_set;
    int threads;  // on the CPU
};

struct PointSampleForward {
    PointSampleRows at;
    const void* maps;  // [maps, channels, height, width] by strides, in elements
    ElementType type;
    int64_t map_stride, channel_stride, row_stride, column_stride;
    void* out;  // [rows, channels, points_of_set]
    FloatType out_type;
};

}  // namespace detr_fast
