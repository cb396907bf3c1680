// Time: sleeping, and deadlines that cancel what takes too long. A task runs to its end, so a time-out does
// not leave it behind: it cancels it, and the task ends soon. Home thread; no lock, no allocation once the
// executor's timers have grown to the number armed.
//
//   good: CancelSource source;
//         Deadline deadline(executor, source);
//         int armed = deadline.arm(executor.now_ns() + 5'000'000'000);
//         int64_t n = co_await fetch(channel, source.token());
//         n = deadline.outcome(n);       -ETIMEDOUT where the deadline cancelled it
#pragma once

#include <cerrno>
#include <cstdint>

#include "base/timer.hh"
#include "coro/cancel.hh"
#include "coro/completion.hh"
#include "coro/executor.hh"

namespace engine::coro {

class Deadline {
  public:
    Deadline(Executor& executor, CancelSource& source) noexcept
        : executor_(executor), timer_(*this), source_(source) {}
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;
    ~Deadline() { executor_.disarm(&timer_); }

    // Or moves it. 0; -ENOMEM; -ESHUTDOWN where no timer fires any more.
    int arm(uint64_t deadline_ns) noexcept { return executor_.arm(&timer_, deadline_ns); }
    bool expired() const noexcept { return expired_; }
    // What ended with `result`: its own, if it was faster than the cancellation.
    int64_t outcome(int64_t result) const noexcept {
        return result == -ECANCELED && expired_ ? -ETIMEDOUT : result;
    }

  private:
    struct Alarm : base::Timer {
        Deadline& owner;
        explicit Alarm(Deadline& deadline) noexcept : owner(deadline) {
            fire = [](base::Timer* timer) {
                Deadline& self = static_cast<Alarm*>(timer)->owner;
                // Who was first, the deadline or another reason to cancel?
                self.expired_ = !self.source_.cancelled();
                self.source_.cancel();
            };
        }
    };

    Executor& executor_;
    Alarm timer_;
    CancelSource& source_;
    bool expired_ = false;
};

// co_await sleep: 0 when the time has come, -ECANCELED, -ESHUTDOWN when the context closes, -ENOMEM.
class Sleep {
  public:
    Sleep(Executor& executor, uint64_t deadline_ns, CancelToken token = {}) noexcept
        : executor_(executor),
          deadline_ns_(deadline_ns),
          token_(token),
          timer_(*this),
          hook_(*this),
          done_(executor) {}
    Sleep(const Sleep&) = delete;
    Sleep& operator=(const Sleep&) = delete;

    bool await_ready() noexcept {
        int begun = hook_.attach(token_);
        if (begun == 0) begun = executor_.arm(&timer_, deadline_ns_);
        if (begun != 0) end(begun);
        return done_.completed();
    }
    void await_suspend(std::coroutine_handle<> task) noexcept { done_.await_suspend(task); }
    int await_resume() noexcept { return done_.await_resume(); }

  private:
    struct Alarm : base::Timer {
        Sleep& owner;
        explicit Alarm(Sleep& sleep) noexcept : owner(sleep) {
            fire = [](base::Timer* timer) { static_cast<Alarm*>(timer)->owner.end(0); };
            abandon = [](base::Timer* timer) { static_cast<Alarm*>(timer)->owner.end(-ESHUTDOWN); };
        }
    };
    struct Hook : CancelHook {
        Sleep& owner;
        explicit Hook(Sleep& sleep) noexcept
            : CancelHook([](CancelHook* hook) noexcept { static_cast<Hook*>(hook)->owner.end(-ECANCELED); }),
              owner(sleep) {}
    };
    // The first of what may end it takes the others away.
    void end(int result) noexcept {
        hook_.detach();
        executor_.disarm(&timer_);
        done_.complete(result);
    }

    Executor& executor_;
    uint64_t deadline_ns_;
    CancelToken token_;
    Alarm timer_;
    Hook hook_;
    Completion<int> done_;
};

}  // namespace engine::coro
