// Two ways through the same plan (plan.h):
// - direct: all heads of a query together, rows read (and gradients added) where they lie. For few samples.
// - packed: a worker copies one head's rows into a compact float array of its own, with the gradients beside
//   the values, sweeps all queries, and copies the gradients out. For many samples a pixel, for channels
//   that do not fill vectors, and for gradients of bfloat16 values, which need float32 sums.
// A worker owns the heads whose gradients it sums, and takes queries in order: no atomics, and the same bits
// for any number of threads.
#include "ms_deform_attn/plan.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int64_t kBlockSamples = 256;  // samples planned together, so that their plan stays in L1
constexpr int64_t kTurnQueries = 512;   // queries swept for one head before the next: pages stay in the TLB
constexpr bool kPrefetchPacked = false;
constexpr int64_t kPackedRatio = 8;  // packed where rows gathered exceed rows copied so many times

inline vfloat load_row(const float* from) { return load(from); }
inline vfloat load_row(const uint16_t* from) { return load_bf16(from); }
inline void store_row(float* to, vfloat x) { store(to, x); }
inline void store_row(uint16_t* to, vfloat x) { store_bf16(to, x); }
inline float scalar(const float* from) { return *from; }
inline float scalar(const uint16_t* from) { return bf16_to_float(*from); }
inline void assign(float* to, float x) { *to = x; }
inline void assign(uint16_t* to, float x) { *to = float_to_bf16(x); }

// The row distances of a level's window; 0 where the level has only one column or line.
struct Window {
    int64_t right, below;
};

inline Window window(const MsDeformAttnShape& s, int64_t n, int64_t stride) {
    const int64_t height = s.sizes[2 * n], width = s.sizes[2 * n + 1];
    return {width > 1 ? stride : 0, height > 1 ? width * stride : 0};
}

template <typename T>
inline void prefetch_row(const T* row, int64_t channels) {
    for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c);
}

// Adds the weighted samples i.. of one query and head, `V` vectors of channels from `base` on, while fetching
// those of the next head, `ahead` elements further.
template <int V, bool Prefetch, typename T>
inline void gather(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base, int64_t stride,
                   int64_t ahead, vfloat (&out)[V]) {
    constexpr int kSums = V > 2 ? 2 : 4;  // independent chains hide the latency of the multiply-adds
    vfloat sums[kSums][V] = {};
    for (int64_t n = 0; n < s.levels; ++n) {
        const Window step = window(s, n, stride);
        for (int64_t p = 0; p < s.points; ++p, ++i) {
            const T* at = base + static_cast<int64_t>(plan.pixel[i]) * stride;
            const T* corners[4] = {at, at + step.right, at + step.below, at + step.below + step.right};
            if (Prefetch) {
                const T* next = base + ahead + static_cast<int64_t>(plan.pixel[i + plan.samples]) * stride;
                prefetch_row(next, V * kLanes);
                prefetch_row(next + step.right, V * kLanes);
                prefetch_row(next + step.below, V * kLanes);
                prefetch_row(next + step.below + step.right, V * kLanes);
            }
            for (int corner = 0; corner < 4; ++corner) {
                const vfloat share = splat(plan.share[corner][i]);
                for (int v = 0; v < V; ++v)
                    sums[corner % kSums][v] += share * load_row(corners[corner] + v * kLanes);
            }
        }
    }
    for (int v = 0; v < V; ++v) {
        out[v] = sums[0][v] + sums[1][v];
        if (kSums == 4) out[v] += sums[2 % kSums][v] + sums[3 % kSums][v];
    }
}

// Calls visit(corner, row offset, share) for the pixels that bilinear interpolation truly reads: what else
// lies in a window must not spread its infinities and NaN, not even times zero.
template <typename Visit>
inline void for_touched(const MsDeformAttnShape& s, const Plan& plan, int64_t i, int64_t stride,
                        Visit visit) {
    const int64_t constant = i % plan.row;
    for (int64_t n = 0, k = 0; n < s.levels; ++n) {
        const Window step = window(s, n, stride);
        for (int64_t p = 0; p < s.points; ++p, ++k) {
            const float x = plan.x[i + k], y = plan.y[i + k];
            for (int corner = 0; corner < 4; ++corner) {
                const float tx = corner & 1 ? x - plan.next_x[constant + k] : x;
                const float ty = corner & 2 ? y - plan.next_y[constant + k] : y;
                if (!touches(tx) || !touches(ty)) continue;
                const int64_t offset = static_cast<int64_t>(plan.pixel[i + k]) * stride +
                                       (corner & 1 ? step.right : 0) + (corner & 2 ? step.below : 0);
                visit(offset, plan.weight[i + k] * tent(ty) * tent(tx));
            }
        }
    }
}

