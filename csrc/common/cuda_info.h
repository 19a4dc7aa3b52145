// What the CUDA runtime linked into this build sees on this machine.
#pragma once

namespace detr_fast {

struct CudaInfo {
    int runtime_version;  // 1000 * major + 10 * minor
    int driver_version;   // 0 without a driver
    int device_count;
    const char* error;          // nullptr, or why no device can be used
    const char* architectures;  // those this build holds code for, as CMake was given them
};

CudaInfo cuda_info();

struct CudaDevice {
    int capability;     // 10 * major + minor; 0 where the device does not answer
    const char* error;  // nullptr, or why it cannot run the kernels of this build
};

CudaDevice cuda_device(int index);

}  // namespace detr_fast
