// How bindings read their arguments, one after the other. csrc knows no torch: `use_tensors_of` says once how
// a tensor tells its dtype, shape and address. Every pointer is asked for with the type and the count that
// the code behind it relies on, so that arguments in a wrong order raise TypeError instead of reading
// garbage.
//
// A tensor whose memory is not as kernels read it raises NotReady, before anything has run; the caller then
// copies (detr_fast/ops/memory.py). All tensors of a call are on one device, which the caller sees is the
// right one; it keeps them until the function returns. Arguments are read under the GIL, before it is
// released.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "common/float_types.h"
#include "common/queue.h"

namespace detr_fast {

namespace py = pybind11;

// `torch`: a module that has `Tensor` and the dtypes; `error`: the class NotReady.
void use_tensors_of(const py::object& torch, const py::object& error);

[[noreturn]] void not_ready(const char* name, const char* expected);

// Of the last four dimensions of a tensor, in elements; 0 for those that it lacks.
struct Strides {
    int64_t of[4];
};

// The shape of a tensor, of its first dimensions.
struct Sizes {
    int64_t dims, of[6];
};

// How many targets each image of a packed batch has, as the places where each image's targets begin.
struct Targets {
    std::vector<int64_t> first;  // [images + 1]
    int64_t images() const { return static_cast<int64_t>(first.size()) - 1; }
    int64_t count() const { return first.back(); }
};

// Numbers of a type that is known at run time.
struct Floats {
    void* data;
    FloatType type;
};
struct Elements {
    void* data;
    ElementType type;  // u8 for booleans, too
};

class Arguments {
  public:
    explicit Arguments(const py::args& call) : call_(call) {}

    int64_t integer(const char* name);
    float number(const char* name);
    bool flag(const char* name);
    std::vector<int64_t> integers(const char* name);  // of a sequence; pybind11's caster takes 20 ns for each
    Targets targets(const char* name);                // from the sequence of their counts
    Queue queue();                                    // device and stream, as integers

    // Of the tensor that comes next, which has `least` dimensions or more.
    Sizes sizes(const char* name, int least) const;
    // That the tensor that comes next has this shape.
    void expect(const char* name, std::initializer_list<int64_t> shape) const;

    // Each of `count` numbers.
    template <class T>
    T* array(const char* name, int64_t count) {
        using Number = std::remove_const_t<T>;
        static_assert(std::is_same_v<Number, float> || std::is_same_v<Number, int32_t> ||
                      std::is_same_v<Number, int64_t> || std::is_same_v<Number, uint8_t>);
        constexpr Dtype wanted = std::is_same_v<Number, float>     ? Dtype::f32
                                 : std::is_same_v<Number, int32_t> ? Dtype::i32
                                 : std::is_same_v<Number, int64_t> ? Dtype::i64
                                                                   : Dtype::u8;
        return static_cast<T*>(array_of(wanted, name, count));
    }
    Floats floats(const char* name, int64_t count);
    // With `strides` elements may lie anywhere; other arrays are contiguous and aligned to 16 bytes.
    Elements elements(const char* name, int64_t count, Strides* strides = nullptr);
    void* array_of(FloatType type, const char* name, int64_t count) {
        return array_of(Dtype(type), name, count);
    }
    // float32 or float64 anywhere.
    void* float_or_double(bool& is_double, const char* name, int64_t count, Strides& strides);

    // Whether the next argument is None, which is then done with.
    bool skip_none();

    void end() const;  // there are no more

  private:
    enum class Dtype : int { f32, bf16, f16, u8, f64, i32, i64, boolean, count };  // the first as ElementType
    friend void use_tensors_of(const py::object&, const py::object&);
    struct Memory {
        void* data;
        Dtype dtype;  // `count` for one that no kernel takes
        int64_t elements;
        bool packed;
        int64_t device;
    };
    static Memory by_exchange(py::handle tensor, const char* name, Strides* strides);
    static Memory by_attributes(py::handle tensor, const char* name, Strides* strides);
    Memory memory(py::handle tensor, const char* name, int64_t count, Strides* strides = nullptr);
    py::handle peek(const char* name) const;
    py::handle next(const char* name);
    void* array_of(Dtype dtype, const char* name, int64_t count);

    const py::args& call_;
    size_t at_ = 0;
    int64_t device_ = -1;  // of the tensors so far
};

}  // namespace detr_fast