template <int V, bool Prefetch, typename T, typename Out>
inline void gather_channels(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base,
                            int64_t stride, int64_t ahead, int64_t first, Out* out) {
    vfloat sums[V];
    gather<V, Prefetch>(s, plan, i, base + first, stride, ahead, sums);
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
        for_touched(s, plan, i, stride, [&](int64_t offset, float share) {
            for (int c = 0; c < V * kLanes; ++c) result[c] += share * scalar(base + offset + first + c);
        });
    }
    for (int64_t c = 0; c < count && c < V * kLanes; ++c) assign(out + first + c, result[c]);
}

// One output row [D]; `width` is D rounded up to vectors.
template <bool Prefetch, typename T, typename Out>
inline void gather_row(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base, int64_t stride,
                       int64_t ahead, int64_t width, Out* out) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        gather_channels<4, Prefetch>(s, plan, i, base, stride, ahead, c, out);
    if (c + 2 * kLanes <= width) {
        gather_channels<2, Prefetch>(s, plan, i, base, stride, ahead, c, out);
        c += 2 * kLanes;
    }
    if (c < width) gather_channels<1, Prefetch>(s, plan, i, base, stride, ahead, c, out);
}

// Where the coordinates and weights of query 0 would lie, and how many samples further the next query's.
struct Samples {
    const float *coordinates, *weights;
    int64_t step;
};

inline Samples samples_of(const MsDeformAttnInputs& in, int64_t b, int64_t h) {
    const int64_t samples = in.shape.levels * in.shape.points;
    const int64_t from = (b * in.shape.queries * in.shape.heads + h) * samples;
    return {in.coordinates + 2 * from, in.weights + from, in.shape.heads * samples};
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

// Copies the samples of queries [first, last) for `heads` heads from h on, which lie query by query, to `to`,
// head by head: a head's sweep then reads them side by side.
inline void sort_by_head(const MsDeformAttnInputs& in, int64_t b, int64_t h, int64_t heads, int64_t first,
                         int64_t last, float* to) {
    const Samples from = samples_of(in, b, h);
    const int64_t samples = in.shape.levels * in.shape.points, count = last - first;
    float* weights = to + 2 * heads * count * samples;
    for (int64_t q = 0; q < count; ++q)
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t source = (first + q) * from.step + head * samples,
                          at = (head * count + q) * samples;
            std::memcpy(to + 2 * at, from.coordinates + 2 * source, 2 * sizeof(float) * samples);
            std::memcpy(weights + at, from.weights + source, sizeof(float) * samples);
        }
}

// One head of what `sort_by_head` wrote.
inline Samples sorted_samples(const MsDeformAttnShape& s, const float* sorted, int64_t heads, int64_t head,
                              int64_t first, int64_t last) {
    const int64_t samples = s.levels * s.points, count = last - first, at = (head * count - first) * samples;
    return {sorted + 2 * at, sorted + 2 * heads * count * samples + at, samples};
}

inline int64_t block_queries(const MsDeformAttnShape& s, int64_t heads) {
    const int64_t block = kBlockSamples / (heads * s.levels * s.points);
    return block < 1 ? 1 : block;
}

