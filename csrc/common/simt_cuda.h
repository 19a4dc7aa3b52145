// simt.h as CUDA: every word is one intrinsic.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/cuda_launch.h"
#include "common/float_types.h"

// SIMT_KERNEL(most threads of a block), or (most threads, blocks that must fit a multiprocessor at least).
#define SIMT_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)
#define SIMT_DEVICE __device__ __forceinline__
// An array in the block's shared memory; `SIMT_DYNAMIC_SHARED` has the launch's shared_bytes.
#define SIMT_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define SIMT_DYNAMIC_SHARED(T, name)                               \
    extern __shared__ __align__(16) unsigned char simt_dynamic_[]; \
    T* name = reinterpret_cast<T*>(simt_dynamic_)
#define SIMT_UNROLL _Pragma("unroll")

namespace detr_fast {
namespace simt {

constexpr unsigned kAllLanes = 0xffffffffu;
using Stream = cudaStream_t;
using Grid = dim3;

// Registers that travel together: loaded and stored by one instruction where sizeof is 4, 8 or 16.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Vec {
    T at[Count];
    SIMT_DEVICE T& operator[](int i) { return at[i]; }
    SIMT_DEVICE const T& operator[](int i) const { return at[i]; }
};

// An array in global memory. Const elements are read through the read-only cache.
template <class T>
struct Global {
    T* data;
    SIMT_DEVICE T& operator[](int64_t i) const { return data[i]; }
    SIMT_DEVICE Global operator+(int64_t offset) const { return {data + offset}; }
    DETR_FAST_BOTH explicit operator bool() const { return data != nullptr; }
};

// The 64-bit product as one instruction: compilers lose it where they hoist a conversion out of a loop.
SIMT_DEVICE int64_t multiply_wide(int a, int b) {
    int64_t product;
    asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
}

// from + steps * stride, where a stride is less than 2 GB.
template <class T>
SIMT_DEVICE Global<T> advance(Global<T> from, int steps, int stride) {
    const int64_t bytes = multiply_wide(steps, stride * static_cast<int>(sizeof(T)));
    return {reinterpret_cast<T*>(reinterpret_cast<intptr_t>(from.data) + bytes)};
}

template <class T>
Global<T> global(T* data, int64_t /*count*/) {
    return {data};
}

// How a device function takes an array of shared memory.
template <class T>
using Shared = T*;

template <class V>
SIMT_DEVICE V bits_as(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

// Read-only loads: the array must not be written during the kernel.
template <class T>
SIMT_DEVICE T load(Global<const T> from, int64_t i) {
    if constexpr (sizeof(T) == 1) {
        const unsigned char bits = __ldg(reinterpret_cast<const unsigned char*>(from.data + i));
        return bits_as<T>(&bits);
    } else if constexpr (sizeof(T) == 2) {
        const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(from.data + i));
        return bits_as<T>(&bits);
    } else if constexpr (sizeof(T) == 4) {
        const unsigned bits = __ldg(reinterpret_cast<const unsigned*>(from.data + i));
        return bits_as<T>(&bits);
    } else if constexpr (sizeof(T) == 8) {
        const unsigned long long bits = __ldg(reinterpret_cast<const unsigned long long*>(from.data + i));
        return bits_as<T>(&bits);
    } else {
        static_assert(sizeof(T) == 16, "load: 1, 2, 4, 8 or 16 bytes");
        const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from.data + i));
        return bits_as<T>(&bits);
    }
}

// Count consecutive elements from index i on, which must be a multiple of Count; the array is aligned so.
template <int Count, class T>
SIMT_DEVICE Vec<T, Count> load_vec(Global<const T> from, int64_t i) {
    using V = Vec<T, Count>;
    const T* at = from.data + i;
    if constexpr (sizeof(V) == 16) {
        const uint4 bits = __ldg(reinterpret_cast<const uint4*>(at));
        return bits_as<V>(&bits);
    } else if constexpr (sizeof(V) == 8) {
        const uint2 bits = __ldg(reinterpret_cast<const uint2*>(at));
        return bits_as<V>(&bits);
    } else if constexpr (Count == 1) {
        return V{{load(from, i)}};
    } else {
        static_assert(sizeof(V) == 4, "load_vec: 4, 8 or 16 bytes");
        const unsigned bits = __ldg(reinterpret_cast<const unsigned*>(at));
        return bits_as<V>(&bits);
    }
}

// As load_vec, or zeros. The choice is made between whole words, before they are taken apart.
template <int Count, class T>
SIMT_DEVICE Vec<T, Count> load_vec_if(bool condition, Global<const T> from, int64_t i) {
    using V = Vec<T, Count>;
    if constexpr (sizeof(V) == 16) {
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (condition) bits = __ldg(reinterpret_cast<const uint4*>(from.data + i));
        return bits_as<V>(&bits);
    } else {
        return condition ? load_vec<Count>(from, i) : V{};
    }
}

