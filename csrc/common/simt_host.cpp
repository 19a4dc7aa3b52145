// The fibers, meetings and checks behind simt_host.h. All of a launch runs on the calling OS thread.
#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks

#include "common/simt_host.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <unordered_map>
#include <vector>

namespace detr_fast {
namespace simt {
namespace host {

Position position;

namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 * 1024, kStack = 128 * 1024;
constexpr size_t kMaxShared = 227 * 1024;  // of compute capability 9.0; `set_most_shared` asks for less
constexpr const char* kWords[] = {"sync_block",  "sync_block_or", "sync_warp", "shuffle",
                                  "shuffle_xor", "shuffle_up",    "ballot"};

// A stack on which a function runs until it pauses. The first entry goes through ucontext; all others
// through _setjmp, which spares two system calls.
class Fiber {
  public:
    Fiber(void* stack, size_t size) {
        getcontext(&first_);
        first_.uc_stack.ss_sp = stack;
        first_.uc_stack.ss_size = size;
        first_.uc_link = nullptr;
        makecontext(&first_, start, 0);
    }
    void resume(void (*body)()) {
        body_ = body;
        if (_setjmp(outside_)) return;
        if (started_) _longjmp(inside_, 1);
        started_ = true;
        setcontext(&first_);
    }
    void pause() {
        if (!_setjmp(inside_)) _longjmp(outside_, 1);
    }

  private:
    static void start();
    ucontext_t first_;
    jmp_buf inside_, outside_;
    void (*body_)() = nullptr;
    bool started_ = false;
};

// Where a lane is.
struct Call {
    Word word;
    unsigned mask;
    Site site;
    int source;
    uint64_t bits;

    bool whole_block() const { return word == Word::sync_block || word == Word::sync_block_or; }
    bool meets(const Call& other) const {
        return word == other.word && mask == other.mask && site.line == other.site.line &&
               site.file == other.site.file;
    }
};
enum class State { ready, waiting, done };
struct Lane {
    State state;
    Call call;
    uint64_t seen[32];  // for each lane of the warp: what it did before this time is visible
};

struct Past {
    int64_t block = -1;
    int thread = 0;
    bool atomic = false;
    uint64_t time = 0;
    Site site{};
};
// What happened to one element: the last write, and the last reads of two different threads.
struct History {
    Past write, read, other_read;
};

class Machine {
  public:
    void run(const char* name, Grid grid, int threads, size_t shared_bytes,
             const std::function<void()>& body);
    void run_lane();
    uint64_t meet(const Call& call);
    void access(const void* address, Access how, const Element& element);
    void* shared_memory(const void* key, const char* name, size_t bytes);
    void* dynamic_shared_memory(size_t& bytes) {
        bytes = shared_bytes_;
        return shared_.data();
    }
    std::string where(int thread) const;
    Fiber& fiber() { return *fibers_[position.thread]; }

    std::mutex mutex;
    std::mt19937_64 random{0};
    size_t most_shared = kMaxShared;

  private:
    void prepare_fibers();
    void run_block(int64_t block);
    void arrive(int thread);
    void complete(const Call& call, int first, const std::vector<int>& party);
    bool ordered(const Past& past) const;
    std::vector<int> party(const Call& call, int thread) const;
    [[noreturn]] void report_stuck() const;
    [[noreturn]] void report_race(const Element& element, Access how, const Past& past) const;

    std::string name_;
    const std::function<void()>* body_ = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    unsigned char* stacks_ = nullptr;
    std::vector<Lane> lanes_;
    std::vector<int> ready_;
    unsigned waiting_[kMaxThreads / 32];  // a bit for each lane of each warp
    std::exception_ptr error_;
    int64_t block_ = 0;
    // Time advances at every barrier; what was done before a barrier has an earlier time.
    uint64_t time_ = 0, block_synced_ = 0;
    std::unordered_map<const void*, History> histories_;

