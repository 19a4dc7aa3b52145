// The launchers: which instance of a kernel, and how many threads.
#include "ms_deform_attn/cuda.h"
#include "ms_deform_attn/cuda_backward.h"
#include "ms_deform_attn/cuda_forward.h"
#include "ms_deform_attn/cuda_gather.h"

namespace detr_fast {
namespace ms_deform_attn_kernels {

bool no_rows(const MsDeformAttnShape& s) {
    return s.batch == 0 || s.queries == 0 || s.heads == 0 || s.channels == 0;
}
bool no_samples(const MsDeformAttnShape& s) { return no_rows(s) || s.samples == 0; }

// Lanes a row whose channels travel `vec` at a time.
int group_of(int64_t channels, int vec) {
    int group = kTogether;
    while (group < 32 && group * vec < channels) group *= 2;
    return group;
}

// A block is large where its rows lie in a square, and small where few rows must fill the device.
int threads_of(const MsDeformAttnShape& s, int group, int most) {
    constexpr int64_t enough_blocks = 1024;
    const int64_t threads = s.batch * s.heads * s.queries * group;
    int result = most;
    while (result > 64 && threads / result < enough_blocks) result /= 2;
    return result;
}

// The arrays of a call, in kernels' types.
template <class T>
struct Arrays {
    Shape shape;
    simt::Global<const T> value;
    WideOrNarrow<T> coordinates, weights;
    simt::Global<const float> references;
    int64_t rows, samples;

