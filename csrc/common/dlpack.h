// Reading tensors through DLPack's C exchange API (https://dmlc.github.io/dlpack/latest/c_api.html), version
// 1: the parts of its binary interface that are used here.
#pragma once

#include <Python.h>

#include <cstdint>

namespace detr_fast {

struct DlpackTensor {
    void* data;
    struct {
        int32_t type, index;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;  // strides in elements
    uint64_t byte_offset;
};

enum : uint8_t { kDlpackInt = 0, kDlpackUInt = 1, kDlpackFloat = 2, kDlpackBfloat = 4, kDlpackBool = 6 };

struct DlpackExchange {
    struct {
        uint32_t major, minor;
    } version;
    const DlpackExchange* previous;
    void *allocate, *from_object, *to_object;           // functions that are not used
    int (*view)(void* object, DlpackTensor* borrowed);  // nonzero with a Python error set where it fails
};

// What the class of a tensor offers, or nullptr.
inline const DlpackExchange* dlpack_exchange_of(PyObject* tensor_class) {
    PyObject* const capsule = PyObject_GetAttrString(tensor_class, "__dlpack_c_exchange_api__");
    const DlpackExchange* exchange = nullptr;
    if (capsule) {
        exchange = static_cast<const DlpackExchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        Py_DECREF(capsule);  // the table lives as long as the process
    }
    PyErr_Clear();
    while (exchange && exchange->version.major != 1) exchange = exchange->previous;
    return exchange;
}

}  // namespace detr_fast