// Sums of queries [first, last) for the plan's heads, from h on, of image b. `base` is row 0 of head h.
template <bool Prefetch, typename T, typename Out>
void forward_queries(const MsDeformAttnInputs& in, const Samples& samples, const Plan& plan, int64_t b,
                     int64_t h, int64_t first, int64_t last, const T* base, int64_t stride,
                     int64_t head_stride, int64_t width, Out* out) {
    const MsDeformAttnShape& s = in.shape;
    for (int64_t from = first; from < last; from += plan.queries) {
        const int64_t to = from + plan.queries < last ? from + plan.queries : last;
        plan_block(in, samples, plan, b, from, to);
        for (int64_t q = from; q < to; ++q) {
            fetch_query(samples, plan, q + 2 * plan.queries);
            for (int64_t head = 0; head < plan.heads; ++head) {
                const int64_t ahead = head + 1 < plan.heads ? head_stride : -head * head_stride;
                gather_row<Prefetch>(s, plan, (q - from) * plan.row + head * plan.samples,
                                     base + head * head_stride, stride, ahead, width,
                                     out + ((b * s.queries + q) * s.heads + h + head) * s.channels);
            }
        }
    }
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
            for (int64_t c = 0; c < s.channels; ++c) row[c] = scalar(source + c);
            for (int64_t c = s.channels; c < stride; ++c) row[c] = 0;
        }
}

bool packs(const MsDeformAttnShape& s, int64_t width) {
    return width != s.channels || s.queries * s.levels * s.points * 4 > kPackedRatio * s.pixels;
}

// Threads that a call of this size keeps busy for some ten microseconds each.
int useful_threads(const MsDeformAttnInputs& in, int64_t items) {
    const MsDeformAttnShape& s = in.shape;
    const int64_t work = s.batch * s.queries * s.heads * s.levels * s.points * (s.channels + 16) / (1 << 16);
    int64_t threads = in.num_threads < items ? in.num_threads : items;
    if (threads > work + 1) threads = work + 1;
    return threads < 1 ? 1 : static_cast<int>(threads);
}

// Queries of one turn: as many as `most` (in whole blocks), and about as many turns for each thread.
int64_t turn_queries(const MsDeformAttnShape& s, int64_t block, int64_t most, int threads) {
    const int64_t turns = round_up((s.queries + most - 1) / most, threads);
    return round_up((s.queries + turns - 1) / turns, block);
}

// Threads share out the queries.
template <typename T>
void forward(const MsDeformAttnInputs& in, T* out, bool& ok) {
    const MsDeformAttnShape& s = in.shape;
    const T* value = static_cast<const T*>(in.value);
    const int64_t row = s.heads * s.channels, width = round_up(s.channels, kLanes);
    const bool packed = packs(s, width);
    const int64_t heads = packed ? 1 : s.heads, block = block_queries(s, heads);
    const int threads = useful_threads(in, s.batch * s.queries);
    const int64_t turn = turn_queries(s, block, packed ? kTurnQueries : block, threads);
    const int64_t turns = (s.queries + turn - 1) / turn;
    prefer_huge_pages(out, sizeof(T) * s.batch * s.queries * row);
    float* rows = nullptr;
    if (packed) {
        rows = static_cast<float*>(scratch(ScratchSlot::rows, sizeof(float) * s.heads * s.pixels * width));
        ok = rows != nullptr;
        if (!ok) return;
    }
    bool good = true;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : good)
    {
        Plan plan;
        const int64_t samples = s.heads * s.levels * s.points;
        float* sorted = make_plan(plan, s, heads, block, packed ? 3 * turn * samples : 0);
        good = sorted != nullptr;
        for (int64_t b = 0; packed && b < s.batch; ++b) {
            const int64_t slices = 64;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < slices; ++i)
                pack(s, s.heads, s.pixels * i / slices, s.pixels * (i + 1) / slices,
                     value + b * s.pixels * row, rows, width);
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < turns; ++t) {
                const int64_t first = t * turn, last = first + turn < s.queries ? first + turn : s.queries;
                if (good) sort_by_head(in, b, 0, s.heads, first, last, sorted);
                for (int64_t h = 0; good && h < s.heads; ++h)
                    forward_queries<kPrefetchPacked>(
                        in, sorted_samples(s, sorted, s.heads, h, first, last), plan, b, h, first, last,
                        static_cast<const float*>(rows) + h * s.pixels * width, width, 0, width, out);
            }
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < (packed ? 0 : s.batch * turns); ++item) {
            const int64_t b = item / turns, first = item % turns * turn;
            const int64_t last = first + turn < s.queries ? first + turn : s.queries;
            if (good)
                forward_queries<true>(in, samples_of(in, b, 0), plan, b, 0, first, last,
                                      value + b * s.pixels * row, row, s.channels, width, out);
        }
    }
    ok = good;
}

