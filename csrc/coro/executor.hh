// What a task needs from the context that it runs on: the slot of the coroutine to resume next, the queue of
// wake-ups, memory for frames, and from the loop around it a way in for other threads, a clock and timers. An
// AioContext is one; a test can drive one by hand. Home thread only, but for post(); no lock.
#pragma once

#include <pthread.h>

#include <cerrno>
#include <coroutine>
#include <cstdint>
#include <type_traits>

#include "base/assert.hh"
#include "base/clock.hh"
#include "base/list.hh"
#include "base/timer.hh"
#include "base/work_item.hh"
#include "coro/frame_pool.hh"

namespace engine::coro {

// An entry of the ready queue.
using ReadyItem = base::WorkItem;

class Executor {
  public:
    Executor() noexcept = default;
    virtual ~Executor() = default;
    Executor(const Executor&) = delete;
    Executor& operator=(const Executor&) = delete;

    // --- what the loop around it provides

    // Any thread. 0: item->run will be called on the home thread, from its loop, exactly once. -ESHUTDOWN: it
    // never will. An executor that is driven by hand and says nothing cannot be reached.
    virtual int post(ReadyItem*) noexcept { return -ESHUTDOWN; }
    // Nanoseconds, comparable between the executors of one program; virtual where time is simulated.
    virtual uint64_t now_ns() const noexcept { return base::now_ns(); }

    // Home thread. Arms the timer, or moves the deadline of an armed one. -ENOMEM; -ESHUTDOWN: no timer fires
    // any more, or there are none.
    virtual int arm(base::Timer*, uint64_t /*deadline_ns*/) noexcept { return -ESHUTDOWN; }
    // Home thread. It will not fire; nothing where it is not armed.
    virtual void disarm(base::Timer*) noexcept {}

    // --- the rest

    // The thread that everything below runs on: the one that constructed it, or that called this last.
    void bind_to_this_thread() noexcept { home_ = pthread_self(); }
    bool on_home_thread() const noexcept { return pthread_equal(home_, pthread_self()) != 0; }

    // item->run is called by a later run_ready(), in order, never inside the caller.
    void ready(ReadyItem* item) noexcept {
        ENGINE_ASSERT(on_home_thread());
        ready_.push(item);
    }
    bool has_ready() const noexcept { return !ready_.empty(); }
    // Runs up to `most` items and returns how many; what they make ready counts as well.
    unsigned run_ready(unsigned most) noexcept {
        ENGINE_ASSERT(on_home_thread());
        unsigned count = 0;
        for (; count < most; count++) {
            ReadyItem* item = ready_.pop();
            if (item == nullptr) break;
            item->run(item);
        }
        return count;
    }

    // The trampoline: a task that finishes here names its awaiter by set_next() and returns, so that a chain
    // of any depth unwinds on one stack frame. Called by items of the ready queue alone, hence never nested.
    void resume(std::coroutine_handle<> coroutine) noexcept {
        ENGINE_ASSERT(on_home_thread());
        ENGINE_CHECK(!resuming_);
        resuming_ = true;
        do {
            next_ = nullptr;
            coroutine.resume();
            coroutine = next_;
        } while (coroutine);
        resuming_ = false;
    }
    void set_next(std::coroutine_handle<> awaiter) noexcept {
        ENGINE_CHECK(resuming_ && !next_);
        next_ = awaiter;
    }

    // Resumes what waits on `target`, from its own ready queue, never in here. A context ends only after the
    // tasks on it, so it can be reached. The last that the caller does with what the item belongs to.
    void wake(ReadyItem* item, Executor& target) noexcept {
        ENGINE_ASSERT(on_home_thread());
        if (&target == this) {
            ready(item);
        } else {
            int posted = target.post(item);
            ENGINE_CHECK(posted == 0);
        }
    }

    FramePool& frames() noexcept { return frames_; }

    // Short mutexes held by what runs here (coro/short_lock.hh). Suspending with one held aborts.
    void short_lock_taken() noexcept { short_locks_++; }
    void short_lock_released() noexcept {
        ENGINE_CHECK(short_locks_ != 0);
        short_locks_--;
    }
    void check_may_suspend() const noexcept { ENGINE_CHECK(short_locks_ == 0); }

  private:
    base::Queue<ReadyItem> ready_;
    std::coroutine_handle<> next_;
    uint32_t short_locks_ = 0;
    bool resuming_ = false;
    FramePool frames_;
    pthread_t home_ = pthread_self();
};

namespace detail {

template <class X>
concept IsExecutor = std::is_convertible_v<X&, Executor&>;
template <class X>
concept HasExecutor = requires(X& x) {
    { x.executor() } -> std::convertible_to<Executor&>;
};
template <class X>
concept PointsToExecutor = requires(X x) {
    { x->executor() } -> std::convertible_to<Executor&>;
};

template <class First, class... Rest>
Executor& find_executor(First& first, Rest&... rest) noexcept {
    if constexpr (IsExecutor<First>) {
        return first;
    } else if constexpr (HasExecutor<First>) {
        return first.executor();
    } else if constexpr (PointsToExecutor<First>) {
        return first->executor();
    } else {
        static_assert(sizeof...(Rest) != 0, "a task needs a parameter that is an Executor or has executor()");
        return find_executor(rest...);
    }
}

}  // namespace detail

}  // namespace engine::coro
