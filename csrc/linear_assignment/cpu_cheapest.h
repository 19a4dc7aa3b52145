// Cheapest columns of matrix rows by vectors: the scans that read all of the costs.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "common/simd.h"

namespace detr_fast {
namespace DETR_FAST_ISA {

constexpr double kInf = HUGE_VAL;

template <class Cost>
struct Simd;
template <>
struct Simd<float> {
    typedef vfloat Value;
    typedef vint Index;
    typedef int32_t Int;
    static constexpr int lanes = kLanes;
    static constexpr float largest = FLT_MAX;
};
template <>
struct Simd<double> {
    typedef vdouble Value;
    typedef vlong Index;
    typedef int64_t Int;
    static constexpr int lanes = kLanes / 2;
    // larger costs are scaled down first: their sums and differences would overflow
    static constexpr double largest = 0x1p900;
};

template <class Vector, class Element>
inline Vector load_as(const Element* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline vdouble widen(const double* from) { return load_as<vdouble>(from); }
inline vdouble widen(const float* from) {
    typedef float vnarrow __attribute__((vector_size(sizeof(vdouble) / 2)));
    return __builtin_convertvector(load_as<vnarrow>(from), vdouble);
}

// A strided [rows, columns] view; `rows` is the shorter side.
template <class Cost>
struct Matrix {
    const Cost* data;
    int64_t row_stride, column_stride;
    int rows, columns;
    Cost at(int i, int j) const { return data[i * row_stride + j * column_stride]; }
};

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
};

// The same for as many rows, or parts of a row, as there are lanes.
template <class Cost>
struct Cheapests {
    typedef typename Simd<Cost>::Value Value;
    typedef typename Simd<Cost>::Index Index;
    Value first = Value{} + static_cast<Cost>(kInf), second = first;
    Index first_at = Index{} - 1, second_at = first_at;
    Index odd{};  // costs beyond `largest` were seen, or infinities or NaN

    void insert(Value x, Index at) {
        const Index is_first = x < first, is_second = x < second;
        second = is_first ? first : is_second ? x : second;
        second_at = is_first ? first_at : is_second ? at : second_at;
        first = is_first ? x : first;
        first_at = is_first ? at : first_at;
    }
    void check(Value x) { odd |= ~((x <= Simd<Cost>::largest) & (x >= -Simd<Cost>::largest)); }
    Cheapest<Cost> lane(int l) const {
        return {first[l], second[l], static_cast<int>(first_at[l]), static_cast<int>(second_at[l])};
    }
};

// Of one row of adjacent costs. `taken` is +inf at columns that are not free, else 0; without it all are
// free, and lanes of `odd` are set by costs that the solver must not see.
template <class Cost>
Cheapest<Cost> two_cheapest(const Cost* costs, int columns, const Cost* taken,
                            typename Simd<Cost>::Index& odd) {
    typedef Simd<Cost> S;
    typedef typename S::Value Value;
    typedef typename S::Index Index;
    Cheapests<Cost> lanes;
    const auto load = [&](int j) {
        const Value x = load_as<Value>(costs + j);
        if (taken) return x + load_as<Value>(taken + j);
        lanes.check(x);
        return x;
    };
    Index at{};
    for (int l = 0; l < S::lanes; ++l) at[l] = l;
    int j = 0;
    for (; j + S::lanes <= columns; j += S::lanes, at += S::lanes) lanes.insert(load(j), at);
    if (j > 0 && j < columns) {  // the last vector overlaps the one before
        at += columns - S::lanes - j;
        lanes.insert(at < j ? Value{} + static_cast<Cost>(kInf) : load(columns - S::lanes), at);
        j = columns;
    }
    Cheapest<Cost> cheapest;
    for (int l = 0; l < S::lanes; ++l) cheapest.insert(lanes.first[l], lanes.first_at[l]);
    for (int l = 0; l < S::lanes; ++l) cheapest.insert(lanes.second[l], lanes.second_at[l]);
    for (; j < columns; ++j) {
        if (!taken) lanes.check(Value{} + costs[j]);
        cheapest.insert(taken ? costs[j] + taken[j] : costs[j], j);
    }
    odd |= lanes.odd;
    return cheapest;
}

// Of all rows where the rows lie side by side: `lanes` rows at a time, and a few columns for all of them
// before the next, so that the costs are read once and in order.
template <class Cost>
void two_cheapest_of_lanes(const Matrix<Cost>& costs, Cheapests<Cost>* blocks) {
    typedef Simd<Cost> S;
    typedef typename S::Value Value;
    constexpr int kColumns = 16;
    const Cost* end = &costs.data[(costs.columns - 1) * costs.column_stride + costs.rows];
    for (int i = 0; i < costs.rows; i += S::lanes) blocks[i / S::lanes] = {};
    for (int j0 = 0; j0 < costs.columns; j0 += kColumns) {
        const int j1 = j0 + kColumns < costs.columns ? j0 + kColumns : costs.columns;
        for (int i = 0; i < costs.rows; i += S::lanes) {
            Cheapests<Cost> block = blocks[i / S::lanes];
            typename S::Index at = typename S::Index{} + j0;
            for (int j = j0; j < j1; ++j, at += 1) {
                const Cost* from = costs.data + j * costs.column_stride + i;
                Value x{};
                if (end - from >= S::lanes)
                    x = load_as<Value>(from);
                else  // a full vector would reach beyond the costs
                    for (int l = 0; from + l < end; ++l) x[l] = from[l];
                block.check(x);
                block.insert(x, at);
            }
            blocks[i / S::lanes] = block;
        }
    }
}

}  // namespace DETR_FAST_ISA
}  // namespace detr_fast