// ---------------------------------------------------------------- backward

// What a worker needs to turn dot products into gradients.
struct Work {
    float* dots;      // [queries][row][4] grad_out . value of the corners
    float* grads[3];  // [row] by weight, x and y
    float* go;        // [width] one row of grad_out
};

// For samples i..: dot products of the corners' rows with grad_out (added to dots unless `fresh`), and
// grad_out times share added to the corners' gradient rows at `grad`.
template <int V, bool Dots, bool Scatter, typename T>
inline void scatter(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base, float* grad,
                    int64_t stride, const float* grad_out, bool fresh, float* dots) {
    vfloat go[V];
    for (int v = 0; v < V; ++v) go[v] = load(grad_out + v * kLanes);
    for (int64_t n = 0; n < s.levels; ++n) {
        const Window step = window(s, n, stride);
        for (int64_t p = 0; p < s.points; ++p, ++i) {
            const int64_t at = static_cast<int64_t>(plan.pixel[i]) * stride;
            const int64_t corners[4] = {at, at + step.right, at + step.below, at + step.below + step.right};
            vfloat dot[4];
            for (int corner = 0; corner < 4; ++corner) {
                if (Dots) {
                    const T* row = base + corners[corner];
                    dot[corner] = load_row(row) * go[0];
                    for (int v = 1; v < V; ++v) dot[corner] += load_row(row + v * kLanes) * go[v];
                }
                if (Scatter) {
                    float* row = grad + corners[corner];
                    const vfloat share = splat(plan.share[corner][i]);
                    for (int v = 0; v < V; ++v)
                        store(row + v * kLanes, load(row + v * kLanes) + share * go[v]);
                }
            }
            if (Dots) {
                float* to = dots + 4 * i;
                const vquad total = sum4(dot[0], dot[1], dot[2], dot[3]);
                vquad before{};
                if (!fresh) std::memcpy(&before, to, sizeof before);
                const vquad after = before + total;
                std::memcpy(to, &after, sizeof after);
            }
        }
    }
}

template <bool Dots, bool Scatter, typename T>
inline void scatter_row(const MsDeformAttnShape& s, const Plan& plan, int64_t i, const T* base, float* grad,
                        int64_t stride, int64_t width, const float* grad_out, float* dots) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        scatter<4, Dots, Scatter>(s, plan, i, base + c, grad + c, stride, grad_out + c, c == 0, dots);
    if (c + 2 * kLanes <= width) {
        scatter<2, Dots, Scatter>(s, plan, i, base + c, grad + c, stride, grad_out + c, c == 0, dots);
        c += 2 * kLanes;
    }
    if (c < width)
        scatter<1, Dots, Scatter>(s, plan, i, base + c, grad + c, stride, grad_out + c, c == 0, dots);
}

// Slope of the tent: the right-hand derivative.
inline vfloat slope(vfloat t) {
    const vfloat zero = splat(0);
    const vfloat rising = t >= -1.0f ? splat(1) : zero;
    const vfloat falling = t < 1.0f ? splat(-1) : zero;
    return t < 0.0f ? rising : (t >= 0.0f ? falling : zero);
}

// Turns a planned query's dot products into gradients by weight and pixel coordinates.
inline void differentiate(const Plan& plan, const Work& work, int64_t q) {
    const int64_t row = q * plan.row, used = plan.heads * plan.samples;
    const float* dots = work.dots + 4 * row;
    for (int64_t i = 0; i < used; i += kLanes) {
        vfloat d[4];
        for (int lane = 0; lane < kLanes; ++lane)
            for (int corner = 0; corner < 4; ++corner) d[corner][lane] = dots[4 * (i + lane) + corner];
        const vfloat x[2] = {load(plan.x + row + i), load(plan.x + row + i) - load(plan.next_x + i)};
        const vfloat y[2] = {load(plan.y + row + i), load(plan.y + row + i) - load(plan.next_y + i)};
        const vfloat sx[2] = {slope(x[0]), slope(x[1])}, sy[2] = {slope(y[0]), slope(y[1])};
        const vfloat tx[2] = {tent(x[0]), tent(x[1])}, ty[2] = {tent(y[0]), tent(y[1])};
        vfloat by_weight = splat(0), by_x = splat(0), by_y = splat(0);
        for (int corner = 0; corner < 4; ++corner) {
            const int cx = corner & 1, cy = corner >> 1;
            // a pixel that is not read may hold anything
            const vfloat dot = (sx[cx] * sy[cy] != 0.0f) ? d[corner] : splat(0);
            by_weight += ty[cy] * tx[cx] * dot;
            by_x += ty[cy] * sx[cx] * dot;
            by_y += sy[cy] * tx[cx] * dot;
        }
        const vfloat weight = load(plan.weight + row + i);
        // no weight, not even NaN, moves a sample that reads nothing
        const vfloat none = splat(0);
        store(work.grads[0] + i, by_weight);
        store(work.grads[1] + i, by_x != 0.0f ? by_x * weight : none);
        store(work.grads[2] + i, by_y != 0.0f ? by_y * weight : none);
    }
}

