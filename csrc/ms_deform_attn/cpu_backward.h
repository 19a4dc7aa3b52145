// Backward: dot products of the touched rows with grad_out give the gradients by weight and location, and
// grad_out times its share is added to each touched row of grad_value.
#pragma once

#include "ms_deform_attn/cpu_sweep.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// What a worker needs to turn dot products into gradients.
struct Work {
    float* dots;      // [queries][row][4] grad_out . value of the corners
    float* grads[3];  // [row] by weight, x and y
    float* go;        // [width] one row of grad_out
};

// For samples i..: dot products of the corners' rows with grad_out (added to dots unless `fresh`), and
// grad_out times share added to the corners' gradient rows at `grad`.
template <int V, bool Dots, bool Scatter, typename T>
inline void scatter(const Plan& plan, int64_t i, const T* base, float* grad, const float* grad_out,
                    bool fresh, float* dots) {
    vfloat go[V];
    for (int v = 0; v < V; ++v) go[v] = load(grad_out + v * kLanes);
    const int32_t* pixel = plan.pixel + i;
    const float* shares = plan.share + 4 * i;
    float* to = dots + 4 * i;
    for (int64_t n = 0; n < plan.levels; ++n) {
        const Window step = plan.windows[n];
        for (const int32_t* end = pixel + step.points; pixel < end; ++pixel, shares += 4, to += 4) {
            const int64_t at = *pixel * plan.stride;
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
                    const vfloat share = splat(shares[corner]);
                    for (int v = 0; v < V; ++v)
                        store(row + v * kLanes, load(row + v * kLanes) + share * go[v]);
                }
            }
            if (Dots) {
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
inline void scatter_row(const Plan& plan, int64_t i, const T* base, float* grad, int64_t width,
                        const float* grad_out, float* dots) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes)
        scatter<4, Dots, Scatter>(plan, i, base + c, grad + c, grad_out + c, c == 0, dots);
    if (c + 2 * kLanes <= width) {
        scatter<2, Dots, Scatter>(plan, i, base + c, grad + c, grad_out + c, c == 0, dots);
        c += 2 * kLanes;
    }
    if (c < width) scatter<1, Dots, Scatter>(plan, i, base + c, grad + c, grad_out + c, c == 0, dots);
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
        load_interleaved(dots + 4 * i, d);
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
    for (int64_t i = 0, h = 0; h < plan.heads; ++h)
        for (int64_t n = 0; n < s.levels; ++n, parts += s.reference_dims) {
            const float height = static_cast<float>(s.sizes[2 * n]),
                        width = static_cast<float>(s.sizes[2 * n + 1]);
            float by_x = 0, by_y = 0, by_width = 0, by_height = 0;
            for (const int64_t end = i + s.points[n]; i < end; ++i) {
                by_x += work.grads[1][i];
                by_y += work.grads[2][i];
                by_width += work.grads[1][i] * offsets[2 * i];
                by_height += work.grads[2][i] * offsets[2 * i + 1];
            }
            parts[0] = by_x * width;
            parts[1] = by_y * height;
            if (s.reference_dims == 4) {
                parts[2] = by_width * plan.unit[n] * width;
                parts[3] = by_height * plan.unit[n] * height;
            }
        }
}

// One row of grad_out as floats, zero beyond its channels; `row` itself where that is what it holds.
inline const float* grad_row(const Work& work, const MsDeformAttnShape& s, int64_t width, const float* row) {
    if (width == s.channels) return row;
    read_row(row, s.channels, work.go);
    return work.go;
}
template <typename G>
inline const float* grad_row(const Work& work, const MsDeformAttnShape& s, int64_t, const G* row) {
    read_row(row, s.channels, work.go);
    return work.go;
}

