// Task<T>: a coroutine of the engine. It starts at once, on the caller's stack; awaiting one that has
// finished suspends nothing; one that suspended and finishes later puts its awaiter into the executor's
// `next` slot. Home thread of its executor, from start to end; no lock.
//
//   good: int64_t n = co_await read_table(channel, index);
//   bad:  if ((co_await read_table(channel, index)) < 0) …    awaiting inside a larger expression
//   bad:  auto [n, entry] = co_await look_up(channel, index);  structured bindings
//   bad:  [&]() -> Task<int64_t> { … }();                      coroutine lambdas
//   bad:  a local that wants more than 16 bytes of alignment: the frame has no more
//   bad:  co_await f(), where f returns a reference to what is awaited: GCC 12 copies it
//
// Several at once: start them (Task<int64_t> a = f(channel, x), b = f(channel, y);), then co_await a and b in
// turn, or all (coro/when_all.hh). A task runs to its end: to destroy one that has not aborts the process.
#pragma once

#include <cerrno>
#include <coroutine>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "base/assert.hh"
#include "coro/executor.hh"

namespace engine::coro {

// Why a task has no result of its own: no memory for its frame, or std::bad_alloc left its body.
struct TaskFailure {
    int error;  // negative errno
};

// Every task returns a result, in which a failure has a place: an integer (0 or more, or -errno), or a struct
// with a constructor from TaskFailure.
template <class T>
concept TaskResult = (std::is_same_v<T, int> || std::is_same_v<T, int64_t> ||
                      (std::is_class_v<T> && std::is_nothrow_constructible_v<T, TaskFailure>)) &&
                     std::is_nothrow_move_constructible_v<T>;

template <TaskResult T>
T failed(int error) noexcept {
    if constexpr (std::is_class_v<T>) {
        return T(TaskFailure{error});
    } else {
        return static_cast<T>(error);
    }
}

namespace detail {

class PromiseBase {
  public:
    Executor& executor() const noexcept { return executor_; }
    std::suspend_never initial_suspend() const noexcept { return {}; }

    // Wakes nobody by itself: the awaiter goes into the slot, a detached task's callback into the ready
    // queue.
    struct Final {
        bool await_ready() const noexcept { return false; }
        template <class Promise>
        void await_suspend(std::coroutine_handle<Promise> finished) const noexcept {
            PromiseBase& promise = finished.promise();
            if (promise.awaiter_) {
                promise.executor_.set_next(promise.awaiter_);
            } else if (promise.callback_ != nullptr) {
                promise.executor_.ready(promise.callback_);
            }
        }
        void await_resume() const noexcept {}
    };
    Final final_suspend() const noexcept { return {}; }

    void set_awaiter(std::coroutine_handle<> awaiter) noexcept {
        ENGINE_CHECK(!awaiter_ && callback_ == nullptr);
        awaiter_ = awaiter;
    }
    void set_callback(ReadyItem* callback) noexcept {
        ENGINE_CHECK(!awaiter_ && callback_ == nullptr);
        callback_ = callback;
    }

    // A frame of its executor's pool. The parameters are those of the coroutine, the object of a member
    // first. Always inline, because GCC 12 takes a template for no match of `operator delete`
    // (-Wmismatched-new-delete).
    template <class... Args>
    [[gnu::always_inline]] static inline void* operator new(size_t bytes, Args&&... args) noexcept {
        return find_executor(args...).frames().allocate(bytes);
    }
    static void operator delete(void* frame, size_t) noexcept { FramePool::deallocate(frame); }

  protected:
    explicit PromiseBase(Executor& executor) noexcept : executor_(executor) {
        ENGINE_ASSERT(executor.on_home_thread());
    }

  private:
    Executor& executor_;
    std::coroutine_handle<> awaiter_;
    ReadyItem* callback_ = nullptr;
};

}  // namespace detail

template <TaskResult T>
class [[nodiscard]] Task {
  public:
    class promise_type;
    using Handle = std::coroutine_handle<promise_type>;

    Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), state_(other.state_) {
        other.state_ = State::empty;
    }
    Task& operator=(Task&&) = delete;
    ~Task() {
        if (!handle_) return;
        ENGINE_CHECK(handle_.done());
        handle_.destroy();
    }

