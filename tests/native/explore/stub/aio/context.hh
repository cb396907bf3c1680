// Stands in for csrc/aio/context.hh where what is explored is built upon a context: the real inbox, executor
// and timers, the loop reduced to what touches them, and an event in place of the kernel. Found before the
// real one in the include path.
#pragma once

#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "aio/inbox.hh"
#include "aio/signal.hh"
#include "aio/timer.hh"
#include "coro/executor.hh"
#include "explorer.hh"

namespace engine {
struct Instance;
}

namespace engine::aio {

class AioContext final : public coro::Executor {
  public:
    explicit AioContext(std::string name = "home") : name_(std::move(name)) {}

    const std::string& name() const noexcept { return name_; }
    Instance* instance = nullptr;
    bool enter_gate() noexcept { return gate_.enter(); }
    void leave_gate() noexcept { gate_.leave(); }
    void push(Message* message) noexcept {
        Push pushed = inbox_.push(message);
        if (pushed == Push::wake) event_.signal();
        explore::require(pushed != Push::closed, "pushed into a closed inbox");
    }
    int send(Message* message) noexcept {
        if (!enter_gate()) return -ESHUTDOWN;
        push(message);
        leave_gate();
        return 0;
    }
    int post(coro::ReadyItem* item) noexcept override { return send(item); }
    // A bug put in on purpose: the inbox closes under those in the gate.
    static inline bool hurries = false;
    // Another: messages run before what was ready when they came.
    static inline bool overtakes = false;
    template <class F>
    int call_and_wait(F&& f) {
        if (current() != nullptr) return -EDEADLK;
        struct Call : Message {
            std::remove_reference_t<F>* f;
            explore::Event done;
        } call;
        call.f = &f;
        call.run = [](Message* message) {
            auto* self = static_cast<Call*>(message);
            (*self->f)();
            self->done.signal();
        };
        int result = send(&call);
        if (result == 0) call.done.wait();
        return result;
    }

    // The context whose thread this is; null elsewhere.
    static AioContext* current() noexcept { return homes_[explore::current_thread()]; }
    bool on_home() const noexcept { return current() == this; }
    bool winding_up() const noexcept { return stopping_; }
    uint64_t next_request_id() noexcept { return ++last_request_; }
    uint16_t number() const noexcept { return 1; }

    TimerHeap& timers() noexcept { return timers_; }
    int arm(Timer* timer, uint64_t deadline_ns) noexcept override {
        if (stopping_) return -ESHUTDOWN;
        return timers_.arm(timer, deadline_ns);
    }
    void disarm(Timer* timer) noexcept override { timers_.cancel(timer); }
    uint64_t now_ns() const noexcept override { return now_ns_; }
    // Any thread; one clock for all. Time orders no memory.
    void advance_clock(uint64_t by_ns) {
        explore::point();
        now_ns_ += by_ns;
        event_.signal();
    }

    // Called when a bottom half is about to run, which is also a point where others may run.
    struct Stats {
        struct {
            int count = 0;
            void increment() {
                count++;
                explore::point();
            }
        } bottom_halves;
    };
    Stats& stats() noexcept { return stats_; }

    // The body of the home thread; `first` before its first turn.
    template <class F>
    void run(F&& first) {
        homes_[explore::current_thread()] = this;
        first();
        while (!stopping_ || has_ready()) {
            timers_.run_due(now_ns_, 1);
            queue(inbox_.take_all());
            run_ready(1);
            if (stopping_ || has_ready() || !inbox_.empty()) continue;
            if (timers_.next_deadline_ns() <= now_ns_) continue;
            if (inbox_.may_sleep()) {
                event_.wait();
                inbox_.woke_up();
            }
        }
        gate_.close();
        while (!hurries && !gate_.empty()) explore::pause();
        queue(inbox_.close());
        while (run_ready(100) != 0) {
        }
        homes_[explore::current_thread()] = nullptr;
    }
    void run() {
        run([] {});
    }
    // Any thread, once.
    void stop() {
        stop_.context = this;
        stop_.run = [](Message* message) { static_cast<Stop*>(message)->context->stopping_ = true; };
        explore::require(send(&stop_) == 0, "stop was refused");
    }
    // Before each execution: after one that failed nobody has left.
    static void begin_execution() noexcept {
        homes_.fill(nullptr);
        now_ns_ = 1;
    }

  private:
    struct Stop : Message {
        AioContext* context = nullptr;
    };
    // What comes from elsewhere goes behind what is ready: much rests upon that.
    void queue(Message* message) {
        while (message != nullptr) {
            Message* next = message->next;
            if (overtakes) {
                message->run(message);
            } else {
                ready(message);
            }
            message = next;
        }
    }

    static inline std::array<AioContext*, explore::threads_max> homes_{};
    static inline uint64_t now_ns_ = 1;
    const std::string name_;
    SendGate gate_;
    Inbox inbox_;
    explore::Event event_;
    TimerHeap timers_;
    Stats stats_;
    Stop stop_;
    uint64_t last_request_ = 0;
    bool stopping_ = false;
};

}  // namespace engine::aio
