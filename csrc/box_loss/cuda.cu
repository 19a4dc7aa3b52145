// Forward, a block takes a layer: its warps share the images, lanes an image's targets. Backward, a block
// takes a layer of an image: it clears the gradient of all queries, then writes those that are matched.
#include "box_loss/cuda.h"
#include "box_loss/pair.h"
#include "common/cuda_first_targets.h"
#include "common/simt.h"

namespace detr_fast {
namespace {

constexpr int kThreads = 256, kBackwardThreads = 128;

// One launch: up to kMostImages images, from first_image on.
template <class T>
struct Launch {
    FirstTargets first;
    int64_t targets, queries, layers, all_images;
    int images, first_image;
    simt::Global<const T> boxes;
    simt::Global<const float> target_boxes;
    simt::Global<const int64_t> query;
};

// Calls use(number of the box, pair) for targets begin, begin + step, ... that are matched.
template <class T, class Use>
SIMT_DEVICE void for_each_pair(const Launch<T>& launch, int64_t layer, int image, int begin, int step,
                               const Use& use) {
    const int64_t problem = layer * launch.all_images + launch.first_image + image;
    for (int t = launch.first.of[image] + begin; t < launch.first.of[image + 1]; t += step) {
        const int64_t query = simt::load(launch.query, layer * launch.targets + t);
        if (query < 0 || query >= launch.queries) continue;
        const int64_t box = problem * launch.queries + query;
        use(box, compare(simt::widen(simt::load_vec<4>(launch.boxes, 4 * box)),
                         simt::load_vec<4>(launch.target_boxes, 4 * static_cast<int64_t>(t))));
    }
}

template <class T>
SIMT_KERNEL(kThreads)
void box_loss_forward_kernel(const Launch<T> launch, simt::Global<float> losses) {
    constexpr int kWarps = kThreads / 32;
    SIMT_SHARED(float, l1_of_warp, kWarps);
    SIMT_SHARED(float, giou_of_warp, kWarps);
    const int64_t layer = simt::block_x();
    float l1 = 0, giou = 0;
    for (int image = simt::warp(); image < launch.images; image += kWarps)
        for_each_pair(launch, layer, image, simt::lane(), 32, [&](int64_t, const Pair& pair) {
            l1 += pair.l1;
            giou += pair.one_minus_giou;
        });
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        l1 += simt::shuffle_xor(l1, lanes);
        giou += simt::shuffle_xor(giou, lanes);
    }
    if (simt::lane() == 0) {
        l1_of_warp[simt::warp()] = l1;
        giou_of_warp[simt::warp()] = giou;
    }
    simt::sync_block();
    if (simt::thread() != 0) return;
    // later launches add to what the first one found
    float l1_sum = 0, giou_sum = 0;
    if (launch.first_image != 0) {
        l1_sum = losses[layer];
        giou_sum = losses[launch.layers + layer];
    }
    for (int w = 0; w < kWarps; ++w) {
        l1_sum += l1_of_warp[w];
        giou_sum += giou_of_warp[w];
    }
    losses[layer] = l1_sum;
    losses[launch.layers + layer] = giou_sum;
}

template <class T>
SIMT_KERNEL(kBackwardThreads)
void box_loss_backward_kernel(const Launch<T> launch, simt::Global<const float> grad_losses,
                              simt::Global<T> grad_boxes) {
    const int image = static_cast<int>(simt::block_x() % launch.images);
    const int64_t layer = simt::block_x() / launch.images;
    const int64_t problem = layer * launch.all_images + launch.first_image + image;
    for (int64_t q = simt::thread(); q < launch.queries; q += kBackwardThreads)
        simt::store_vec(grad_boxes, 4 * (problem * launch.queries + q), simt::Vec<T, 4>{});
    simt::sync_block();
    const float by_l1 = simt::load(grad_losses, layer);
    const float by_giou = simt::load(grad_losses, launch.layers + layer);
    for_each_pair(launch, layer, image, simt::thread(), kBackwardThreads, [&](int64_t box, const Pair& pair) {
        simt::Vec<T, 4> gradient;
        SIMT_UNROLL
        for (int i = 0; i < 4; ++i)
            gradient[i] = from_float<T>(by_l1 * pair.l1_slope[i] + by_giou * pair.giou_slope[i]);
        simt::store_vec(grad_boxes, 4 * box, gradient);
    });
}

// Calls use(launch) for every kMostImages images, and once where there are none.
template <class T, class Use>
void for_each_launch(const BoxLoss& args, const Queue& queue, const Use& use) {
    const simt::UseDevice device(queue.device);
    const int64_t targets = args.first_target[args.images];
    const int64_t rows = args.layers * args.images * args.queries;
    int64_t image = 0;
    do {
        const int64_t left = args.images - image, images = left < kMostImages ? left : kMostImages;
        use(Launch<T>{first_targets(args.first_target, image, images), targets, args.queries, args.layers,
                      args.images, static_cast<int>(images), static_cast<int>(image),
                      simt::global(static_cast<const T*>(args.boxes), 4 * rows),
                      simt::global(args.target_boxes, 4 * targets),
                      simt::global(args.query, args.layers * targets)});
        image += kMostImages;
    } while (image < args.images);
}

template <class T>
void forward(const BoxLoss& args, float* losses, const Queue& queue) {
    for_each_launch<T>(args, queue, [&](const Launch<T>& launch) {
        simt::launch("box_loss_forward", box_loss_forward_kernel<T>,
                     simt::Grid(static_cast<unsigned>(args.layers)), kThreads, 0,
                     static_cast<simt::Stream>(queue.stream), launch, simt::global(losses, 2 * args.layers));
    });
}

template <class T>
void backward(const BoxLoss& args, const float* grad_losses, void* grad_boxes, const Queue& queue) {
    const int64_t numbers = 4 * args.layers * args.images * args.queries;
    for_each_launch<T>(args, queue, [&](const Launch<T>& launch) {
        simt::launch("box_loss_backward", box_loss_backward_kernel<T>,
                     simt::Grid(static_cast<unsigned>(args.layers * launch.images)), kBackwardThreads, 0,
                     static_cast<simt::Stream>(queue.stream), launch,
                     simt::global(grad_losses, 2 * args.layers),
                     simt::global(static_cast<T*>(grad_boxes), numbers));
    });
}

}  // namespace

void box_loss_cuda_fwd(const BoxLoss& args, float* losses, const Queue& queue) {
    if (args.layers == 0) return;
    with_float_type(args.type, [&](auto element) { forward<decltype(element)>(args, losses, queue); });
}

void box_loss_cuda_bwd(const BoxLoss& args, const float* grad_losses, void* grad_boxes, const Queue& queue) {
    if (args.layers * args.images * args.queries == 0) return;
    with_float_type(args.type,
                    [&](auto element) { backward<decltype(element)>(args, grad_losses, grad_boxes, queue); });
}

}  // namespace detr_fast
