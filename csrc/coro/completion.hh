// Completion<T>: a result that one task waits for and something else on the same home thread provides, once:
// the end of an I/O operation, a timer, a grant. The waiter is resumed from the ready queue, never inside
// complete().
//
//   good: Completion<int64_t> done(executor);  submit(&op, &done);  int64_t result = co_await done;
//   bad:  complete() from another thread: send a message to the home thread and complete there
#pragma once

#include <coroutine>
#include <type_traits>
#include <utility>

#include "base/assert.hh"
#include "coro/executor.hh"

namespace engine::coro {

template <class T>
    requires(std::is_nothrow_move_constructible_v<T> && std::is_nothrow_default_constructible_v<T>)
class Completion : private ReadyItem {
  public:
    explicit Completion(Executor& executor) noexcept : executor_(executor) { run = &wake; }
    Completion(const Completion&) = delete;
    Completion& operator=(const Completion&) = delete;
    // What was submitted has completed, and who waited has been resumed.
    ~Completion() { ENGINE_CHECK(!waiter_); }

    bool completed() const noexcept { return completed_; }
    void complete(T result) noexcept {
        ENGINE_ASSERT(executor_.on_home_thread());
        ENGINE_CHECK(!completed_);
        completed_ = true;
        result_ = std::move(result);
        if (waiter_) executor_.ready(this);
    }

    // For co_await; one task, once.
    bool await_ready() const noexcept { return completed_; }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
        ENGINE_CHECK(!waiter_);
        executor_.check_may_suspend();
        waiter_ = waiter;
    }
    T await_resume() noexcept { return std::move(result_); }

  private:
    static void wake(ReadyItem* item) noexcept {
        Completion* self = static_cast<Completion*>(item);
        // From here on the completion may go: it usually lives in the frame that is resumed.
        self->executor_.resume(std::exchange(self->waiter_, nullptr));
    }

    Executor& executor_;
    std::coroutine_handle<> waiter_;
    T result_{};
    bool completed_ = false;
};

}  // namespace engine::coro
