#include "common/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace detr_fast {
namespace {

#if defined(__x86_64__)
// Conversions of float16, by a name that older compilers' __builtin_cpu_supports lacks.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Isa detect() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
        has_f16c())
        return Isa::avx2;
#endif
    return Isa::baseline;
}

Isa& active() {
    static Isa isa = best_isa();
    return isa;
}

}  // namespace

Isa best_isa() {
    static const Isa isa = detect();
    return isa;
}

Isa active_isa() { return active(); }

bool set_isa(Isa isa) {
    if (isa > best_isa()) return false;
    active() = isa;
    return true;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "baseline";
    }
}

}  // namespace detr_fast
