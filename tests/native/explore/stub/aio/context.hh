// Stands in for csrc/aio/context.hh where what is explored is built upon a context: the real inbox, the loop
// reduced to what touches it, and an event in place of the kernel. Found before the real one in the include
// path.
#pragma once

#include <cerrno>

#include "aio/inbox.hh"
#include "explorer.hh"

namespace engine::aio {

class AioContext {
  public:
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
    // A bug put in on purpose: the inbox closes under those in the gate.
    static inline bool hurries = false;

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

    // The body of the home thread.
    void run() {
        while (!stopping_) {
            run_all(inbox_.take_all());
            if (stopping_ || !inbox_.empty()) continue;
            if (inbox_.may_sleep()) {
                event_.wait();
                inbox_.woke_up();
            }
        }
        gate_.close();
        while (!hurries && !gate_.empty()) explore::pause();
        run_all(inbox_.close());
    }
    // Any thread, once.
    void stop() {
        stop_.context = this;
        stop_.run = [](Message* message) { static_cast<Stop*>(message)->context->stopping_ = true; };
        explore::require(send(&stop_) == 0, "stop was refused");
    }

  private:
    struct Stop : Message {
        AioContext* context = nullptr;
    };
    static void run_all(Message* message) {
        while (message != nullptr) {
            Message* next = message->next;
            message->run(message);
            message = next;
        }
    }

    SendGate gate_;
    Inbox inbox_;
    explore::Event event_;
    Stats stats_;
    Stop stop_;
    bool stopping_ = false;
};

}  // namespace engine::aio
