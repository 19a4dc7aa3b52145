#include <algorithm>
#include <vector>

#include "box_match_cost/cpu.h"
#include "common/in_range.h"

namespace detr_fast {

// Below this many logits and pairs a second thread costs more than it brings.
constexpr int64_t kWorthThreads = 150000;

int64_t box_match_cost_cpu(const BoxMatchCost& args, int threads) {
    const int64_t n_targets = args.first_target[args.images];
    const int64_t bad_label = first_out_of_range(args.target_labels, n_targets, 0, args.classes);
    if (bad_label >= 0) return bad_label;

    std::vector<BoxMatchPlan::Target> targets(n_targets);
    std::vector<int32_t> labels(n_targets), slot_of(args.classes);
    std::vector<int64_t> n_labels(args.images);
    for (int64_t image = 0; image < args.images; ++image) {
        const int64_t begin = args.first_target[image];
        int64_t& count = n_labels[image];
        for (int64_t t = begin; t < args.first_target[image + 1]; ++t) {
            const int32_t label = static_cast<int32_t>(args.target_labels[t]);
            int32_t& slot = slot_of[label];  // what an earlier image left there does not pass the test
            if (slot >= count || labels[begin + slot] != label) {
                slot = static_cast<int32_t>(count);
                labels[begin + count++] = label;
            }
            const float* box = args.target_boxes + 4 * t;
            const float width = std::max(box[2], 0.0f), height = std::max(box[3], 0.0f);
            targets[t] = {box[0], box[1], box[2], box[3], width, height, width * height, slot};
        }
    }
    const int64_t most_labels = args.images ? *std::max_element(n_labels.begin(), n_labels.end()) : 0;
    const int64_t work = args.layers * args.queries * (args.images * args.classes + n_targets);
    if (work < kWorthThreads) threads = 1;
    const int64_t row_size = (args.classes + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
    const int64_t scratch_size = (kMaxLanes + 1) * row_size + most_labels * kChunk;
    const BoxMatchPlan plan{targets.data(), labels.data(), n_labels.data(), scratch_size, row_size};
    DETR_FAST_CPU(box_match_cost_cpu_kernel)(args, plan, threads);
    return -1;
}

}  // namespace detr_fast
