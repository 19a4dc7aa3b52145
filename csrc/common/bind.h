#pragma once

#include <pybind11/pybind11.h>

namespace detr_fast {

// What belongs to no operator: instruction sets, threads, devices, and how tensors are read.
void bind_machine(pybind11::module_& m);

}  // namespace detr_fast