    explicit Arrays(const MsDeformAttnInputs& in) : shape(kernel_shape(in.shape)) {
        const MsDeformAttnShape& s = in.shape;
        rows = s.batch * s.queries * s.heads;
        samples = rows * s.samples;
        value = simt::global(static_cast<const T*>(in.value), s.batch * s.pixels * s.heads * s.channels);
        coordinates = wide_or_narrow<T>(in.coordinates, 2 * samples, in.coordinate_type);
        weights = wide_or_narrow<T>(in.weights, samples, in.coordinate_type);
        references = simt::global(in.references, s.batch * s.queries * s.levels * s.reference_dims);
    }
};

template <class T, int kVec, bool kFused>
void forward(const MsDeformAttnInputs& in, const Queue& queue, void* out) {
    const Arrays<T> arrays(in);
    const int group = group_of(in.shape.channels, kVec),
              threads = threads_of(in.shape, group, kForwardThreads);
    Rows rows;
    const simt::Grid grid = row_grid(in.shape, group, threads, rows);
    simt::launch("ms_deform_attn_fwd", forward_kernel<T, kVec, kFused>, grid, threads, 0,
                 static_cast<simt::Stream>(queue.stream), arrays.shape, rows, arrays.value,
                 arrays.coordinates, arrays.weights, arrays.references,
                 simt::global(static_cast<T*>(out), arrays.rows * in.shape.channels));
}

template <class T, int kVec, bool kFused>
void backward(const MsDeformAttnInputs& in, const Queue& queue, const MsDeformAttnCudaGradients& grad) {
    const Arrays<T> arrays(in);
    const MsDeformAttnShape& s = in.shape;
    const int group = group_of(s.channels, kVec);
    int threads = threads_of(s, group, kBackwardThreads);
    constexpr size_t most_shared = 48 * 1024;
    const auto shared_bytes = [&] { return sizeof(float) * (threads / group) * arrays.shape.samples; };
    while (kFused && threads > 64 && shared_bytes() > most_shared) threads /= 2;
    const bool stashed = kFused && grad.grad_weights && shared_bytes() <= most_shared;
    Rows rows;
    const simt::Grid grid = row_grid(s, group, threads, rows);
    const Gradients<T> gradients = {
        simt::global(grad.grad_value, s.batch * s.pixels * s.heads * s.channels),
        wide_or_narrow_out<T>(grad.grad_coordinates, 2 * arrays.samples, in.coordinate_type),
        wide_or_narrow_out<T>(grad.grad_weights, arrays.samples, in.coordinate_type),
        simt::global(grad.reference_parts, arrays.rows * s.levels * s.reference_dims)};
    simt::launch("ms_deform_attn_bwd", backward_kernel<T, kVec, kFused>, grid, threads,
                 stashed ? shared_bytes() : 0, static_cast<simt::Stream>(queue.stream), arrays.shape, rows,
                 stashed, arrays.value, arrays.coordinates, arrays.weights, arrays.references,
                 simt::global(static_cast<const T*>(grad.grad_out), arrays.rows * s.channels), gradients);
}

template <class T, bool kFused>
void bin(const MsDeformAttnInputs& in, const Queue& queue, int32_t* cells, MsDeformAttnSample* samples) {
    const Arrays<T> arrays(in);
    int group = 1;
    while (group < 32 && group < arrays.shape.samples) group *= 2;
    Rows rows;
    const simt::Grid grid = row_grid(in.shape, group, kBinThreads, rows);
    rows.strips = false;  // nothing is gained where no value is read
    simt::launch("ms_deform_attn_bin", bin_kernel<kFused, T>, grid, kBinThreads, 0,
                 static_cast<simt::Stream>(queue.stream), arrays.shape, rows, arrays.coordinates,
                 arrays.weights, arrays.references, simt::global(cells, arrays.samples),
                 simt::global(samples, arrays.samples));
}

template <class T, int kVec>
void gather(const MsDeformAttnInputs& in, const Queue& queue, const void* grad_out,
            const int32_t* cell_starts, const int64_t* order, const MsDeformAttnSample* samples,
            void* grad_value) {
    const Arrays<T> arrays(in);
    const MsDeformAttnShape& s = in.shape;
    if (s.queries * s.heads * s.channels / kVec > UINT32_MAX)
        throw std::invalid_argument("ms_deform_attn: Q * H * D too large for a deterministic backward");
    const Tiles tiles = {tiles_of(s), group_of(s.channels, kVec)};
    const int64_t blocks = tiles.count * s.batch * s.heads, cells = s.batch * s.heads * arrays.shape.cells;
    simt::launch("ms_deform_attn_gather", gather_kernel<T, kVec>, simt::Grid(static_cast<unsigned>(blocks)),
                 kGatherThreads, 0, static_cast<simt::Stream>(queue.stream), arrays.shape, tiles,
                 simt::global(static_cast<const T*>(grad_out), arrays.rows * s.channels),
                 simt::global(cell_starts, cells + 1),
                 SortedSamples{simt::global(order, arrays.samples), simt::global(samples, arrays.samples)},
                 simt::global(static_cast<T*>(grad_value), s.batch * s.pixels * s.heads * s.channels));
}

// Calls `pass(Type{}, Vec{}, Fused{})` with the constants of a call: 16-byte vectors where D is made of them.
template <int kVec, class T, class Pass>
void with_fused(const MsDeformAttnInputs& in, const Pass& pass) {
    if (in.references)
        pass(T{}, std::integral_constant<int, kVec>{}, std::true_type{});
    else
        pass(T{}, std::integral_constant<int, kVec>{}, std::false_type{});
}
template <class T, class Pass>
void with_vec(const MsDeformAttnInputs& in, const Pass& pass) {
    constexpr int vec = 16 / sizeof(T);
    if (in.shape.channels % vec == 0)
        with_fused<vec, T>(in, pass);
    else
        with_fused<1, T>(in, pass);
}
template <class Pass>
void with_constants(const MsDeformAttnInputs& in, const Pass& pass) {
    switch (in.value_type) {
        case FloatType::f32:
            return with_vec<float>(in, pass);
        case FloatType::bf16:
            return with_vec<BFloat16>(in, pass);
        case FloatType::f16:
            return with_vec<Half>(in, pass);
    }
}

}  // namespace ms_deform_attn_kernels

void ms_deform_attn_cuda_fwd(const MsDeformAttnInputs& in, const Queue& queue, void* out) {
    using namespace ms_deform_attn_kernels;
    if (no_rows(in.shape)) return;
    const simt::UseDevice device(queue.device);
    with_constants(in, [&](auto type, auto vec, auto fused) {
        forward<decltype(type), vec.value, fused.value>(in, queue, out);
    });
}

void ms_deform_attn_cuda_bwd(const MsDeformAttnInputs& in, const Queue& queue,
                             const MsDeformAttnCudaGradients& grad) {
    using namespace ms_deform_attn_kernels;
    if (no_samples(in.shape)) return;
    if (!grad.grad_value && !grad.grad_coordinates && !grad.grad_weights && !grad.reference_parts) return;
    const simt::UseDevice device(queue.device);
    with_constants(in, [&](auto type, auto vec, auto fused) {
        backward<decltype(type), vec.value, fused.value>(in, queue, grad);
    });
}

int64_t ms_deform_attn_cuda_cells(int64_t levels, const int64_t* sizes) {
    int64_t cells = 1;
    for (int64_t n = 0; n < levels; ++n) cells += (sizes[2 * n] + 1) * (sizes[2 * n + 1] + 1);
    return cells;
}

void ms_deform_attn_cuda_bin(const MsDeformAttnInputs& in, const Queue& queue, int32_t* cells,
                             MsDeformAttnSample* samples) {
    using namespace ms_deform_attn_kernels;
    if (no_samples(in.shape)) return;
    const simt::UseDevice device(queue.device);
    with_constants(in, [&](auto type, auto, auto fused) {
        bin<decltype(type), fused.value>(in, queue, cells, samples);
    });
}

void ms_deform_attn_cuda_gather(const MsDeformAttnInputs& in, const Queue& queue, const void* grad_out,
                                const int32_t* cell_starts, const int64_t* order,
                                const MsDeformAttnSample* samples, void* grad_value) {
    using namespace ms_deform_attn_kernels;
    if (no_samples(in.shape) || in.shape.pixels == 0) return;
    const simt::UseDevice device(queue.device);
    with_constants(in, [&](auto type, auto vec, auto) {
        gather<decltype(type), vec.value>(in, queue, grad_out, cell_starts, order, samples, grad_value);
    });
}

}  // namespace detr_fast
