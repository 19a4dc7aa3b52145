// L1 distance and 1 - GIoU of one pair of boxes, with their slopes by the first box; for the CPU and for
// CUDA.
#pragma once

#include <cmath>

#include "common/float_types.h"

namespace detr_fast {

DETR_FAST_BOTH float slope_of_abs(float x) { return static_cast<float>((x > 0) - (x < 0)); }

// GIoU once more beside box_match_cost: there whole vectors of pairs and no slope, here slopes for matched
// pairs. Overlap and hull along one axis, and their slopes by the box's centre and size. From sizes and
// distances: no digits cancel, as they do among corners of small boxes. Where two corners meet, both sides
// count half.
struct Side {
    float overlap, hull;
    float overlap_center, overlap_size, hull_center, hull_size;

    DETR_FAST_BOTH Side(float center, float size, float target_center, float target_size) {
        const float distance = center - target_center, away = slope_of_abs(distance);
        const float apart = 0.5f * (size + target_size) - fabsf(distance);
        const float inner = fminf(size, target_size);
        const float raw = fminf(apart, inner);
        const float of_apart = share(apart, inner), of_size = (1 - of_apart) * share(size, target_size);
        const float center_slope = -of_apart * away, size_slope = 0.5f * of_apart + of_size;
        const float length = size + target_size - raw;
        overlap = fmaxf(raw, 0.0f);
        hull = fmaxf(length, 0.0f);
        overlap_center = raw >= 0 ? center_slope : 0;
        overlap_size = raw >= 0 ? size_slope : 0;
        hull_center = length >= 0 ? -center_slope : 0;
        hull_size = length >= 0 ? 1 - size_slope : 0;
        const float any = distance + size + target_size;
        if (any != any) overlap = hull = NAN;  // fminf and fmaxf drop it
    }

    // The slope of min(a, b) by a.
    DETR_FAST_BOTH static float share(float a, float b) { return a < b ? 1.0f : a == b ? 0.5f : 0.0f; }
};

struct Pair {
    float l1, one_minus_giou;
    float l1_slope[4], giou_slope[4];  // by (cx, cy, w, h); giou_slope is that of 1 - GIoU
};

// `box` and `target`: (cx, cy, w, h) by [].
template <class Box, class Target>
DETR_FAST_BOTH Pair compare(const Box& box, const Target& target) {
    Pair pair;
    pair.l1 = 0;
    for (int i = 0; i < 4; ++i) {
        const float difference = box[i] - target[i];
        pair.l1 += fabsf(difference);
        pair.l1_slope[i] = slope_of_abs(difference);
    }
    const Side x(box[0], box[2], target[0], target[2]), y(box[1], box[3], target[1], target[3]);
    const float width = fmaxf(box[2], 0.0f), height = fmaxf(box[3], 0.0f);
    const float intersection = x.overlap * y.overlap, hull = x.hull * y.hull;
    const float together = width * height + fmaxf(target[2], 0.0f) * fmaxf(target[3], 0.0f) - intersection;
    // a ratio with nothing below counts as its numerator, which is then zero
    const float per_union = together > 0 ? 1 / together : 1, per_hull = hull > 0 ? 1 / hull : 1;
    pair.one_minus_giou = 1 - (intersection * per_union - (hull - together) * per_hull);
    const float union_again = together > 0 ? intersection * per_union * per_union : 0;
    const float hull_again = hull > 0 ? (hull - together) * per_hull * per_hull : 0;
    const auto slope = [&](float d_intersection, float d_hull, float d_area) {
        const float d_union = d_area - d_intersection;
        const float d_iou = d_intersection * per_union - d_union * union_again;
        return (d_hull - d_union) * per_hull - d_hull * hull_again - d_iou;
    };
    pair.giou_slope[0] = slope(x.overlap_center * y.overlap, x.hull_center * y.hull, 0);
    pair.giou_slope[1] = slope(y.overlap_center * x.overlap, y.hull_center * x.hull, 0);
    pair.giou_slope[2] = slope(x.overlap_size * y.overlap, x.hull_size * y.hull, box[2] >= 0 ? height : 0);
    pair.giou_slope[3] = slope(y.overlap_size * x.overlap, y.hull_size * x.hull, box[3] >= 0 ? width : 0);
    return pair;
}

}  // namespace detr_fast
