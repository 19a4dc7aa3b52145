// A block takes kQueries queries of a layer and image. It looks up which target each of them is matched to,
// then a warp takes a query's logits, a class a lane.
#include <cmath>

#include "class_loss/cuda.h"
#include "common/cuda_problems.h"
#include "common/cuda_scores.h"

namespace detr_fast {
namespace {

constexpr int kQueries = 32, kWarps = 4, kThreads = 32 * kWarps;

struct Loss {
    bool focal, constant, weighted;
    float eos_coef, alpha, gamma;
    simt::Global<const int64_t> labels, query;
    simt::Global<const float> target_weights;
};

// Probabilities of the two answers and -log of each, from the logit of the right one.
struct Binary {
    float right, wrong, surprise, other_surprise;
};

SIMT_DEVICE Binary binary(float right) {
    const float small = expf(-fabsf(right)), inverse = 1 / (1 + small), least = log1pf(small);
    const float likely = inverse, unlikely = small * inverse;
    return {right > 0 ? likely : unlikely, right > 0 ? unlikely : likely, (right < 0 ? -right : 0.0f) + least,
            (right > 0 ? right : 0.0f) + least};
}

// What a query wants: a class, `objects` where it wants none; weights of -log p and -log(1 - p) for the
// class.
struct Wanted {
    int64_t label;
    bool weighted;
    simt::Vec<float, 2> weights;
};

SIMT_DEVICE Wanted wanted_by(const ProblemLaunch& launch, const Loss& loss, int64_t layer, int target,
                             int64_t objects) {
    Wanted wanted{objects, false, {}};
    if (target < 0) return wanted;
    wanted.label = simt::load(loss.labels, target);
    wanted.weighted = loss.weighted;
    if (loss.weighted)
        wanted.weights = simt::load_vec<2>(loss.target_weights, 2 * (layer * launch.targets + target));
    return wanted;
}

SIMT_DEVICE float focal(float logit, bool here, const Wanted& wanted, const Loss& loss) {
    const Binary b = binary(here ? logit : -logit);
    if (here && wanted.weighted) return wanted.weights[0] * b.surprise + wanted.weights[1] * b.other_surprise;
    return (here ? loss.alpha : 1 - loss.alpha) * power(b.wrong, loss.gamma) * b.surprise;
}

SIMT_DEVICE float focal_gradient(float logit, bool here, const Wanted& wanted, const Loss& loss) {
    const Binary b = binary(here ? logit : -logit);
    if (here && wanted.weighted) return wanted.weights[1] * b.right - wanted.weights[0] * b.wrong;
    const float slope = loss.constant ? b.wrong : loss.gamma * b.right * b.surprise + b.wrong;
    return (here ? -loss.alpha : 1 - loss.alpha) * power(b.wrong, loss.gamma) * slope;
}

// Calls use(row of logits, what it wants) for the block's queries, a warp each. Whether all labels of the
// image are classes.
template <class Use>
SIMT_DEVICE bool for_each_row(const ProblemLaunch& launch, const Problem& problem, const Loss& loss,
                              int64_t objects, const Use& use) {
    SIMT_SHARED(int, target_of, kQueries);
    const int64_t first_query = static_cast<int64_t>(problem.chunk) * kQueries;
    for (int q = simt::thread(); q < kQueries; q += kThreads) target_of[q] = -1;
    simt::sync_block();
    bool bad = false;
    for (int t = problem.begin + simt::thread(); t < problem.end; t += kThreads) {
        const int64_t label = simt::load(loss.labels, t);
        bad = bad || label < 0 || label >= objects;
        const int64_t q = simt::load(loss.query, problem.layer * launch.targets + t) - first_query;
        if (q >= 0 && q < kQueries) simt::atomic_max(&target_of[q], t);
    }
    const bool any_bad = simt::sync_block_or(bad);
    const int64_t left = launch.queries - first_query;
    const int n = left < kQueries ? static_cast<int>(left) : kQueries;
    for (int q = simt::warp(); q < n; q += kWarps) {
        const int target = any_bad ? -1 : static_cast<int>(target_of[q]);
        use(problem.index * launch.queries + first_query + q,
            wanted_by(launch, loss, problem.layer, target, objects));
    }
    return !any_bad;
}

template <class T>
SIMT_KERNEL(kThreads)
void class_loss_forward_kernel(const ProblemLaunch launch, const Loss loss, simt::Global<const T> logits,
                               simt::Global<float> sums) {
    SIMT_SHARED(float, of_warp, kWarps);
    const Problem problem = find_problem(launch, launch.chunks);
    const int64_t classes = launch.classes, objects = loss.focal ? classes : classes - 1;
    float sum = 0;
    const bool good = for_each_row(launch, problem, loss, objects, [&](int64_t row, const Wanted& wanted) {
        if (loss.focal) {
            for (int64_t k = simt::lane(); k < classes; k += 32)
                sum += focal(number_at(logits, row * classes + k), k == wanted.label, wanted, loss);
        } else {
            const Softmax softmax = softmax_of_row(logits, row, classes);
            const float right = number_at(logits, row * classes + wanted.label);
            const float weight = wanted.label == objects ? loss.eos_coef : 1;
            if (simt::lane() == 0) sum += weight * (logf(softmax.total) + (softmax.largest - right));
        }
    });
    SIMT_UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += simt::shuffle_xor(sum, lanes);
    if (simt::lane() == 0) of_warp[simt::warp()] = sum;
    simt::sync_block();
    if (simt::thread() != 0) return;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_warp[w];
    sums[problem.index * launch.chunks + problem.chunk] = good ? total : NAN;
}

template <class T>
SIMT_KERNEL(kThreads)
void class_loss_backward_kernel(const ProblemLaunch launch, const Loss loss, simt::Global<const T> logits,
                                simt::Global<const float> grad_loss, simt::Global<T> grad_logits) {
    const Problem problem = find_problem(launch, launch.chunks);
    const int64_t classes = launch.classes, objects = loss.focal ? classes : classes - 1;
    const float scale = simt::load(grad_loss, problem.layer);
    const auto write = [&](int64_t i, float gradient) { grad_logits[i] = from_float<T>(gradient); };
    const bool good = for_each_row(launch, problem, loss, objects, [&](int64_t row, const Wanted& wanted) {
        if (loss.focal) {
            for (int64_t k = simt::lane(); k < classes; k += 32)
                write(row * classes + k, scale * focal_gradient(number_at(logits, row * classes + k),
                                                                k == wanted.label, wanted, loss));
        } else {
            const Softmax softmax = softmax_of_row(logits, row, classes);
            const float factor = scale * (wanted.label == objects ? loss.eos_coef : 1);
            const float inverse = 1 / softmax.total;
            for (int64_t k = simt::lane(); k < classes; k += 32) {
                const float p = expf(number_at(logits, row * classes + k) - softmax.largest) * inverse;
                write(row * classes + k, factor * (p - (k == wanted.label ? 1.0f : 0.0f)));
            }
        }
    });
    if (good) return;
    const int64_t first = static_cast<int64_t>(problem.chunk) * kQueries;
    const int64_t end = first + kQueries < launch.queries ? first + kQueries : launch.queries;
    simt::sync_block();
    for (int64_t i = first * classes + simt::thread(); i < end * classes; i += kThreads)
        write(problem.index * launch.queries * classes + i, NAN);
}

int64_t chunks_of(int64_t queries) { return (queries + kQueries - 1) / kQueries; }

template <class T, class Kernel, class... Arguments>
void launch_all(const char* name, const ClassLoss& args, const Queue& queue, Kernel kernel,
                Arguments... arguments) {
    const simt::UseDevice device(queue.device);
    const int64_t targets = args.first_target[args.images], chunks = chunks_of(args.queries);
    const Loss loss{args.focal,
                    args.constant,
                    args.target_weights != nullptr,
                    args.eos_coef,
                    args.alpha,
                    args.gamma,
                    simt::global(args.labels, targets),
                    simt::global(args.query, args.layers * targets),
                    simt::global(args.target_weights, 2 * args.layers * targets)};
    const auto logits = simt::global(static_cast<const T*>(args.logits),
                                     args.layers * args.images * args.queries * args.classes);
    for_each_launch(args, chunks, [&](const ProblemLaunch& launch) {
        simt::launch(name, kernel, simt::Grid(static_cast<unsigned>(args.layers * launch.images * chunks)),
                     kThreads, 0, static_cast<simt::Stream>(queue.stream), launch, loss, logits,
                     arguments...);
    });
}

}  // namespace

int64_t class_loss_cuda_sums(int64_t images, int64_t queries) { return images * chunks_of(queries); }

void class_loss_cuda_fwd(const ClassLoss& args, float* sums, const Queue& queue) {
    const int64_t count = args.layers * class_loss_cuda_sums(args.images, args.queries);
    if (count == 0) return;
    with_float_type(args.type, [&](auto x) {
        using T = decltype(x);
        launch_all<T>("class_loss_forward", args, queue, class_loss_forward_kernel<T>,
                      simt::global(sums, count));
    });
}

void class_loss_cuda_bwd(const ClassLoss& args, const float* grad_loss, void* grad_logits,
                         const Queue& queue) {
    const int64_t rows = args.layers * args.images * args.queries;
    if (rows == 0) return;
    with_float_type(args.type, [&](auto x) {
        using T = decltype(x);
        launch_all<T>("class_loss_backward", args, queue, class_loss_backward_kernel<T>,
                      simt::global(grad_loss, args.layers),
                      simt::global(static_cast<T*>(grad_logits), rows * args.classes));
    });
}

}  // namespace detr_fast
