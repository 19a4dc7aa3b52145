// simt.h on the host, for tests: every lane of a block is a cooperative fiber, and every word checks what it
// is asked. A launch throws std::runtime_error, naming kernel, block, thread and source line, where
// - an access lies outside its array, or a vector access is misaligned;
// - threads that must meet at a barrier, shuffle or ballot do not: one has left, waits elsewhere or with
//   another mask; or a shuffle reads a lane outside the mask;
// - two threads race: both access an element, one writes, and no barrier orders them (atomics may meet);
// - shared memory is read that no thread of the block has written.
// Blocks run one after another in a shuffled order; so do the threads of a block between two barriers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/float_types.h"
#include "common/shared_memory.h"

#define SIMT_KERNEL(...) inline
#define SIMT_DEVICE inline
#define SIMT_SHARED(T, name, count)   \
    static const char name##_key = 0; \
    const auto name = ::detr_fast::simt::shared_array<T>(&name##_key, #name, count)
#define SIMT_DYNAMIC_SHARED(T, name) const auto name = ::detr_fast::simt::dynamic_shared_array<T>(#name)
#define SIMT_UNROLL

namespace detr_fast {
namespace simt {

constexpr unsigned kAllLanes = 0xffffffffu;
using Stream = void*;
struct Grid {
    unsigned x, y, z;
    Grid(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// A line of kernel source; as a default argument, the caller's.
struct Site {
    const char* file;
    int line;
};
constexpr Site caller(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
}

template <class T, int Count>
struct alignas(sizeof(T) * Count) Vec {
    T at[Count];
    T& operator[](int i) { return at[i]; }
    const T& operator[](int i) const { return at[i]; }
};

// What simt_host.cpp does for the words below.
namespace host {

struct Position {
    int thread = 0, threads = 0;
    Grid block, grid;
};
extern Position position;  // of the running lane

enum class Access { read, read_only, write, atomic };
// The element of an array, for messages; `name` is nullptr for arrays in global memory.
struct Element {
    const char* name;
    int64_t index, count;
    Site site;
};
[[noreturn]] void fail(const Site& site, const std::string& what);
[[noreturn]] void fail(const Element& element, const std::string& what);
void access(const void* address, Access how, const Element& element);
void* shared_memory(const void* key, const char* name, size_t bytes);
void* dynamic_shared_memory(size_t& bytes);

enum class Word { sync_block, sync_block_or, sync_warp, shuffle, shuffle_xor, shuffle_up, ballot };
// Waits for all threads of the block, or of the mask; the bits that this lane receives.
uint64_t meet(Word word, unsigned mask, uint64_t bits, int source, const Site& site);

void run(const char* name, Grid grid, int threads, size_t shared_bytes, const std::function<void()>& lane);
void set_seed(uint64_t seed);
void set_most_shared(size_t bytes);  // of a block, on the device that is simulated

template <class T>
struct Scalar {
    using type = T;
    static constexpr int count = 1;
};
template <class T, int Count>
struct Scalar<Vec<T, Count>> {
    using type = T;
    static constexpr int count = Count;
};

template <class T>
void access_all(const T* at, Access how, const Element& element) {
    using S = Scalar<std::remove_const_t<T>>;
    for (int k = 0; k < S::count; ++k)
        access(reinterpret_cast<const typename S::type*>(at) + k, how, element);
}

// An index, and the line on which it is used.
struct Index {
    int64_t i;
    Site site;
    template <class I, class = std::enable_if_t<std::is_convertible_v<I, int64_t>>>
    Index(I index, Site at = caller()) : i(static_cast<int64_t>(index)), site(at) {}
};

// &array[i]: the argument of an atomic.
template <class T>
struct Address {
    T* at;
    Element element;
};

// array[i]: tells reads from writes. It lives within one expression: `auto x = array[i]` cannot be used.
template <class T>
class Reference {
  public:
    Reference(T* at, const Element& element) : at_(at), element_(element) {}
    Reference(const Reference&) = delete;

    operator T() && {
        access_all(at_, Access::read, element_);
        return *at_;
    }
    void operator=(const T& v) && {
        access_all(at_, Access::write, element_);
        *at_ = v;
    }
    void operator=(Reference&& other) && { std::move(*this) = static_cast<T>(std::move(other)); }
    void operator+=(const T& v) && {
        access_all(at_, Access::read, element_);
        std::move(*this) = static_cast<T>(*at_ + v);
    }
    template <class I, class S = Scalar<T>, class = std::enable_if_t<(S::count > 1) && sizeof(I)>>
    Reference<typename S::type> operator[](I k) && {
        if (k < 0 || k >= S::count) fail(element_, "has no component " + std::to_string(k));
        return {&at_->at[k], element_};
    }
    Address<T> operator&() && { return {at_, element_}; }

  private:
    T* at_;
    Element element_;
};

template <class T>
inline constexpr bool kWholeVector = (sizeof(T) & (sizeof(T) - 1)) == 0 && sizeof(T) >= 4 && sizeof(T) <= 16;

}  // namespace host

template <class T>
struct Global {
    T* data;
    int64_t count, start = 0;

    // The address of elements i .. i + many - 1.
    T* at(int64_t i, int many, const Site& site) const {
        if (data == nullptr) host::fail(element(i, site), "does not exist: the array is null");
        if (start + i < 0 || start + i + many > count) host::fail(element(i, site), "is out of bounds");
        return data + start + i;
    }
    // As `at`, for one access of `many` elements.
    T* vector_at(int64_t i, int many, const Site& site) const {
        T* address = at(i, many, site);
        if (reinterpret_cast<uintptr_t>(address) % (sizeof(T) * many))
            host::fail(element(i, site),
                       "is misaligned for an access of " + std::to_string(many) + " elements");
        return address;
    }
    host::Element element(int64_t i, const Site& site) const { return {nullptr, start + i, count, site}; }

    auto operator[](host::Index i) const {
        T* address = at(i.i, 1, i.site);
        if constexpr (std::is_const_v<T>) {
            host::access_all(address, host::Access::read_only, element(i.i, i.site));
            return std::remove_const_t<T>(*address);
        } else {
            return host::Reference<T>(address, element(i.i, i.site));
        }
    }
    Global operator+(int64_t offset) const { return {data, count, start + offset}; }
    explicit operator bool() const { return data != nullptr; }
};

inline int64_t multiply_wide(int a, int b) { return static_cast<int64_t>(a) * b; }

template <class T>
Global<T> advance(Global<T> from, int steps, int stride) {
    return from + multiply_wide(steps, stride);
}

template <class T>
Global<T> global(T* data, int64_t count) {
    return {data, count};
}

template <class T>
struct Shared {
    T* data;
    int64_t count, start;
    const char* name;

    host::Reference<T> operator[](host::Index i) const {
        const host::Element element{name, start + i.i, count, i.site};
        if (element.index < 0 || element.index >= count) host::fail(element, "is out of bounds");
        return {data + element.index, element};
    }
    Shared operator+(int64_t offset) const { return {data, count, start + offset, name}; }
};

template <class T>
Shared<T> shared_array(const void* key, const char* name, int64_t count) {
    return {static_cast<T*>(host::shared_memory(key, name, count * sizeof(T))), count, 0, name};
}
template <class T>
Shared<T> dynamic_shared_array(const char* name) {
    size_t bytes;
    T* data = static_cast<T*>(host::dynamic_shared_memory(bytes));
    return {data, static_cast<int64_t>(bytes / sizeof(T)), 0, name};
}

template <class T>
T load(Global<const T> from, int64_t i, Site site = caller()) {
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
                  "load: 1, 2, 4, 8 or 16 bytes");
    const T* address = from.vector_at(i, 1, site);
    host::access_all(address, host::Access::read_only, from.element(i, site));
    return *address;
}

template <int Count, class T>
Vec<T, Count> load_vec(Global<const T> from, int64_t i, Site site = caller()) {
    static_assert(Count == 1 || host::kWholeVector<Vec<T, Count>>, "load_vec: 4, 8 or 16 bytes");
    Vec<T, Count> v;
    const T* address = from.vector_at(i, Count, site);
    for (int k = 0; k < Count; ++k) {
        host::access_all(address + k, host::Access::read_only, from.element(i + k, site));
        v[k] = address[k];
    }
    return v;
}

template <int Count, class T>
Vec<T, Count> load_vec_if(bool condition, Global<const T> from, int64_t i, Site site = caller()) {
    return condition ? load_vec<Count>(from, i, site) : Vec<T, Count>{};
}

template <class T, int Count>
Vec<float, Count> widen(const Vec<T, Count>& v) {
    Vec<float, Count> wide;
    for (int k = 0; k < Count; ++k) wide[k] = to_float(v[k]);
    return wide;
}

template <class T, int Count>
void store_vec(Global<T> to, int64_t i, const Vec<T, Count>& v, Site site = caller()) {
    T* address = to.vector_at(i, Count, site);
    for (int k = 0; k < Count; ++k) {
        host::access_all(address + k, host::Access::write, to.element(i + k, site));
        address[k] = v[k];
    }
}

inline int thread() { return host::position.thread; }
inline int block_threads() { return host::position.threads; }
inline int lane() { return host::position.thread & 31; }
inline int warp() { return host::position.thread >> 5; }
inline unsigned block_x() { return host::position.block.x; }
inline unsigned block_y() { return host::position.block.y; }
inline unsigned block_z() { return host::position.block.z; }
inline unsigned grid_x() { return host::position.grid.x; }
inline unsigned grid_y() { return host::position.grid.y; }

inline void sync_block(Site site = caller()) { host::meet(host::Word::sync_block, kAllLanes, 0, 0, site); }
inline void sync_warp(unsigned mask = kAllLanes, Site site = caller()) {
    host::meet(host::Word::sync_warp, mask, 0, 0, site);
}
inline bool sync_block_or(bool p, Site site = caller()) {
    return host::meet(host::Word::sync_block_or, kAllLanes, p, 0, site) != 0;
}

namespace host {
template <class T>
T exchange(Word word, unsigned mask, T v, int source, const Site& site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffle: 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    bits = meet(word, mask, bits, source, site);
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
}  // namespace host

template <class T>
T shuffle(T v, int source, unsigned mask = kAllLanes, Site site = caller()) {
    return host::exchange(host::Word::shuffle, mask, v, source, site);
}
template <class T>
T shuffle_xor(T v, int lanes, unsigned mask = kAllLanes, Site site = caller()) {
    return host::exchange(host::Word::shuffle_xor, mask, v, lane() ^ lanes, site);
}
template <class T>
T shuffle_up(T v, int by, unsigned mask = kAllLanes, Site site = caller()) {
    return host::exchange(host::Word::shuffle_up, mask, v, lane() < by ? lane() : lane() - by, site);
}
inline unsigned ballot(bool p, unsigned mask = kAllLanes, Site site = caller()) {
    const uint64_t bit = static_cast<uint64_t>(p) << lane();
    return static_cast<unsigned>(host::meet(host::Word::ballot, mask, bit, 0, site));
}
inline unsigned reduce_min(unsigned v, Site site = caller()) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const unsigned other = shuffle_xor(v, lanes, kAllLanes, site);
        if (other < v) v = other;
    }
    return v;
}
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }
inline int lowest_bit(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }

inline float fast_exp(float x) { return std::exp(x); }

namespace host {
template <class T, class Change>
T atomic(const Address<T>& to, Change change) {
    access(to.at, Access::atomic, to.element);
    const T before = *to.at;
    *to.at = change(before);
    return before;
}
template <class T>
using Plain = std::common_type_t<T>;  // deduced from the address alone
}  // namespace host

inline void add_to(Global<float> to, int64_t i, float v, Site site = caller()) {
    host::atomic<float>({to.at(i, 1, site), to.element(i, site)}, [v](float x) { return x + v; });
}
inline void add4_to(Global<float> to, int64_t i, const Vec<float, 4>& v, Site site = caller()) {
    to.vector_at(i, 4, site);
    for (int k = 0; k < 4; ++k) add_to(to, i + k, v[k], site);
}

template <class T>
T atomic_min(host::Address<T> at, host::Plain<T> v) {
    return host::atomic(at, [v](T x) { return v < x ? v : x; });
}
template <class T>
T atomic_max(host::Address<T> at, host::Plain<T> v) {
    return host::atomic(at, [v](T x) { return x < v ? v : x; });
}
template <class T>
T atomic_add(host::Address<T> at, host::Plain<T> v) {
    return host::atomic(at, [v](T x) { return static_cast<T>(x + v); });
}
template <class T>
T atomic_exchange(host::Address<T> at, host::Plain<T> v) {
    return host::atomic(at, [v](T) { return v; });
}
template <class T>
T atomic_cas(host::Address<T> at, host::Plain<T> expected, host::Plain<T> desired) {
    return host::atomic(at, [=](T x) { return x == expected ? desired : x; });
}

class UseDevice {
  public:
    explicit UseDevice(int) {}
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), Grid grid, int threads, size_t shared_bytes,
            Stream, Arguments... arguments) {
    host::run(name, grid, threads, shared_bytes, [&] { kernel(Parameters(arguments)...); });
}

}  // namespace simt
}  // namespace detr_fast