// Elements as float32. 16-bit ones come out of whole words: one instruction each, not a move and a shift.
template <class T, int Count>
SIMT_DEVICE Vec<float, Count> widen(const Vec<T, Count>& v) {
    Vec<float, Count> wide;
    if constexpr (sizeof(T) == 2 && Count % 2 == 0) {
        SIMT_UNROLL
        for (int k = 0; k < Count; k += 2) {
            unsigned word;
            memcpy(&word, &v.at[k], sizeof word);
            if constexpr (std::is_same_v<T, BFloat16>) {
                wide[k] = __uint_as_float(word << 16);
                wide[k + 1] = __uint_as_float(word & 0xffff0000u);
            } else {
                __half2 pair;
                memcpy(&pair, &word, sizeof pair);
                wide[k] = __low2float(pair);
                wide[k + 1] = __high2float(pair);
            }
        }
    } else {
        SIMT_UNROLL
        for (int k = 0; k < Count; ++k) wide[k] = to_float(v[k]);
    }
    return wide;
}

template <class T, int Count>
SIMT_DEVICE void store_vec(Global<T> to, int64_t i, const Vec<T, Count>& v) {
    *reinterpret_cast<Vec<T, Count>*>(to.data + i) = v;
}

SIMT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
SIMT_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SIMT_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31); }
SIMT_DEVICE int warp() { return static_cast<int>(threadIdx.x >> 5); }
SIMT_DEVICE unsigned block_x() { return blockIdx.x; }
SIMT_DEVICE unsigned block_y() { return blockIdx.y; }
SIMT_DEVICE unsigned block_z() { return blockIdx.z; }
SIMT_DEVICE unsigned grid_x() { return gridDim.x; }
SIMT_DEVICE unsigned grid_y() { return gridDim.y; }

SIMT_DEVICE void sync_block() { __syncthreads(); }
SIMT_DEVICE void sync_warp(unsigned mask = kAllLanes) { __syncwarp(mask); }
SIMT_DEVICE bool sync_block_or(bool p) { return __syncthreads_or(p); }

// The lanes of `mask` must all call, with the same mask.
template <class T>
SIMT_DEVICE T shuffle(T v, int source, unsigned mask = kAllLanes) {
    return __shfl_sync(mask, v, source);
}
template <class T>
SIMT_DEVICE T shuffle_xor(T v, int lanes, unsigned mask = kAllLanes) {
    return __shfl_xor_sync(mask, v, lanes);
}
template <class T>
SIMT_DEVICE T shuffle_up(T v, int by, unsigned mask = kAllLanes) {
    return __shfl_up_sync(mask, v, by);
}
SIMT_DEVICE unsigned ballot(bool p, unsigned mask = kAllLanes) { return __ballot_sync(mask, p); }
// The least of all 32 lanes.
SIMT_DEVICE unsigned reduce_min(unsigned v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_min_sync(kAllLanes, v);
#else
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) v = min(v, __shfl_xor_sync(kAllLanes, v, lanes));
    return v;
#endif
}
SIMT_DEVICE int count_bits(unsigned bits) { return __popc(bits); }
// Index of the lowest set bit; bits is not 0.
SIMT_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }

SIMT_DEVICE float fast_exp(float x) { return __expf(x); }

// Sums into global memory; nothing is returned, so the hardware may use a reduction.
// Without the assumption computed addresses are taken for generic ones: a returning atomic with a loop
// for shared memory beside it.
SIMT_DEVICE void add_to(Global<float> to, int64_t i, float v) {
    __builtin_assume(__isGlobal(to.data + i));
    atomicAdd(to.data + i, v);
}

// Four floats at once (one instruction from sm_90 on); i is a multiple of 4, the array aligned to 16 bytes.
SIMT_DEVICE void add4_to(Global<float> to, int64_t i, const Vec<float, 4>& v) {
    __builtin_assume(__isGlobal(to.data + i));
#if __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010  // older compilers have no such function
    atomicAdd(reinterpret_cast<float4*>(to.data + i), make_float4(v[0], v[1], v[2], v[3]));
#else
    SIMT_UNROLL
    for (int k = 0; k < 4; ++k) atomicAdd(to.data + i + k, v[k]);
#endif
}

template <class T>
SIMT_DEVICE T atomic_min(T* at, T v) {
    return atomicMin(at, v);
}
template <class T>
SIMT_DEVICE T atomic_max(T* at, T v) {
    return atomicMax(at, v);
}
template <class T>
SIMT_DEVICE T atomic_add(T* at, T v) {
    return atomicAdd(at, v);
}
template <class T>
SIMT_DEVICE T atomic_exchange(T* at, T v) {
    return atomicExch(at, v);
}
template <class T>
SIMT_DEVICE T atomic_cas(T* at, T expected, T desired) {
    return atomicCAS(at, expected, desired);
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
            Stream stream, Arguments... arguments) {
    opt_in(name, reinterpret_cast<const void*>(kernel), shared_bytes);
    kernel<<<grid, threads, shared_bytes, stream>>>(Parameters(arguments)...);
    check(name, cudaPeekAtLastError());
}

}  // namespace simt
}  // namespace detr_fast
