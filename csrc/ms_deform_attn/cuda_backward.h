// Backward pass on a GPU: value is gathered once, grad_value summed by atomics, everything else within the
// group of a row and written once.
#pragma once

#include "ms_deform_attn/cuda_sample.h"

namespace detr_fast {
namespace ms_deform_attn_kernels {

template <class T>
struct WideOrNarrowOut {
    simt::Global<float> wide;
    simt::Global<T> narrow;

    SIMT_DEVICE explicit operator bool() const { return wide || narrow; }
    SIMT_DEVICE void put(int64_t i, float v) const {
        if (wide)
            wide[i] = v;
        else
            narrow[i] = from_float<T>(v);
    }
    SIMT_DEVICE void put_pair(int64_t i, float x, float y) const {
        if (wide)
            simt::store_vec(wide, 2 * i, simt::Vec<float, 2>{{x, y}});
        else
            simt::store_vec(narrow, 2 * i, simt::Vec<T, 2>{{from_float<T>(x), from_float<T>(y)}});
    }
};

template <class T>
WideOrNarrowOut<T> wide_or_narrow_out(void* data, int64_t count, FloatType type) {
    if (type == FloatType::f32) return {simt::global(static_cast<float*>(data), count), {}};
    return {{}, simt::global(static_cast<T*>(data), count)};
}

// Each may be null: not needed.
template <class T>
struct Gradients {
    simt::Global<float> value;
    WideOrNarrowOut<T> coordinates, weights;
    simt::Global<float> reference_parts;
};

// Sums over the group what its lanes hold of two neighbouring samples: odd lanes get the second one's sum.
SIMT_DEVICE void sum_pair(const float (&parts)[2][4], const Row& row, int group, float (&sum)[4]) {
    const bool odd = row.lane & 1;
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c)
        sum[c] = (odd ? parts[1][c] : parts[0][c]) + simt::shuffle_xor(odd ? parts[0][c] : parts[1][c], 1);
    for (int lanes = 2; lanes < group; lanes *= 2) {
        SIMT_UNROLL
        for (int c = 0; c < 4; ++c) sum[c] += simt::shuffle_xor(sum[c], lanes);
    }
}

// grad_value of the four corners' kVec channels += share * grad_out; `pixels` starts with the channels
template <int kVec>
SIMT_DEVICE void add_corners(simt::Global<float> pixels, const Taps& taps, int stride,
                             const float (&grad_out)[kVec]) {
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c) {
        if (!taps.exists(c)) continue;
        const auto corner = taps.in(pixels, stride, c);
        if constexpr (kVec == 1) {
            simt::add_to(corner, 0, taps.share[c] * grad_out[0]);
        } else {
            SIMT_UNROLL
            for (int v = 0; v < kVec; v += 4) {
                simt::Vec<float, 4> four;
                SIMT_UNROLL
                for (int k = 0; k < 4; ++k) four[k] = taps.share[c] * grad_out[v + k];
                simt::add4_to(corner, v, four);
            }
        }
    }
}

// With respect to weight and to x and y in pixels.
struct SampleGradient {
    float weight, x, y;
};

// dots: of grad_out with the corners, 0 where a corner does not exist
SIMT_DEVICE SampleGradient differentiate(const Sample& sample, const float (&dots)[4]) {
    if (!sample.inside) return {0, 0, 0};
    const float left = 1 - sample.right, upper = 1 - sample.lower;
    return {upper * (left * dots[0] + sample.right * dots[1]) +
                sample.lower * (left * dots[2] + sample.right * dots[3]),
            sample.weight * (upper * (dots[1] - dots[0]) + sample.lower * (dots[3] - dots[2])),
            sample.weight * (left * (dots[2] - dots[0]) + sample.right * (dots[3] - dots[1]))};
}

// Gradients of a row's reference point on the level whose samples are coming by.
struct ReferenceSums {
    int level;
    float sum[4];
};

// Adds up the gradients of a reference point, level by level, as samples first .. first + count - 1 come by,
// one a lane; a level that goes on is carried along.
template <class T>
SIMT_DEVICE void add_references(const Shape& shape, const Rows& rows, const Row& row, int first, int count,
                                const SampleGradient& gradient, const WideOrNarrow<T>& offsets,
                                simt::Global<float> reference_parts, ReferenceSums& carried) {
    const int own = first + row.lane;
    const bool mine = row.exists && row.lane < count;
    simt::Vec<float, 2> offset{};
    if (mine && shape.reference_dims == 4)
        offset = offsets.template group<2>(row.index * shape.samples + own);
    for (; carried.level < shape.levels; ++carried.level) {
        const int n = carried.level, begin = shape.first_sample[n], end = shape.first_sample[n + 1];
        if (begin < end) {  // a level without points has zero gradients
            if (begin >= first + count) break;
            const bool here = mine && own >= begin && own < end;
            const float x = here ? gradient.x * static_cast<float>(shape.level[n].width) : 0;
            const float y = here ? gradient.y * static_cast<float>(shape.level[n].height) : 0;
            carried.sum[0] += group_sum(x, rows.group);
            carried.sum[1] += group_sum(y, rows.group);
            if (shape.reference_dims == 4) {
                const float unit = unit_offset(shape, n);
                carried.sum[2] += group_sum(x * offset[0] * unit, rows.group);
                carried.sum[3] += group_sum(y * offset[1] * unit, rows.group);
            }
            if (end > first + count) break;
        }
        const int64_t at = (row.index * shape.levels + n) * shape.reference_dims;
        if (row.exists && row.lane == 0) {
            if (shape.reference_dims == 4)
                simt::store_vec(
                    reference_parts, at,
                    simt::Vec<float, 4>{{carried.sum[0], carried.sum[1], carried.sum[2], carried.sum[3]}});
            else
                simt::store_vec(reference_parts, at, simt::Vec<float, 2>{{carried.sum[0], carried.sum[1]}});
        }
        SIMT_UNROLL
        for (int d = 0; d < 4; ++d) carried.sum[d] = 0;
    }
}

