// Mutex: one that suspends. First come, first served; waiters may be on different executors, and each is
// resumed from the ready queue of its own, never on the stack of the one who unlocks. For contexts only: a
// foreign thread asks the context `main`. Explored as shipped by tests/native/explore_mutex.cc.
//
//   good: Mutex::Guard guard = co_await node.edges.lock(chain);      held until the end of the scope
//   bad:  a guard that outlives its task, or that is given to a task of another executor
#pragma once

#include <coroutine>
#include <utility>

#include "base/assert.hh"
#include "base/atomic.hh"
#include "base/lock_profile.hh"
#include "coro/executor.hh"
#include "coro/lock_chain.hh"

namespace engine::coro {

// The bare protocol: one has the turn, the others wait for it.
class Turn {
  public:
    Turn() noexcept = default;
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    // Nobody has it or waits. The one who had it last may destroy it at once.
    ~Turn() { ENGINE_CHECK(state_.load_acquire() == nullptr); }

    // Who waits; `run` is called on its executor when it has the turn.
    struct Waiter : ReadyItem {
        Executor* executor = nullptr;
    };
    bool try_take() noexcept;
    // False: it was free after all, and is the caller's. True: waiter->run will be called, once.
    bool take_or_wait(Waiter* waiter) noexcept;
    // By the one who has it, on `executor`: to the one who has waited longest.
    void give_back(Executor& executor) noexcept;

  private:
    static Waiter* held_mark() noexcept { return reinterpret_cast<Waiter*>(uintptr_t{1}); }

    // Null: free. held_mark(): held, and nobody has come since the holder looked last. Else those who have,
    // the latest first.
    base::Atomic<Waiter*> state_{nullptr};
    Waiter* waiting_ = nullptr;  // the holder's: those it has seen, the first to come first
};

// Pairs with give_back(): who finds it free sees what all holders did.
inline bool Turn::try_take() noexcept {
    Waiter* state = nullptr;
    while (!state_.compare_exchange_acq_rel(state, held_mark())) {
        if (state != nullptr) return false;
    }
    return true;
}

// Pairs with the exchange in give_back(), which sees what the waiter wrote. The waiter's executor is this
// thread's, so it is not run before the caller has gone back to the loop.
inline bool Turn::take_or_wait(Waiter* waiter) noexcept {
    Waiter* state = state_.load_relaxed();
    for (;;) {
        if (state == nullptr) {
            if (state_.compare_exchange_acq_rel(state, held_mark())) return false;
            continue;
        }
        waiter->next = state == held_mark() ? nullptr : state;
        if (state_.compare_exchange_acq_rel(state, waiter)) return true;
    }
}

// It is handed over held, so nobody overtakes. What the last holder did, the next one sees by the way its
// wake-up takes: the ready queue or the inbox.
inline void Turn::give_back(Executor& executor) noexcept {
    if (waiting_ == nullptr) {
        Waiter* state = held_mark();
        do {
            if (state_.compare_exchange_acq_rel(state, nullptr)) return;
        } while (state == held_mark());
        for (Waiter* newest = state_.exchange_acq_rel(held_mark()); newest != nullptr;) {
            auto* older = static_cast<Waiter*>(newest->next);
            newest->next = waiting_;
            waiting_ = newest;
            newest = older;
        }
    }
    Waiter* first = waiting_;
    waiting_ = static_cast<Waiter*>(first->next);
    executor.wake(first, *first->executor);
}

class Mutex {
  public:
    class Guard;
    class Acquire;

    Mutex() noexcept = default;
    explicit Mutex(const LockLabel& label) noexcept : label_(label) {}
    Mutex(const Mutex&) = delete;
    Mutex& operator=(const Mutex&) = delete;

    // For co_await, by a task of that executor. `chain` is a LockChain&, or an Executor& for a chain that
    // takes this lock alone.
    template <class Chain>
    [[nodiscard]] Acquire lock(Chain& chain) noexcept;
    // An empty guard where it is not free.
    template <class Chain>
    [[nodiscard]] Guard try_lock(Chain& chain) noexcept;

