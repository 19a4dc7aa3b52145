// Stress of csrc/common/cpu_parallel, for the thread sanitizer too. Prints what fails; its exit status counts
// it.
#include <sys/wait.h>
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/cpu_parallel.h"

using detr_fast::parallel_for;

namespace {

int failures = 0;

void expect(bool good, const char* what) {
    if (good) return;
    ++failures;
    std::printf("failed: %s\n", what);
}

void wait_a_bit() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

// Each piece once, and what it wrote seen by the caller.
bool counts(int threads, int pieces, bool slow = false) {
    std::vector<int> done(pieces);
    parallel_for(threads, pieces, [&](int64_t i) {
        if (slow) wait_a_bit();
        ++done[i];
    });
    for (int n : done)
        if (n != 1) return false;
    return true;
}

bool all_sizes() {
    bool good = true;
    for (int threads : {-1, 0, 1, 2, 3, 8, 64})
        for (int pieces : {0, 1, 2, 3, 7, 100, 5000}) good &= counts(threads, pieces);
    return good;
}

// Helpers come where a piece gives them the time to.
bool helpers_come() {
    std::vector<std::thread::id> by(400);
    parallel_for(3, 400, [&](int64_t i) {
        wait_a_bit();
        by[i] = std::this_thread::get_id();
    });
    int others = 0;
    for (const auto& id : by) others += id != std::this_thread::get_id();
    return others > 0 && others < 400;
}

bool many_callers() {
    std::vector<char> good(8, 1);
    std::vector<std::thread> callers;
    for (int c = 0; c < 8; ++c)
        callers.emplace_back([&good, c] {
            for (int turn = 0; turn < 200; ++turn)
                good[c] &= counts(1 + (c + turn) % 5, 1 + turn % 40, turn % 50 == 0);
        });
    for (auto& caller : callers) caller.join();
    for (char one : good)
        if (!one) return false;
    return true;
}

bool nested() {
    std::vector<char> good(20);
    parallel_for(4, 20, [&](int64_t i) { good[i] = counts(3, 50); });
    for (char one : good)
        if (!one) return false;
    return true;
}

bool throws() {
    for (int turn = 0; turn < 200; ++turn) {
        bool caught = false;
        try {
            parallel_for(1 + turn % 4, 50, [&](int64_t i) {
                if (i == turn % 50) throw std::runtime_error("piece");
            });
        } catch (const std::runtime_error&) {
            caught = true;
        }
        if (!caught || !counts(4, 20)) return false;
    }
    return true;
}

bool rounding_follows() {
    std::fesetround(FE_UPWARD);
    std::vector<char> upward(200);
    parallel_for(4, 200, [&](int64_t i) {
        wait_a_bit();
        upward[i] = std::fegetround() == FE_UPWARD;
    });
    std::fesetround(FE_TONEAREST);
    for (char one : upward)
        if (!one) return false;
    return counts(4, 50);
}

// A child of fork works, with helpers of its own, also while other threads of its parent worked.
bool forks() {
    bool stop = false;
    std::thread busy([&] {
        while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) counts(4, 30);
    });
    bool good = true;
    for (int turn = 0; turn < 20; ++turn) {
        const pid_t child = fork();
        if (child == 0) _exit(counts(4, 100) && helpers_come() ? 0 : 1);
        int status = 1;
        good &= waitpid(child, &status, 0) == child && status == 0;
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    busy.join();
    return good;
}

}  // namespace

int main(int argc, char**) {
    expect(all_sizes(), "every piece once");
    expect(helpers_come(), "helpers come");
    expect(many_callers(), "many callers at once");
    expect(nested(), "pieces that share out pieces");
    expect(throws(), "what a piece throws reaches the caller");
    expect(rounding_follows(), "helpers round as the caller does");
    if (argc > 1) expect(forks(), "children of fork");  // the sanitizer bears no threads in them
    return failures;
}
