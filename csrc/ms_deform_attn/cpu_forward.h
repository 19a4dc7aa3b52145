// Forward: every output row is the weighted sum of the rows that its samples touch.
#pragma once

#include "ms_deform_attn/cpu_sweep.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// Adds the weighted samples i.. of one query and head, `V` vectors of channels from `base` on, while fetching
// those of the next head, `ahead` elements further.
template <int V, bool Prefetch, typename T>
inline void gather(const Plan& plan, int64_t i, const T* base, int64_t ahead, vfloat (&out)[V]) {
    constexpr int kSums = V > 2 ? 2 : 4;  // independent chains hide the latency of the multiply-adds
    vfloat sums[kSums][V] = {};
    const int32_t* pixel = plan.pixel + i;
    const float* share = plan.share + 4 * i;
    for (int64_t n = 0; n < plan.levels; ++n) {
        const Window step = plan.windows[n];
        for (const int32_t* end = pixel + step.points; pixel < end; ++pixel, share += 4) {
            const T* at = base + *pixel * plan.stride;
            const T* corners[4] = {at, at + step.right, at + step.below, at + step.below + step.right};
            if (Prefetch) {
                const T* next = base + ahead + pixel[plan.samples] * plan.stride;
                prefetch_row(next, V * kLanes);
                prefetch_row(next + step.right, V * kLanes);
                prefetch_row(next + step.below, V * kLanes);
                prefetch_row(next + step.below + step.right, V * kLanes);
            }
            for (int corner = 0; corner < 4; ++corner) {
                const vfloat weight = splat(share[corner]);
                for (int v = 0; v < V; ++v)
                    sums[corner % kSums][v] += weight * load_row(corners[corner] + v * kLanes);
            }
        }
    }
    for (int v = 0; v < V; ++v) {
        out[v] = sums[0][v] + sums[1][v];
        if (kSums == 4) out[v] += sums[2 % kSums][v] + sums[3 % kSums][v];
    }
}

template <int V, bool Prefetch, typename T, typename Out>
inline void gather_channels(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base,
                            int64_t ahead, int64_t first, Out* out) {
    vfloat sums[V];
    gather<V, Prefetch>(plan, i, base + first, ahead, sums);
    vfloat bad = splat(0);
    for (int v = 0; v < V; ++v) bad += sums[v] - sums[v];
    const int64_t count = s.channels - first;
    if (__builtin_expect(all_zero(bad) && count >= V * kLanes, 1)) {
        for (int v = 0; v < V; ++v) store_row(out + first + v * kLanes, sums[v]);
        return;
    }
    float result[V * kLanes];
    for (int v = 0; v < V; ++v) store(result + v * kLanes, sums[v]);
    if (!all_zero(bad)) {
        std::memset(result, 0, sizeof result);
        for_touched(plan, i, [&](int64_t offset, float share) {
            for (int c = 0; c < V * kLanes; ++c) result[c] += share * scalar(base + offset + first + c);
        });
    }
    for (int64_t c = 0; c < count && c < V * kLanes; ++c) assign(out + first + c, result[c]);
}

// One output row [D]; `width` is D rounded up to vectors.
template <bool Prefetch, typename T, typename Out>
inline void gather_row(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base, int64_t ahead,
                       int64_t width, Out* out) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        gather_channels<4, Prefetch>(s, plan, i, base, ahead, c, out);
    if (c + 2 * kLanes <= width) {
        gather_channels<2, Prefetch>(s, plan, i, base, ahead, c, out);
        c += 2 * kLanes;
    }
    if (c < width) gather_channels<1, Prefetch>(s, plan, i, base, ahead, c, out);
}

// Sums of queries [first, last) for the plan's heads, from h on, of image b. `base` is row 0 of head h.
template <bool Prefetch, typename T, typename Out>
void forward_queries(const MsDeformAttnInputs& in, const Samples& samples, const Plan& plan, int64_t b,
                     int64_t h, int64_t first, int64_t last, const T* base, int64_t head_stride,
                     int64_t width, Out* out) {
    const MsDeformAttnShape& s = in.shape;
    for (int64_t from = first; from < last; from += plan.queries) {
        const int64_t to = from + plan.queries < last ? from + plan.queries : last;
        plan_block(in, samples, plan, b, from, to);
        for (int64_t q = from; q < to; ++q) {
            fetch_query(samples, plan, q + 2 * plan.queries);
            for (int64_t head = 0; head < plan.heads; ++head) {
                const int64_t ahead = head + 1 < plan.heads ? head_stride : -head * head_stride;
                gather_row<Prefetch>(s, plan, (q - from) * plan.row + head * plan.samples,
                                     base + head * head_stride, ahead, width,
                                     out + ((b * s.queries + q) * s.heads + h + head) * s.channels);
            }
        }
    }
}

// Queries of one turn: as many as `most` (in whole blocks), and about as many turns for each thread.
int64_t turn_queries(const MsDeformAttnShape& s, int64_t block, int64_t most, int threads) {
    const int64_t turns = round_up((s.queries + most - 1) / most, threads);
    return round_up((s.queries + turns - 1) / turns, block);
}

// Threads share out the queries.
template <typename T>
void forward(const MsDeformAttnInputs& in, int most_threads, T* out) {
    const MsDeformAttnShape& s = in.shape;
    const T* value = static_cast<const T*>(in.value);
    const int64_t row = s.heads * s.channels, width = round_up(s.channels, kLanes);
    const bool packed = packs(s, width);
    const int64_t heads = packed ? 1 : s.heads, block = block_queries(s, heads);
    const int threads = useful_threads(s, most_threads, s.batch * s.queries);
    const int64_t turn = turn_queries(s, block, packed ? kTurnQueries : kDirectQueries, threads);
    const int64_t turns = (s.queries + turn - 1) / turn;
    const auto end_of = [&](int64_t first) { return first + turn < s.queries ? first + turn : s.queries; };
    prefer_huge_pages(out, sizeof(T) * s.batch * s.queries * row);
    if (!packed) {
        parallel_for(threads, s.batch * turns, [&](int64_t item) {
            const int64_t b = item / turns, first = item % turns * turn;
            Plan plan;
            make_plan(plan, s, heads, row, block, 0);
            forward_queries<true>(in, samples_of(in, b, 0), plan, b, 0, first, end_of(first),
                                  value + b * s.pixels * row, s.channels, width, out);
        });
        return;
    }
    float* rows = static_cast<float*>(scratch(ScratchSlot::rows, sizeof(float) * s.heads * s.pixels * width));
    for (int64_t b = 0; b < s.batch; ++b) {
        parallel_for(threads, kSlices, [&](int64_t i) {
            pack(s, s.heads, s.pixels * i / kSlices, s.pixels * (i + 1) / kSlices, value + b * s.pixels * row,
                 rows, width);
        });
        parallel_for(threads, turns, [&](int64_t t) {
            const int64_t first = t * turn, last = end_of(first);
            Plan plan;
            make_plan(plan, s, heads, width, block, 0);
            const float* sorted = sort_by_head(in, b, 0, s.heads, first, last);
            for (int64_t h = 0; h < s.heads; ++h)
                forward_queries<false>(in, sorted_samples(s, sorted, s.heads, h, first, last), plan, b, h,
                                       first, last, static_cast<const float*>(rows) + h * s.pixels * width, 0,
                                       width, out);
        });
    }
}

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
