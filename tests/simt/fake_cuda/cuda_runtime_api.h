// As much of the CUDA runtime as csrc/common/cuda_launch.h calls, for a machine of two GPUs of compute
// capability 8.0. Making a device current creates its context, as CUDA 12 does.
#pragma once

#include <cstddef>
#include <cstdio>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
};

namespace fake {
inline int current = 0;
inline bool context[2] = {false, false};
inline size_t static_bytes = 400;
inline size_t dynamic_most = 48 * 1024 - 400;
}  // namespace fake

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidValue"; }
inline cudaError_t cudaGetDevice(int* device) {
    *device = fake::current;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return cudaErrorInvalidValue;
    fake::current = device;
    fake::context[device] = true;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 163 * 1024;
    return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    attributes->sharedSizeBytes = fake::static_bytes;
    return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
    if (bytes + fake::static_bytes > 163 * 1024) return cudaErrorInvalidValue;
    fake::dynamic_most = bytes;
    return cudaSuccess;
}
