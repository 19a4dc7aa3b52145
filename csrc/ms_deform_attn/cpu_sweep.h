// Two ways through the same plan (cpu_plan.h):
// - direct: all heads of a query together, rows read (and gradients added) where they lie. For few samples.
// - packed: a worker copies one head's rows into a compact float array of its own, with the gradients beside
//   the values, sweeps all queries, and copies the gradients out. For many samples a pixel, for channels
//   that do not fill vectors, and for gradients of 16-bit values, which need float32 sums.
// A worker owns the heads whose gradients it sums, and takes queries in order: no atomics, and the same bits
// for any number of threads.
#pragma once

#include "common/cpu_parallel.h"
#include "ms_deform_attn/cpu_plan.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int64_t kBlockSamples = 256;  // samples planned together, so that their plan stays in L1
constexpr int64_t kTurnQueries = 512;   // queries swept for one head before the next: pages stay in the TLB
constexpr int64_t kDirectQueries = 32;  // queries that a thread takes at a time
constexpr int64_t kSlices = 64;         // parts that threads fill or copy an array in
constexpr int64_t kPackedRatio = 8;     // packed where rows gathered exceed rows copied so many times

inline vfloat load_row(const float* from) { return load(from); }
inline vfloat load_row(const BFloat16* from) { return load_bf16(&from->bits); }
inline vfloat load_row(const Half* from) { return load_fp16(&from->bits); }
inline void store_row(float* to, vfloat x) { store(to, x); }
inline void store_row(BFloat16* to, vfloat x) { store_bf16(&to->bits, x); }
inline void store_row(Half* to, vfloat x) { store_fp16(&to->bits, x); }
inline float scalar(const float* from) { return *from; }
inline float scalar(const BFloat16* from) { return bf16_to_float(from->bits); }
inline float scalar(const Half* from) { return fp16_to_float(from->bits); }
inline void assign(float* to, float x) { *to = x; }
inline void assign(BFloat16* to, float x) { to->bits = float_to_bf16(x); }
inline void assign(Half* to, float x) { to->bits = float_to_fp16(x); }

// Copies of rows as floats, and of floats as rows.
template <typename T>
inline void read_row(const T* from, int64_t channels, float* to) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) store(to + c, load_row(from + c));
    for (; c < channels; ++c) to[c] = scalar(from + c);
}
template <typename T>
inline void write_row(const float* from, int64_t channels, T* to) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) store_row(to + c, load(from + c));
    for (; c < channels; ++c) assign(to + c, from[c]);
}

template <typename T>
inline void prefetch_row(const T* row, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c);
}

// Calls visit(corner, row offset, share) for the pixels that bilinear interpolation truly reads: what else
// lies in a window must not spread its infinities and NaN, not even times zero.
template <typename Visit>
inline void for_touched(const Plan& plan, int64_t i, Visit visit) {
    const int64_t constant = i % plan.row;
    for (int64_t n = 0, k = 0; n < plan.levels; ++n) {
        const Window step = plan.windows[n];
        for (const int64_t end = k + step.points; k < end; ++k) {
            const float x = plan.x[i + k], y = plan.y[i + k];
            for (int corner = 0; corner < 4; ++corner) {
                const float tx = corner & 1 ? x - plan.next_x[constant + k] : x;
                const float ty = corner & 2 ? y - plan.next_y[constant + k] : y;
                if (!touches(tx) || !touches(ty)) continue;
                const int64_t offset = static_cast<int64_t>(plan.pixel[i + k]) * plan.stride +
                                       (corner & 1 ? step.right : 0) + (corner & 2 ? step.below : 0);
                visit(offset, plan.weight[i + k] * tent(ty) * tent(tx));
            }
        }
    }
}

// Where the coordinates and weights of query 0 would lie, and how many samples further the next query's.
struct Samples {
    const float *coordinates, *weights;
    int64_t step;
};

inline Samples samples_of(const MsDeformAttnInputs& in, int64_t b, int64_t h) {
    const int64_t samples = in.shape.samples;
    const int64_t from = (b * in.shape.queries * in.shape.heads + h) * samples;
    return {static_cast<const float*>(in.coordinates) + 2 * from,
            static_cast<const float*>(in.weights) + from, in.shape.heads * samples};
}