template <bool Dots, bool Scatter, typename T, typename G>
void backward_queries(const MsDeformAttnInputs& in, const MsDeformAttnCpuGradients& grad,
                      const Samples& samples, const Plan& plan, const Work& work, int64_t b, int64_t h,
                      int64_t first, int64_t last, const T* base, float* grad_base, int64_t head_stride,
                      int64_t width, const G* grad_out) {
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
                    scatter_row<Dots, Scatter>(plan, i, rows, grad_rows, width, go, work.dots);
                } else {
                    scatter_row<true, false>(plan, i, rows, grad_rows, width, go, work.dots);
                    for_touched(plan, i, [&](int64_t offset, float share) {
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
                    write_reference_parts(s, plan, work,
                                          static_cast<const float*>(in.coordinates) + 2 * sample,
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
            write_row(row, s.channels, to + (i * s.heads + h) * s.channels);
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
void backward(const MsDeformAttnInputs& in, int most_threads, const MsDeformAttnCpuGradients& grad) {
    const MsDeformAttnShape& s = in.shape;
    const T* value = static_cast<const T*>(in.value);
    const T* grad_out = static_cast<const T*>(grad.grad_out);
    T* grad_value = static_cast<T*>(grad.grad_value);
    const int64_t row = s.heads * s.channels, width = round_up(s.channels, kLanes);
    const bool packed = packs(s, width) || (Scatter && sizeof(T) == 2);
    int64_t splits = (most_threads + s.batch - 1) / s.batch;
    if (splits > s.heads) splits = s.heads;
    const int64_t heads = (s.heads + splits - 1) / splits;
    splits = (s.heads + heads - 1) / heads;
    const int64_t items = s.batch * splits;
    const int threads = useful_threads(s, most_threads, items);
    const size_t sampled = sizeof(float) * s.batch * s.queries * s.heads * s.samples;
    if (Scatter) prefer_huge_pages(grad_value, sizeof(T) * s.batch * s.pixels * row);
    if (grad.grad_coordinates) prefer_huge_pages(grad.grad_coordinates, 2 * sampled);
    if (grad.grad_weights) prefer_huge_pages(grad.grad_weights, sampled);
    if (Scatter && !packed)
        parallel_for(threads, kSlices, [&](int64_t i) {
            const int64_t total = s.batch * s.pixels, first = total * i / kSlices;
            std::memset(grad_value + first * row, 0, sizeof(T) * (total * (i + 1) / kSlices - first) * row);
        });
    const int64_t stride = packed ? (Scatter ? 2 : 1) * width : row;
    const int64_t together = packed ? 1 : heads;
    const int64_t block = block_queries(s, together), samples = plan_row(s, together);
    const int64_t turn = round_up(kTurnQueries, block);
    parallel_for(threads, items, [&](int64_t item) {
        Plan plan;
        Work work{};
        work.dots = make_plan(plan, s, together, stride, block, 4 * samples * block + width + 3 * samples);
        work.go = work.dots + 4 * samples * block;
        for (int g = 0; g < 3; ++g) work.grads[g] = work.go + width + g * samples;
        const int64_t b = item / splits, h = item % splits * heads;
        const int64_t offset = b * s.pixels * row + h * s.channels;
        const int64_t owned = h + heads < s.heads ? heads : s.heads - h;
        if (!packed) {
            plan.heads = owned;
            float* grad_rows = Scatter ? reinterpret_cast<float*>(grad_value) + offset : nullptr;
            backward_queries<Dots, Scatter>(in, grad, samples_of(in, b, h), plan, work, b, h, 0, s.queries,
                                            value + offset, grad_rows, s.channels, width, grad_out);
            return;
        }
        float* rows =
            static_cast<float*>(scratch(ScratchSlot::rows, sizeof(float) * heads * s.pixels * stride));
        pack(s, owned, 0, s.pixels, value + offset, rows, stride);
        for (int64_t first = 0; first < s.queries; first += turn) {
            const int64_t last = first + turn < s.queries ? first + turn : s.queries;
            const float* sorted = sort_by_head(in, b, h, owned, first, last);
            for (int64_t head = 0; head < owned; ++head) {
                float* head_rows = rows + head * s.pixels * stride;
                backward_queries<Dots, Scatter>(
                    in, grad, sorted_samples(s, sorted, owned, head, first, last), plan, work, b, h + head,
                    first, last, static_cast<const float*>(head_rows), head_rows + width, 0, width, grad_out);
            }
        }
        if (Scatter) unpack(s, owned, rows + width, stride, grad_value + offset);
    });
    if (grad.grad_references) sum_reference_parts(s, grad.reference_parts, grad.grad_references);
}

template <typename T>
void backward(const MsDeformAttnInputs& in, int most_threads, const MsDeformAttnCpuGradients& grad) {
    const bool dots = grad.grad_coordinates || grad.grad_weights || grad.grad_references;
    if (dots && grad.grad_value)
        backward<true, true, T>(in, most_threads, grad);
    else if (dots)
        backward<true, false, T>(in, most_threads, grad);
    else
        backward<false, true, T>(in, most_threads, grad);
}

}  // namespace
}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
