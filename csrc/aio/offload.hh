// The offload pool of one context: threads for what may block and has no asynchronous form. Operations go out
// under a short mutex, a batch at a time; what is done comes back the same way, announced by one message.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "aio/backend.hh"
#include "aio/timer.hh"
#include "base/list.hh"

namespace engine::aio {

// Waking a thread costs more than a copy from the page cache. So operations are of two kinds: *slow* ones,
// which may sleep in the kernel, have a thread each, as far as threads_max allows; *quick* ones (small
// buffered reads and writes, while such have been quick lately) share one thread. One that blocks after all
// is noticed by a timer on the home thread: then the small ones count as slow until they prove quick again.
class OffloadPool {
  public:
    static constexpr unsigned threads_max = 64;

    explicit OffloadPool(AioContext* context) noexcept;
    ~OffloadPool() { stop(); }

    // Before the first operation; home only. -ENOMEM: it cannot serve.
    int open() noexcept;
    // Home only. Runs op->call(op) on a pool thread, then op->done on the home thread, not from in here.
    // Threads are started as needed; where not even one can be started, the operation fails with -ENOMEM.
    void run(IoOp* op) noexcept;
    // The same for a batch. What the caller knows will sleep (it has tried without waiting) comes in `slow`.
    // Both queues are left empty.
    void run_all(base::Queue<Message>* unknown, base::Queue<Message>* slow) noexcept;
    // When the loop has ended, with nothing in flight.
    void stop() noexcept;

  private:
    static constexpr uint64_t quick_ns = 20000;
    static constexpr uint64_t quick_bytes_max = 65536;
    static constexpr uint64_t rescue_ns = 500000;
    static constexpr unsigned batch_max = 16;  // quick operations announced together
    static constexpr unsigned idle_seconds = 10;

    enum class ThreadState : uint8_t { none, running, ended };
    struct Slot {
        std::thread thread;                     // home only
        ThreadState state = ThreadState::none;  // guarded by mutex_
    };
    struct Rescue : Timer {
        OffloadPool* pool;
    };
    struct Doorbell : Message {
        OffloadPool* pool;
    };

    // While an operation is in the pool its `result`, which nobody else needs yet, says of which kind it is.
    enum Kind : int64_t { kind_quick, kind_slow, kind_surely_slow };

    static bool may_be_quick(const IoOp* op) noexcept;
    void enqueue(IoOp* op, bool surely) noexcept;
    void recruit(std::unique_lock<std::mutex>& lock) noexcept;
    void watch() noexcept;
    void call_all_slow() noexcept;
    unsigned threads_wanted() const noexcept;
    unsigned wake_idle(unsigned wanted) noexcept;
    bool start_thread() noexcept;
    void fail_queued() noexcept;
    void rescue() noexcept;
    void deliver(std::unique_lock<std::mutex>& lock) noexcept;
    void work(Slot* slot) noexcept;
    bool wait_for_work(std::unique_lock<std::mutex>& lock) noexcept;
    void run_one(std::unique_lock<std::mutex>& lock) noexcept;
    void ring(std::unique_lock<std::mutex>& lock) noexcept;

    AioContext* const context_;
    Rescue rescue_;             // home only
    uint64_t rescue_pops_ = 0;  // home only: pops_ when the timer was armed
    std::array<Slot, threads_max> slots_;

    std::mutex mutex_;
    std::condition_variable wanted_;
    // --- guarded by mutex_
    base::Queue<Message> queue_;
    base::Queue<Message> finished_;
    Doorbell doorbell_;
    unsigned queued_ = 0;
    unsigned queued_slow_ = 0;
    unsigned finished_count_ = 0;
    unsigned threads_ = 0;    // running
    unsigned idle_ = 0;       // waiting, and not told to wake
    unsigned tokens_ = 0;     // told to wake, and not yet awake
    unsigned busy_slow_ = 0;  // in a slow operation, or in one found stuck
    unsigned busy_quick_ = 0;
    unsigned rescues_ = 0;  // times that busy_quick_ was added to busy_slow_
    uint64_t pops_ = 0;
    uint64_t average_ns_ = 0;  // of a small buffered read or write: quick until proved slow
    bool ringing_ = false;     // the doorbell is in the inbox
    bool stopping_ = false;
};

}  // namespace engine::aio
