#include "common/arguments.h"

#include <algorithm>
#include <iterator>

#include "common/dlpack.h"

namespace detr_fast {
namespace {

constexpr const char* kDtypeNames[] = {"float32", "bfloat16", "float16", "uint8",
                                       "float64", "int32",    "int64",   "bool"};
constexpr int kDtypes = sizeof kDtypeNames / sizeof *kDtypeNames;

constexpr uintptr_t kAlignment = 16;

// References that are never given back: the interpreter may end before static objects do.
PyObject *dtypes[kDtypes], *dtype, *shape, *device, *numel, *data_ptr, *stride, *is_contiguous, *is_neg,
    *not_ready_class;
const DlpackExchange* exchange;  // of torch 2.10 and later: a tensor is read in a third of the time

long long to_integer(PyObject* object) {
    const long long number = PyLong_AsLongLong(object);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
}

// What a method without arguments returns, an integer or a bool.
long long call(PyObject* method, py::handle self) {
    PyObject* const arguments[] = {self.ptr()};
    const py::object result =
        py::reinterpret_steal<py::object>(PyObject_Vectorcall(method, arguments, 1, nullptr));
    if (!result) throw py::error_already_set();
    return to_integer(result.ptr());
}

PyObject* attribute(py::handle of, const char* name) { return py::object(of.attr(name)).release().ptr(); }

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }
std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

[[noreturn]] void refuse(const char* name, const std::string& expected, const std::string& got) {
    throw py::type_error(std::string(name) + ": expected " + expected + "; got " + got);
}
// A list or tuple of what `object` holds; itself where it is one.
py::object sequence(py::handle object, const char* name) {
    if (!PySequence_Check(object.ptr())) refuse(name, "a sequence", type_name(object));
    py::object items = py::reinterpret_steal<py::object>(PySequence_Fast(object.ptr(), name));
    if (!items) throw py::error_already_set();
    return items;
}

[[noreturn]] void refuse_dtype(py::handle tensor, const char* name, const char* expected) {
    refuse(name, expected, text(tensor.attr("dtype")));
}

}  // namespace

void use_tensors_of(const py::object& torch, const py::object& error) {
    static_assert(kDtypes == static_cast<int>(Arguments::Dtype::count));
    for (int i = 0; i < kDtypes; ++i) dtypes[i] = attribute(torch, kDtypeNames[i]);
    dtype = PyUnicode_InternFromString("dtype");
    shape = PyUnicode_InternFromString("shape");
    device = PyUnicode_InternFromString("device");
    const py::object tensor = torch.attr("Tensor");
    numel = attribute(tensor, "numel");
    data_ptr = attribute(tensor, "data_ptr");
    stride = attribute(tensor, "stride");
    is_contiguous = attribute(tensor, "is_contiguous");
    is_neg = attribute(tensor, "is_neg");
    not_ready_class = py::object(error).release().ptr();
    exchange = dlpack_exchange_of(tensor.ptr());
}

void not_ready(const char* name, const char* expected) {
    PyErr_Format(not_ready_class, "%s: expected %s", name, expected);
    throw py::error_already_set();
}

py::handle Arguments::peek(const char* name) const {
    if (at_ >= call_.size()) refuse(name, "an argument", "none");
    return PyTuple_GET_ITEM(call_.ptr(), at_);
}

py::handle Arguments::next(const char* name) {
    const py::handle found = peek(name);
    ++at_;
    return found;
}

void Arguments::end() const {
    if (at_ != call_.size())
        throw py::type_error("expected " + std::to_string(at_) + " arguments; got " +
                             std::to_string(call_.size()));
}

bool Arguments::skip_none() {
    const bool none = at_ < call_.size() && PyTuple_GET_ITEM(call_.ptr(), at_) == Py_None;
    at_ += none;
    return none;
}

int64_t Arguments::integer(const char* name) {
    const py::handle found = next(name);
    if (!PyLong_Check(found.ptr())) refuse(name, "an integer", type_name(found));
    return to_integer(found.ptr());
}

