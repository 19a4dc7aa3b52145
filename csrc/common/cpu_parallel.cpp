#include "common/cpu_parallel.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace detr_fast {
namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A call under way; it lives on the caller's stack. What is not atomic is guarded by the pool's mutex.
struct Job {
    void (*piece)(const void*, int64_t);
    const void* context;
    int64_t pieces;
    int welcome;   // helpers that may still join
    int uncalled;  // helpers that nobody has woken yet
    std::fenv_t environment{};
    std::exception_ptr error{};
    Job *before = nullptr, *after = nullptr;
    alignas(64) std::atomic<int64_t> next{0};  // the first piece that nobody has taken
    alignas(64) std::atomic<int> helpers{0};   // that have joined and not left

    int64_t take() { return next.fetch_add(1, std::memory_order_relaxed); }
};

// Parked helpers and the jobs that they may join. A pool is never destroyed: helpers wait in it until the
// process ends.
class Pool {
  public:
    void run(Job& job) {
        std::fegetenv(&job.environment);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            start(job.welcome);
            --job.uncalled;
            job.after = jobs_;
            if (jobs_) jobs_->before = &job;
            jobs_ = &job;
        }
        woken_.notify_one();
        work(job, job.take());
        std::unique_lock<std::mutex> lock(mutex_);
        (job.before ? job.before->after : jobs_) = job.after;
        if (job.after) job.after->before = job.before;
        if (job.helpers.load(std::memory_order_acquire) == 0) return;
        lock.unlock();
        // going to sleep takes longer than most pieces
        for (int turn = 0; turn < kTurns; ++turn, pause())
            if (job.helpers.load(std::memory_order_acquire) == 0) return;
        lock.lock();
        left_.wait(lock, [&] { return job.helpers.load(std::memory_order_acquire) == 0; });
    }

  private:
    static constexpr int kTurns = 1000;  // some tens of microseconds

    // Brings the helpers up to a number, or to as many as the system grants.
    void start(int wanted) {
        if (helpers_ >= wanted) return;
        // signals are for the threads that the process has made itself; what a thread brings on itself it
        // gets
        sigset_t signals, before;
        sigfillset(&signals);
        for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&signals, own);
        pthread_sigmask(SIG_SETMASK, &signals, &before);
        try {
            for (; helpers_ < wanted; ++helpers_) {
                std::thread helper([this] { help(); });
#if defined(__linux__)
                pthread_setname_np(helper.native_handle(), "detr_fast");
#endif
                helper.detach();
            }
        } catch (const std::system_error&) {
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    // A helper's life.
    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            int64_t piece;
            Job* const job = join(piece);
            if (!job) {
                woken_.wait(lock);
                continue;
            }
            // each wakes two, so that a caller wakes one and many are there soon
            const int calls = job->uncalled < 2 ? job->uncalled : 2;
            job->uncalled -= calls;
            lock.unlock();
            for (int call = 0; call < calls; ++call) woken_.notify_one();
            std::fesetenv(&job->environment);
            work(*job, piece);
            lock.lock();
            if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) left_.notify_all();
        }
    }

    // A job that has a piece left, and that piece; nullptr where there is none. Who joins has a piece: nobody
    // waits for a helper that has only woken.
    Job* join(int64_t& piece) {
        for (Job* job = jobs_; job; job = job->after) {
            if (job->welcome == 0 || job->next.load(std::memory_order_relaxed) >= job->pieces) continue;
            piece = job->take();
            if (piece >= job->pieces) continue;
            --job->welcome;
            job->helpers.fetch_add(1, std::memory_order_relaxed);
            return job;
        }
        return nullptr;
    }

    // Piece i and then others until none is left.
    void work(Job& job, int64_t i) {
        try {
            for (; i < job.pieces; i = job.take()) job.piece(job.context, i);
        } catch (...) {
            job.next.store(job.pieces, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!job.error) job.error = std::current_exception();
        }
    }

    std::mutex mutex_;
    std::condition_variable woken_, left_;
    Job* jobs_ = nullptr;
    int helpers_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};

// A child of fork has none of the helpers, and perhaps a mutex that one of them held: it begins anew.
void forget_pool() { the_pool.store(nullptr); }

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, forget_pool);

Pool& pool() {
    Pool* found = the_pool.load(std::memory_order_acquire);
    if (found) return *found;
    Pool* const made = new Pool;
    if (the_pool.compare_exchange_strong(found, made)) return *made;
    delete made;
    return *found;
}

}  // namespace

void run_pieces(int threads, int64_t pieces, void (*piece)(const void*, int64_t), const void* context) {
    const int helpers = static_cast<int>(threads < pieces ? threads : pieces) - 1;
    if (helpers < 1) {
        for (int64_t i = 0; i < pieces; ++i) piece(context, i);
        return;
    }
    Job job{piece, context, pieces, helpers, helpers};
    pool().run(job);
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace detr_fast
