// An array whose type is decided at run time, by uniform branches, so that kernels need no template
// parameter.
#pragma once

#include "common/simt.h"

namespace detr_fast {

struct AnyNumbers {
    ElementType type;
    simt::Global<const float> f32;  // the one of `type` is there
    simt::Global<const BFloat16> bf16;
    simt::Global<const Half> f16;
    simt::Global<const uint8_t> u8;

    SIMT_DEVICE float at(int64_t i) const {
        switch (type) {
            case ElementType::f32:
                return simt::load(f32, i);
            case ElementType::bf16:
                return to_float(simt::load(bf16, i));
            case ElementType::f16:
                return to_float(simt::load(f16, i));
            default:
                return to_float(simt::load(u8, i));
        }
    }
};

inline AnyNumbers any_numbers(const void* data, int64_t count, ElementType type) {
    AnyNumbers numbers{type, {}, {}, {}, {}};
    switch (type) {
        case ElementType::f32:
            numbers.f32 = simt::global(static_cast<const float*>(data), count);
            break;
        case ElementType::bf16:
            numbers.bf16 = simt::global(static_cast<const BFloat16*>(data), count);
            break;
        case ElementType::f16:
            numbers.f16 = simt::global(static_cast<const Half*>(data), count);
            break;
        case ElementType::u8:
            numbers.u8 = simt::global(static_cast<const uint8_t*>(data), count);
            break;
    }
    return numbers;
}

}  // namespace detr_fast
