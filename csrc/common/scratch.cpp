#include "common/scratch.h"

#include <cstdlib>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace detr_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(data); }

    void* reserve(size_t wanted) {
        if (wanted <= bytes) return data;
        std::free(data);
        const size_t alignment = wanted >= kHugePage ? kHugePage : 64;
        bytes = (wanted + alignment - 1) / alignment * alignment;
        data = std::aligned_alloc(alignment, bytes);
        if (!data) bytes = 0;
#ifdef __linux__
        // fewer page faults and TLB misses; harmless where refused
        if (data && bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
        return data;
    }
};

thread_local Buffer buffers[static_cast<int>(ScratchSlot::count)];

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) { return buffers[static_cast<int>(slot)].reserve(bytes); }

}  // namespace detr_fast
