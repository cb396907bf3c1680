// when_all: waits until each of several tasks has ended. They were started before, run side by side, and keep
// their results. No frame of its own, so that it cannot fail. Home thread of their executor; no lock.
//
//   good: Task<int64_t> a = read(channel, 0), b = read(channel, 1);
//         co_await when_all(executor, a, b);       or of a std::span<Task<int64_t>>
//         int64_t first = a.take(), second = b.take();
//   bad:  co_await when_all(executor, read(channel, 0));     a task that is gone at the end of the line
#pragma once

#include <coroutine>
#include <span>
#include <utility>

#include "coro/executor.hh"
#include "coro/task.hh"

namespace engine::coro {

// `Pending` answers with the promise of one that has not ended, or null. One is waited for at a time: when it
// has ended, most of the others will have as well.
template <class Pending>
class [[nodiscard]] WhenAll : private ReadyItem {
  public:
    WhenAll(Executor& executor, Pending pending) noexcept
        : executor_(executor), pending_(std::move(pending)) {
        run = &one_has_ended;
    }
    WhenAll(const WhenAll&) = delete;
    WhenAll& operator=(const WhenAll&) = delete;

    bool await_ready() noexcept { return pending_() == nullptr; }
    void await_suspend(std::coroutine_handle<> awaiter) noexcept {
        executor_.check_may_suspend();
        awaiter_ = awaiter;
        pending_()->set_callback(this);
    }
    void await_resume() const noexcept {}

  private:
    static void one_has_ended(ReadyItem* item) noexcept {
        auto* self = static_cast<WhenAll*>(item);
        if (detail::PromiseBase* next = self->pending_()) {
            next->set_callback(self);
        } else {
            self->executor_.resume(self->awaiter_);
        }
    }

    Executor& executor_;
    Pending pending_;
    std::coroutine_handle<> awaiter_;
};

template <TaskResult... T>
auto when_all(Executor& executor, Task<T>&... tasks) noexcept {
    auto pending = [&tasks...]() noexcept {
        detail::PromiseBase* found = nullptr;
        (void)((found = tasks.pending(), found != nullptr) || ...);
        return found;
    };
    return WhenAll<decltype(pending)>(executor, pending);
}

template <TaskResult T>
auto when_all(Executor& executor, std::span<Task<T>> tasks) noexcept {
    auto pending = [tasks]() noexcept -> detail::PromiseBase* {
        for (Task<T>& task : tasks) {
            if (detail::PromiseBase* found = task.pending()) return found;
        }
        return nullptr;
    };
    return WhenAll<decltype(pending)>(executor, pending);
}

}  // namespace engine::coro
