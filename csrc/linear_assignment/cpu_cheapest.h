// Cheapest columns of matrix rows by vectors: the scans that read all of the costs.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

constexpr double kInf = HUGE_VAL;

// N lanes of costs, and of column numbers as wide as they are.
template <class Cost, int N>
struct Lanes;
template <int N>
struct Lanes<float, N> {
    typedef float Value __attribute__((vector_size(4 * N)));
    typedef int32_t Index __attribute__((vector_size(4 * N)));
};
template <int N>
struct Lanes<double, N> {
    typedef double Value __attribute__((vector_size(8 * N)));
    typedef int64_t Index __attribute__((vector_size(8 * N)));
};
template <class Cost>
constexpr int kMostLanes = kLanes * 4 / sizeof(Cost);

// Costs times this one must be finite, or their sums and differences may overflow in double.
template <class Cost>
constexpr Cost kReach = sizeof(Cost) == 4 ? 1 : 0x1p123;

template <class Vector, class Element>
inline Vector load_as(const Element* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// As double, or as many of them as a vector of doubles has lanes.
template <class Doubles>
inline Doubles widen(const double* from) {
    return load_as<Doubles>(from);
}
template <class Doubles>
inline Doubles widen(const float* from) {
    if constexpr (sizeof(Doubles) == sizeof(double)) {
        return *from;
    } else {
        typedef typename Lanes<float, sizeof(Doubles) / sizeof(double)>::Value Floats;
        return __builtin_convertvector(load_as<Floats>(from), Doubles);
    }
}

// A strided [rows, columns] view; `rows` is the shorter side.
template <class Cost>
struct Matrix {
    const Cost* data;
    int64_t row_stride, column_stride;
    int rows, columns;
    Cost at(int i, int j) const { return data[i * row_stride + j * column_stride]; }
};

template <class Cost>
inline void transpose_4x4(const Cost* from, int64_t from_stride, Cost* to, int64_t to_stride) {
    typedef typename Lanes<Cost, 4>::Value Four;
    Four x[4];
    for (int l = 0; l < 4; ++l) std::memcpy(&x[l], from + l * from_stride, sizeof(Four));
    // from two vectors each, which compilers turn into one shuffle
    const Four a{x[0][0], x[1][0], x[0][1], x[1][1]}, b{x[0][2], x[1][2], x[0][3], x[1][3]};
    const Four c{x[2][0], x[3][0], x[2][1], x[3][1]}, d{x[2][2], x[3][2], x[2][3], x[3][3]};
    const Four columns[4] = {{a[0], a[1], c[0], c[1]},
                             {a[2], a[3], c[2], c[3]},
                             {b[0], b[1], d[0], d[1]},
                             {b[2], b[3], d[2], d[3]}};
    for (int k = 0; k < 4; ++k) std::memcpy(to + k * to_stride, &columns[k], sizeof(Four));
}

// A row's two cheapest columns among those free at the time, the lower index first among equals. As free
// columns only get fewer, `first` bounds the row's cheapest free column from below later on too.
template <class Cost>
struct Cheapest {
    Cost first = static_cast<Cost>(kInf), second = static_cast<Cost>(kInf);
    int first_at = -1, second_at = -1;

    void insert(Cost x, int64_t at) {
        if (x < first || (x == first && at < first_at)) {
            second = first, second_at = first_at;
            first = x, first_at = static_cast<int>(at);
        } else if (x < second || (x == second && at < second_at)) {
            second = x, second_at = static_cast<int>(at);
        }
    }
    operator Cheapest<double>() const { return {first, second, first_at, second_at}; }
};

// The same for as many rows, or parts of a row, as there are lanes.
template <class Cost, int N = kMostLanes<Cost>>
struct Cheapests {
    typedef typename Lanes<Cost, N>::Value Value;
    typedef typename Lanes<Cost, N>::Index Index;
    Value first = Value{} + static_cast<Cost>(kInf), second = first;
    Index first_at = Index{} - 1, second_at = first_at;
    Value spilt{};  // not 0 where costs were seen that the solver cannot take

    // A column beyond those that were inserted before.
    void insert(Value x, Index at) {
        const Index is_first = x < first, is_second = x < second;
        second = is_first ? first : is_second ? x : second;
        second_at = is_first ? first_at : is_second ? at : second_at;
        first = is_first ? x : first;
        first_at = is_first ? at : first_at;
    }
    void spill(Value x) { spilt += x * kReach<Cost> - x * kReach<Cost>; }
    // Other columns than those that were inserted.
    void merge(const Cheapests& other) {
        const Index theirs = (other.first < first) | ((other.first == first) & (other.first_at < first_at));
        const Value outdone = theirs ? first : other.first, next = theirs ? other.second : second;
        const Index outdone_at = theirs ? first_at : other.first_at;
        const Index next_at = theirs ? other.second_at : second_at;
        first = theirs ? other.first : first;
        first_at = theirs ? other.first_at : first_at;
        const Index is_second = (outdone < next) | ((outdone == next) & (outdone_at < next_at));
        second = is_second ? outdone : next;
        second_at = is_second ? outdone_at : next_at;
        spilt += other.spilt;
    }
    template <int M, class Of>
    Cheapests<Cost, M> mapped(const Of& of) const {
        return {of(first), of(second), of(first_at), of(second_at), of(spilt)};
    }
    Cheapest<Cost> lane(int l) const {
        return {first[l], second[l], static_cast<int>(first_at[l]), static_cast<int>(second_at[l])};
    }
};

// Half `h` of a vector, and a vector of 16 bytes with its lanes moved round by `by`.
template <int h, class Vector>
inline auto half_of(Vector whole) {
    typedef __typeof__(whole[0] + 0) Element;
    typedef Element Half __attribute__((vector_size(sizeof whole / 2)));
    Half halves[2];
    std::memcpy(halves, &whole, sizeof halves);
    return halves[h];
}
template <int by, class Vector>
inline Vector rotated(Vector x) {
    if constexpr (sizeof x / sizeof x[0] == 2)
        return Vector{x[1], x[0]};
    else
        return Vector{x[by % 4], x[(by + 1) % 4], x[(by + 2) % 4], x[(by + 3) % 4]};
}

// The least of `values` and its number, the lower one among equals.
template <class Value, class Index>
inline void least_of_lanes(Value values, Index numbers, double& least, int64_t& number) {
    if constexpr (sizeof values > 16) {
        const auto value = half_of<0>(values), other = half_of<1>(values);
        const auto at = half_of<0>(numbers), other_at = half_of<1>(numbers);
        const auto is_other = (other < value) | ((other == value) & (other_at < at));
        least_of_lanes(is_other ? other : value, is_other ? other_at : at, least, number);
    } else {
        const bool is_other = values[1] < values[0] || (values[1] == values[0] && numbers[1] < numbers[0]);
        least = is_other ? values[1] : values[0];
        number = is_other ? numbers[1] : numbers[0];
    }
}

// Of all lanes together, in each lane of the result.
template <class Cost, int N>
inline auto joined(Cheapests<Cost, N> lanes) {
    if constexpr (N * sizeof(Cost) > 16) {
        auto low = lanes.template mapped<N / 2>([](auto x) { return half_of<0>(x); });
        low.merge(lanes.template mapped<N / 2>([](auto x) { return half_of<1>(x); }));
        return joined<Cost, N / 2>(low);
    } else {
        if constexpr (N == 4) lanes.merge(lanes.template mapped<N>([](auto x) { return rotated<2>(x); }));
        lanes.merge(lanes.template mapped<N>([](auto x) { return rotated<1>(x); }));
        return lanes;
    }
}

// What is compared of a row of adjacent costs: all of them, ...
template <class Cost>
struct All {
    const Cost* costs;
    template <class Numbers>
    Numbers load(int j) const {
        return load_as<Numbers>(costs + j);
    }
};
// ... those of free columns, `taken` being +inf at the others and 0 at these, ...
template <class Cost>
struct Free {
    const Cost *costs, *taken;
    template <class Numbers>
    Numbers load(int j) const {
        return load_as<Numbers>(costs + j) + load_as<Numbers>(taken + j);
    }
};
// ... or what they are beyond their columns' prices, -inf at columns that are not free.
template <class Cost>
struct Priced {
    const Cost* costs;
    const double* price;
    template <class Numbers>
    Numbers load(int j) const {
        return widen<Numbers>(costs + j) - load_as<Numbers>(price + j);
    }
};

// Of one row. `spilt` is no longer 0 where the solver cannot take a cost.
template <class Number, class Row, int N = kMostLanes<Number>>
Cheapest<Number> two_cheapest(int columns, const Row& row, Number& spilt) {
    // joining the lanes of the widest vectors takes as long as a few of them, and those are slower on some
    // CPUs
    constexpr int kFewest = N * sizeof(Number) == 64 ? 8 * N : N;
    if constexpr (N * sizeof(Number) > 16)
        if (columns < kFewest) return two_cheapest<Number, Row, N / 2>(columns, row, spilt);
    if (columns < N) {
        Cheapest<Number> cheapest;
        for (int j = 0; j < columns; ++j) {
            const Number x = row.template load<Number>(j);
            spilt += x * kReach<Number> - x * kReach<Number>;
            cheapest.insert(x, j);
        }
        return cheapest;
    }
    typedef Cheapests<Number, N> Parts;
    const auto insert = [&](Parts& parts, int j, typename Parts::Index at) {
        const auto x = row.template load<typename Parts::Value>(j);
        parts.spill(x);
        parts.insert(x, at);
    };
    Parts parts;
    typename Parts::Index at{};
    for (int l = 0; l < N; ++l) at[l] = l;
    int j = 0;
    if (kLanes == 16 && columns >= 4 * N) {  // two dependent chains side by side, where registers suffice
        Parts others;
        for (; j + 2 * N <= columns; j += 2 * N, at += 2 * N) {
            insert(parts, j, at);
            insert(others, j + N, at + N);
        }
        parts.merge(others);
    }
    for (; j + N <= columns; j += N, at += N) insert(parts, j, at);
    if (j < columns) {  // the last vector overlaps the one before
        at += columns - N - j;
        const auto x = row.template load<typename Parts::Value>(columns - N);
        parts.spill(x);
        parts.insert(at < j ? typename Parts::Value{} + static_cast<Number>(kInf) : x, at);
    }
    const auto all = joined<Number, N>(parts);
    spilt += all.spilt[0];
    return all.lane(0);
}

// price[j] = min(price[j], costs[j] - least), for at least a vector of columns.
template <class Cost>
void lower_to(double* price, const Cost* costs, double least, int columns) {
    constexpr int N = kMostLanes<double>;
    for (int j = 0; j < columns; j += N) {
        const int at = j + N <= columns ? j : columns - N;
        const vdouble beyond = widen<vdouble>(costs + at) - least, known = load_as<vdouble>(price + at);
        const vdouble lower = beyond < known ? beyond : known;
        std::memcpy(price + at, &lower, sizeof lower);
    }
}

// Of all rows where the rows lie side by side: as many at a time as there are lanes, and a few columns for
// all of them before the next, so that the costs are read once and in order.
template <class Cost>
void two_cheapest_of_lanes(const Matrix<Cost>& costs, Cheapests<Cost>* blocks) {
    typedef typename Cheapests<Cost>::Value Value;
    typedef typename Cheapests<Cost>::Index Index;
    constexpr int kColumns = 16, N = kMostLanes<Cost>;
    const Cost* end = &costs.data[(costs.columns - 1) * costs.column_stride + costs.rows];
    for (int i = 0; i < costs.rows; i += N) blocks[i / N] = {};
    for (int j0 = 0; j0 < costs.columns; j0 += kColumns) {
        const int j1 = j0 + kColumns < costs.columns ? j0 + kColumns : costs.columns;
        for (int i = 0; i < costs.rows; i += N) {
            Cheapests<Cost> block = blocks[i / N];
            Index at = Index{} + j0;
            for (int j = j0; j < j1; ++j, at += 1) {
                const Cost* from = costs.data + j * costs.column_stride + i;
                Value x{};
                if (end - from >= N)
                    x = load_as<Value>(from);
                else  // a full vector would reach beyond the costs
                    for (int l = 0; from + l < end; ++l) x[l] = from[l];
                block.spill(x);
                block.insert(x, at);
            }
            blocks[i / N] = block;
        }
    }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