// With `stashed` the launch's shared memory has a float for each sample of the block's rows.
template <class T, int kVec, bool kFused>
SIMT_KERNEL(kBackwardThreads, 2)
void backward_kernel(Shape shape, Rows rows, bool stashed, simt::Global<const T> value,
                     WideOrNarrow<T> coordinates, WideOrNarrow<T> weights,
                     simt::Global<const float> references, simt::Global<const T> grad_out,
                     Gradients<T> gradients) {
    SIMT_DYNAMIC_SHARED(float, stash);
    const Row row = find_row(shape, rows);
    Softmax softmax{};
    if constexpr (kFused) softmax = row_softmax(shape, rows, row, weights);
    const int64_t first_pixel = row.image * shape.pixels * shape.stride + row.head * shape.channels;
    const auto pixels = value + first_pixel;
    const bool others = gradients.coordinates || gradients.weights || gradients.reference_parts;
    const bool through_softmax = kFused && gradients.weights;
    const int stash_row = simt::thread() / rows.group * shape.samples;

    float grads[kVec] = {};
    const auto load_grads = [&](int channel) {
        const auto wide = simt::widen(simt::load_vec<kVec>(grad_out, row.index * shape.channels + channel));
        SIMT_UNROLL
        for (int v = 0; v < kVec; ++v) grads[v] = wide[v];
    };
    const bool one_load = shape.channels <= rows.group * kVec;
    if (one_load && row.exists && row.lane * kVec < shape.channels) load_grads(row.lane * kVec);

    float weighted = 0;  // sum of weight * its gradient, which softmax takes off
    for (int pass = through_softmax && !stashed ? 0 : 1; pass < 2; ++pass) {  // pass 0 finds but that sum
        ReferenceSums carried{};
        for (int first = 0; first < shape.samples; first += rows.group) {
            const int own = first + row.lane;
            const int count = shape.samples - first < rows.group ? shape.samples - first : rows.group;
            const bool mine = row.exists && row.lane < count;
            Sample sample{};
            Taps own_taps{};
            if (mine) {
                const int n = level_of(shape, own);
                sample = find_sample<kFused>(shape, row, n, own, softmax, coordinates, weights, references);
                own_taps = make_taps(sample, shape.level[n]);
            }
            float dots[4] = {};
            for (int k = 0; k < count; k += kTogether) {
                Taps taps[kTogether];
                float parts[kTogether][4] = {};
                SIMT_UNROLL
                for (int t = 0; t < kTogether; ++t) taps[t] = shuffle_taps(own_taps, row.first + k + t);
                for (int channels = 0; channels < shape.channels; channels += rows.group * kVec) {
                    const int channel = channels + row.lane * kVec;
                    const bool used = row.exists && channel < shape.channels;
                    if (!one_load && used) load_grads(channel);
                    if (others) {
                        simt::Vec<T, kVec> corners[kTogether][4];
                        SIMT_UNROLL
                        for (int t = 0; t < kTogether; ++t)
                            load_corners<kVec>(pixels + channel, taps_if(used, taps[t]), shape.stride,
                                               corners[t]);
                        SIMT_UNROLL
                        for (int t = 0; t < kTogether; ++t) {
                            SIMT_UNROLL
                            for (int c = 0; c < 4; ++c) {
                                const auto corner = simt::widen(corners[t][c]);
                                SIMT_UNROLL
                                for (int v = 0; v < kVec; ++v) parts[t][c] += grads[v] * corner[v];
                            }
                        }
                    }
                    if (gradients.value && pass == 1) {
                        SIMT_UNROLL
                        for (int t = 0; t < kTogether; ++t)
                            add_corners(gradients.value + (first_pixel + channel), taps_if(used, taps[t]),
                                        shape.stride, grads);
                    }
                }
                if (others) {
                    float sum[4];
                    sum_pair(parts, row, rows.group, sum);
                    SIMT_UNROLL
                    for (int c = 0; c < 4; ++c)
                        if (row.lane / kTogether * kTogether == k && own_taps.exists(c)) dots[c] = sum[c];
                }
            }
            if (!others) continue;
            const SampleGradient gradient = differentiate(sample, dots);
            const int64_t at = row.index * shape.samples + own;
            if (pass == 0 || stashed) weighted += mine ? sample.weight * gradient.weight : 0;
            if (pass == 0) continue;
            if (mine && gradients.weights) {
                if (!kFused)
                    gradients.weights.put(at, gradient.weight);
                else if (stashed)
                    stash[stash_row + own] = gradient.weight;
                else
                    gradients.weights.put(at, sample.weight * (gradient.weight - weighted));
            }
            if (mine && gradients.coordinates)
                gradients.coordinates.put_pair(at, gradient.x * sample.scale_x, gradient.y * sample.scale_y);
            if (kFused && gradients.reference_parts)
                add_references(shape, rows, row, first, count, gradient, coordinates,
                               gradients.reference_parts, carried);
        }
        if (through_softmax && (pass == 0 || stashed)) weighted = group_sum(weighted, rows.group);
    }
    if constexpr (kFused) {
        if (!through_softmax || !stashed || !row.exists) return;
        for (int own = row.lane; own < shape.samples; own += rows.group) {
            const int64_t at = row.index * shape.samples + own;
            const float weight = softmax_weight(softmax, weights.at(at));
            gradients.weights.put(at, weight * (stash[stash_row + own] - weighted));
        }
    }
}

}  // namespace ms_deform_attn_kernels
}  // namespace detr_fast
