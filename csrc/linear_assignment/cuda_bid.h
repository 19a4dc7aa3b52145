// The beginning of a solution: the cheapest columns of every row, and rounds of bidding in parallel.
//
// A row that takes its best column and lowers that column's v until the column is worth no more than the
// row's second best keeps all reduced costs c - u - v >= 0, with equality on the matching. So does any one
// of several bidders: the lowest row wins, and the others bid again.
#pragma once

#include "linear_assignment/cuda_problem.h"

namespace detr_fast {
namespace linear_assignment_kernels {

// A row's two cheapest columns at given prices.
struct TwoLeast {
    Least first;
    double second = kInf;

    SIMT_DEVICE void take(double x, int at) {
        if (x < first.value) {
            second = first.value;
            first.value = x, first.at = at;
        } else if (x < second) {
            second = x;
        }
    }
};

SIMT_DEVICE TwoLeast two_least_of_warp(const TwoLeast& mine) {
    TwoLeast result;
    result.first = least_of_warp(mine.first);
    const bool has_first = mine.first.at == result.first.at && mine.first.value < kInf;
    Least rest;
    rest.take(has_first ? mine.second : mine.first.value, simt::lane());
    result.second = least_of_warp(rest).value;
    return result;
}

// Of the columns begin, begin + step, ... `price(cost, column)`.
template <class Cost, class Price>
SIMT_DEVICE TwoLeast two_least(const Costs<Cost>& costs, int row, int begin, int step, const Price& price) {
    constexpr int kAtOnce = 4;  // loads on their way together
    TwoLeast cheapest;
    int j = begin;
    for (; j < costs.columns - (kAtOnce - 1) * step; j += kAtOnce * step) {
        Cost raw[kAtOnce];
        SIMT_UNROLL
        for (int k = 0; k < kAtOnce; ++k) raw[k] = costs.raw(row, j + k * step);
        SIMT_UNROLL
        for (int k = 0; k < kAtOnce; ++k) cheapest.take(price(raw[k], j + k * step), j + k * step);
    }
    for (; j < costs.columns; j += step) cheapest.take(price(costs.raw(row, j), j), j);
    return cheapest;
}

// Calls use(row, cheapest, whether this thread speaks for the row) for every row. A warp reads a row where
// columns lie side by side, else a thread does, so that neighbours read neighbours.
template <class Cost, class Price, class Use>
SIMT_DEVICE void for_each_row(const Costs<Cost>& costs, const Price& price, const Use& use) {
    const int64_t to_row = costs.row_stride < 0 ? -costs.row_stride : costs.row_stride;
    const int64_t to_column = costs.column_stride < 0 ? -costs.column_stride : costs.column_stride;
    if (to_column <= to_row) {
        for (int i = simt::warp(); i < costs.rows; i += simt::block_threads() / 32)
            use(i, two_least_of_warp(two_least(costs, i, simt::lane(), 32, price)), simt::lane() == 0);
    } else {
        for (int i = simt::thread(); i < costs.rows; i += simt::block_threads())
            use(i, two_least(costs, i, 0, 1, price), true);
    }
}

// A penalty above what any assignment of finite entries costs, R * max - (R - 1) * min, and a scale that
// keeps sums in range. Seldom needed: costs are read once more.
template <class Cost, class Team>
SIMT_DEVICE void set_penalty(Costs<Cost>& costs, Team& team) {
    Least low, below_high;
    for (int i = simt::warp(); i < costs.rows; i += simt::block_threads() / 32)
        for (int j = simt::lane(); j < costs.columns; j += 32) {
            const double x = costs.raw(i, j);
            if (!(fabs(x) < kInf)) continue;
            low.take(x, 0);
            below_high.take(-x, 0);
        }
    double least = team.least(low).value, most = -team.least(below_high).value;
    if (least > most) least = most = 0;
    double magnitude = fmax(fabs(least), fabs(most));
    costs.scale = magnitude > 0x1p900 ? 0x1p-200 : 1;
    least *= costs.scale, most *= costs.scale, magnitude *= costs.scale;
    costs.penalty = most + costs.rows * (most - least) + fmax(magnitude, DBL_MIN);
}

// The first round: at raw costs, which bound prices from below, so that no dual is looked at. Sets the
// penalty where some cost needs it.
template <class Cost, class State, class Team>
SIMT_DEVICE void prepare(Costs<Cost>& costs, const State& state, const Tables<Cost>& tables, Team& team) {
    for (int j = team.rank(); j < costs.columns; j += team.size()) {
        tables.slot_of[j] = kNone;
        tables.bidder[j] = kNone;
    }
    const auto offer = [&](int i, const TwoLeast& cheapest, bool speaks) {
        if (!speaks) return;
        state.first(i) = cheapest.first.value;
        state.first_at(i) = cheapest.first.at;
        state.offer(i) = cheapest.first.value - cheapest.second;
        state.wanted(i) = cheapest.second < kInf ? cheapest.first.at : kNone;
        state.slot(i) = kNone;
        state.filled(i) = 0;
    };
    bool odd = false;
    for_each_row(
        costs,
        [&](Cost raw, int) {
            odd = odd || !costs.plain(raw);
            return static_cast<double>(raw);
        },
        offer);
    if (!simt::sync_block_or(odd)) return;
    set_penalty(costs, team);
    for_each_row(costs, [&](Cost raw, int) { return costs.value(raw); }, offer);
    simt::sync_block();
}

// v of a column, whether it has a slot or not.
template <class Cost, class State>
SIMT_DEVICE double v_of(const State& state, const Tables<Cost>& tables, int column) {
    const int slot = tables.slot_of[column];
    return slot == kNone ? 0.0 : static_cast<double>(state.v(slot));
}

// A row's two cheapest columns at present prices, by a warp.
template <class Cost, class State>
SIMT_DEVICE TwoLeast cheapest_at_prices(const Costs<Cost>& costs, const State& state,
                                        const Tables<Cost>& tables, int row) {
    return two_least_of_warp(two_least(costs, row, simt::lane(), 32, [&](Cost raw, int j) {
        return costs.value(raw) - v_of(state, tables, j);
    }));
}

// Rows without a column bid at present prices, and `epsilon` more than their column is worth to them.
template <class Cost, class State>
SIMT_DEVICE void bid(const Costs<Cost>& costs, const State& state, const Tables<Cost>& tables,
                     double epsilon = 0) {
    const int warps = simt::block_threads() / 32;
    for (int i = simt::warp(); i < costs.rows; i += warps) {
        if (state.slot(i) != kNone) continue;
        const TwoLeast cheapest = cheapest_at_prices(costs, state, tables, i);
        if (simt::lane() != 0) continue;
        const int column = cheapest.first.at;
        const double raise = cheapest.second - cheapest.first.value + epsilon;
        // a tie for an owned column would go back and forth
        const bool bids = cheapest.second < kInf && (raise > 0 || tables.slot_of[column] == kNone);
        state.wanted(i) = bids ? column : kNone;
        if (bids) state.offer(i) = v_of(state, tables, column) - raise;
    }
}

// The lowest bidder of each column gets it. New slots are numbered in the order of rows, by one warp, so
// that the answer does not depend on the block. Returns their number, to that warp alone.
template <class Cost, class State>
SIMT_DEVICE int settle(int rows, int slots, const State& state, const Tables<Cost>& tables) {
    const unsigned below = (1u << simt::lane()) - 1;
    for (int base = 0; base < rows; base += 32) {
        const int i = base + simt::lane();
        const int column = i < rows && state.slot(i) == kNone ? static_cast<int>(state.wanted(i)) : kNone;
        const bool won = column != kNone && tables.bidder[column] == i;
        int slot = won ? static_cast<int>(tables.slot_of[column]) : 0;
        const unsigned fresh = simt::ballot(won && slot == kNone);
        simt::sync_warp();
        if (won) {
            if (slot == kNone) {
                slot = slots + simt::count_bits(fresh & below);
            } else {
                const int outbid = state.owner(slot);
                state.slot(outbid) = kNone;
            }
            state.owner(slot) = i;
            state.slot(i) = slot;
            state.column(slot) = column;
            state.v(slot) = state.offer(i);
            state.wanted(i) = kNone;  // should it lose the column again in this round's later rows
            tables.slot_of[column] = slot;
            tables.bidder[column] = kNone;
        }
        slots += simt::count_bits(fresh);
        simt::sync_warp();
    }
    return slots;
}

// Rounds of bidding after `prepare`, by a block: the first with the offers made there, then at most `rounds`.
// Whether every row has a column in the end; `slots` is how many have, to the first warp alone.
template <class Cost, class State, class Team>
SIMT_DEVICE bool hold_auction(const Costs<Cost>& costs, const State& state, const Tables<Cost>& tables,
                              Team& team, int rounds, double epsilon, int& slots) {
    slots = 0;
    for (int round = 0;; ++round) {
        for (int i = team.rank(); i < costs.rows; i += team.size()) {
            const int column = state.wanted(i);
            if (column != kNone) simt::atomic_min(&tables.bidder[column], i);
        }
        team.sync();
        if (simt::warp() == 0) slots = settle(costs.rows, slots, state, tables);
        team.sync();
        bool waiting = false;
        for (int i = team.rank(); i < costs.rows; i += team.size()) waiting |= state.slot(i) == kNone;
        if (!simt::sync_block_or(waiting)) return true;
        if (round == rounds) return false;
        bid(costs, state, tables, epsilon);
        team.sync();
    }
}

}  // namespace linear_assignment_kernels
}  // namespace detr_fast
