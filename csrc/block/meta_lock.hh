// `meta` of a node (rank 2): the reader-writer lock of a format's tables, with a slot for the readers of each
// context. A slot stays until the node closes, also when its channel goes: a writer may be looking at it, and
// a channel's end cannot wait for one.
//
//   good: coro::LockChain chain(channel.executor());
//         coro::RwLock::SharedGuard guard = co_await meta.lock_shared(chain, slot);
#pragma once

#include "block/graph.hh"
#include "block/node.hh"
#include "coro/rwlock.hh"

namespace engine::block {

class MetaLock {
  public:
    using Held = coro::RwLock::Held;  // either guard
    using Shared = coro::RwLock::SharedGuard;
    using Exclusive = coro::RwLock::ExclusiveGuard;
    using Slot = coro::RwLock::ReaderSlot;

    MetaLock() noexcept = default;
    MetaLock(const MetaLock&) = delete;
    MetaLock& operator=(const MetaLock&) = delete;
    ~MetaLock() { ENGINE_CHECK(slots_ == nullptr); }

    // Before its first use. Reports list it from here to close(). Throws std::bad_alloc.
    void set_up(Node& node);
    // That of the readers on a context, made where there is none. Null: no memory. On the context.
    Slot* slot_of(aio::AioContext& context) noexcept;
    // With no channel left. Foreign threads.
    void close(Node& node) noexcept;

    auto lock_shared(coro::LockChain& chain, Slot& slot) noexcept { return lock_.lock_shared(chain, slot); }
    auto lock_exclusive(coro::LockChain& chain) noexcept { return lock_.lock_exclusive(chain); }
    auto try_lock_shared(coro::LockChain& chain, Slot& slot) noexcept {
        return lock_.try_lock_shared(chain, slot);
    }
    bool holds(const Held& guard) const noexcept { return guard.holds(lock_); }

    // Any thread: of writers and readers together.
    uint64_t acquisitions() const noexcept;
    uint64_t contended() const noexcept;
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept;

  private:
    struct OwnedSlot {
        explicit OwnedSlot(aio::AioContext& of) noexcept : slot(of), context(&of) {}
        Slot slot;
        const aio::AioContext* context;
        OwnedSlot* next = nullptr;
    };

    coro::RwLock lock_;
    mutable base::Mutex list_mutex_;  // short
    OwnedSlot* slots_ = nullptr;      // written under list_mutex_, or with no channel left
};

}  // namespace engine::block