// Plans the rows of queries [first, last) of image b.
inline bool plan_block(const MsDeformAttnInputs& in, const Samples& samples, const Plan& plan, int64_t b,
                       int64_t first, int64_t last) {
    const MsDeformAttnShape& s = in.shape;
    bool finite = true;
    for (int64_t q = first; q < last; ++q) {
        const int64_t query = b * s.queries + q, from = q * samples.step;
        const float* reference =
            in.references ? in.references + query * s.levels * s.reference_dims : nullptr;
        finite &=
            plan_query(plan, s, samples.coordinates + 2 * from, samples.weights + from, reference, q - first);
    }
    return finite;
}

// Fetches what `plan_query` will read for query q (beyond the last, nothing is read).
inline void fetch_query(const Samples& samples, const Plan& plan, int64_t q) {
    const int64_t from = q * samples.step;
    prefetch_row(samples.coordinates + 2 * from, 2 * plan.heads * plan.samples);
    prefetch_row(samples.weights + from, plan.heads * plan.samples);
}

// Copies the samples of queries [first, last) for `heads` heads from h on, which lie query by query, to this
// thread's scratch, head by head: a head's sweep then reads them side by side.
inline const float* sort_by_head(const MsDeformAttnInputs& in, int64_t b, int64_t h, int64_t heads,
                                 int64_t first, int64_t last) {
    const Samples from = samples_of(in, b, h);
    const int64_t samples = in.shape.samples, count = last - first;
    float* to =
        static_cast<float*>(scratch(ScratchSlot::samples, 3 * sizeof(float) * heads * count * samples));
    float* weights = to + 2 * heads * count * samples;
    for (int64_t q = 0; q < count; ++q)
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t source = (first + q) * from.step + head * samples,
                          at = (head * count + q) * samples;
            std::memcpy(to + 2 * at, from.coordinates + 2 * source, 2 * sizeof(float) * samples);
            std::memcpy(weights + at, from.weights + source, sizeof(float) * samples);
        }
    return to;
}

// One head of what `sort_by_head` wrote.
inline Samples sorted_samples(const MsDeformAttnShape& s, const float* sorted, int64_t heads, int64_t head,
                              int64_t first, int64_t last) {
    const int64_t samples = s.samples, count = last - first, at = (head * count - first) * samples;
    return {sorted + 2 * at, sorted + 2 * heads * count * samples + at, samples};
}

inline int64_t block_queries(const MsDeformAttnShape& s, int64_t heads) {
    const int64_t block = kBlockSamples / (heads * s.samples), most = block < s.queries ? block : s.queries;
    return most < 1 ? 1 : most;
}

// Copies pixels [first, last) of `heads` heads, [S, heads, D] (pixel stride H * D), to float rows of `stride`
// for each head and pixel, [heads, S, stride], the rest of a row zero.
template <typename T>
void pack(const MsDeformAttnShape& s, int64_t heads, int64_t first, int64_t last, const T* from, float* to,
          int64_t stride) {
    for (int64_t i = first; i < last; ++i)
        for (int64_t h = 0; h < heads; ++h) {
            const T* source = from + (i * s.heads + h) * s.channels;
            float* row = to + (h * s.pixels + i) * stride;
            read_row(source, s.channels, row);
            for (int64_t c = s.channels; c < stride; ++c) row[c] = 0;
        }
}

bool packs(const MsDeformAttnShape& s, int64_t width) {
    return width != s.channels || s.queries * s.samples * 4 > kPackedRatio * s.pixels;
}

// Threads that a call of this size keeps busy for some forty microseconds each: a parked one takes ten to
// come.
int useful_threads(const MsDeformAttnShape& s, int most, int64_t items) {
    const int64_t work = s.batch * s.queries * s.heads * s.samples * (s.channels + 16) / (1 << 18);
    int64_t threads = most < items ? most : items;
    if (threads > work + 1) threads = work + 1;
    return threads < 1 ? 1 : static_cast<int>(threads);
}

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