// Writes one query's gradients for the plan's heads; all pointers are at the first of them.
inline void write_plain(const Plan& plan, const Work& work, int64_t q, float* grad_coordinates,
                        float* grad_weights) {
    const int64_t row = q * plan.row, used = plan.heads * plan.samples;
    if (grad_weights) std::memcpy(grad_weights, work.grads[0], sizeof(float) * used);
    if (grad_coordinates)
        for (int64_t i = 0; i < used; ++i) {
            grad_coordinates[2 * i] = work.grads[1][i] * plan.scale_x[row + i];
            grad_coordinates[2 * i + 1] = work.grads[2][i] * plan.scale_y[row + i];
        }
}

// Gradients through the softmax.
inline void write_logits(const Plan& plan, const Work& work, int64_t q, float* grad_logits) {
    for (int64_t h = 0; h < plan.heads; ++h) {
        const float *weight = plan.weight + q * plan.row + h * plan.samples,
                    *by = work.grads[0] + h * plan.samples;
        float mean = 0;
        for (int64_t k = 0; k < plan.samples; ++k) mean += weight[k] * by[k];
        for (int64_t k = 0; k < plan.samples; ++k) *grad_logits++ = weight[k] * (by[k] - mean);
    }
}

// This query's share of the gradients by its reference points, [heads, N, reference_dims].
inline void write_reference_parts(const MsDeformAttnShape& s, const Plan& plan, const Work& work,
                                  const float* offsets, float* parts) {
    const float half = 0.5f / static_cast<float>(s.points);
    for (int64_t i = 0, h = 0; h < plan.heads; ++h)
        for (int64_t n = 0; n < s.levels; ++n, parts += s.reference_dims) {
            const float height = static_cast<float>(s.sizes[2 * n]),
                        width = static_cast<float>(s.sizes[2 * n + 1]);
            float by_x = 0, by_y = 0, by_width = 0, by_height = 0;
            for (int64_t p = 0; p < s.points; ++p, ++i) {
                by_x += work.grads[1][i];
                by_y += work.grads[2][i];
                by_width += work.grads[1][i] * offsets[2 * i];
                by_height += work.grads[2][i] * offsets[2 * i + 1];
            }
            parts[0] = by_x * width;
            parts[1] = by_y * height;
            if (s.reference_dims == 4) {
                parts[2] = by_width * half * width;
                parts[3] = by_height * half * height;
            }
        }
}

// One row of grad_out as floats, zero beyond its channels; `row` itself where that is what it holds.
inline const float* grad_row(const Work& work, const MsDeformAttnShape& s, int64_t width, const float* row) {
    if (width == s.channels) return row;
    for (int64_t c = 0; c < s.channels; ++c) work.go[c] = row[c];
    return work.go;
}
inline const float* grad_row(const Work& work, const MsDeformAttnShape& s, int64_t, const uint16_t* row) {
    for (int64_t c = 0; c < s.channels; ++c) work.go[c] = scalar(row + c);
    return work.go;
}

