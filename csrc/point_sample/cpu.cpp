#include "common/cpu_parallel.h"
#include "common/cpu_scratch.h"
#include "point_sample/cpu_sample.h"
#include "point_sample/cpu_uncertain.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

constexpr int64_t kBlock = 1 << 14;  // points of a task

template <class T>
void forward(const PointSampleForward& args) {
    const PointSampleRows& at = args.at;
    const int64_t blocks = (at.points_of_set + kBlock - 1) / kBlock;
    const int64_t tasks = at.rows * at.channels * blocks;
    prefer_huge_pages(args.out, at.rows * at.channels * at.points_of_set *
                                    static_cast<int64_t>(args.out_type == FloatType::f32 ? 4 : 2));
    const int threads = at.rows * at.channels * at.points_of_set < kWorthThreads ? 1 : at.threads;
    parallel_for(threads, tasks, [&](int64_t task) {
        const int64_t block = task % blocks, channel = task / blocks % at.channels;
        const int64_t row = task / blocks / at.channels;
        const int64_t map = at.map_index ? at.map_index[row] : row;
        const int64_t set = at.point_index ? at.point_index[row] : row;
        const T* plane =
            static_cast<const T*>(args.maps) + map * args.map_stride + channel * args.channel_stride;
        const float* points = at.points + 2 * set * at.points_of_set;
        const int64_t first_out = (row * at.channels + channel) * at.points_of_set;
        const int64_t end = at_most(at.points_of_set, (block + 1) * kBlock);
        for (int64_t p = block * kBlock; p < end; p += kChunk) {
            const int n = static_cast<int>(at_most(end - p, kChunk));
            float out[kChunk];
            sample(args, plane, points + 2 * p, n, out);
            narrow(out, n, args.out, args.out_type, first_out + p);
        }
    });
}

// Adds a chunk's gradients to the pixels around its points, in the order of the points.
void spread(const PointSampleRows& at, const float* points, const float* grad, int n, float* plane) {
    Located located;
    locate(at, at.width, points, n, located);
    for (int b = 0; b < located.borders; ++b) {
        const int i = located.border[b];
        for_corners(at, at.width, points + 2 * i,
                    [&](int64_t pixel, float weight) { plane[pixel] += weight * grad[i]; });
    }
    if (located.borders == n) return;
    float shares[4 * kChunk];
    for (int i = 0; i < n; ++i) {
        const float right = located.right[i], lower = located.lower[i];
        shares[4 * i] = (1 - lower) * (1 - right) * grad[i];
        shares[4 * i + 1] = (1 - lower) * right * grad[i];
        shares[4 * i + 2] = lower * (1 - right) * grad[i];
        shares[4 * i + 3] = lower * right * grad[i];
    }
    for (int b = 0; b < located.borders; ++b)
        for (int k = 0; k < 4; ++k) shares[4 * located.border[b] + k] = 0;
    for (int i = 0; i < n; ++i) {
        float* upper = plane + located.pixel[i];
        float* lower = upper + at.width;
        upper[0] += shares[4 * i];
        upper[1] += shares[4 * i + 1];
        lower[0] += shares[4 * i + 2];
        lower[1] += shares[4 * i + 3];
    }
}

}  // namespace

void point_sample_cpu_fwd(const PointSampleForward& args) {
    switch (args.type) {
        case ElementType::f32:
            return forward<float>(args);
        case ElementType::bf16:
            return forward<BFloat16>(args);
        case ElementType::f16:
            return forward<Half>(args);
        case ElementType::u8:
            return forward<uint8_t>(args);
    }
}

void uncertain_points_cpu(const UncertainPoints& args) {
    switch (args.sample.type) {
        case ElementType::f32:
            return uncertain<float>(args);
        case ElementType::bf16:
            return uncertain<BFloat16>(args);
        case ElementType::f16:
            return uncertain<Half>(args);
        case ElementType::u8:
            return uncertain<uint8_t>(args);
    }
}

void point_sample_cpu_bwd(const PointSampleBackward& args) {
    const PointSampleRows& at = args.at;
    const int64_t pixels = at.height * at.width, planes = at.maps * at.channels;
    if (pixels * planes == 0) return;
    const bool is_float = args.type == FloatType::f32;
    prefer_huge_pages(args.grad_maps, planes * pixels * (is_float ? 4 : 2));
    parallel_for(at.threads, planes, [&](int64_t task) {
        const int64_t map = task / at.channels, channel = task % at.channels;
        float* plane = is_float ? static_cast<float*>(args.grad_maps) + task * pixels
                                : static_cast<float*>(scratch(ScratchSlot::rows, pixels * sizeof(float)));
        std::memset(plane, 0, pixels * sizeof(float));
        const int64_t first = args.first_row ? args.first_row[map] : map;
        const int64_t end = args.first_row ? args.first_row[map + 1] : map + 1;
        for (int64_t r = first; r < end; ++r) {
            const int64_t row = args.first_row ? args.order[r] : r;
            const int64_t set = at.point_index ? at.point_index[row] : row;
            const int64_t first_grad = (row * at.channels + channel) * at.points_of_set;
            for (int64_t p = 0; p < at.points_of_set; p += kChunk) {
                const int n = static_cast<int>(at_most(at.points_of_set - p, kChunk));
                float wide[kChunk];
                const float* grad = widen(args.grad_out, args.type, first_grad + p, n, wide);
                spread(at, at.points + 2 * (set * at.points_of_set + p), grad, n, plane);
            }
        }
        if (!is_float) narrow(plane, pixels, args.grad_maps, args.type, task * pixels);
    });
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