float Arguments::number(const char* name) {
    const py::handle found = next(name);
    if (!PyFloat_Check(found.ptr()) && !PyLong_Check(found.ptr())) refuse(name, "a number", type_name(found));
    const double number = PyFloat_AsDouble(found.ptr());
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return static_cast<float>(number);
}

bool Arguments::flag(const char* name) {
    const py::handle found = next(name);
    if (!PyBool_Check(found.ptr())) refuse(name, "True or False", type_name(found));
    return found.ptr() == Py_True;
}

std::vector<int64_t> Arguments::integers(const char* name) {
    const py::object items = sequence(next(name), name);
    std::vector<int64_t> numbers(PySequence_Fast_GET_SIZE(items.ptr()));
    for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = to_integer(PySequence_Fast_GET_ITEM(items.ptr(), i));
    return numbers;
}

Targets Arguments::targets(const char* name) {
    Targets targets{integers(name)};
    targets.first.insert(targets.first.begin(), 0);
    for (size_t i = 1; i < targets.first.size(); ++i) {
        if (targets.first[i] < 0)
            throw py::value_error(std::string(name) + ": expected counts >= 0; got " +
                                  std::to_string(targets.first[i]));
        targets.first[i] += targets.first[i - 1];
    }
    return targets;
}

Queue Arguments::queue() {
    const int device = static_cast<int>(integer("device"));
    return {device, reinterpret_cast<void*>(integer("stream"))};
}

Sizes Arguments::sizes(const char* name, int least) const {
    const py::handle tensor = peek(name);
    Sizes sizes{};
    DlpackTensor view;
    py::object all;
    if (exchange && exchange->view(tensor.ptr(), &view) == 0) {
        sizes.dims = view.ndim;
    } else {
        PyErr_Clear();
        all = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), shape));
        if (!all) PyErr_Clear();
        if (all && PyTuple_Check(all.ptr())) sizes.dims = PyTuple_GET_SIZE(all.ptr());
    }
    if (sizes.dims < least)
        refuse(name, "a tensor of at least " + std::to_string(least) + " dimensions", type_name(tensor));
    for (int64_t i = 0; i < std::min<int64_t>(sizes.dims, std::size(sizes.of)); ++i)
        sizes.of[i] = all ? to_integer(PyTuple_GET_ITEM(all.ptr(), i)) : view.shape[i];
    return sizes;
}

void Arguments::expect(const char* name, std::initializer_list<int64_t> shape) const {
    const Sizes found = sizes(name, static_cast<int>(shape.size()));
    if (found.dims == static_cast<int64_t>(shape.size()) && std::equal(shape.begin(), shape.end(), found.of))
        return;
    std::string expected;
    for (int64_t size : shape) expected += (expected.empty() ? "[" : ", ") + std::to_string(size);
    refuse(name, expected + "]", text(py::list(peek(name).attr("shape"))));
}

Arguments::Memory Arguments::by_exchange(py::handle tensor, const char* name, Strides* strides) {
    DlpackTensor view;
    if (exchange->view(tensor.ptr(), &view) != 0) {
        PyErr_Clear();
        refuse(name, "a tensor", type_name(tensor));
    }
    Memory found{static_cast<char*>(view.data) + view.byte_offset, Dtype::count, 1, true,
                 int64_t{view.device.type} << 32 | static_cast<uint32_t>(view.device.index)};
    constexpr struct {
        uint8_t code, bits;
    } kCodes[kDtypes] = {{kDlpackFloat, 32}, {kDlpackBfloat, 16}, {kDlpackFloat, 16}, {kDlpackUInt, 8},
                         {kDlpackFloat, 64}, {kDlpackInt, 32},    {kDlpackInt, 64},   {kDlpackBool, 8}};
    for (int i = 0; i < kDtypes; ++i)
        if (view.dtype.code == kCodes[i].code && view.dtype.bits == kCodes[i].bits) found.dtype = Dtype(i);
    for (int32_t d = view.ndim - 1; d >= 0; --d) {
        found.packed &= view.shape[d] == 1 || view.strides[d] == found.elements;
        found.elements *= view.shape[d];
    }
    found.packed |= found.elements == 0;
    if (strides) {
        *strides = {};
        for (int i = 1; i <= std::min(view.ndim, 4); ++i) strides->of[4 - i] = view.strides[view.ndim - i];
    }
    return found;
}

