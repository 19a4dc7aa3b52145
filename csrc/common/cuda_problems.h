// Which layer, image and chunk of queries a block works for.
#pragma once

#include <stdexcept>

#include "common/cuda_first_targets.h"
#include "common/simt.h"

namespace detr_fast {

// One launch: up to kMostImages images, from first_image on.
struct ProblemLaunch {
    FirstTargets first;
    int64_t targets, queries, classes;  // targets: of the whole batch
    int images, first_image, all_images, chunks;
};

// The layer and image that a block works for, and the chunk of queries.
struct Problem {
    int64_t index;  // layer * all_images + image
    int64_t layer;
    int begin, end, chunk;  // its targets
};

SIMT_DEVICE Problem find_problem(const ProblemLaunch& launch, int chunks) {
    const int64_t block = simt::block_x();
    const int64_t problem = block / chunks;
    const int image = static_cast<int>(problem % launch.images);
    const int64_t layer = problem / launch.images;
    return {layer * launch.all_images + launch.first_image + image, layer, launch.first.of[image],
            launch.first.of[image + 1], static_cast<int>(block % chunks)};
}

// Calls use(launch) for every kMostImages images; `args` as those of the operators.
template <class Args, class Use>
void for_each_launch(const Args& args, int64_t chunks, const Use& use) {
    const int64_t targets = args.first_target[args.images];
    if (targets > INT32_MAX || args.layers * kMostImages * chunks > INT32_MAX)
        throw std::invalid_argument("sumT or L * Q too large for one launch");
    for (int64_t image = 0; image < args.images; image += kMostImages) {
        const int64_t left = args.images - image, images = left < kMostImages ? left : kMostImages;
        use(ProblemLaunch{first_targets(args.first_target, image, images), targets, args.queries,
                          args.classes, static_cast<int>(images), static_cast<int>(image),
                          static_cast<int>(args.images), static_cast<int>(chunks)});
    }
}

}  // namespace detr_fast
