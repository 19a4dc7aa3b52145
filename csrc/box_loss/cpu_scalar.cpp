#include <algorithm>
#include <cmath>

#include "box_loss/cpu.h"
#include "common/in_range.h"

namespace detr_fast {
namespace {

// GIoU once more beside box_match_cost: there whole vectors of pairs and no slope, here slopes for matched
// pairs. Overlap and hull along one axis, and their slopes by the box's centre and size. From sizes and
// distances: no digits cancel, as they do among corners of small boxes. Where two corners meet, both sides
// count half.
struct Side {
    float overlap, hull;
    float overlap_center, overlap_size, hull_center, hull_size;

    Side(float center, float size, float target_center, float target_size) {
        const float distance = center - target_center, away = (distance > 0) - (distance < 0);
        const float apart = 0.5f * (size + target_size) - std::fabs(distance);
        const float inner = std::fmin(size, target_size);
        const float raw = std::fmin(apart, inner);
        const float of_apart = share(apart, inner), of_size = (1 - of_apart) * share(size, target_size);
        const float center_slope = -of_apart * away, size_slope = 0.5f * of_apart + of_size;
        const float length = size + target_size - raw;
        overlap = std::fmax(raw, 0.0f);
        hull = std::fmax(length, 0.0f);
        overlap_center = raw >= 0 ? center_slope : 0;
        overlap_size = raw >= 0 ? size_slope : 0;
        hull_center = length >= 0 ? -center_slope : 0;
        hull_size = length >= 0 ? 1 - size_slope : 0;
        if (std::isnan(distance + size + target_size)) overlap = hull = NAN;  // fmin and fmax drop it
    }

    // The slope of min(a, b) by a.
    static float share(float a, float b) { return a < b ? 1.0f : a == b ? 0.5f : 0.0f; }
};

struct Pair {
    float l1, one_minus_giou;
    float l1_slope[4], giou_slope[4];  // by (cx, cy, w, h); giou_slope is that of 1 - GIoU
};

Pair compare(const float* box, const float* target) {
    Pair pair;
    pair.l1 = 0;
    for (int i = 0; i < 4; ++i) {
        const float difference = box[i] - target[i];
        pair.l1 += std::fabs(difference);
        pair.l1_slope[i] = static_cast<float>((difference > 0) - (difference < 0));
    }
    const Side x(box[0], box[2], target[0], target[2]), y(box[1], box[3], target[1], target[3]);
    const float width = std::fmax(box[2], 0.0f), height = std::fmax(box[3], 0.0f);
    const float intersection = x.overlap * y.overlap, hull = x.hull * y.hull;
    const float together =
        width * height + std::fmax(target[2], 0.0f) * std::fmax(target[3], 0.0f) - intersection;
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

int64_t bad_query(const BoxLoss& args) {
    return first_out_of_range(args.query, args.layers * args.first_target[args.images], -1, args.queries);
}

// Calls visit(layer, index of the box, pair) for every matched pair.
template <class Visit>
void for_each_pair(const BoxLoss& args, Visit visit) {
    const int64_t targets = args.first_target[args.images];
    for (int64_t layer = 0; layer < args.layers; ++layer)
        for (int64_t image = 0; image < args.images; ++image)
            for (int64_t t = args.first_target[image]; t < args.first_target[image + 1]; ++t) {
                const int64_t query = args.query[layer * targets + t];
                if (query < 0) continue;
                const int64_t box = (layer * args.images + image) * args.queries + query;
                visit(layer, box, compare(args.boxes + 4 * box, args.target_boxes + 4 * t));
            }
}

}  // namespace

int64_t box_loss_cpu_fwd(const BoxLoss& args, float* losses) {
    const int64_t bad = bad_query(args);
    if (bad >= 0) return bad;
    std::fill_n(losses, 2 * args.layers, 0.0f);
    double l1 = 0, giou = 0;
    int64_t current = 0;
    const auto flush = [&] {
        losses[current] = static_cast<float>(l1);
        losses[args.layers + current] = static_cast<float>(giou);
        l1 = giou = 0;
    };
    for_each_pair(args, [&](int64_t layer, int64_t, const Pair& pair) {
        if (layer != current) flush();
        current = layer;
        l1 += pair.l1;
        giou += pair.one_minus_giou;
    });
    if (args.layers) flush();
    return -1;
}

int64_t box_loss_cpu_bwd(const BoxLoss& args, const float* grad_losses, float* grad_boxes) {
    const int64_t bad = bad_query(args);
    if (bad >= 0) return bad;
    for_each_pair(args, [&](int64_t layer, int64_t box, const Pair& pair) {
        for (int i = 0; i < 4; ++i)
            grad_boxes[4 * box + i] +=
                grad_losses[layer] * pair.l1_slope[i] + grad_losses[args.layers + layer] * pair.giou_slope[i];
    });
    return -1;
}

}  // namespace detr_fast
