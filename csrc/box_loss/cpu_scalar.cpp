#include <algorithm>

#include "box_loss/cpu.h"
#include "box_loss/pair.h"
#include "common/in_range.h"

namespace detr_fast {
namespace {

int64_t bad_query(const BoxLoss& args) {
    return first_out_of_range(args.query, args.layers * args.first_target[args.images], -1, args.queries);
}

// Calls visit(layer, index of the box, pair) for every matched pair.
template <class Visit>
void for_each_pair(const BoxLoss& args, Visit visit) {
    const int64_t targets = args.first_target[args.images];
    const float* const boxes = static_cast<const float*>(args.boxes);
    for (int64_t layer = 0; layer < args.layers; ++layer)
        for (int64_t image = 0; image < args.images; ++image)
            for (int64_t t = args.first_target[image]; t < args.first_target[image + 1]; ++t) {
                const int64_t query = args.query[layer * targets + t];
                if (query < 0) continue;
                const int64_t box = (layer * args.images + image) * args.queries + query;
                visit(layer, box, compare(boxes + 4 * box, args.target_boxes + 4 * t));
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
