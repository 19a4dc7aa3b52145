// Runs csrc/common/cuda_launch.h on the fake runtime; the exit status says which check failed.
#include "common/cuda_launch.h"

using namespace detr_fast;

int main() {
    // a process that never used GPU 0 keeps it free of a context
    {
        const simt::UseDevice use(1);
        if (fake::current != 1) return 1;
    }
    if (fake::context[0]) return 2;
    // one that uses both finds its own current again
    cudaSetDevice(0);
    {
        const simt::UseDevice use(1);
        if (fake::current != 1) return 3;
    }
    if (fake::current != 0) return 4;
    try {
        const simt::UseDevice use(7);
        return 5;
    } catch (const std::runtime_error& error) {
        if (std::string(error.what()) != "cudaSetDevice: invalid value (cudaErrorInvalidValue)") return 6;
    }
    // every amount that a device has fits after opt_in, whatever the static memory beside it
    for (size_t bytes = 0; bytes + fake::static_bytes <= 163 * 1024; bytes += 16) {
        fake::dynamic_most = 48 * 1024 - fake::static_bytes;
        simt::opt_in("kernel", nullptr, bytes);
        if (bytes > fake::dynamic_most) return 7;
    }
    return 0;
}
