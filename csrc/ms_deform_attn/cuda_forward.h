// Forward pass on a GPU: a lane sums kVec channels of its row, and again where the group is too narrow for D.
#pragma once

#include "ms_deform_attn/cuda_sample.h"

namespace detr_fast {
namespace ms_deform_attn_kernels {

template <class T, int kVec, bool kFused>
SIMT_KERNEL(kForwardThreads, 2)
void forward_kernel(Shape shape, Rows rows, simt::Global<const T> value, WideOrNarrow<T> coordinates,
                    WideOrNarrow<T> weights, simt::Global<const float> references, simt::Global<T> out) {
    const Row row = find_row(shape, rows);
    Softmax softmax{};
    if constexpr (kFused) softmax = row_softmax(shape, rows, row, weights);
    const auto pixels = value + (row.image * shape.pixels * shape.stride + row.head * shape.channels);

    for (int channels = 0; channels < shape.channels; channels += rows.group * kVec) {
        const int channel = channels + row.lane * kVec;
        const bool used = row.exists && channel < shape.channels;
        float sum[kVec] = {};
        for (int first = 0; first < shape.samples; first += rows.group) {
            const Taps mine =
                find_taps<kFused>(shape, row, first + row.lane, softmax, coordinates, weights, references);
            const int count = shape.samples - first < rows.group ? shape.samples - first : rows.group;
            for (int k = 0; k < count; k += kTogether) {
                Taps taps[kTogether];
                simt::Vec<T, kVec> corners[kTogether][4];
                SIMT_UNROLL
                for (int t = 0; t < kTogether; ++t)
                    taps[t] = taps_if(used, shuffle_taps(mine, row.first + k + t));
                SIMT_UNROLL
                for (int t = 0; t < kTogether; ++t)
                    load_corners<kVec>(pixels + channel, taps[t], shape.stride, corners[t]);
                SIMT_UNROLL
                for (int t = 0; t < kTogether; ++t) {
                    SIMT_UNROLL
                    for (int c = 0; c < 4; ++c) {
                        const auto corner = simt::widen(corners[t][c]);
                        SIMT_UNROLL
                        for (int v = 0; v < kVec; ++v) sum[v] += taps[t].share[c] * corner[v];
                    }
                }
            }
        }
        if (!used) continue;
        simt::Vec<T, kVec> narrow;
        SIMT_UNROLL
        for (int v = 0; v < kVec; ++v) narrow[v] = from_float<T>(sum[v]);
        simt::store_vec(out, row.index * shape.channels + channel, narrow);
    }
}

}  // namespace ms_deform_attn_kernels
}  // namespace detr_fast