Arguments::Memory Arguments::by_attributes(py::handle tensor, const char* name, Strides* strides) {
    const py::object type = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), dtype));
    if (!type) {
        PyErr_Clear();
        refuse(name, "a tensor", type_name(tensor));
    }
    int number = 0;
    while (number < kDtypes && dtypes[number] != type.ptr()) ++number;
    if (strides) {
        const auto all = py::reinterpret_borrow<py::function>(stride)(tensor).cast<py::tuple>();
        *strides = {};
        for (size_t i = 1; i <= std::min<size_t>(all.size(), 4); ++i)
            strides->of[4 - i] = all[all.size() - i].cast<int64_t>();
    }
    const py::object place = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), device));
    if (!place) throw py::error_already_set();
    return {reinterpret_cast<void*>(call(data_ptr, tensor)), Dtype(number), call(numel, tensor),
            call(is_contiguous, tensor) != 0, PyObject_Hash(place.ptr())};
}

Arguments::Memory Arguments::memory(py::handle tensor, const char* name, int64_t count, Strides* strides) {
    if (!not_ready_class) throw std::runtime_error("use_tensors_of(torch, ...) comes first");
    const Memory found = exchange ? by_exchange(tensor, name, strides) : by_attributes(tensor, name, strides);
    if (device_ == -1) device_ = found.device;
    if (found.device != device_) refuse(name, "the device of the other tensors", text(tensor.attr("device")));
    if (found.elements != count)
        refuse(name, std::to_string(count) + " elements",
               std::to_string(found.elements) + " in shape " + text(py::list(tensor.attr("shape"))));
    const char* wanted = nullptr;
    if (!found.data && count) {
        wanted = "a tensor with memory";
    } else if (!strides && !(found.packed && reinterpret_cast<uintptr_t>(found.data) % kAlignment == 0)) {
        wanted = "contiguous memory, aligned to 16 bytes";
    } else if (found.dtype <= Dtype::f64 && found.dtype != Dtype::u8 && call(is_neg, tensor)) {
        wanted = "memory without the negative bit";
    }
    if (wanted) not_ready(name, wanted);
    return found;
}

void* Arguments::array_of(Dtype wanted, const char* name, int64_t count) {
    const py::handle tensor = next(name);
    const Memory found = memory(tensor, name, count);
    if (found.dtype != wanted) refuse_dtype(tensor, name, kDtypeNames[static_cast<int>(wanted)]);
    return found.data;
}

Floats Arguments::floats(const char* name, int64_t count) {
    const py::handle tensor = next(name);
    const Memory found = memory(tensor, name, count);
    if (found.dtype > Dtype::f16) refuse_dtype(tensor, name, "float32, bfloat16 or float16");
    return {found.data, FloatType(found.dtype)};
}

Elements Arguments::elements(const char* name, int64_t count, Strides* strides) {
    const py::handle tensor = next(name);
    const Memory found = memory(tensor, name, count, strides);
    if (found.dtype == Dtype::boolean) return {found.data, ElementType::u8};
    if (found.dtype > Dtype::u8) refuse_dtype(tensor, name, "float32, bfloat16, float16, uint8 or bool");
    return {found.data, ElementType(found.dtype)};
}

void* Arguments::float_or_double(bool& is_double, const char* name, int64_t count, Strides& strides) {
    const py::handle tensor = next(name);
    const Memory found = memory(tensor, name, count, &strides);
    if (found.dtype != Dtype::f32 && found.dtype != Dtype::f64)
        refuse_dtype(tensor, name, "float32 or float64");
    is_double = found.dtype == Dtype::f64;
    return found.data;
}

}  // namespace detr_fast
