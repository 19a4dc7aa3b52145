#include <map>

#include "common/simt.h"
#include "kernels.h"

namespace detr_fast {
namespace {

using Ints = simt::Global<int>;
using Floats = simt::Global<float>;

SIMT_KERNEL(64) void barrier_in_a_branch(Ints) {
    if (simt::thread() < 40) simt::sync_block();
}
SIMT_KERNEL(64) void barriers_on_two_lines(Ints) {
    if (simt::thread() < 32)
        simt::sync_block();
    else
        simt::sync_block();
}
SIMT_KERNEL(64) void shuffle_in_a_branch(Ints out) {
    if (simt::lane() != 7) out[simt::thread()] = simt::shuffle(simt::lane(), 0);
}
SIMT_KERNEL(64) void shuffle_with_two_masks(Ints out) {
    const unsigned mask = simt::lane() < 16 ? 0xffffffffu : 0xffff0000u;
    out[simt::thread()] = simt::shuffle_xor(simt::lane(), 1, mask);
}
SIMT_KERNEL(64) void shuffle_outside_the_mask(Ints out) {
    if (simt::lane() < 8) out[simt::thread()] = simt::shuffle(simt::lane(), 9, 0xffu);
}
SIMT_KERNEL(64) void shuffle_not_in_own_mask(Ints out) {
    out[simt::thread()] = simt::shuffle(simt::lane(), 0, 0xffu);
}
SIMT_KERNEL(64) void global_past_the_end(Ints out) { out[simt::thread() + 1] = 1; }
SIMT_KERNEL(64) void global_before_the_start(Ints out) {
    const Ints inside = out + 10;
    inside[simt::thread() - 11] = 1;
}
SIMT_KERNEL(64) void global_null(Ints) { simt::global<int>(nullptr, 64)[simt::thread()] = 1; }
SIMT_KERNEL(64) void shared_past_the_end(Ints) {
    SIMT_SHARED(int, tile, 63);
    tile[simt::thread()] = 1;
}
SIMT_KERNEL(64) void shared_never_written(Ints out) {
    SIMT_SHARED(int, tile, 64);
    if (simt::thread() != 5) tile[simt::thread()] = 1;
    simt::sync_block();
    out[simt::thread()] = tile[simt::thread()];
}
SIMT_KERNEL(64) void shared_race(Ints out) {
    SIMT_SHARED(int, tile, 64);
    tile[simt::thread()] = simt::thread();
    out[simt::thread()] = tile[simt::thread() ^ 1];
}
SIMT_KERNEL(64) void shared_race_between_warps(Ints out) {
    SIMT_SHARED(int, tile, 64);
    tile[simt::thread()] = simt::thread();
    simt::sync_warp();
    out[simt::thread()] = tile[simt::thread() ^ 32];
}
SIMT_KERNEL(64) void shared_overwritten_too_early(Ints out) {
    SIMT_SHARED(int, tile, 64);
    for (int round = 0; round < 2; ++round) {
        tile[simt::thread()] = round;
        simt::sync_block();
        out[simt::thread()] = tile[simt::thread() ^ 33];
    }
}
SIMT_KERNEL(64) void shared_atomic_read_too_early(Ints out) {
    SIMT_SHARED(int, sum, 1);
    if (simt::thread() == 0) sum[0] = 0;
    simt::sync_block();
    simt::atomic_add(&sum[0], 1);
    out[simt::thread()] = sum[0];
}
SIMT_KERNEL(64) void misaligned_vector_index(Ints) {
    float numbers[16] = {};
    const auto v = simt::load_vec<4>(simt::global<const float>(numbers, 16), 2);
    simt::store_vec(simt::global(numbers, 16), 0, v);
}
SIMT_KERNEL(64) void vector_past_the_end(Ints) {
    alignas(16) float numbers[16] = {};
    simt::add4_to(simt::global(numbers, 14), 12, simt::Vec<float, 4>{{1, 1, 1, 1}});
}
SIMT_KERNEL(64) void race_between_blocks(Ints out) {
    if (simt::thread() == 0) out[0] = static_cast<int>(simt::block_x());
}
SIMT_KERNEL(64) void lost_updates_between_blocks(Ints out) { out[simt::thread()] += 1; }
SIMT_KERNEL(64) void read_only_array_is_written(Ints out) {
    const simt::Global<const int> same = simt::global<const int>(out.data, 64);
    out[simt::thread()] = 1;
    simt::sync_block();
    out[simt::thread()] = simt::load(same, simt::thread() ^ 1);
}

SIMT_KERNEL(1024) void empty_kernel() {}

struct Faulty {
    void (*kernel)(Ints);
    unsigned blocks = 1;
};
const std::map<std::string, Faulty>& faulty() {
    static const std::map<std::string, Faulty> all = {
        {"barrier_in_a_branch", {barrier_in_a_branch}},
        {"barriers_on_two_lines", {barriers_on_two_lines}},
        {"shuffle_in_a_branch", {shuffle_in_a_branch}},
        {"shuffle_with_two_masks", {shuffle_with_two_masks}},
        {"shuffle_outside_the_mask", {shuffle_outside_the_mask}},
        {"shuffle_not_in_own_mask", {shuffle_not_in_own_mask}},
        {"global_past_the_end", {global_past_the_end}},
        {"global_before_the_start", {global_before_the_start}},
        {"global_null", {global_null}},
        {"shared_past_the_end", {shared_past_the_end}},
        {"shared_never_written", {shared_never_written}},
        {"shared_race", {shared_race}},
        {"shared_race_between_warps", {shared_race_between_warps}},
        {"shared_overwritten_too_early", {shared_overwritten_too_early}},
        {"shared_atomic_read_too_early", {shared_atomic_read_too_early}},
        {"misaligned_vector_index", {misaligned_vector_index}},
        {"vector_past_the_end", {vector_past_the_end}},
        {"race_between_blocks", {race_between_blocks, 2}},
        {"lost_updates_between_blocks", {lost_updates_between_blocks, 2}},
        {"read_only_array_is_written", {read_only_array_is_written}},
    };
    return all;
}

SIMT_KERNEL(256)
void reduce_kernel(simt::Global<const int> numbers, Ints through_shared, Ints through_shuffles) {
    SIMT_SHARED(int, sums, 256);
    SIMT_DYNAMIC_SHARED(int, of_warps);
    const int thread = simt::thread(), own = simt::load(numbers + simt::block_x() * int64_t{256}, thread);
    sums[thread] = own;
    for (int half = 128; half > 0; half /= 2) {
        if (half >= 32)
            simt::sync_block();
        else
            simt::sync_warp();
        if (thread < half) sums[thread] += sums[thread + half];
    }
    if (thread == 0) through_shared[simt::block_x()] = sums[0];

    int sum = own;
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += simt::shuffle_xor(sum, lanes);
    if (simt::lane() == 0) of_warps[simt::warp()] = sum;
    if (simt::sync_block_or(thread == 77) && thread == 0) {
        sum = 0;
        for (int warp = 0; warp < 8; ++warp) sum += of_warps[warp];
        through_shuffles[simt::block_x()] = sum;
    }
}

SIMT_KERNEL(128)
void histogram_kernel(simt::Global<const int> numbers, int64_t n, int bins, Ints counts, Ints taken) {
    SIMT_DYNAMIC_SHARED(int, own);
    for (int bin = simt::thread(); bin < bins; bin += simt::block_threads()) own[bin] = 0;
    simt::sync_block();
    const int64_t i = simt::block_x() * int64_t{128} + simt::thread();
    const bool inside = i < n;
    if (inside) simt::atomic_add(&own[numbers[i]], 1);
    // a ticket each for the lanes inside, drawn by the lowest of them for all
    const unsigned takers = simt::ballot(inside);
    if (inside) {
        int first = 0;
        if (simt::lane() == simt::lowest_bit(takers))
            first = simt::atomic_add(&counts[bins], simt::count_bits(takers));
        first = simt::shuffle(first, simt::lowest_bit(takers), takers);
        const unsigned before = takers & ((1u << simt::lane()) - 1);
        taken[first + simt::count_bits(before)] = 1;
    }
    simt::sync_block();
    for (int bin = simt::thread(); bin < bins; bin += simt::block_threads())
        simt::atomic_add(&counts[bin], static_cast<int>(own[bin]));
}

}  // namespace

std::vector<std::string> faulty_kernels() {
    std::vector<std::string> names;
    for (const auto& [name, kernel] : faulty()) names.push_back(name);
    return names;
}

void run_faulty(const std::string& name) {
    int numbers[64] = {};
    const Faulty& fault = faulty().at(name);
    simt::launch(name.c_str(), fault.kernel, simt::Grid(fault.blocks), 64, 0, nullptr,
                 simt::global(numbers, 64));
}

void run_empty(unsigned x, unsigned y, int threads, int64_t shared_bytes) {
    simt::launch("empty", empty_kernel, simt::Grid(x, y), threads, shared_bytes, nullptr);
}

void run_reduction(const int* numbers, int64_t blocks, int* through_shared, int* through_shuffles) {
    simt::launch("reduce", reduce_kernel, simt::Grid(static_cast<unsigned>(blocks)), 256, 8 * sizeof(int),
                 nullptr, simt::global(numbers, blocks * 256), simt::global(through_shared, blocks),
                 simt::global(through_shuffles, blocks));
}

void run_histogram(const int* numbers, int64_t n, int bins, int* counts, int* taken) {
    simt::launch("histogram", histogram_kernel, simt::Grid(static_cast<unsigned>((n + 127) / 128)), 128,
                 bins * sizeof(int), nullptr, simt::global(numbers, n), n, bins,
                 simt::global(counts, bins + 1), simt::global(taken, n));
}

}  // namespace detr_fast
