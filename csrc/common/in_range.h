// Whether indices that come with a call may be used as such.
#pragma once

#include <cstdint>

namespace detr_fast {

// The first of `count` numbers that is not in [low, high), or -1.
inline int64_t first_out_of_range(const int64_t* numbers, int64_t count, int64_t low, int64_t high) {
    for (int64_t i = 0; i < count; ++i)
        if (numbers[i] < low || numbers[i] >= high) return i;
    return -1;
}

}  // namespace detr_fast
