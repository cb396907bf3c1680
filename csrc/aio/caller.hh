// Contexts without a thread of their own: whoever calls run_once() first is their thread, and between two
// calls a foreign event loop watches one descriptor. `driving` is held by who drives, or closes, the context.
#pragma once

#include <engine/base.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "aio/signal.hh"
#include "base/list.hh"

namespace engine::aio {

class AioContext;

// A context whose caller has stopped driving is named in the log, or on standard error where nobody listens
// to it, by a blocking call that has waited for so long. Tests shorten it.
extern base::Atomic<uint64_t> stall_limit_ns;
// Names them all. Any foreign thread.
void name_stalled() noexcept;

// Distinguishes threads, also from those that have ended.
uint64_t this_thread_number() noexcept;

class CallerLoop : public base::Link {
  public:
    explicit CallerLoop(AioContext& context) noexcept : context_(&context) {}
    ~CallerLoop();

    // Control plane, once. What is watched for the foreign loop is readable from here on, until the first
    // run_once(): whoever polls it will call that.
    int open(engine_error* error) noexcept;
    // The backend's own descriptor, which tells of completions and messages.
    int watch(int backend_fd) noexcept;

    // Any thread.
    int fd() noexcept;
    bool driven_here() const noexcept { return driver.load_acquire() == this_thread_number(); }
    // Its driver, whose thread ends.
    void abandon() noexcept {
        uint64_t me = this_thread_number();
        driver.compare_exchange_acq_rel(me, nobody);
    }
    // The thread that drove it has ended: so it says itself, last of all. Whether the kernel still knows a
    // thread says nothing: for a while it knows those that were joined.
    bool orphaned() const noexcept { return driver.load_acquire() == nobody; }

    // Driver only: nothing is done before the foreign loop calls again, at `deadline_ns` on the context's
    // clock at the latest. 0: at once. UINT64_MAX: when the backend says so.
    void rest(uint64_t deadline_ns, uint64_t now_ns) noexcept;
    // Runs what there is. Driver only; false: the context has closed.
    bool run() noexcept;

    std::mutex driving;
    static constexpr uint64_t nobody = UINT64_MAX;
    base::Atomic<uint64_t> driver{0};     // number of its thread; 0: not driven yet; or nobody's any more
    base::Atomic<int32_t> driver_tid{0};  // the same thread, as the kernel calls it
    base::Atomic<uint32_t> closing{0};    // somebody waits for `driving` in order to close the context
    base::Counter driven_ns;              // when run_once() was last there; monotonic

  private:
    friend void name_stalled() noexcept;
    friend class AioContext;
    void retire() noexcept;  // with `driving`: the context goes

    AioContext* context_;  // changes under `driving` and the registry's mutex; either is enough to read it
    int epoll_fd_ = -1;
    int timer_fd_ = -1;
    uint64_t resting_until_ns_ = 0;     // what the timer is set to; 0: it is due
    base::Atomic<uint32_t> wanted_{0};  // somebody watches; until then the timer stays due
};

// The contexts that one thread drives.
class ThreadDriver final : public Waiter {
  public:
    // Makes the one of this thread. Null: memory or descriptors are short.
    static ThreadDriver* here() noexcept;
    ~ThreadDriver();

    int add(const std::shared_ptr<CallerLoop>& loop) noexcept;
    bool wait(Signal& signal, uint64_t timeout_ns) noexcept override;

  private:
    ThreadDriver() noexcept = default;
    int open() noexcept;

    struct Entry {
        std::shared_ptr<CallerLoop> loop;  // also one that has closed meanwhile
        bool watched = false;
    };
    void forget_closed() noexcept;
    void watch_all() noexcept;
    bool run_ready(int timeout_ms) noexcept;

    std::vector<Entry> entries_;
    int epoll_fd_ = -1;
    int event_fd_ = -1;
};

}  // namespace engine::aio
