// Successive shortest augmenting paths with the shorter side (the targets, as a rule) as rows.
//
// Why it is exact and why it is fast. A column nobody owns has dual v = 0 all along (in a large square, where
// all get an owner, a price that it began with), and an owned column stays owned. So a shortest path runs
// over the owned columns only (`slots`, at most one a row), and it ends at the cheapest free column of one of
// its rows, which is a plain minimum of raw costs and needs no dual: a scan is O(rows), not O(columns). Each
// path keeps the reduced costs c[i][j] - u[i] - v[j] >= 0, with equality on the matching and v <= 0, which
// proves the matching optimal at the end. Bidding before the paths keeps the same conditions: a row that
// takes its best column lowers that column's v until the column is worth as much as the row's second best, so
// no row that is already matched loses. A lower bound of the second best will do; as v <= 0 the second
// cheapest raw cost is one, and most rows bid without looking at any dual.
//
// Duals and path lengths are double whatever the costs are, as in scipy. Every minimum takes the lowest
// index among equals, so the answer does not depend on the instruction set.
#include "linear_assignment/cpu.h"

#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "common/cpu_parallel.h"
#include "common/simd.h"
#include "linear_assignment/cpu_cheapest.h"

namespace detr_fast {
namespace DETR_FAST_ISA {
namespace {

// Memory that a thread reuses from call to call: fresh pages cost more than a small problem.
class Scratch {
  public:
    ~Scratch() { std::free(start_); }
    bool reserve(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        std::free(start_);
        bytes = (bytes + 63) / 64 * 64;
        start_ = static_cast<char*>(std::aligned_alloc(64, bytes));
        size_ = start_ ? bytes : 0;
        return start_ != nullptr;
    }
    template <class T>
    T* take(size_t count) {
        T* part = reinterpret_cast<T*>(start_ + used_);
        used_ += bytes<T>(count);
        return part;
    }
    template <class T>
    static constexpr size_t bytes(size_t count) {
        return (count * sizeof(T) + 63) / 64 * 64;
    }
    void shrink() {
        if (size_ <= kKept) return;
        std::free(start_);
        start_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr size_t kKept = size_t{32} << 20;
    char* start_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

template <class Cost>
class Solver {
  public:
    static size_t bytes(const Matrix<Cost>& costs) {
        const size_t n = padded(costs.rows);
        return 2 * Scratch::bytes<double>(n) + Scratch::bytes<int64_t>(n) + 3 * Scratch::bytes<int>(n) +
               Scratch::bytes<Row>(n) + Scratch::bytes<Scanned>(n) + Scratch::bytes<Cost>(costs.columns) +
               Scratch::bytes<Cost>(costs.rows * n) + is_large_square(costs) * Scratch::bytes<double>(n) +
               (adjacent(costs) ? 0
                                : Scratch::bytes<Cheapests<Cost>>(n / kMostLanes<Cost>) +
                                      Scratch::bytes<bool>(n) + Scratch::bytes<Cost>(n * costs.columns));
    }

    Solver(const Matrix<Cost>& costs, Scratch& scratch) : costs_(costs), stride_(padded(costs.rows)) {
        v_ = scratch.take<double>(stride_);
        length_ = scratch.take<double>(stride_);
        parent_ = scratch.take<int64_t>(stride_);
        column_ = scratch.take<int>(stride_);
        owner_ = scratch.take<int>(stride_);
        waiting_ = scratch.take<int>(stride_);
        rows_ = scratch.take<Row>(stride_);
        scanned_ = scratch.take<Scanned>(stride_);
        taken_ = scratch.take<Cost>(costs.columns);
        core_ = scratch.take<Cost>(costs.rows * stride_);
        std::memset(taken_, 0, costs.columns * sizeof(Cost));
        if (is_large_square(costs)) price_ = scratch.take<double>(stride_);
        for (int64_t s = 0; s < stride_; ++s) v_[s] = -kInf;
        if (adjacent(costs)) return;
        blocks_ = scratch.take<Cheapests<Cost>>(stride_ / kMostLanes<Cost>);
        packed_ = scratch.take<bool>(stride_);
        packed_rows_ = scratch.take<Cost>(stride_ * costs.columns);
        std::memset(packed_, 0, stride_ * sizeof(bool));
    }

    // Finds the cheapest columns of every row; false where some cost is beyond the range or not finite.
    bool prepare() {
        constexpr int lanes = kMostLanes<Cost>;
        Cost spilt = 0;
        if (adjacent(costs_) || costs_.row_stride != 1) {
            for (int i = 0; i < costs_.rows; ++i)
                rows_[i] = Row{two_cheapest<Cost>(costs_.columns, All<Cost>{row(i)}, spilt), 0, -1, 0};
        } else {
            two_cheapest_of_lanes(costs_, blocks_);
            for (int i = 0; i < costs_.rows; ++i)
                rows_[i] = Row{blocks_[i / lanes].lane(i % lanes), 0, -1, 0};
            for (int i = 0; i < costs_.rows; ++i) spilt += blocks_[i / lanes].spilt[i % lanes];
        }
        const bool good = spilt == 0;
        if (price_ && good)
            lower_prices();
        else
            price_ = nullptr;
        return good;
    }

    // After `prepare`: false where a row cannot be matched at a finite cost.
    bool run() {
        int waiting = 0;
        for (int i = 0; i < costs_.rows; ++i) {
            const Cheapest<double>& free = rows_[i].free;
            if (free.second_at >= 0 && is_free(free.first_at))
                give(add_slot(free.first_at, free.first - free.second), i);
            else
                waiting_[waiting++] = i;
        }
        for (int round = 0; round < kBiddingRounds && waiting; ++round) {
            int left = 0;
            for (int w = 0; w < waiting; ++w) {
                const int outbid = bid(waiting_[w]);
                if (outbid >= 0) waiting_[left++] = outbid;
            }
            waiting = left;
        }
        for (int w = 0; w < waiting; ++w)
            if (!augment(waiting_[w])) return false;
        return true;
    }

    int column_of(int row) const { return column_[rows_[row].slot]; }

  private:
    static constexpr int kBiddingRounds = 2;
    static constexpr int kUnknown = -2;
    static constexpr int kPad = 16;  // a multiple of all lane counts
    static constexpr int kTile = 4;  // rows copied together: few rows need it, and a cache line holds several

    struct Row {
        Cheapest<double> free;  // less the price of a column
        double matched;         // cost of its own column
        int slot;               // its own column's, -1 without one
        int core;               // slots whose cost is in its row of `core_`
    };
    struct Scanned {
        double length, v;
        int slot;
    };

    static int64_t padded(int n) { return (n + kPad - 1) / kPad * kPad; }
    static bool adjacent(const Matrix<Cost>& costs) { return costs.column_stride == 1; }
    bool is_free(int column) const { return taken_[column] == 0; }
    double u(int i) const { return rows_[i].matched - v_[rows_[i].slot]; }

    // Where all columns get an owner, they may begin with any price (v): the least by which a row's cost
    // exceeds that row's cheapest halves the work that is left.
    static bool is_large_square(const Matrix<Cost>& costs) {
        return costs.rows == costs.columns && costs.rows >= 32;
    }
    void lower_prices() {
        for (int j = 0; j < costs_.columns; ++j) price_[j] = kInf;
        for (int i = 0; i < costs_.rows; ++i) lower_to(price_, row(i), rows_[i].free.first, costs_.columns);
        for (int i = 0; i < costs_.rows; ++i) rows_[i].free = cheapest_free(i);
    }
    Cheapest<double> cheapest_free(int i) {
        Cost unused = 0;
        double unused_too = 0;
        return price_ ? two_cheapest<double>(costs_.columns, Priced<Cost>{row(i), price_}, unused_too)
                      : two_cheapest<Cost>(costs_.columns, Free<Cost>{row(i), taken_}, unused);
    }

    // Row i with its columns side by side, copied with its neighbours when first needed.
    const Cost* row(int i) {
        if (adjacent(costs_)) return costs_.data + i * costs_.row_stride;
        if (!packed_[i / kTile]) {
            packed_[i / kTile] = true;
            pack(i / kTile * kTile);
        }
        return packed_rows_ + int64_t{i} * costs_.columns;
    }

    void pack(int begin) {
        const int rows = begin + kTile < costs_.rows ? kTile : costs_.rows - begin;
        for (int j = 0; j < costs_.columns; j += kTile) {
            const int columns = j + kTile < costs_.columns ? kTile : costs_.columns - j;
            const Cost* from = costs_.data + begin * costs_.row_stride + j * costs_.column_stride;
            Cost* to = packed_rows_ + int64_t{begin} * costs_.columns + j;
            if (rows == kTile && columns == kTile && costs_.row_stride == 1) {
                transpose_4x4(from, costs_.column_stride, to, costs_.columns);
                continue;
            }
            for (int k = 0; k < rows; ++k)
                for (int l = 0; l < columns; ++l)
                    to[k * int64_t{costs_.columns} + l] = costs_.at(begin + k, j + l);
        }
    }

    // The costs of row i at the owned columns, side by side; a row is filled when first needed.
    const Cost* core(int i) {
        Cost* costs = core_ + i * stride_;
        int& filled = rows_[i].core;
        if (filled == slots_) return costs;
        const bool is_packed = adjacent(costs_) || packed_[i / kTile];
        const Matrix<Cost> from = is_packed ? Matrix<Cost>{row(i), 0, 1, 1, costs_.columns}
                                            : Matrix<Cost>{&costs_.data[i * costs_.row_stride], 0,
                                                           costs_.column_stride, 1, costs_.columns};
        for (; filled < slots_; ++filled) costs[filled] = from.at(0, column_[filled]);
        return costs;
    }

    // Brings row i's cheapest free column up to date; of the second one only the bound stays true.
    void refresh(Cheapest<double>& c, int i) {
        const auto stale = [&](int at) { return at == kUnknown || (at >= 0 && !is_free(at)); };
        if (!stale(c.first_at)) return;
        if (c.second_at >= 0 && is_free(c.second_at)) {
            c.first = c.second, c.first_at = c.second_at;
            c.second_at = kUnknown;
        } else {
            c = cheapest_free(i);
        }
    }

    void give(int slot, int i) {
        owner_[slot] = i;
        rows_[i].slot = slot;
        rows_[i].matched = costs_.at(i, column_[slot]);
    }

    int add_slot(int column, double v) {
        column_[slots_] = column;
        v_[slots_] = v;
        taken_[column] = static_cast<Cost>(kInf);
        if (price_) {
            v_[slots_] += price_[column];
            price_[column] = -kInf;
        }
        return slots_++;
    }

    // Row i takes its best column and leaves it as dear as its second best. Returns the row that has
    // no column now: the former owner, i itself where nothing was gained, or -1.
    int bid(int i) {
        Cheapest<double>& free = rows_[i].free;
        refresh(free, i);
        double best = free.first, second = free.second;
        int slot = -1;
        const Cost* costs = core(i);
        for (int s = 0; s < slots_; ++s) {
            const double price = costs[s] - v_[s];
            if (price < best) {
                second = best, best = price;
                slot = s;
            } else if (price < second) {
                second = price;
            }
        }
        if (!(second < kInf)) return i;
        if (slot < 0) {
            give(add_slot(free.first_at, best - second), i);
            return -1;
        }
        if (best == second) return i;
        const int outbid = owner_[slot];
        v_[slot] -= second - best;
        give(slot, i);
        return outbid;
    }

    // Shortest path from row `root` over owned columns to a free one, by Dijkstra's algorithm.
    bool augment(int root) {
        for (int64_t s = 0; s < stride_; ++s) length_[s] = kInf;
        double shortest = kInf;  // to a free column, the cheapest one of row `last`
        int last = -1, scanned = 0, i = root;
        double offset = 0;  // length of the path to row i, less u[i]
        for (;;) {
            Cheapest<double>& free = rows_[i].free;
            if (offset + free.first < shortest) {
                refresh(free, i);
                if (offset + free.first < shortest) shortest = offset + free.first, last = i;
            }
            const int s = scan(i, offset);
            if (s < 0 || shortest <= length_[s]) break;
            i = owner_[s];
            offset = length_[s] - u(i);
            scanned_[scanned++] = {length_[s], v_[s], s};
            length_[s] = kInf;
            v_[s] = -kInf;  // never shortened or chosen again
        }
        for (int k = 0; k < scanned; ++k) {
            const Scanned& done = scanned_[k];
            v_[done.slot] = done.v + (done.length - shortest);
        }
        if (last < 0) return false;
        int slot = add_slot(rows_[last].free.first_at, 0.0);
        for (int row = last;;) {
            const int former = rows_[row].slot;
            give(slot, row);
            if (row == root) return true;
            slot = former;
            row = static_cast<int>(parent_[slot]);
        }
    }

    // Shortens the paths to owned columns by way of row i; returns the nearest of those left, or -1.
    int scan(int i, double offset) {
        constexpr int lanes = kMostLanes<double>;
        const Cost* costs = core(i);
        vdouble nearest = vdouble{} + kInf;
        vlong at{}, nearest_at{}, from = vlong{} + i;
        for (int lane = 0; lane < lanes; ++lane) at[lane] = lane;
        for (int s = 0; s < slots_; s += lanes) {
            const vdouble through = (widen<vdouble>(costs + s) - load_as<vdouble>(v_ + s)) + offset;
            const vdouble known = load_as<vdouble>(length_ + s);
            const vlong parent = load_as<vlong>(parent_ + s);
            const vlong shorter = through < known;
            const vdouble length = shorter ? through : known;
            const vlong new_parent = shorter ? from : parent;
            std::memcpy(length_ + s, &length, sizeof length);
            std::memcpy(parent_ + s, &new_parent, sizeof new_parent);
            const vlong nearer = length < nearest;
            nearest = nearer ? length : nearest;
            nearest_at = nearer ? at : nearest_at;
            at += lanes;
        }
        double best;
        int64_t best_at;
        least_of_lanes(nearest, nearest_at, best, best_at);
        return best < kInf ? static_cast<int>(best_at) : -1;
    }

    Matrix<Cost> costs_;
    int64_t stride_;
    int slots_ = 0;
    double *v_, *length_;  // of each slot: its column's dual, the shortest path to it so far
    int64_t* parent_;      // of each slot: the row before it on that path
    int *column_, *owner_, *waiting_;
    Row* rows_;
    Scanned* scanned_;
    Cost *taken_, *core_;
    double* price_ = nullptr;  // of each column, -inf once it is owned; nullptr where all are 0
    Cheapests<Cost>* blocks_ = nullptr;
    bool* packed_ = nullptr;  // of each tile of rows, where their columns are not side by side
    Cost* packed_rows_ = nullptr;
};

// A row-major copy in which NaN and -inf cost more than any assignment of finite entries can,
// R * max - (R - 1) * min, and costs near the end of the range are scaled by a power of two.
// Returns whether there were NaN or -inf.
template <class Cost>
bool pack_penalised(const Matrix<Cost>& from, double* to) {
    double low = kInf, high = -kInf;
    bool penalised = false;
    double* out = to;
    for (int i = 0; i < from.rows; ++i)
        for (int j = 0; j < from.columns; ++j) {
            const double x = *out++ = from.at(i, j);
            if (!std::isfinite(x)) continue;
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
    if (low > high) low = high = 0;
    double magnitude = std::fmax(std::fabs(low), std::fabs(high));
    const double scale = magnitude > 0x1p900 ? 0x1p-200 : 1;
    low *= scale, high *= scale, magnitude *= scale;
    const double penalty = high + from.rows * (high - low) + std::fmax(magnitude, DBL_MIN);
    for (double* x = to; x < out; ++x) {
        const bool bad = std::isnan(*x) || *x == -kInf;
        penalised |= bad;
        *x = bad ? penalty : *x * scale;
    }
    return penalised;
}

template <class Cost, class Write>
AssignmentStatus finish(Solver<Cost>& solver, int rows, const Write& write) {
    if (!solver.run()) return AssignmentStatus::infeasible;
    for (int i = 0; i < rows; ++i) write(i, solver.column_of(i));
    return AssignmentStatus::solved;
}

// Writes the column of each row where there is a finite assignment.
template <class Cost, class Write>
AssignmentStatus solve(const Matrix<Cost>& costs, bool refuses, Scratch& scratch, const Write& write) {
    if (!scratch.reserve(Solver<Cost>::bytes(costs))) return AssignmentStatus::out_of_memory;
    Solver<Cost> solver(costs, scratch);
    if (solver.prepare()) return finish(solver, costs.rows, write);
    const size_t cells = static_cast<size_t>(costs.rows) * costs.columns;
    Matrix<double> finite{nullptr, costs.columns, 1, costs.rows, costs.columns};
    if (!scratch.reserve(Scratch::bytes<double>(cells) + Solver<double>::bytes(finite)))
        return AssignmentStatus::out_of_memory;
    double* to = scratch.take<double>(cells);
    if (pack_penalised(costs, to) && refuses) return AssignmentStatus::refused;
    finite.data = to;
    Solver<double> careful(finite, scratch);
    careful.prepare();
    return finish(careful, costs.rows, write);
}

template <class Cost>
AssignmentStatus solve_problem(const AssignmentBatch& batch, int64_t layer, int64_t image, Scratch& scratch) {
    const int targets = static_cast<int>(batch.first[image + 1] - batch.first[image]);
    const int queries = static_cast<int>(batch.queries);
    int64_t* query = batch.query + layer * batch.first[batch.images] + batch.first[image];
    for (int t = 0; t < targets; ++t) query[t] = -1;
    if (targets == 0 || queries == 0) return AssignmentStatus::solved;
    const Cost* data = static_cast<const Cost*>(batch.costs) + layer * batch.layer_stride +
                       batch.first[image] * batch.target_stride;
    if (targets <= queries)
        return solve<Cost>({data, batch.target_stride, batch.query_stride, targets, queries}, batch.refuses,
                           scratch, [=](int row, int column) { query[row] = column; });
    return solve<Cost>({data, batch.query_stride, batch.target_stride, queries, targets}, batch.refuses,
                       scratch, [=](int row, int column) { query[column] = row; });
}

}  // namespace

void linear_assignment_cpu(const AssignmentBatch& batch, const int64_t* order, int threads) {
    const int64_t problems = batch.layers * batch.images;
    const auto solve_number = [&](int64_t p) {
        static thread_local Scratch scratch;  // here, so that every thread constructs and frees its own
        const int64_t at = p / batch.layers, image = order ? order[at] : at, layer = p % batch.layers;
        const AssignmentStatus status = batch.is_double ? solve_problem<double>(batch, layer, image, scratch)
                                                        : solve_problem<float>(batch, layer, image, scratch);
        batch.status[layer * batch.images + image] = static_cast<int32_t>(status);
        scratch.shrink();
    };
    // waking threads takes longer than a small batch
    const bool small = batch.layers * batch.first[batch.images] * batch.queries <= 200000;
    parallel_for(small ? 1 : threads, problems, solve_number);
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
