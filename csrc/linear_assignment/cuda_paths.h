// Shortest augmenting paths, as in cpu.cpp: over owned columns only, and to the cheapest free column of one
// of their rows. A step reads one number for each slot, so its time is the latency of a load and of a minimum
// over the team, not work. Minima prefer the lowest index: the answer does not depend on the size of the
// team.
#pragma once

#include "linear_assignment/cuda_problem.h"

namespace detr_fast {
namespace linear_assignment_kernels {

template <class Cost, class State, class Team>
class Paths {
  public:
    SIMT_DEVICE Paths(const Costs<Cost>& costs, const State& state, const Tables<Cost>& tables, Team& team)
        : costs_(costs), state_(state), tables_(tables), team_(team) {}

    // Matches all rows that have no column; false where one cannot be at a finite cost.
    SIMT_DEVICE bool run(int slots) {
        slots_ = slots;
        for (int base = 0; base < costs_.rows; base += 32) {
            const int i = base + simt::lane();
            unsigned waiting = simt::ballot(i < costs_.rows && state_.slot(i) == kNone);
            for (; waiting != 0; waiting &= waiting - 1)
                if (!augment(base + simt::lowest_bit(waiting))) return false;
        }
        return true;
    }

  private:
    // Dijkstra's algorithm from row `root`. A slot's `parent` is the row before it, or once the slot has been
    // reached for good, the bits of that row flipped.
    SIMT_DEVICE bool augment(int root) {
        for (int s = team_.rank(); s < slots_; s += team_.size()) {
            state_.length(s) = kInf;
            state_.parent(s) = kNone;
        }
        double shortest = kInf;  // to a free column: column `free_at` of row `last`
        int last = kNone, free_at = kNone, i = root;
        double offset = 0;  // length of the path to row i, less u[i]
        for (;;) {
            Least free;
            free.value = state_.first(i), free.at = state_.first_at(i);
            const bool stale = free.at != kNone && tables_.slot_of[free.at] != kNone;
            const Least nearest = relax(i, offset);
            if (offset + free.value < shortest) {
                if (stale) free = find_free(i);
                if (offset + free.value < shortest)
                    shortest = offset + free.value, last = i, free_at = free.at;
            }
            if (!(nearest.value < shortest)) break;
            i = state_.owner(nearest.at);
            offset =
                nearest.value - (costs_.value(cost(i, nearest.at, state_.filled(i))) - state_.v(nearest.at));
            if (nearest.at % team_.size() == team_.rank()) {
                const int parent = state_.parent(nearest.at);
                state_.parent(nearest.at) = ~parent;
            }
        }
        if (last == kNone) return false;
        for (int s = team_.rank(); s < slots_; s += team_.size())
            if (state_.parent(s) < 0) state_.v(s) += state_.length(s) - shortest;
        if (team_.rank() == 0) turn_over(root, last, free_at);
        ++slots_;
        team_.sync();
        return true;
    }

    // Shortens the paths to slots by way of row i; the nearest of those not reached for good.
    SIMT_DEVICE Least relax(int i, double offset) {
        constexpr int kAtOnce = 4;  // loads on their way together
        const int filled = state_.filled(i), size = team_.size();
        Least nearest;
        for (int base = team_.rank(); base < slots_; base += kAtOnce * size) {
            Cost raw[kAtOnce];
            SIMT_UNROLL
            for (int k = 0; k < kAtOnce; ++k) {
                const int s = base + k * size;
                raw[k] = s < slots_ ? cost(i, s, filled) : Cost{};
            }
            SIMT_UNROLL
            for (int k = 0; k < kAtOnce; ++k) {
                const int s = base + k * size;
                if (s >= slots_) continue;
                if (s >= filled) tables_.core[in_core(i, s)] = raw[k];
                if (state_.parent(s) < 0) continue;
                const double through = (costs_.value(raw[k]) - state_.v(s)) + offset;
                double length = state_.length(s);
                if (through < length) {
                    state_.length(s) = length = through;
                    state_.parent(s) = i;
                }
                nearest.take(length, s);
            }
        }
        nearest = team_.least(nearest);
        if (team_.rank() == 0) state_.filled(i) = slots_;
        return nearest;
    }

    // Row i's cheapest free column.
    SIMT_DEVICE Least find_free(int i) {
        constexpr int kAtOnce = 8;  // loads on their way together, so owned columns are read too
        const int size = team_.size(), last = costs_.columns - 1;
        Least free;
        for (int base = team_.rank(); base <= last; base += kAtOnce * size) {
            Cost raw[kAtOnce];
            int slot[kAtOnce];
            SIMT_UNROLL
            for (int k = 0; k < kAtOnce; ++k) {
                const int j = base + k * size < last ? base + k * size : last;
                raw[k] = costs_.raw(i, j);
                slot[k] = tables_.slot_of[j];
            }
            SIMT_UNROLL
            for (int k = 0; k < kAtOnce; ++k) {
                const double x = slot[k] == kNone ? costs_.value(raw[k]) : kInf;
                if (x < free.value) free.value = x, free.at = base + k * size < last ? base + k * size : last;
            }
        }
        free = team_.least(free);
        if (team_.rank() == 0) {
            state_.first(i) = free.value;
            state_.first_at(i) = free.at;
        }
        return free;
    }

    // Gives every row of the path the column after it; by one thread.
    SIMT_DEVICE void turn_over(int root, int last, int free_at) {
        int slot = slots_, row = last;
        state_.column(slot) = free_at;
        state_.v(slot) = 0;
        tables_.slot_of[free_at] = slot;
        for (;;) {
            const int former = state_.slot(row);
            state_.owner(slot) = row;
            state_.slot(row) = slot;
            if (row == root) return;
            slot = former;
            row = ~state_.parent(slot);
        }
    }

    // Cost of row i at a slot, from its core as far as that is filled.
    SIMT_DEVICE Cost cost(int i, int slot, int filled) const {
        if (slot < filled) return tables_.core[in_core(i, slot)];
        return costs_.raw(i, state_.column(slot));
    }
    SIMT_DEVICE int64_t in_core(int i, int slot) const { return int64_t{i} * costs_.rows + slot; }

    const Costs<Cost>& costs_;
    const State& state_;
    const Tables<Cost>& tables_;
    Team& team_;
    int slots_ = 0;
};

}  // namespace linear_assignment_kernels
}  // namespace detr_fast