template <bool Dots, bool Scatter, typename T, typename G>
void backward_queries(const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, const Samples& samples,
                      const Plan& plan, const Work& work, int64_t b, int64_t h, int64_t first, int64_t last,
                      const T* base, float* grad_base, int64_t stride, int64_t head_stride, int64_t width,
                      const G* grad_out) {
    const MsDeformAttnShape& s = in.shape;
    for (int64_t from = first; from < last; from += plan.queries) {
        const int64_t to = from + plan.queries < last ? from + plan.queries : last;
        const bool finite = plan_block(in, samples, plan, b, from, to);
        for (int64_t q = from; q < to; ++q) {
            fetch_query(samples, plan, q + 2 * plan.queries);
            const int64_t first_head = (b * s.queries + q) * s.heads + h;
            for (int64_t head = 0; head < plan.heads; ++head) {
                const int64_t i = (q - from) * plan.row + head * plan.samples;
                const float* go = grad_row(work, s, width, grad_out + (first_head + head) * s.channels);
                const T* rows = base + head * head_stride;
                float* grad_rows = Scatter ? grad_base + head * head_stride : nullptr;
                bool plain = finite;
                if (Scatter) {
                    vfloat bad = splat(0);
                    for (int64_t c = 0; c < width; c += kLanes) bad += load(go + c) - load(go + c);
                    plain = plain && all_zero(bad);
                }
                if (__builtin_expect(plain || !Scatter, 1)) {
                    scatter_row<Dots, Scatter>(s, plan, i, rows, grad_rows, stride, width, go, work.dots);
                } else {
                    scatter_row<true, false>(s, plan, i, rows, grad_rows, stride, width, go, work.dots);
                    for_touched(s, plan, i, stride, [&](int64_t offset, float share) {
                        for (int64_t c = 0; c < width; ++c) grad_rows[offset + c] += share * go[c];
                    });
                }
            }
            if (!Dots) continue;
            differentiate(plan, work, q - from);
            const int64_t sample = first_head * plan.samples;
            float* by_coordinates = grad.grad_coordinates ? grad.grad_coordinates + 2 * sample : nullptr;
            float* by_weights = grad.grad_weights ? grad.grad_weights + sample : nullptr;
            if (s.reference_dims) {
                write_plain(plan, work, q - from, by_coordinates, nullptr);
                if (by_weights) write_logits(plan, work, q - from, by_weights);
                if (grad.reference_parts)
                    write_reference_parts(s, plan, work, in.coordinates + 2 * sample,
                                          grad.reference_parts + first_head * s.levels * s.reference_dims);
            } else {
                write_plain(plan, work, q - from, by_coordinates, by_weights);
            }
        }
    }
}

// Copies the gradient half of packed rows out.
template <typename T>
void unpack(const MsDeformAttnShape& s, int64_t heads, const float* from, int64_t stride, T* to) {
    for (int64_t i = 0; i < s.pixels; ++i)
        for (int64_t h = 0; h < heads; ++h) {
            const float* row = from + (h * s.pixels + i) * stride;
            for (int64_t c = 0; c < s.channels; ++c) assign(to + (i * s.heads + h) * s.channels + c, row[c]);
        }
}

// grad_references [B, Q, N * reference_dims] = sum of the parts [B, Q, H, N * reference_dims] over heads.
void sum_reference_parts(const MsDeformAttnShape& s, const float* parts, float* grad_references) {
    const int64_t count = s.levels * s.reference_dims;
    for (int64_t query = 0; query < s.batch * s.queries; ++query, grad_references += count)
        for (int64_t j = 0; j < count; ++j) {
            float total = 0;
            for (int64_t h = 0; h < s.heads; ++h) total += parts[(query * s.heads + h) * count + j];
            grad_references[j] = total;
        }
}

