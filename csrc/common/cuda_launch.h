// What a launch does on the host before and after: the device, the shared memory, the errors. Calls of the
// CUDA runtime alone, so that tests run it against a runtime of their own.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "common/shared_memory.h"

namespace detr_fast {
namespace simt {

inline void check(const char* what, cudaError_t status) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" +
                             cudaGetErrorName(status) + ")");
}

// Whether this process has a context on the device: making it current would create one, of hundreds of MB.
// Asked of the driver, which whoever has a context has loaded.
inline bool has_context(int device) {
    using GetState = int (*)(int device, unsigned* flags, int* active);
    static const GetState get_state = [] {
        void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
        return reinterpret_cast<GetState>(driver ? dlsym(driver, "cuDevicePrimaryCtxGetState") : nullptr);
    }();
    unsigned flags = 0;
    int active = 0;
    return get_state && get_state(device, &flags, &active) == 0 && active;
}

// The device of the pointers of a call is made current for the time of a launch.
class UseDevice {
  public:
    explicit UseDevice(int device) {
        check("cudaGetDevice", cudaGetDevice(&before_));
        if (before_ == device) return;
        changed_ = has_context(before_);  // else nobody minds, and going back would create a context there
        check("cudaSetDevice", cudaSetDevice(device));
    }
    ~UseDevice() {
        if (changed_) (void)cudaSetDevice(before_);
    }
    UseDevice(const UseDevice&) = delete;
    UseDevice& operator=(const UseDevice&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Lets a kernel have as much shared memory as the device offers, where a launch could need that. Always the
// same amount: other threads launch the kernel, too.
inline void opt_in(const char* name, const void* kernel, size_t dynamic_bytes) {
    if (!opts_in(dynamic_bytes)) return;
    cudaFuncAttributes attributes;
    check(name, cudaFuncGetAttributes(&attributes, kernel));
    int device = 0, most = 0;
    check(name, cudaGetDevice(&device));
    check(name, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     most - static_cast<int>(attributes.sharedSizeBytes)));
}

}  // namespace simt
}  // namespace detr_fast
