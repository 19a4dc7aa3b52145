// The auction of Bertsekas ("The auction algorithm", Annals of Operations Research 14, 1988), with a
// certificate.
//
// Rows bid epsilon more than a column is worth to them, so that ties are settled, and end within epsilon of
// their best column. Bidding starts at v = 0 and a column once owned stays owned: free columns keep v = 0, as
// optimality asks where there are more columns than rows, which scaling epsilon down from prices of earlier
// rounds would spoil. What comes out is a matching of all rows within rows * epsilon of the optimum.
//
// It is then proved optimal, or not used. A matching is optimal if there are v <= 0, v = 0 on free columns,
// with which every row's own column is its cheapest, for then any other matching costs sum(c - v) + sum(v)
// at least as much. Such v are lengths of shortest paths to a free column in the graph of exchanges, and
// follow by relaxation as in the method of Bellman and Ford, all rows at once, from the auction's v less
// rows * epsilon: no path lets v rise by more. Where the relaxation does not end in time, or in v > 0 (a free
// column would be better), the caller solves by shortest augmenting paths.
#pragma once

#include "linear_assignment/cuda_bid.h"

namespace detr_fast {
namespace linear_assignment_kernels {

constexpr int kAuctionRounds = 256;
constexpr int kRelaxations = 32;

// Whether the matching of all rows, within `slack` of the optimum, is the optimum, to the rounding of a
// row's reduced cost.
template <class Cost, class State, class Team>
SIMT_DEVICE bool is_optimal(const Costs<Cost>& costs, const State& state, const Tables<Cost>& tables,
                            const Team& team, double slack) {
    const int rows = costs.rows;
    for (int s = team.rank(); s < rows; s += team.size()) state.v(s) += -slack;
    team.sync();
    for (int round = 0; round < kRelaxations; ++round) {
        for (int i = simt::warp(); i < rows; i += team.size() / 32) {
            const double best = cheapest_at_prices(costs, state, tables, i).first.value;
            if (simt::lane() == 0) state.length(i) = best;
        }
        team.sync();
        bool changed = false, positive = false;
        for (int i = team.rank(); i < rows; i += team.size()) {
            const int slot = state.slot(i);
            const double cost = costs.at(i, state.column(slot)), best = state.length(i), v = state.v(slot);
            positive = positive || v > 0;
            if ((cost - v) - best <= 0x1p-50 * (fabs(cost) + fabs(v))) continue;
            state.v(slot) = cost - best;
            changed = true;
        }
        if (simt::sync_block_or(positive)) return false;
        if (!simt::sync_block_or(changed)) return true;
    }
    return false;
}

// After `prepare`, by a block: of the order of what separates the best assignments of random costs. 0 where
// every row has two cheapest columns.
template <class Cost, class State, class Team>
SIMT_DEVICE double auction_epsilon(const Costs<Cost>& costs, const State& state, Team& team) {
    Least most;  // that a row would lose with its second best column
    for (int i = team.rank(); i < costs.rows; i += team.size())
        if (state.wanted(i) != kNone) most.take(state.offer(i), i);
    return fmax(-team.least(most).value, 0.0) / (8.0 * costs.rows);
}

}  // namespace linear_assignment_kernels
}  // namespace detr_fast
