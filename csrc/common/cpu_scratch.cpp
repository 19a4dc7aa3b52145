#include "common/cpu_scratch.h"

#include <cstdint>
#include <cstdlib>
#include <new>
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
        if (!data) {
            bytes = 0;
            throw std::bad_alloc();
        }
        prefer_huge_pages(data, bytes);
        return data;
    }
};

thread_local Buffer buffers[static_cast<int>(ScratchSlot::count)];

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) { return buffers[static_cast<int>(slot)].reserve(bytes); }

void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data), mask = kHugePage - 1;
    const uintptr_t first = (begin + mask) & ~mask, last = (begin + bytes) & ~mask;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace detr_fast
