// RwLock: a reader-writer lock that suspends, for `meta`. A reader without a writer in sight touches nothing
// but the slot of its channel: an increment, a look at the gate, a decrement and a look at the gate.
// Phase-fair: readers that queue behind a writer go before the next one. For contexts only. Explored as
// shipped by tests/native/explore_rwlock.cc.
//
//   good: RwLock::SharedGuard guard = co_await meta.lock_shared(chain, slot);  mapping = look_up(guard,
//   offset); bad:  the guard still held while the I/O that follows is awaited: LockChain::check_may_await
//   finds it bad:  shared again in the same chain: with a writer in between it would wait for itself
#pragma once

#include <coroutine>
#include <utility>

#include "base/assert.hh"
#include "base/atomic.hh"
#include "base/lock_profile.hh"
#include "coro/executor.hh"
#include "coro/lock_chain.hh"
#include "coro/mutex.hh"

namespace engine::coro {

class RwLock {
  public:
    class ReaderSlot;
    class Held;  // either guard: what may only be read takes it as the proof
    class SharedGuard;
    class ExclusiveGuard;
    class AcquireShared;
    class AcquireExclusive;

    RwLock() noexcept = default;
    explicit RwLock(const LockLabel& label) noexcept : label_(label) {}
    RwLock(const RwLock&) = delete;
    RwLock& operator=(const RwLock&) = delete;
    // Nobody holds it, waits, or is in the middle of letting go; all slots have been removed.
    ~RwLock() {
        ENGINE_CHECK(gate_.load_acquire() == nullptr && pending_.load_acquire() == nullptr);
        ENGINE_CHECK(slots_.load_acquire() == nullptr);
    }

    // For co_await. The slot is that of the chain's executor.
    [[nodiscard]] AcquireShared lock_shared(LockChain& chain, ReaderSlot& slot) noexcept;
    [[nodiscard]] AcquireExclusive lock_exclusive(LockChain& chain) noexcept;
    // Empty guards where there would be something to wait for.
    [[nodiscard]] SharedGuard try_lock_shared(LockChain& chain, ReaderSlot& slot) noexcept;
    [[nodiscard]] ExclusiveGuard try_lock_exclusive(LockChain& chain) noexcept;

    // Any thread, before the slot's first use. Throws std::bad_alloc where profiling is on.
    void add(ReaderSlot& slot);
    // With nothing of it held or waiting. Afterwards nobody looks at it any more.
    void remove(const ExclusiveGuard& guard, ReaderSlot& slot) noexcept;

    // Before its first use.
    void set_label(const LockLabel& label) noexcept { label_ = label; }
    void enable_profile() { profile_.enable(); }
    // Any thread: of writers, and of slots that were removed. What readers did is in their slots.
    uint64_t acquisitions() const noexcept { return profile_.acquisitions(); }
    uint64_t contended() const noexcept { return profile_.contended(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        profile_.add_to(wait, hold);
    }

  private:
    struct SharedWaiter : ReadyItem {
        ReaderSlot* slot = nullptr;
    };
    using Writer = Turn::Waiter;

    static SharedWaiter* closed_mark() noexcept { return reinterpret_cast<SharedWaiter*>(uintptr_t{1}); }
    static Writer* checking_mark() noexcept { return reinterpret_cast<Writer*>(uintptr_t{1}); }
    static Writer* check_again_mark() noexcept { return reinterpret_cast<Writer*>(uintptr_t{2}); }

    bool try_enter(ReaderSlot& slot) noexcept;
    bool enter_or_wait(SharedWaiter* waiter) noexcept;
    void leave(ReaderSlot& slot) noexcept;
    bool close_gate() noexcept;
    bool drained_or_published(Writer* writer) noexcept;
    void check_pending(Executor& executor) noexcept;
    bool no_readers() const noexcept;
    void open_gate(Executor& executor) noexcept;

    // Null: open, readers come and go. closed_mark(): a writer holds the lock, or waits for readers to leave.
    // Else the readers that queue behind it, the latest first.
    alignas(64) base::Atomic<SharedWaiter*> gate_{nullptr};
    // The writer that waits for readers to leave; checking_mark() while somebody counts them for it, who
    // alone may wake it; check_again_mark() when a reader has left meanwhile.
    base::Atomic<Writer*> pending_{nullptr};
    base::Atomic<ReaderSlot*> slots_{nullptr};
    Turn turn_;  // among writers, first come, first served; held by the one that closed the gate
    base::LockProfile profile_;  // of the writer that holds it
    LockLabel label_;
};

// The readers of one channel: a line of its own, which a writer reads, and writes only to let in those that
// queued behind it. Home thread of its executor. Not a local of a task, whose frame is not aligned like that.
class alignas(64) RwLock::ReaderSlot {
  public:
    explicit ReaderSlot(Executor& executor) noexcept : executor_(executor) {}
    ReaderSlot(const ReaderSlot&) = delete;
    ReaderSlot& operator=(const ReaderSlot&) = delete;
    // Removed from its lock.
    ~ReaderSlot() { ENGINE_CHECK(lock_ == nullptr); }

