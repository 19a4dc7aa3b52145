// When a kernel must ask for more shared memory than CUDA gives unasked.
#pragma once

#include <cstddef>

namespace detr_fast {
namespace simt {

// Static and dynamic memory of a block together, without asking.
constexpr size_t kSharedUnasked = 48 * 1024;

// Whether a launch asks. Kernels that have dynamic memory too declare no more than the difference; asking in
// vain does no harm.
inline bool opts_in(size_t dynamic_bytes) { return dynamic_bytes > kSharedUnasked - 8 * 1024; }

}  // namespace simt
}  // namespace detr_fast
