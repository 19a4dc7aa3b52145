// Run-time choice among the instruction sets that the CPU sources were compiled for.
//
// CMake compiles every `csrc/<op>/cpu.cpp` once per instruction set with DETR_FAST_ISA set to the name
// of the namespace that holds the copy. Such a file must not instantiate templates of the standard
// library: the linker keeps one copy of each, and it could be the AVX-512 one.
#pragma once

namespace detr_fast {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this machine, unless `set_isa` has asked for a lesser one.
Isa active_isa();
Isa best_isa();
bool set_isa(Isa isa);  // false where the machine lacks it
const char* isa_name(Isa isa);

}  // namespace detr_fast

#if defined(__x86_64__)
#define DETR_FAST_DECLARE_CPU(function, arguments) \
    namespace baseline {                           \
    void function arguments;                       \
    }                                              \
    namespace avx2 {                               \
    void function arguments;                       \
    }                                              \
    namespace avx512 {                             \
    void function arguments;                       \
    }
#define DETR_FAST_CPU(function)                                               \
    (::detr_fast::active_isa() == ::detr_fast::Isa::avx512 ? avx512::function \
     : ::detr_fast::active_isa() == ::detr_fast::Isa::avx2 ? avx2::function   \
                                                           : baseline::function)
#else
#define DETR_FAST_DECLARE_CPU(function, arguments) \
    namespace baseline {                           \
    void function arguments;                       \
    }
#define DETR_FAST_CPU(function) baseline::function
#endif