    // Any thread.
    uint64_t acquisitions() const noexcept { return profile_.acquisitions(); }
    uint64_t contended() const noexcept { return profile_.contended(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        profile_.add_to(wait, hold);
    }

  private:
    friend class RwLock;
    base::Atomic<uint64_t> readers_{0};  // inside, and those about to see that they are not
    RwLock* lock_ = nullptr;
    Executor& executor_;
    base::LockProfile profile_;
    ReaderSlot* next_ = nullptr;  // written before it is published, and by remove()
};

// --- readers

// The increment comes before the look at the gate, the closing of the gate before the count: all seq_cst. So
// the reader sees the gate closed, or the writer sees the reader. Also acquires what writers did: pairs with
// open_gate().
inline bool RwLock::try_enter(ReaderSlot& slot) noexcept {
    slot.readers_.fetch_add_seq_cst(1);
    if (ENGINE_LIKELY(gate_.load_seq_cst() == nullptr)) return true;
    // It may have been counted, so it leaves like any other.
    if (ENGINE_SEEDED_BUG(failed_reader_checks_nothing)) {
        slot.readers_.fetch_sub_seq_cst(1);
    } else {
        leave(slot);
    }
    return false;
}

// The decrement comes before the look at the gate, as above: the last one to leave sees that a writer waits,
// or the writer counts without it. Releases to the count.
inline void RwLock::leave(ReaderSlot& slot) noexcept {
    slot.readers_.fetch_sub_seq_cst(1);
    if (ENGINE_UNLIKELY(gate_.load_seq_cst() != nullptr)) check_pending(slot.executor_);
}

// False: it is inside after all. True: waiter->run will be called once, with the reader counted.
inline bool RwLock::enter_or_wait(SharedWaiter* waiter) noexcept {
    SharedWaiter* gate = gate_.load_relaxed();
    for (;;) {
        if (gate == nullptr && !ENGINE_SEEDED_BUG(reader_queues_at_an_open_gate)) {
            if (try_enter(*waiter->slot)) return false;
            gate = gate_.load_relaxed();
            continue;
        }
        waiter->next = gate == closed_mark() ? nullptr : gate;
        // Pairs with the exchange in open_gate().
        if (gate_.compare_exchange_acq_rel(gate, waiter)) return true;
    }
}

// --- writers

inline bool RwLock::no_readers() const noexcept {
    for (ReaderSlot* slot = slots_.load_seq_cst(); slot != nullptr; slot = slot->next_) {
        if (slot->readers_.load_seq_cst() != 0) return false;
    }
    return true;
}

// By the one who has the turn. True: nobody is inside, and nobody comes in.
inline bool RwLock::close_gate() noexcept {
    gate_.store_seq_cst(closed_mark());
    return no_readers();
}

// The gate is closed and pending_ is checking_mark(), the caller's. True: there is no reader, and `writer` is
// not pending any more. False: it is published; whoever sees the last reader out wakes it, perhaps at once.
// Only the one who has put the mark there walks the slots, so the holder knows that nobody does.
inline bool RwLock::drained_or_published(Writer* writer) noexcept {
    while (!no_readers()) {
        Writer* state = checking_mark();
        do {
            if (pending_.compare_exchange_seq_cst(state, writer)) return false;
        } while (state == checking_mark());
        // A reader left while others were counted. Who does so from here on puts the mark there anew; who did
        // so before is seen by the next count, because the store comes before it: both seq_cst.
        pending_.store_seq_cst(checking_mark());
    }
    pending_.store_seq_cst(nullptr);
    return true;
}

// A reader has left a closed gate.
inline void RwLock::check_pending(Executor& executor) noexcept {
    Writer* writer = pending_.load_seq_cst();
    do {
        if (writer == nullptr || writer == check_again_mark()) return;
        if (writer == checking_mark() && ENGINE_SEEDED_BUG(leaving_during_a_check_goes_unseen)) return;
    } while (!pending_.compare_exchange_seq_cst(
        writer, writer == checking_mark() ? check_again_mark() : checking_mark()));
    if (writer == checking_mark()) return;
    if (drained_or_published(writer)) executor.wake(writer, *writer->executor);
}

// By the holder. Those that queued are counted before the next writer has its turn, so they go first.
inline void RwLock::open_gate(Executor& executor) noexcept {
    if (ENGINE_SEEDED_BUG(turn_passes_before_readers)) turn_.give_back(executor);
    SharedWaiter* newest = gate_.exchange_seq_cst(nullptr);
    SharedWaiter* oldest = nullptr;
    while (newest != nullptr && newest != closed_mark()) {
        auto* older = static_cast<SharedWaiter*>(newest->next);
        newest->next = oldest;
        oldest = newest;
        newest = older;
    }
    while (oldest != nullptr) {
        auto* next = static_cast<SharedWaiter*>(oldest->next);
        oldest->slot->readers_.fetch_add_seq_cst(1);
        executor.wake(oldest, oldest->slot->executor_);
        oldest = next;
    }
    if (!ENGINE_SEEDED_BUG(turn_passes_before_readers)) turn_.give_back(executor);
}

// --- slots

// Published before its first reader looks at the gate: a writer that has not seen it is seen.
inline void RwLock::add(ReaderSlot& slot) {
    ENGINE_CHECK(slot.lock_ == nullptr);
    if (profile_.enabled()) slot.profile_.enable();
    slot.lock_ = this;
    slot.next_ = slots_.load_relaxed();
    while (!slots_.compare_exchange_seq_cst(slot.next_, &slot)) {
    }
}

// --- guards

class RwLock::Held {
  public:
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    bool holds(const RwLock& lock) const noexcept { return lock_ == &lock; }
    explicit operator bool() const noexcept { return lock_ != nullptr; }

