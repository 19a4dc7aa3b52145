// The words that kernels are written in. Under nvcc they are CUDA's own; elsewhere each lane of a block
// is a cooperative fiber on the host, which executes the same kernel source and checks it
// (simt_host.h): accesses against their bounds, barriers and shuffles against divergence.
//
// A kernel is a template or a function:
//     SIMT_KERNEL(256) void scale_kernel(simt::Global<const float> x, simt::Global<float> y, int64_t n)
// and a launcher calls
//     simt::launch("scale", scale_kernel, grid, 256, shared_bytes, stream, simt::global(x, n), ...)
// which throws std::runtime_error, naming the kernel, where the launch fails.
#pragma once

#if defined(__CUDACC__)
#include "common/simt_cuda.h"
#else
#include "common/simt_host.h"
#endif
