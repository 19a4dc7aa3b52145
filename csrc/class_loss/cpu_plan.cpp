#include <algorithm>
#include <vector>

#include "class_loss/cpu.h"
#include "common/cpu_scratch.h"
#include "common/in_range.h"

namespace detr_fast {
namespace {

// Below this many logits a second thread costs more than it brings.
constexpr int64_t kWorthThreads = 60000;

// Fills `target`, or returns what the header says of bad input.
int64_t matched_targets(const ClassLoss& args, std::vector<int64_t>& target) {
    const int64_t targets = args.first_target[args.images];
    const int64_t objects = args.focal ? args.classes : args.classes - 1;
    const int64_t bad_label = first_out_of_range(args.labels, targets, 0, objects);
    if (bad_label >= 0) return bad_label;
    const int64_t bad_query = first_out_of_range(args.query, args.layers * targets, -1, args.queries);
    if (bad_query >= 0) return targets + bad_query;
    target.assign(args.layers * args.images * args.queries, -1);
    for (int64_t layer = 0; layer < args.layers; ++layer)
        for (int64_t image = 0; image < args.images; ++image)
            for (int64_t t = args.first_target[image]; t < args.first_target[image + 1]; ++t) {
                const int64_t query = args.query[layer * targets + t];
                if (query >= 0) target[(layer * args.images + image) * args.queries + query] = t;
            }
    return -1;
}

ClassLoss with_threads(ClassLoss args) {
    if (args.layers * args.images * args.queries * args.classes < kWorthThreads) args.threads = 1;
    return args;
}

}  // namespace

int64_t class_loss_cpu_fwd(const ClassLoss& args, float* loss) {
    std::vector<int64_t> target;
    const int64_t bad = matched_targets(args, target);
    if (bad >= 0) return bad;
    if (args.classes == 0) std::fill_n(loss, args.layers, 0.0f);
    if (args.classes == 0) return -1;
    const int64_t chunks = (args.images * args.queries + kLossRows - 1) / kLossRows;
    std::vector<double> sums(args.layers * chunks);
    DETR_FAST_CPU(class_loss_fwd_kernel)(with_threads(args), target.data(), sums.data());
    for (int64_t layer = 0; layer < args.layers; ++layer) {
        double total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[layer * chunks + chunk];
        loss[layer] = static_cast<float>(total);
    }
    return -1;
}

int64_t class_loss_cpu_bwd(const ClassLoss& args, const float* grad_loss, void* grad_logits) {
    std::vector<int64_t> target;
    const int64_t bad = matched_targets(args, target);
    if (bad >= 0 || args.classes == 0) return bad;
    const size_t size = args.type == FloatType::f32 ? 4 : 2;
    prefer_huge_pages(grad_logits, args.layers * args.images * args.queries * args.classes * size);
    DETR_FAST_CPU(class_loss_bwd_kernel)(with_threads(args), target.data(), grad_loss, grad_logits);
    return -1;
}

}  // namespace detr_fast