  protected:
    Held() noexcept = default;
    Held(RwLock& lock, Executor& executor, LockChain::Entry&& entry, base::LockProfile& profile,
         uint64_t waited_ns) noexcept
        : lock_(&lock), entry_(std::move(entry)) {
        profile.acquired(waited_ns);
        if (ENGINE_UNLIKELY(profile.enabled())) locked_at_ns_ = executor.now_ns();
    }
    Held(Held&& other) noexcept
        : lock_(std::exchange(other.lock_, nullptr)),
          locked_at_ns_(other.locked_at_ns_),
          entry_(std::move(other.entry_)) {}
    ~Held() = default;
    void released(Executor& executor, base::LockProfile& profile) const noexcept {
        ENGINE_ASSERT(executor.on_home_thread());
        if (ENGINE_UNLIKELY(profile.enabled())) profile.released(executor.now_ns() - locked_at_ns_);
    }

    RwLock* lock_ = nullptr;

  private:
    uint64_t locked_at_ns_ = 0;
    [[no_unique_address]] LockChain::Entry entry_;
};

class [[nodiscard]] RwLock::SharedGuard : public Held {
  public:
    SharedGuard() noexcept = default;
    SharedGuard(SharedGuard&& other) noexcept = default;
    ~SharedGuard() {
        if (lock_ == nullptr) return;
        released(slot_->executor_, slot_->profile_);
        lock_->leave(*slot_);
    }

