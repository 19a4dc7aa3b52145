// Kernels that test the SIMT layer itself, each launched by its name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace detr_fast {

// Kernels that are wrong, each in one way; running one throws.
std::vector<std::string> faulty_kernels();
void run_faulty(const std::string& name);
// A kernel that does nothing, launched so.
void run_empty(unsigned x, unsigned y, int threads, int64_t shared_bytes);

// sums [blocks]: of the 256 integers of each block, once through shared memory and once through shuffles.
void run_reduction(const int* numbers, int64_t blocks, int* through_shared, int* through_shuffles);
// counts [bins]: how often each bin occurs among the n numbers; taken: n tickets, each given once.
void run_histogram(const int* numbers, int64_t n, int bins, int* counts, int* taken);

}  // namespace detr_fast
