// AioContext: an event loop, on a thread of its own or on that of whoever calls run_once(). What it owns
// (backend, ready queue, timers, pollers, pools, statistics) has no lock: only the home thread touches it.
// The one way in from elsewhere is send().
#pragma once

#include <engine/aio.h>
#include <sched.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "aio/backend.hh"
#include "aio/caller.hh"
#include "aio/fork_mark.hh"
#include "aio/inbox.hh"
#include "aio/poller.hh"
#include "aio/signal.hh"
#include "aio/timer.hh"
#include "base/assert.hh"
#include "base/clock.hh"
#include "base/list.hh"
#include "base/mutex.hh"
#include "coro/executor.hh"

namespace engine {
struct Instance;
}

namespace engine::aio {

class Simulator;

struct ContextConfig {
    std::string name;
    std::vector<int> cpus;  // empty: not pinned
    uint32_t backend = ENGINE_BACKEND_AUTO;
    uint32_t queue_depth = 256;
    int sched_policy = 0;
    int sched_priority = 0;
    int64_t poll_max_ns = 32768;
    base::Mutex* turn_mutex = nullptr;  // global mode: held while handlers run and while they submit
    bool lock_profile = false;
    bool caller_driven = false;      // no thread of its own: somebody calls run_once()
    Simulator* simulator = nullptr;  // it drives the context, and is its backend and its clock
};

struct LoopStats {
    base::Counter turns, bottom_halves, messages, ready_items, timers, wakeups, sleeps;
    base::Counter poll_attempts, poll_successes, poll_ns, sleep_ns, poll_current_ns;
    base::Counter lock_acquisitions, lock_wait_ns, lock_hold_ns;
};

class alignas(128) AioContext final : public coro::Executor {
  public:
    static constexpr int64_t default_poll_max_ns = 32768;

    // Starts the thread and returns when it runs where it was asked to, or with the error that prevented it.
    static int create(ContextConfig config, std::unique_ptr<AioContext>* out, engine_error* error);
    // Any foreign thread. Ends the loop: what was accepted before is run, later sends answer -ESHUTDOWN. One
    // that its caller drives ends on the thread that calls this, once run_once() has returned elsewhere.
    void stop();
    ~AioContext() override;

    // --- any thread
    const std::string& name() const noexcept { return config_.name; }
    const std::vector<int>& requested_cpus() const noexcept { return config_.cpus; }
    bool on_home() const noexcept { return current() == this; }
    // The context whose thread this is; null on foreign threads.
    static AioContext* current() noexcept;
    // 0: message->run will be called on the home thread, exactly once. -ESHUTDOWN: it never will; so it is in
    // a child of fork(), which has no home thread.
    int send(Message* message) noexcept {
        if (!enter_gate()) return -ESHUTDOWN;
        push(message);
        leave_gate();
        return 0;
    }
    int post(coro::ReadyItem* item) noexcept override { return send(item); }
    // The same in three steps: between entering and leaving a push succeeds, whatever happens meanwhile.
    // Short: a closing context waits for who is inside.
    bool enter_gate() noexcept { return ENGINE_LIKELY(mark_.same_process()) && gate_.enter(); }
    void push(Message* message) noexcept;
    void leave_gate() noexcept { gate_.leave(); }
    // The same, and waits until it has run. -EDEADLK on any context's thread. On a thread that drives
    // contexts it drives them meanwhile.
    template <class F>
    int call_and_wait(F&& f);
    // Messages that have not been taken: a hint.
    bool has_messages() const noexcept { return !inbox_.empty(); }
    void set_poll_max_ns(int64_t ns) noexcept;
    void read_stats(engine_context_stats* out) const noexcept;
    int read_info(engine_context_info* out) const noexcept;
    // Handles of others (queues, workloads, calls under way) that keep it from closing.
    base::Atomic<uint32_t> users{0};
    // Counts one more of them. False: it is closed, or about to.
    bool hold() noexcept;
    void let_go() noexcept { users.fetch_sub_acq_rel(1); }
    // No more holds from here on: once, and only while there are none. Returns 0, the number that there are,
    // or -ESHUTDOWN where another caller was first.
    int64_t forbid_holds() noexcept;
    // It could not be closed after all.
    void allow_holds() noexcept { users.fetch_and_acq_rel(~no_holds); }
    // The engine that it belongs to: for callers above; nothing in here looks at it.
    Instance* instance = nullptr;

    // --- driven by its caller
    // Waits for work, at most so long (0: not at all; negative: without limit), and runs what there is. 1: it
    // ran something; 0: the time was over, or there was a signal; -errno. The first call fixes the thread.
    int run_once(int64_t timeout_ns, engine_error* error);
    // Any thread. Readable when run_once() has something to do, timers included; or -errno.
    int fileno() noexcept;
    // Any thread: a run_once() under way returns.
    void wake() noexcept;
    // Any thread: if the one that drove it has ended, this one takes its place.
    int adopt(engine_error* error);