  private:
    friend class RwLock;
    SharedGuard(ReaderSlot& slot, LockChain::Entry&& entry, uint64_t waited_ns) noexcept
        : Held(*slot.lock_, slot.executor_, std::move(entry), slot.profile_, waited_ns), slot_(&slot) {}
    ReaderSlot* slot_ = nullptr;
};

class [[nodiscard]] RwLock::ExclusiveGuard : public Held {
  public:
    ExclusiveGuard() noexcept = default;
    ExclusiveGuard(ExclusiveGuard&& other) noexcept = default;
    ~ExclusiveGuard() {
        if (lock_ == nullptr) return;
        released(*executor_, lock_->profile_);
        lock_->open_gate(*executor_);
    }

  private:
    friend class RwLock;
    ExclusiveGuard(RwLock& lock, Executor& executor, LockChain::Entry&& entry, uint64_t waited_ns) noexcept
        : Held(lock, executor, std::move(entry), lock.profile_, waited_ns), executor_(&executor) {}
    Executor* executor_ = nullptr;
};

// Lives in the frame of the task that waits; so does the next.
class [[nodiscard]] RwLock::AcquireShared : private SharedWaiter {
  public:
    AcquireShared(const AcquireShared&) = delete;
    AcquireShared& operator=(const AcquireShared&) = delete;

    bool await_ready() noexcept { return lock_.try_enter(*slot); }
    bool await_suspend(std::coroutine_handle<> task) noexcept {
        Executor& executor = slot->executor_;
        executor.check_may_suspend();
        task_ = task;
        asked_at_ns_ = executor.now_ns();
        return lock_.enter_or_wait(this);
    }
    SharedGuard await_resume() noexcept { return SharedGuard(*slot, request_.granted(), waited_ns_); }

  private:
    friend class RwLock;
    AcquireShared(RwLock& lock, LockChain& chain, ReaderSlot& reader) noexcept
        : lock_(lock), request_(chain, &lock, lock.label_) {
        ENGINE_ASSERT(reader.lock_ == &lock && &reader.executor_ == &chain.executor());
        ENGINE_ASSERT(chain.executor().on_home_thread());
        slot = &reader;
        run = &granted;
    }
    static void granted(ReadyItem* item) noexcept {
        auto* self = static_cast<AcquireShared*>(static_cast<SharedWaiter*>(item));
        Executor& executor = self->slot->executor_;
        uint64_t now_ns = executor.now_ns();
        self->waited_ns_ = now_ns > self->asked_at_ns_ ? now_ns - self->asked_at_ns_ : 1;
        executor.resume(self->task_);
    }

    RwLock& lock_;
    std::coroutine_handle<> task_;
    uint64_t asked_at_ns_ = 0;
    uint64_t waited_ns_ = 0;
    [[no_unique_address]] LockChain::Request request_;
};

// Waits twice at most: for its turn among writers, then for the readers to leave.
class [[nodiscard]] RwLock::AcquireExclusive : private Writer {
  public:
    AcquireExclusive(const AcquireExclusive&) = delete;
    AcquireExclusive& operator=(const AcquireExclusive&) = delete;