    struct Array {
        const void* key;
        size_t offset;
    };
    std::vector<Array> arrays_;
    size_t shared_bytes_ = 0, shared_used_ = 0;
    std::vector<unsigned char> shared_ = std::vector<unsigned char>(kMaxShared + kMaxStaticShared);
};
Machine machine;

std::string text(const Site& site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}
std::string text(const Call& call) {
    char mask[16];
    std::snprintf(mask, sizeof mask, "0x%x", call.mask);
    return kWords[static_cast<int>(call.word)] +
           (call.whole_block() ? std::string() : std::string(" of mask ") + mask) + " (" + text(call.site) +
           ")";
}
std::string text(const Element& e) {
    return "element " + std::to_string(e.index) + " of " +
           (e.name ? "shared array " + std::string(e.name) : std::string("a global array")) + " of " +
           std::to_string(e.count);
}

void Fiber::start() {
    for (;;) {
        Fiber& self = machine.fiber();
        self.body_();
        self.pause();
    }
}

void Machine::prepare_fibers() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (stacks_ == nullptr) {
        void* memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        stacks_ = static_cast<unsigned char*>(memory);
        for (int i = 0; i < kMaxThreads; ++i) mprotect(stacks_ + i * kStack, page, PROT_NONE);
    }
    // stacks of different size: tops a power of two apart would share few lines of the cache
    for (size_t i = fibers_.size(); i < lanes_.size(); ++i)
        fibers_.push_back(std::make_unique<Fiber>(stacks_ + i * kStack, kStack - i % 61 * 1088));
}

void Machine::run(const char* name, Grid grid, int threads, size_t shared_bytes,
                  const std::function<void()>& body) {
    const std::string limits = std::string(name) + ": invalid launch: ";
    if (threads < 1 || threads > kMaxThreads)
        throw std::runtime_error(limits + std::to_string(threads) + " threads a block");
    if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535)
        throw std::runtime_error(limits + "a grid of " + std::to_string(grid.x) + " x " +
                                 std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks");
    if (shared_bytes > most_shared)
        throw std::runtime_error(limits + std::to_string(shared_bytes) + " bytes of shared memory");
    name_ = name;
    body_ = &body;
    shared_bytes_ = shared_bytes;
    position.threads = threads;
    position.grid = grid;
    lanes_.resize(threads);
    prepare_fibers();
    histories_.clear();
    std::vector<int64_t> order(static_cast<int64_t>(grid.x) * grid.y * grid.z);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), random);
    for (int64_t block : order) {
        try {
            run_block(block);
        } catch (...) {
            fibers_.clear();  // abandoned inside the kernel, whose variables own nothing
            error_ = nullptr;
            throw;
        }
    }
}

void Machine::run_block(int64_t block) {
    const int64_t row = block / position.grid.x;
    position.block =
        Grid(static_cast<unsigned>(block % position.grid.x), static_cast<unsigned>(row % position.grid.y),
             static_cast<unsigned>(row / position.grid.y));
    block_ = block;
    block_synced_ = ++time_;
    arrays_.clear();
    shared_used_ = (shared_bytes_ + 15) / 16 * 16;
    ready_.resize(lanes_.size());
    std::iota(ready_.begin(), ready_.end(), 0);
    for (Lane& lane : lanes_) lane.state = State::ready;
    std::fill(std::begin(waiting_), std::end(waiting_), 0u);
    while (!ready_.empty()) {
        std::swap(ready_[random() % ready_.size()], ready_.back());
        const int thread = ready_.back();
        ready_.pop_back();
        position.thread = thread;
        fibers_[thread]->resume([] { machine.run_lane(); });
        if (error_) std::rethrow_exception(error_);
        if (lanes_[thread].state == State::waiting) arrive(thread);
    }
    for (const Lane& lane : lanes_)
        if (lane.state == State::waiting) report_stuck();
}

// On the lane's own stack: no exception may leave it.
void Machine::run_lane() {
    try {
        (*body_)();
    } catch (...) {
        error_ = std::current_exception();
    }
    lanes_[position.thread].state = State::done;
}