    // Is the result there? A task whose frame could not be had is done as well.
    bool done() const noexcept { return !handle_ || handle_.done(); }
    // The result of one that is done; once.
    T take() noexcept {
        ENGINE_CHECK(state_ != State::empty && done());
        state_ = State::empty;
        if (!handle_) return failed<T>(-ENOMEM);
        return handle_.promise().take();
    }

    // For co_await; once.
    bool await_ready() const noexcept { return done(); }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> awaiter) noexcept {
        detail::PromiseBase& promise = handle_.promise();
        ENGINE_ASSERT(&static_cast<detail::PromiseBase&>(awaiter.promise()).executor() ==
                      &promise.executor());
        promise.executor().check_may_suspend();
        promise.set_awaiter(awaiter);
    }
    T await_resume() noexcept { return take(); }

    // For who waits for several (coro/when_all.hh): null once it is done.
    detail::PromiseBase* pending() const noexcept { return done() ? nullptr : &handle_.promise(); }

    // For Callback: the frame changes hands. Null: there was no memory for one.
    Handle release() noexcept {
        ENGINE_CHECK(state_ != State::empty);
        state_ = State::empty;
        return std::exchange(handle_, nullptr);
    }

  private:
    enum class State : uint8_t { empty, owed };  // owed: the result has not been taken
    explicit Task(Handle handle) noexcept : handle_(handle), state_(State::owed) {}

    Handle handle_;
    State state_;
};

template <TaskResult T>
class Task<T>::promise_type : public detail::PromiseBase {
  public:
    template <class... Args>
    explicit promise_type(Args&&... args) noexcept : PromiseBase(detail::find_executor(args...)) {}

    Task get_return_object() noexcept { return Task(Handle::from_promise(*this)); }
    static Task get_return_object_on_allocation_failure() noexcept { return Task(nullptr); }

    template <class U>
        requires std::is_constructible_v<T, U>
    void return_value(U&& value) noexcept(std::is_nothrow_constructible_v<T, U>) {
        result_.emplace(std::forward<U>(value));
    }
    void unhandled_exception() noexcept {
        try {
            throw;
        } catch (const std::bad_alloc&) {
            result_.emplace(failed<T>(-ENOMEM));
        } catch (...) {
            std::terminate();
        }
    }
    T take() noexcept {
        ENGINE_CHECK(result_.has_value());
        return std::move(*result_);
    }

  private:
    std::optional<T> result_;
};

// Where the result of a task goes that nobody awaits. Intrusive: it lives in what started the task, until
// `completed` runs.
template <TaskResult T>
class Callback : public ReadyItem {
  public:
    void (*completed)(Callback*, T result) = nullptr;

    Callback() noexcept { run = &deliver; }
    Callback(const Callback&) = delete;
    Callback& operator=(const Callback&) = delete;

  private:
    template <TaskResult U>
    friend void start(Executor& executor, Task<U> task, Callback<U>* callback) noexcept;

    // From the ready queue, so that no frame is destroyed while it is on the stack.
    static void deliver(ReadyItem* item) noexcept {
        Callback* self = static_cast<Callback*>(item);
        auto frame = std::exchange(self->frame_, nullptr);
        if (!frame) {
            self->completed(self, failed<T>(-ENOMEM));
            return;
        }
        T result = frame.promise().take();
        frame.destroy();
        self->completed(self, std::move(result));
    }

    typename Task<T>::Handle frame_;
};

// Lets a task run on its own. callback->completed is called exactly once, from the ready queue, never inside
// start().
template <TaskResult T>
void start(Executor& executor, Task<T> task, Callback<T>* callback) noexcept {
    ENGINE_CHECK(callback->completed != nullptr && !callback->frame_);
    bool done = task.done();
    callback->frame_ = task.release();
    if (done) {
        executor.ready(callback);
    } else {
        ENGINE_ASSERT(&callback->frame_.promise().executor() == &executor);
        callback->frame_.promise().set_callback(callback);
    }
}

}  // namespace engine::coro
