#include <cuda_runtime_api.h>

#include "common/cuda_info.h"

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

}  // namespace detr_fast