    // --- home only
    Backend& backend() noexcept { return *backend_; }
    TimerHeap& timers() noexcept { return timers_; }
    int arm(Timer* timer, uint64_t deadline_ns) noexcept override;
    void disarm(Timer* timer) noexcept override { timers_.cancel(timer); }
    // Ignored once the context is winding up: nobody polls any more.
    void add_poller(Poller* poller) noexcept {
        if (!stopping_) pollers_.push_back(poller);
    }
    // Also from inside any poller's callback.
    void remove_poller(Poller* poller) noexcept {
        if (poller == next_poller_) next_poller_ = pollers_.after(poller);
        poller->unlink();
    }
    // Its last messages are being run: no timer fires and no descriptor is watched any more.
    bool winding_up() const noexcept { return stopping_; }
    LoopStats& stats() noexcept { return stats_; }
    // The clock that timers, polling and latencies go by; any thread.
    uint64_t now_ns() const noexcept override {
        return ENGINE_LIKELY(clock_ == nullptr) ? base::now_ns() : *clock_;
    }
    // Of the context in traces: unique among those of one engine as long as there are fewer than 2^16.
    uint16_t number() const noexcept { return static_cast<uint16_t>(id_base_ >> 48); }
    // Unique in the process for as long as it lives: the context's id above a counter.
    uint64_t next_request_id() noexcept { return id_base_ | (++last_request_ & 0xffffffffffffu); }

  private:
    // While one is there this thread is the context's.
    class Home {
      public:
        explicit Home(AioContext& context) noexcept : before_(current_slot()) { current_slot() = &context; }
        ~Home() { current_slot() = before_; }
        Home(const Home&) = delete;
        Home& operator=(const Home&) = delete;

      private:
        AioContext* before_;
    };
    explicit AioContext(ContextConfig config) : config_(std::move(config)) {}
    static AioContext*& current_slot() noexcept;
    static int create_driven(std::unique_ptr<AioContext> context, std::unique_ptr<AioContext>* out,
                             engine_error* error);
    void thread_main(engine_error* error, int* result, Signal* started);
    int set_up_thread(engine_error* error);
    int set_up(engine_error* error);
    int pin(engine_error* error);
    void run() noexcept;
    bool locked_turn(bool submit) noexcept;
    bool turn(unsigned ready_most, unsigned timers_most) noexcept;
    void run_inbox() noexcept;
    unsigned run_ready_and_inbox(unsigned most) noexcept;
    void idle(uint64_t limit_ns) noexcept;
    template <class F>
    void for_each_poller(F&& f) noexcept;
    bool busy_poll(uint64_t start_ns, uint64_t deadline_ns) noexcept;
    bool work_in_sight() noexcept;
    void adapt_poll(uint64_t idle_ns) noexcept;
    void wind_up() noexcept;

    int check_driver(engine_error* error);
    int become_driver(engine_error* error);
    uint64_t work_done() const noexcept;
    void begin_rest(bool more) noexcept;
    void end_rest() noexcept;
    void stop_driven() noexcept;

    friend class Simulator;
    bool sim_runnable() noexcept;
    void sim_turn(unsigned budget) noexcept;
    void stop_simulated() noexcept;

    ContextConfig config_;
    ForkMark mark_;
    Inbox inbox_;
    SendGate gate_;
    std::unique_ptr<Backend> backend_;
    const uint64_t* clock_ = nullptr;  // of the simulator
    TimerHeap timers_;
    static constexpr uint32_t no_holds = 1u << 31;
    base::List<Poller> pollers_;
    Poller* next_poller_ = nullptr;  // while one is in its callback
    LoopStats stats_;
    base::Atomic<int64_t> poll_max_ns_{0};
    uint64_t poll_ns_ = 0;  // the adaptive budget
    uint64_t id_base_ = 0;
    uint64_t last_request_ = 0;
    uint64_t poll_progress_ = 0;  // turns in which a poller had work
    bool stopping_ = false;
    bool resting_ = false;  // between two turns that somebody else calls for, with nothing to do
    char backend_reason_[160] = {};
    base::Atomic<int32_t> tid_{0};  // 0: no thread yet
    std::thread thread_;
    std::shared_ptr<CallerLoop> caller_;  // null: it has a thread of its own
};

template <class F>
int AioContext::call_and_wait(F&& f) {
    if (current() != nullptr) return -EDEADLK;
    struct Call : Message {
        std::remove_reference_t<F>* f;
        Signal done;
    } call;
    call.f = &f;
    call.run = [](Message* message) {
        Call* self = static_cast<Call*>(message);
        (*self->f)();
        self->done.set();
    };
    int result = send(&call);
    if (result == 0) call.done.wait();
    return result;
}

}  // namespace engine::aio