std::string Machine::where(int thread) const {
    const Grid& b = position.block;
    return name_ + ": block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
           std::to_string(b.z) + "), thread " + std::to_string(thread);
}

uint64_t Machine::meet(const Call& call) {
    const int lane = position.thread & 31, lanes = std::min(32, position.threads - position.thread + lane);
    if (!call.whole_block()) {
        if (!(call.mask >> lane & 1)) fail(call.site, "is not in the mask of its own " + text(call));
        if (lanes < 32 && call.mask >> lanes)
            fail(call.site, text(call) + " names lanes that the block does not have");
    }
    Lane& self = lanes_[position.thread];
    self.call = call;
    self.state = State::waiting;
    fiber().pause();
    return self.call.bits;
}

std::vector<int> Machine::party(const Call& call, int thread) const {
    std::vector<int> members;
    if (call.whole_block()) {
        members.resize(lanes_.size());
        std::iota(members.begin(), members.end(), 0);
    } else {
        for (int l = 0; l < 32; ++l)
            if (call.mask >> l & 1) members.push_back((thread & ~31) + l);
    }
    return members;
}

// The meeting takes place once the last of its party is there.
void Machine::arrive(int thread) {
    const Call call = lanes_[thread].call;
    waiting_[thread / 32] |= 1u << thread % 32;
    if (call.whole_block()) {
        for (int t = 0; t < position.threads; t += 32)
            if (count_bits(waiting_[t / 32]) < std::min(32, position.threads - t)) return;
    } else if ((waiting_[thread / 32] & call.mask) != call.mask) {
        return;
    }
    const std::vector<int> members = party(call, thread);
    for (int t : members)
        if (!lanes_[t].call.meets(call)) return;
    complete(call, thread & ~31, members);
}

void Machine::complete(const Call& call, int first, const std::vector<int>& members) {
    const bool shuffles =
        call.word == Word::shuffle || call.word == Word::shuffle_xor || call.word == Word::shuffle_up;
    uint64_t bits[32], all = 0;
    for (int t : members) {
        bits[t & 31] = lanes_[t].call.bits;
        all |= lanes_[t].call.bits;
    }
    for (int t : members) {
        Call& own = lanes_[t].call;
        if (shuffles && (own.source < 0 || own.source > 31 || !(call.mask >> own.source & 1)))
            throw std::runtime_error(where(t) + ": reads lane " + std::to_string(own.source) +
                                     ", which is not in the mask of " + text(call));
        own.bits = shuffles ? bits[own.source] : all;
        lanes_[t].state = State::ready;
        waiting_[t / 32] &= ~(1u << t % 32);
        ready_.push_back(t);
    }
    if (call.whole_block()) {
        block_synced_ = ++time_;
    } else if (call.word == Word::sync_warp) {
        uint64_t seen[32] = {};
        ++time_;
        for (int t : members)
            for (int l = 0; l < 32; ++l) seen[l] = std::max(seen[l], lanes_[t].seen[l]);
        for (int t : members) seen[t - first] = time_;
        for (int t : members) std::copy(seen, seen + 32, lanes_[t].seen);
    }
}

void Machine::report_stuck() const {
    for (int t = 0; t < position.threads; ++t) {
        if (lanes_[t].state != State::waiting) continue;
        for (int other : party(lanes_[t].call, t)) {
            if (lanes_[other].state == State::waiting && lanes_[other].call.meets(lanes_[t].call)) continue;
            throw std::runtime_error(
                where(t) + ": waits at " + text(lanes_[t].call) + ", but thread " + std::to_string(other) +
                (lanes_[other].state == State::waiting ? " waits at " + text(lanes_[other].call)
                                                       : std::string(" has left the kernel")));
        }
    }
    throw std::logic_error(name_ + ": threads wait for nothing");
}

