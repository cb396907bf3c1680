// Semaphore: so many units, taken and given back by tasks of one executor; who asked first is served first,
// also when it asked for more than is there. Home thread only; no lock.
//
//   good: int result = co_await slots.acquire(1, token);  if (result != 0) co_return result;  …
//   slots.release(1); bad:  release() from another thread: send a message to the home thread
#pragma once

#include <cstdint>

#include "base/assert.hh"
#include "base/list.hh"
#include "coro/cancel.hh"
#include "coro/completion.hh"
#include "coro/executor.hh"

namespace engine::coro {

class Semaphore {
  public:
    class Acquire;

    Semaphore(Executor& executor, uint64_t units) noexcept : executor_(executor), available_(units) {}
    Semaphore(const Semaphore&) = delete;
    Semaphore& operator=(const Semaphore&) = delete;
    // Nobody waits.
    ~Semaphore() { ENGINE_CHECK(waiting_.empty()); }

    uint64_t available() const noexcept { return available_; }
    // For co_await: 0, or -ECANCELED and nothing was taken.
    [[nodiscard]] Acquire acquire(uint64_t units = 1, CancelToken token = {}) noexcept;
    // False where it would have to wait, if only behind others.
    bool try_acquire(uint64_t units = 1) noexcept {
        ENGINE_ASSERT(executor_.on_home_thread());
        if (!waiting_.empty() || units > available_) return false;
        available_ -= units;
        return true;
    }
    void release(uint64_t units = 1) noexcept {
        ENGINE_ASSERT(executor_.on_home_thread());
        available_ += units;
        serve();
    }

  private:
    void serve() noexcept;

    Executor& executor_;
    uint64_t available_;
    base::List<Acquire> waiting_;
};

// Lives in the frame of the task that waits.
class [[nodiscard]] Semaphore::Acquire : private base::Link {
  public:
    Acquire(const Acquire&) = delete;
    Acquire& operator=(const Acquire&) = delete;

    bool await_ready() noexcept {
        if (hook_.attach(token_) != 0) {
            done_.complete(-ECANCELED);
        } else if (semaphore_.try_acquire(units_)) {
            hook_.detach();
            done_.complete(0);
        }
        return done_.completed();
    }
    void await_suspend(std::coroutine_handle<> task) noexcept {
        done_.await_suspend(task);
        semaphore_.waiting_.push_back(this);
    }
    int await_resume() noexcept { return done_.await_resume(); }

  private:
    friend class Semaphore;
    friend class base::List<Acquire>;
    struct Hook : CancelHook {
        Acquire& owner;
        explicit Hook(Acquire& acquire) noexcept
            : CancelHook([](CancelHook* hook) noexcept { static_cast<Hook*>(hook)->owner.give_up(); }),
              owner(acquire) {}
    };
    Acquire(Semaphore& semaphore, uint64_t units, CancelToken token) noexcept
        : semaphore_(semaphore), units_(units), token_(token), hook_(*this), done_(semaphore.executor_) {}
    // Those behind it may have waited for it alone.
    void give_up() noexcept {
        unlink();
        done_.complete(-ECANCELED);
        semaphore_.serve();
    }

    Semaphore& semaphore_;
    uint64_t units_;
    CancelToken token_;
    Hook hook_;
    Completion<int> done_;
};

inline Semaphore::Acquire Semaphore::acquire(uint64_t units, CancelToken token) noexcept {
    return Acquire(*this, units, token);
}

// In order: one that asks for much is not overtaken by those that ask for little.
inline void Semaphore::serve() noexcept {
    for (Acquire* first = waiting_.front(); first != nullptr && first->units_ <= available_;
         first = waiting_.front()) {
        available_ -= first->units_;
        first->unlink();
        first->hook_.detach();
        first->done_.complete(0);
    }
}

}  // namespace engine::coro
