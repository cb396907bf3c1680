// Gate: counts what is inside something, so that its end can be awaited. Tasks of one executor; no lock.
//
//   good: Gate::Pass pass(node.gate);  if (!pass) co_return -ESHUTDOWN;      … until the end of the scope
//         int result = co_await node.gate.close();                           nothing is or will be inside
//   bad:  close() awaited by something that is inside: it waits for itself
#pragma once

#include <cerrno>
#include <coroutine>
#include <cstdint>

#include "base/assert.hh"
#include "coro/completion.hh"
#include "coro/executor.hh"

namespace engine::coro {

class Gate {
  public:
    explicit Gate(Executor& executor) noexcept : executor_(executor), empty_(executor) {}
    Gate(const Gate&) = delete;
    Gate& operator=(const Gate&) = delete;
    // Nothing is inside.
    ~Gate() { ENGINE_CHECK(inside_ == 0); }

    // -ESHUTDOWN: it is closed, or about to. 0: a leave() follows.
    int enter() noexcept {
        ENGINE_ASSERT(executor_.on_home_thread());
        if (closed_) return -ESHUTDOWN;
        inside_++;
        return 0;
    }
    void leave() noexcept {
        ENGINE_ASSERT(executor_.on_home_thread());
        ENGINE_CHECK(inside_ != 0);
        if (--inside_ == 0 && closed_) empty_.complete(0);
    }
    // Nobody enters from here on. For co_await, by one task, once: 0 when the last has left.
    class Close;
    [[nodiscard]] Close close() noexcept;

    bool closed() const noexcept { return closed_; }
    uint64_t inside() const noexcept { return inside_; }

    // Inside for as long as it lives; false where the gate was closed.
    class [[nodiscard]] Pass {
      public:
        explicit Pass(Gate& gate) noexcept : gate_(gate.enter() == 0 ? &gate : nullptr) {}
        ~Pass() {
            if (gate_ != nullptr) gate_->leave();
        }
        Pass(const Pass&) = delete;
        Pass& operator=(const Pass&) = delete;
        explicit operator bool() const noexcept { return gate_ != nullptr; }

      private:
        Gate* gate_;
    };

  private:
    Executor& executor_;
    Completion<int> empty_;
    uint64_t inside_ = 0;
    bool closed_ = false;
};

// GCC 12 copies what a function returns by reference when it is awaited, so this is a value.
class [[nodiscard]] Gate::Close {
  public:
    bool await_ready() const noexcept { return empty_.await_ready(); }
    void await_suspend(std::coroutine_handle<> task) const noexcept { empty_.await_suspend(task); }
    int await_resume() const noexcept { return empty_.await_resume(); }

  private:
    friend class Gate;
    explicit Close(Completion<int>& empty) noexcept : empty_(empty) {}
    Completion<int>& empty_;
};

inline Gate::Close Gate::close() noexcept {
    ENGINE_ASSERT(executor_.on_home_thread());
    ENGINE_CHECK(!closed_);
    closed_ = true;
    if (inside_ == 0) empty_.complete(0);
    return Close(empty_);
}

}  // namespace engine::coro
