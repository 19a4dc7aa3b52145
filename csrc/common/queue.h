#pragma once

namespace detr_fast {

// Where a launch goes.
struct Queue {
    int device;
    void* stream;  // cudaStream_t
};

}  // namespace detr_fast
