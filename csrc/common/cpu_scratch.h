// Working memory that a thread keeps between calls, so that large buffers meet the page-fault handler once.
#pragma once

#include <cstddef>

namespace detr_fast {

// At least `bytes` bytes, aligned to 64, contents undefined. Each thread owns one buffer for each slot; it
// only grows, lives as long as the thread and is valid until the thread's next call for the slot.
// Throws std::bad_alloc where memory ran out.
enum class ScratchSlot { rows, plan, samples, count };
void* scratch(ScratchSlot slot, size_t bytes);

// Asks for huge pages where a fresh array of this size is about to be written: fewer page faults and TLB
// misses. Harmless where refused.
void prefer_huge_pages(void* data, size_t bytes);

}  // namespace detr_fast