    bool await_ready() noexcept {
        has_turn_ = lock_.turn_.try_take();
        return has_turn_ && lock_.close_gate();
    }
    bool await_suspend(std::coroutine_handle<> task) noexcept {
        executor->check_may_suspend();
        task_ = task;
        asked_at_ns_ = executor->now_ns();
        if (!has_turn_) {
            run = &turn_came;
            if (lock_.turn_.take_or_wait(this)) return true;
            (void)lock_.close_gate();
        }
        return wait_for_readers();
    }
    ExclusiveGuard await_resume() noexcept {
        return ExclusiveGuard(lock_, *executor, request_.granted(), waited_ns_);
    }

  private:
    friend class RwLock;
    AcquireExclusive(RwLock& lock, LockChain& chain) noexcept
        : lock_(lock), request_(chain, &lock, lock.label_) {
        executor = &chain.executor();
        ENGINE_ASSERT(executor->on_home_thread());
    }
    static AcquireExclusive* of(ReadyItem* item) noexcept {
        return static_cast<AcquireExclusive*>(static_cast<Writer*>(item));
    }
    // The gate is closed. False: there is nobody to wait for.
    bool wait_for_readers() noexcept {
        run = &readers_left;
        lock_.pending_.store_seq_cst(checking_mark());
        return !lock_.drained_or_published(this);
    }
    static void turn_came(ReadyItem* item) noexcept {
        AcquireExclusive* self = of(item);
        if (self->lock_.close_gate() || !self->wait_for_readers()) readers_left(self);
    }
    static void readers_left(ReadyItem* item) noexcept {
        AcquireExclusive* self = of(item);
        uint64_t now_ns = self->executor->now_ns();
        self->waited_ns_ = now_ns > self->asked_at_ns_ ? now_ns - self->asked_at_ns_ : 1;
        self->executor->resume(self->task_);
    }

    RwLock& lock_;
    std::coroutine_handle<> task_;
    uint64_t asked_at_ns_ = 0;
    uint64_t waited_ns_ = 0;
    bool has_turn_ = false;
    [[no_unique_address]] LockChain::Request request_;
};

inline RwLock::AcquireShared RwLock::lock_shared(LockChain& chain, ReaderSlot& slot) noexcept {
    return AcquireShared(*this, chain, slot);
}
inline RwLock::AcquireExclusive RwLock::lock_exclusive(LockChain& chain) noexcept {
    return AcquireExclusive(*this, chain);
}

inline RwLock::SharedGuard RwLock::try_lock_shared(LockChain& chain, ReaderSlot& slot) noexcept {
    LockChain::Request request(chain, this, label_);
    ENGINE_ASSERT(slot.lock_ == this && &slot.executor_ == &chain.executor());
    ENGINE_ASSERT(chain.executor().on_home_thread());
    if (!try_enter(slot)) return SharedGuard();
    return SharedGuard(slot, request.granted(), 0);
}

inline RwLock::ExclusiveGuard RwLock::try_lock_exclusive(LockChain& chain) noexcept {
    LockChain::Request request(chain, this, label_);
    ENGINE_ASSERT(chain.executor().on_home_thread());
    if (!turn_.try_take()) return ExclusiveGuard();
    if (!close_gate()) {
        open_gate(chain.executor());
        return ExclusiveGuard();
    }
    return ExclusiveGuard(*this, chain.executor(), request.granted(), 0);
}

inline void RwLock::remove(const ExclusiveGuard& guard, ReaderSlot& slot) noexcept {
    ENGINE_CHECK(guard.holds(*this) && slot.lock_ == this);
    ENGINE_CHECK(slot.readers_.load_acquire() == 0);
    ReaderSlot* first = &slot;
    while (!slots_.compare_exchange_seq_cst(first, slot.next_)) {
        if (first == &slot) continue;
        while (first->next_ != &slot) first = first->next_;
        first->next_ = slot.next_;
        break;
    }
    profile_.absorb(slot.profile_);
    slot.lock_ = nullptr;
}

}  // namespace engine::coro
