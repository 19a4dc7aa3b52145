#include <cuda_runtime.h>

#include "common/cuda_info.h"
#include "common/cuda_launch.h"

namespace detr_fast {

CudaInfo cuda_info() {
    CudaInfo info{};
    info.architectures = DETR_FAST_CUDA_ARCHS;
    cudaError_t status = cudaRuntimeGetVersion(&info.runtime_version);
    if (status == cudaSuccess) status = cudaDriverGetVersion(&info.driver_version);
    if (status == cudaSuccess) status = cudaGetDeviceCount(&info.device_count);
    if (status != cudaSuccess) {
        info.error = cudaGetErrorString(status);
        info.device_count = 0;
        (void)cudaGetLastError();
    }
    return info;
}

// Compiled for the same architectures as all others: where the runtime cannot load it, it can load none.
__global__ void cuda_device_probe_kernel() {}

CudaDevice cuda_device(int index) {
    int major = 0, minor = 0;
    cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        return {0, cudaGetErrorString(status)};
    }
    try {
        const simt::UseDevice device(index);
        cudaFuncAttributes attributes;
        status = cudaFuncGetAttributes(&attributes, cuda_device_probe_kernel);
    } catch (const std::runtime_error&) {
        status = cudaErrorDevicesUnavailable;
    }
    if (status != cudaSuccess) (void)cudaGetLastError();
    return {10 * major + minor, status == cudaSuccess ? nullptr : cudaGetErrorString(status)};
}

}  // namespace detr_fast