bool Machine::ordered(const Past& past) const {
    if (past.block < 0) return true;
    if (past.block != block_) return false;
    if (past.thread == position.thread || past.time < block_synced_) return true;
    return past.thread / 32 == position.thread / 32 &&
           past.time < lanes_[position.thread].seen[past.thread & 31];
}

void Machine::access(const void* address, Access how, const Element& element) {
    const bool shared = element.name != nullptr;
    if (how == Access::read_only) {
        const auto found = histories_.find(address);
        if (found != histories_.end() && !ordered(found->second.write))
            report_race(element, how, found->second.write);
        return;
    }
    History& history = histories_[address];
    if (shared && history.write.block != block_) {
        if (how != Access::write) fail(element, "is read before any thread of the block has written it");
        history = History();
    }
    const bool both_atomic = how == Access::atomic && history.write.atomic;
    if (!both_atomic && !ordered(history.write)) report_race(element, how, history.write);
    if (how != Access::read) {
        for (const Past* past : {&history.read, &history.other_read})
            if (!ordered(*past)) report_race(element, how, *past);
    }
    const Past now{block_, position.thread, how == Access::atomic, time_, element.site};
    if (how != Access::read) {
        history.write = now;
    } else {
        if (history.read.thread != now.thread) history.other_read = history.read;
        history.read = now;
    }
}

void Machine::report_race(const Element& element, Access how, const Past& past) const {
    const bool wrote = how == Access::write || how == Access::atomic;
    fail(element,
         std::string(wrote ? "is written" : "is read") + " in a race with thread " +
             std::to_string(past.thread) + " of " +
             (past.block == block_ ? "the same block" : "block number " + std::to_string(past.block)) +
             " at " + text(past.site));
}

void* Machine::shared_memory(const void* key, const char* name, size_t bytes) {
    for (const Array& array : arrays_)
        if (array.key == key) return shared_.data() + array.offset;
    const size_t offset = shared_used_;
    shared_used_ += (bytes + 15) / 16 * 16;
    const size_t most = opts_in(shared_bytes_) ? most_shared : kSharedUnasked;
    if (shared_used_ - shared_bytes_ > kMaxStaticShared + 15 || shared_used_ > most)
        throw std::runtime_error(name_ + ": no shared memory is left for " + name + " of " +
                                 std::to_string(bytes) + " bytes: " + std::to_string(shared_bytes_) +
                                 " dynamic and " + std::to_string(shared_used_ - shared_bytes_) +
                                 " static ones are more than " + std::to_string(most));
    arrays_.push_back({key, offset});
    return shared_.data() + offset;
}

}  // namespace

void fail(const Site& site, const std::string& what) {
    throw std::runtime_error(machine.where(position.thread) + " at " + text(site) + ": " + what);
}
void fail(const Element& element, const std::string& what) { fail(element.site, text(element) + " " + what); }

void access(const void* address, Access how, const Element& element) {
    machine.access(address, how, element);
}
void* shared_memory(const void* key, const char* name, size_t bytes) {
    return machine.shared_memory(key, name, bytes);
}
void* dynamic_shared_memory(size_t& bytes) { return machine.dynamic_shared_memory(bytes); }

uint64_t meet(Word word, unsigned mask, uint64_t bits, int source, const Site& site) {
    return machine.meet({word, mask, site, source, bits});
}

void run(const char* name, Grid grid, int threads, size_t shared_bytes, const std::function<void()>& lane) {
    const std::lock_guard<std::mutex> one_at_a_time(machine.mutex);
    machine.run(name, grid, threads, shared_bytes, lane);
}

void set_most_shared(size_t bytes) {
    const std::lock_guard<std::mutex> one_at_a_time(machine.mutex);
    machine.most_shared = std::min(bytes, kMaxShared);
}

void set_seed(uint64_t seed) {
    const std::lock_guard<std::mutex> one_at_a_time(machine.mutex);
    machine.random.seed(seed);
}

}  // namespace host
}  // namespace simt
}  // namespace detr_fast
