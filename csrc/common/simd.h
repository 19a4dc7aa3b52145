// Portable float vectors: GCC/Clang vector extensions at the width of the instruction set that the
// including file is compiled for. Everything lives in that instruction set's namespace.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef DETR_FAST_ISA
#define DETR_FAST_ISA baseline
#endif

namespace detr_fast {
namespace DETR_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vuint __attribute__((vector_size(kLanes * 4)));
typedef double vdouble __attribute__((vector_size(kLanes * 4)));  // kLanes / 2 lanes
typedef int64_t vlong __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vhalf __attribute__((vector_size(kLanes * 2)));

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// x - 0 is x for all x, so this is a bare broadcast; x + 0 is not, for -0
inline vfloat splat(float x) { return x - vfloat{}; }

// 0, 1, 2 ...
inline vint lane_index() {
    vint index;
    for (int lane = 0; lane < kLanes; ++lane) index[lane] = lane;
    return index;
}

inline vfloat load(const float* from) {
    vfloat x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, vfloat x) { std::memcpy(to, &x, sizeof x); }

// bfloat16 is the upper half of a float32.
inline vfloat load_bf16(const uint16_t* from) {
    vhalf half;
    std::memcpy(&half, from, sizeof half);
    const vuint bits = __builtin_convertvector(half, vuint) << 16;
    vfloat x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float bf16_to_float(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Rounds to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline vfloat load_fp16(const uint16_t* from) {
    vhalf half;
    std::memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
    return _mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
    return _mm256_cvtph_ps((__m128i)half);
#else
    const vuint wide = __builtin_convertvector(half, vuint), magnitude = wide & 0x7fffu;
    // exponent and mantissa moved into place; a product corrects the bias and normalises subnormals
    const vfloat finite = bit_cast<vfloat>(magnitude << 13) * splat(0x1p112f);
    const vuint special = 0x7f800000u | magnitude << 13;  // infinity or NaN
    const vuint bits = magnitude >= 0x7c00u ? special : bit_cast<vuint>(finite);
    return bit_cast<vfloat>(bits | (wide & 0x8000u) << 16);
#endif
}

inline float fp16_to_float(uint16_t half) {
    uint16_t halves[kLanes] = {half};
    return load_fp16(halves)[0];
}

// Where either is NaN, the second.
#if defined(__AVX512F__)
inline vfloat min(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
inline vfloat max(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX__)
inline vfloat min(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
inline vfloat max(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
#else
inline vfloat min(vfloat a, vfloat b) { return a < b ? a : b; }
inline vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }
#endif

inline vfloat abs(vfloat x) { return bit_cast<vfloat>(bit_cast<vuint>(x) & 0x7fffffffu); }

// Bit i: whether lane i of a comparison's result is true.
inline unsigned lanes_set(vint mask) {
#if defined(__AVX512F__)
    return static_cast<unsigned>(_mm512_cmplt_epi32_mask((__m512i)mask, _mm512_setzero_si512()));
#elif defined(__AVX__)
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= (static_cast<unsigned>(mask[lane]) & 1u) << lane;
    return bits;
#endif
}

// e^x to 1.2e-7 relative. Saturates at 2e38 above 88.3 and at 1e-38 below -87.3; NaN stays NaN.
inline vfloat exp(vfloat x) {
    x = max(splat(-87.3f), min(splat(88.3f), x));
    // adding 1.5 * 2^23 rounds x / ln 2 to an integer, left in the low bits
    const vfloat shifted = x * 1.44269504f + 12582912.0f;
    const vfloat n = shifted - 12582912.0f;
    const vfloat r = x - n * 0.693145752f - n * 1.42860677e-6f;
    vfloat p = 0.0013814540579915047f * r + 0.00836874544620514f;
    p = p * r + 0.04166838899254799f;
    p = p * r + 0.1666652113199234f;
    p = p * r + 0.4999999403953552f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bit_cast<vfloat>((bit_cast<vuint>(shifted) << 23) + (127u << 23));
}

// ln x to 1.2e-7 relative, for normal finite x > 0.
inline vfloat log(vfloat x) {
    // x = m * 2^n with m in [sqrt(1/2), sqrt(2))
    const vuint bits = bit_cast<vuint>(x) - 0x3f3504f3u;
    const vfloat n = __builtin_convertvector(bit_cast<vint>(bits) >> 23, vfloat);
    const vfloat u = bit_cast<vfloat>((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    vfloat p = -0.07634497433900833f * u + 0.1276157796382904f;
    p = p * u - 0.13160182535648346f;
    p = p * u + 0.14201757311820984f;
    p = p * u - 0.16623356938362122f;
    p = p * u + 0.20001226663589478f;
    p = p * u - 0.2500081956386566f;
    p = p * u + 0.3333333134651184f;
    const vfloat square = u * u;
    return n * 0.693145752f + (u + (p * u * square - 0.5f * square + n * 1.42860677e-6f));
}

typedef float vquad __attribute__((vector_size(16)));

// Rounds to nearest even; NaN stays NaN.
inline void store_bf16(uint16_t* to, vfloat x) {
    const vuint bits = bit_cast<vuint>(x);
    const vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
    const vhalf half = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, vhalf);
    std::memcpy(to, &half, sizeof half);
}

// Rounds to nearest even; NaN stays NaN.
inline void store_fp16(uint16_t* to, vfloat x) {
#if defined(__AVX512F__)
    const __m256i packed = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    const __m128i packed = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#else
    const vuint bits = bit_cast<vuint>(x), magnitude = bits & 0x7fffffffu;
    const vuint normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // adding 0.5 leaves the multiple of 2^-24 in the lowest bits
    const vuint subnormal = bit_cast<vuint>(bit_cast<vfloat>(magnitude) + 0.5f) - 0x3f000000u;
    vuint half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u + vuint{} : half;  // 65520 and above become infinite
    half = magnitude > 0x7f800000u ? 0x7e00u + vuint{} : half;
    const vhalf packed = __builtin_convertvector(half | (bits >> 16 & 0x8000u), vhalf);
#endif
    std::memcpy(to, &packed, sizeof packed);
}

inline uint16_t float_to_fp16(float x) {
    uint16_t halves[kLanes];
    store_fp16(halves, splat(x));
    return halves[0];
}

inline float sum(vfloat x) {
    vquad quads[kLanes / 4];
    std::memcpy(quads, &x, sizeof quads);
    vquad total = quads[0];
    for (int i = 1; i < kLanes / 4; ++i) total += quads[i];
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// The sums of four vectors.
inline vquad sum4(vfloat a, vfloat b, vfloat c, vfloat d) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    const auto fold = [](vfloat x) {
        __m256 half[2];
        std::memcpy(half, &x, sizeof half);
        return _mm256_add_ps(half[0], half[1]);
    };
#else
    const auto fold = [](vfloat x) { return (__m256)x; };
#endif
    const __m256 ab = _mm256_hadd_ps(fold(a), fold(b)), cd = _mm256_hadd_ps(fold(c), fold(d));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    return (vquad)_mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
#else
    return vquad{sum(a), sum(b), sum(c), sum(d)};
#endif
}

// Transposes the 4x4 numbers in the same quad of four vectors.
inline void transpose_quads(vfloat (&x)[4]) {
#if defined(__AVX512F__)
    const vfloat ab[2] = {_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1])};
    const vfloat cd[2] = {_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3])};
    for (int i = 0; i < 2; ++i) {
        x[2 * i] = (vfloat)_mm512_unpacklo_pd((__m512d)ab[i], (__m512d)cd[i]);
        x[2 * i + 1] = (vfloat)_mm512_unpackhi_pd((__m512d)ab[i], (__m512d)cd[i]);
    }
#elif defined(__AVX__)
    const vfloat ab[2] = {_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1])};
    const vfloat cd[2] = {_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3])};
    for (int i = 0; i < 2; ++i) {
        x[2 * i] = (vfloat)_mm256_unpacklo_pd((__m256d)ab[i], (__m256d)cd[i]);
        x[2 * i + 1] = (vfloat)_mm256_unpackhi_pd((__m256d)ab[i], (__m256d)cd[i]);
    }
#else
    for (int quad = 0; quad < kLanes; quad += 4)
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < i; ++j) {
                const float below = x[i][quad + j];
                x[i][quad + j] = x[j][quad + i];
                x[j][quad + i] = below;
            }
#endif
}

// to[i][j] = x[j][i] for each lane i of four vectors, and back.
inline void store_interleaved(float* to, vfloat (&x)[4]) {
    transpose_quads(x);
    for (int j = 0; j < 4; ++j)
        for (int quad = 0; quad < kLanes / 4; ++quad)
            std::memcpy(to + 4 * (4 * quad + j), reinterpret_cast<const vquad*>(&x[j]) + quad, sizeof(vquad));
}
inline void load_interleaved(const float* from, vfloat (&x)[4]) {
    for (int j = 0; j < 4; ++j)
        for (int quad = 0; quad < kLanes / 4; ++quad)
            std::memcpy(reinterpret_cast<vquad*>(&x[j]) + quad, from + 4 * (4 * quad + j), sizeof(vquad));
    transpose_quads(x);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
