// Where the targets of each image begin, as a kernel parameter: it travels with the launch, so that ragged
// sizes known on the host need no copy and no synchronisation.
#pragma once

#include <cstdint>

namespace detr_fast {

constexpr int kMostImages = 256;  // of one launch; parameters have 4 KB

struct FirstTargets {
    int32_t of[kMostImages + 1];
};

// Those of the images [first, first + count) of a batch.
inline FirstTargets first_targets(const int64_t* first_target, int64_t first, int64_t count) {
    FirstTargets result{};
    for (int64_t i = 0; i <= count; ++i) result.of[i] = static_cast<int32_t>(first_target[first + i]);
    return result;
}

}  // namespace detr_fast