template <bool Dots, bool Scatter, typename T>
void backward(const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, bool& ok) {
    const MsDeformAttnShape& s = in.shape;
    const T* value = static_cast<const T*>(in.value);
    const T* grad_out = static_cast<const T*>(grad.grad_out);
    T* grad_value = static_cast<T*>(grad.grad_value);
    const int64_t row = s.heads * s.channels, width = round_up(s.channels, kLanes);
    const bool packed = packs(s, width) || (Scatter && in.bf16);
    int64_t splits = (in.num_threads + s.batch - 1) / s.batch;
    if (splits > s.heads) splits = s.heads;
    const int64_t heads = (s.heads + splits - 1) / splits;
    splits = (s.heads + heads - 1) / heads;
    const int64_t items = s.batch * splits;
    const int threads = useful_threads(in, items);
    (void)threads;
    const size_t sampled = sizeof(float) * s.batch * s.queries * s.heads * s.levels * s.points;
    if (Scatter) prefer_huge_pages(grad_value, sizeof(T) * s.batch * s.pixels * row);
    if (grad.grad_coordinates) prefer_huge_pages(grad.grad_coordinates, 2 * sampled);
    if (grad.grad_weights) prefer_huge_pages(grad.grad_weights, sampled);
    bool good = true;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : good)
    {
        if (Scatter && !packed) {
            const int64_t slices = 64, total = s.batch * s.pixels;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < slices; ++i) {
                const int64_t first = total * i / slices, last = total * (i + 1) / slices;
                std::memset(grad_value + first * row, 0, sizeof(T) * (last - first) * row);
            }
        }
        Plan plan;
        Work work{};
        float* rows = nullptr;
        const int64_t stride = packed ? (Scatter ? 2 : 1) * width : row;
        const int64_t together = packed ? 1 : heads;
        const int64_t block = block_queries(s, together), samples = plan_row(s, together);
        const int64_t turn = round_up(kTurnQueries, block);
        const int64_t sortable = packed ? 3 * turn * heads * s.levels * s.points : 0;
        work.dots = make_plan(plan, s, together, block, 4 * samples * block + width + 3 * samples + sortable);
        good = work.dots != nullptr;
        float* sorted = nullptr;
        if (good) {
            work.go = work.dots + 4 * samples * block;
            for (int g = 0; g < 3; ++g) work.grads[g] = work.go + width + g * samples;
            sorted = work.grads[2] + samples;
        }
        if (packed && good) {
            rows = static_cast<float*>(scratch(ScratchSlot::rows, sizeof(float) * heads * s.pixels * stride));
            good = rows != nullptr;
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; ++item) {
            if (!good) continue;
            const int64_t b = item / splits, h = item % splits * heads;
            const int64_t offset = b * s.pixels * row + h * s.channels;
            const int64_t owned = h + heads < s.heads ? heads : s.heads - h;
            if (packed) {
                pack(s, owned, 0, s.pixels, value + offset, rows, stride);
                for (int64_t first = 0; first < s.queries; first += turn) {
                    const int64_t last = first + turn < s.queries ? first + turn : s.queries;
                    sort_by_head(in, b, h, owned, first, last, sorted);
                    for (int64_t head = 0; head < owned; ++head) {
                        float* head_rows = rows + head * s.pixels * stride;
                        backward_queries<Dots, Scatter>(
                            in, grad, sorted_samples(s, sorted, owned, head, first, last), plan, work, b,
                            h + head, first, last, static_cast<const float*>(head_rows), head_rows + width,
                            stride, 0, width, grad_out);
                    }
                }
                if (Scatter) unpack(s, owned, rows + width, stride, grad_value + offset);
            } else {
                plan.heads = owned;
                float* grad_rows = Scatter ? reinterpret_cast<float*>(grad_value) + offset : nullptr;
                backward_queries<Dots, Scatter>(in, grad, samples_of(in, b, h), plan, work, b, h, 0,
                                                s.queries, value + offset, grad_rows, stride, s.channels,
                                                width, grad_out);
            }
        }
    }
    if (grad.grad_references && good) sum_reference_parts(s, grad.reference_parts, grad.grad_references);
    ok = good;
}

template <typename T>
void backward(const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, bool& ok) {
    const bool dots = grad.grad_coordinates || grad.grad_weights || grad.grad_references;
    if (dots && grad.grad_value)
        backward<true, true, T>(in, grad, ok);
    else if (dots)
        backward<true, false, T>(in, grad, ok);
    else
        backward<false, true, T>(in, grad, ok);
}

}  // namespace

void ms_deform_attn_fwd(const MsDeformAttnInputs& in, void* out, bool& ok) {
    if (in.bf16)
        forward(in, static_cast<uint16_t*>(out), ok);
    else
        forward(in, static_cast<float*>(out), ok);
}

void ms_deform_attn_bwd(const MsDeformAttnInputs& in, const MsDeformAttnGradients& grad, bool& ok) {
    if (in.bf16)
        backward<uint16_t>(in, grad, ok);
    else
        backward<float>(in, grad, ok);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