    // Before its first use.
    void set_label(const LockLabel& label) noexcept { label_ = label; }
    void enable_profile() { profile_.enable(); }
    // Any thread.
    uint64_t acquisitions() const noexcept { return profile_.acquisitions(); }
    uint64_t contended() const noexcept { return profile_.contended(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        profile_.add_to(wait, hold);
    }

  private:
    Turn turn_;
    base::LockProfile profile_;  // the holder's
    LockLabel label_;
};

class [[nodiscard]] Mutex::Guard {
  public:
    Guard() noexcept = default;
    Guard(Guard&& other) noexcept
        : mutex_(std::exchange(other.mutex_, nullptr)),
          executor_(other.executor_),
          locked_at_ns_(other.locked_at_ns_),
          entry_(std::move(other.entry_)) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
        if (mutex_ != nullptr) release();
    }

    explicit operator bool() const noexcept { return mutex_ != nullptr; }
    // For what takes a guard as the proof.
    bool holds(const Mutex& mutex) const noexcept { return mutex_ == &mutex; }

  private:
    friend class Mutex;
    Guard(Mutex& mutex, Executor& executor, LockChain::Entry&& entry, uint64_t waited_ns) noexcept
        : mutex_(&mutex), executor_(&executor), entry_(std::move(entry)) {
        mutex.profile_.acquired(waited_ns);
        if (ENGINE_UNLIKELY(mutex.profile_.enabled())) locked_at_ns_ = executor.now_ns();
    }
    void release() noexcept {
        ENGINE_ASSERT(executor_->on_home_thread());
        if (ENGINE_UNLIKELY(mutex_->profile_.enabled())) {
            mutex_->profile_.released(executor_->now_ns() - locked_at_ns_);
        }
        mutex_->turn_.give_back(*executor_);
    }

    Mutex* mutex_ = nullptr;
    Executor* executor_ = nullptr;
    uint64_t locked_at_ns_ = 0;
    [[no_unique_address]] LockChain::Entry entry_;
};

// Lives in the frame of the task that waits.
class [[nodiscard]] Mutex::Acquire : private Turn::Waiter {
  public:
    Acquire(const Acquire&) = delete;
    Acquire& operator=(const Acquire&) = delete;

    bool await_ready() noexcept { return mutex_.turn_.try_take(); }
    bool await_suspend(std::coroutine_handle<> task) noexcept {
        executor->check_may_suspend();
        task_ = task;
        asked_at_ns_ = executor->now_ns();
        return mutex_.turn_.take_or_wait(this);
    }
    Guard await_resume() noexcept { return Guard(mutex_, *executor, request_.granted(), waited_ns_); }

  private:
    friend class Mutex;
    template <class Chain>
    Acquire(Mutex& mutex, Chain& chain) noexcept : mutex_(mutex), request_(chain, &mutex, mutex.label_) {
        executor = &executor_of(chain);
        ENGINE_ASSERT(executor->on_home_thread());
        run = &granted;
    }
    static void granted(ReadyItem* item) noexcept {
        auto* self = static_cast<Acquire*>(static_cast<Turn::Waiter*>(item));
        uint64_t now_ns = self->executor->now_ns();
        self->waited_ns_ = now_ns > self->asked_at_ns_ ? now_ns - self->asked_at_ns_ : 1;
        self->executor->resume(self->task_);
    }

    Mutex& mutex_;
    std::coroutine_handle<> task_;
    uint64_t asked_at_ns_ = 0;
    uint64_t waited_ns_ = 0;
    [[no_unique_address]] LockChain::Request request_;
};

template <class Chain>
Mutex::Acquire Mutex::lock(Chain& chain) noexcept {
    return Acquire(*this, chain);
}

template <class Chain>
Mutex::Guard Mutex::try_lock(Chain& chain) noexcept {
    LockChain::Request request(chain, this, label_);
    Executor& executor = executor_of(chain);
    ENGINE_ASSERT(executor.on_home_thread());
    if (!turn_.try_take()) return Guard();
    return Guard(*this, executor, request.granted(), 0);
}

}  // namespace engine::coro
