// How bindings read their arguments, one after the other. csrc knows no torch: `use_tensors_of(torch)` says
// once how a tensor tells its dtype, number of elements and address. Every pointer is asked for with the type
// and the count that the code behind it relies on, so that arguments in a wrong order raise TypeError instead
// of reading garbage.
//
// The caller hands over contiguous memory on the right device (detr_fast/ops/memory.py) and keeps the tensors
// until the function returns. Arguments are read under the GIL, before it is released.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <type_traits>
#include <vector>

#include "common/float_types.h"
#include "common/queue.h"

namespace detr_fast {

namespace py = pybind11;

// `torch`: a module that has `Tensor` and the dtypes.
void use_tensors_of(const py::object& torch);

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
    std::vector<int64_t> pairs(const char* name);     // of a sequence of pairs, one after the other
    Targets targets(const char* name);                // from the sequence of their counts
    Queue queue();                                    // device and stream, as integers

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
    Elements elements(const char* name, int64_t count);
    void* array_of(FloatType type, const char* name, int64_t count) {
        return array_of(Dtype(type), name, count);
    }
    // float32 or float64.
    void* float_or_double(bool& is_double, const char* name, int64_t count);

    // Whether the next argument is None, which is then done with.
    bool skip_none();

    void end() const;  // there are no more

  private:
    enum class Dtype : int { f32, bf16, f16, u8, f64, i32, i64, boolean, count };  // the first as ElementType
    friend void use_tensors_of(const py::object&);
    struct Memory {
        void* data;
        Dtype dtype;
    };
    py::handle next(const char* name);
    Memory memory(py::handle tensor, const char* name, int64_t count);
    void* array_of(Dtype dtype, const char* name, int64_t count);

    const py::args& call_;
    size_t at_ = 0;
};

}  // namespace detr_fast
