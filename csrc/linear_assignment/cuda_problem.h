// One problem as a block of threads sees it: its costs, its state, and minima over many threads.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "common/simt.h"

namespace detr_fast {
namespace linear_assignment_kernels {

constexpr double kInf = HUGE_VAL;
constexpr int kNone = 0x7fffffff;

// A strided [rows, columns] view of the costs; `rows` is the shorter side. Entries that are NaN or -inf
// cost `penalty`, +inf forbids, all others are multiplied by `scale` (1 but for enormous doubles).
template <class Cost>
struct Costs {
    simt::Global<const Cost> data;
    int64_t row_stride, column_stride;
    int rows, columns;
    double penalty, scale;

    // Doubles beyond this are scaled down: their sums and differences would overflow.
    static constexpr double kLargest = sizeof(Cost) == 8 ? 0x1p900 : static_cast<double>(FLT_MAX);

    SIMT_DEVICE Cost raw(int i, int j) const { return simt::load(data, i * row_stride + j * column_stride); }
    SIMT_DEVICE double value(Cost raw) const {
        if (!(raw > -static_cast<Cost>(kInf))) return penalty;
        return sizeof(Cost) == 8 ? raw * scale : static_cast<double>(raw);
    }
    SIMT_DEVICE double at(int i, int j) const { return value(raw(i, j)); }
    // Whether `raw` can be used as it is.
    static SIMT_DEVICE bool plain(Cost raw) {
        return raw > -static_cast<Cost>(kInf) &&
               (sizeof(Cost) == 4 || !(fabs(raw) > kLargest) || raw == kInf);
    }
};

// A slot is an owned column; there are at most as many as rows. All arrays have an element for each row or
// slot and lie in shared memory where they fit.
template <class Doubles, class Ints>
struct State {
    static constexpr int64_t kDoubles = 3, kInts = 6;  // arrays
    Doubles doubles;
    Ints ints;
    int rows;

    // Of a slot.
    SIMT_DEVICE decltype(auto) v(int slot) const { return doubles[slot]; }  // dual; columns without slot: 0
    SIMT_DEVICE decltype(auto) length(int slot) const { return doubles[rows + slot]; }  // of the path to it
    SIMT_DEVICE decltype(auto) parent(int slot) const { return ints[slot]; }  // row before it on that path
    SIMT_DEVICE decltype(auto) owner(int slot) const { return ints[rows + slot]; }
    SIMT_DEVICE decltype(auto) column(int slot) const { return ints[2 * rows + slot]; }
    // Of a row.
    SIMT_DEVICE decltype(auto) slot(int row) const { return ints[3 * rows + row]; }    // kNone: unmatched
    SIMT_DEVICE decltype(auto) filled(int row) const { return ints[4 * rows + row]; }  // slots in its core
    // Its cheapest free column, or one that was: a lower bound of the cheapest free one.
    SIMT_DEVICE decltype(auto) first(int row) const { return doubles[2 * rows + row]; }
    SIMT_DEVICE decltype(auto) first_at(int row) const { return ints[5 * rows + row]; }
    // While bidding: the column that a row bids for, or kNone, and what its v becomes.
    SIMT_DEVICE decltype(auto) wanted(int row) const { return parent(row); }
    SIMT_DEVICE decltype(auto) offer(int row) const { return length(row); }
};
constexpr int64_t kStateBytes = 3 * sizeof(double) + 6 * sizeof(int);  // of a row

// What only global memory has room for.
template <class Cost>
struct Tables {
    simt::Global<int> slot_of;  // [columns]: slot of the column, kNone where it is free
    simt::Global<int> bidder;   // [columns]: lowest row that bids for it; kNone between rounds
    simt::Global<Cost> core;    // [rows, rows]: costs of a row at the slots, side by side
};

// A number and where it is; among equals the lowest index is the least.
struct Least {
    double value = kInf;
    int at = kNone;

    SIMT_DEVICE void take(double other, int other_at) {
        if (other < value || (other == value && other_at < at)) value = other, at = other_at;
    }
};

// Numbers in the order of their integers (two's complement below zero is undone by flipping all bits).
SIMT_DEVICE uint64_t ordered_bits(double x) {
    uint64_t bits;
    x += 0.0;  // -0 and 0 are equal
    memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 63 ? ~uint64_t{0} : uint64_t{1} << 63);
}

// The least of a warp's numbers, for all of its lanes. Reductions of 32 bits are one instruction from sm_80
// on, and the upper halves nearly always differ.
SIMT_DEVICE Least least_of_warp(const Least& mine) {
    const uint64_t bits = ordered_bits(mine.value);
    const unsigned upper = static_cast<unsigned>(bits >> 32), lower = static_cast<unsigned>(bits);
    bool best = upper == simt::reduce_min(upper);
    unsigned who = simt::ballot(best);
    if (simt::count_bits(who) > 1) {
        const unsigned least_lower = simt::reduce_min(best ? lower : ~0u);
        best = best && lower == least_lower;
        const unsigned least_at = simt::reduce_min(best ? mine.at : ~0u);
        best = best && mine.at == static_cast<int>(least_at);
        who = simt::ballot(best);
    }
    const int source = simt::lowest_bit(who);
    Least least;
    least.value = simt::shuffle(mine.value, source);
    least.at = simt::shuffle(mine.at, source);
    return least;
}

// The threads that solve a problem together. `least` and `sync` order what they did before against what
// they do after.
struct WarpTeam {
    SIMT_DEVICE static int rank() { return simt::lane(); }
    SIMT_DEVICE static int size() { return 32; }
    SIMT_DEVICE static void sync() { simt::sync_warp(); }
    SIMT_DEVICE static Least least(const Least& mine) {
        simt::sync_warp();
        return least_of_warp(mine);
    }
};

template <int kThreads>
struct BlockTeam {
    static constexpr int kWarps = kThreads / 32;
    simt::Shared<double> values;  // [2 * kWarps]
    simt::Shared<int> at;         // [2 * kWarps]
    int turn = 0;                 // two sets in turns: one barrier for each minimum is enough

    SIMT_DEVICE BlockTeam(simt::Shared<double> values_, simt::Shared<int> at_) : values(values_), at(at_) {}
    SIMT_DEVICE static int rank() { return simt::thread(); }
    SIMT_DEVICE static int size() { return kThreads; }
    SIMT_DEVICE static void sync() { simt::sync_block(); }
    SIMT_DEVICE Least least(const Least& mine) {
        const Least of_warp = least_of_warp(mine);
        const int base = turn * kWarps;
        turn ^= 1;
        if (simt::lane() == 0) {
            values[base + simt::warp()] = of_warp.value;
            at[base + simt::warp()] = of_warp.at;
        }
        simt::sync_block();
        Least part;
        if (simt::lane() < kWarps) {
            part.value = values[base + simt::lane()];
            part.at = at[base + simt::lane()];
        }
        return least_of_warp(part);
    }
};

}  // namespace linear_assignment_kernels
}  // namespace detr_fast
