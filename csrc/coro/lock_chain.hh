// The order of locks, checked in debug builds: rank first, engine-wide. Not by thread, because tasks
// interleave there, but by chain: a task and those that it awaits. The chain is passed along in place of the
// executor. Home thread only; no lock. A release build keeps nothing but the executor.
//
//   good: Task<int> relink(LockChain& chain, Node& node) { Mutex::Guard g = co_await node.edges.lock(chain);
//   … bad:  two branches that run side by side, of one chain: make each its own, LockChain
//   branch(LockChain::BranchOf{chain})
#pragma once

#include <cstdint>
#include <cstdio>

#include "base/assert.hh"
#include "coro/executor.hh"

namespace engine::coro {

// Ascending: what is held must come before what is asked for. Of one rank: several `edges` by ascending id;
// `meta` of parent and child; one `reqs`. No lock twice, not even shared.
enum class LockRank : uint8_t { unranked, edges, meta, reqs };

struct LockLabel {
    const char* name = "lock";
    const char* owner = "";  // the node's name; outlives the lock
    LockRank rank = LockRank::unranked;
    uint64_t id = 0;  // of `edges`: the node's
};

class LockChain {
  public:
    explicit LockChain(Executor& executor) noexcept : executor_(&executor) {}
    // Of a branch that the parent awaits: what the parent holds, it holds.
    struct BranchOf {
        LockChain& parent;
    };
    explicit LockChain(BranchOf branch) noexcept : executor_(branch.parent.executor_) {
        set_parent(branch.parent);
    }
    LockChain(const LockChain&) = delete;
    LockChain& operator=(const LockChain&) = delete;

    Executor& executor() const noexcept { return *executor_; }

    class Entry;
    class Request;

#ifndef NDEBUG
    // Everything has been let go.
    ~LockChain() { ENGINE_CHECK(newest_ == nullptr); }
    // Before I/O, grace, quiescing or any other long wait: no `meta` may be held across `what`.
    void check_may_await(const char* what) const noexcept;

  private:
    void set_parent(LockChain& parent) noexcept { parent_ = &parent; }
    void check_order(const void* lock, const LockLabel& label) const noexcept;
    static void check_pair(const Entry& held, const void* lock, const LockLabel& label) noexcept;
    [[noreturn, gnu::cold]] static void refuse(const LockLabel& held, const char* why,
                                               const LockLabel& asked) noexcept;

    LockChain* parent_ = nullptr;
    Entry* newest_ = nullptr;
#else
    void check_may_await(const char*) const noexcept {}

  private:
    void set_parent(LockChain&) noexcept {}
#endif
    Executor* executor_;
};

#ifndef NDEBUG

// What a guard holds, in the list of its chain. Null chain: a chain of one lock, of which nothing is checked.
class LockChain::Entry {
  public:
    Entry() noexcept = default;
    Entry(LockChain* chain, const void* lock, const LockLabel& label) noexcept
        : chain_(chain), lock_(lock), label_(&label) {
        link();
    }
    Entry(Entry&& other) noexcept : chain_(other.chain_), lock_(other.lock_), label_(other.label_) {
        other.unlink();
        link();
    }
    Entry& operator=(Entry&&) = delete;
    ~Entry() { unlink(); }

  private:
    friend class LockChain;
    void link() noexcept {
        if (chain_ == nullptr) return;
        ENGINE_ASSERT(chain_->executor_->on_home_thread());
        older_ = chain_->newest_;
        if (older_ != nullptr) older_->newer_ = this;
        chain_->newest_ = this;
    }
    void unlink() noexcept {
        if (chain_ == nullptr) return;
        ENGINE_ASSERT(chain_->executor_->on_home_thread());
        (newer_ != nullptr ? newer_->older_ : chain_->newest_) = older_;
        if (older_ != nullptr) older_->newer_ = newer_;
        chain_ = nullptr;
    }

    LockChain* chain_ = nullptr;
    const void* lock_ = nullptr;
    const LockLabel* label_ = nullptr;
    Entry* older_ = nullptr;
    Entry* newer_ = nullptr;
};

// Who asks for a lock: checked when it asks, in the list when it has it.
class LockChain::Request {
  public:
    Request(Executor&, const void*, const LockLabel&) noexcept {}
    Request(LockChain& chain, const void* lock, const LockLabel& label) noexcept
        : chain_(&chain), lock_(lock), label_(&label) {
        chain.check_order(lock, label);
    }
    // The list holds it under its new address once it has been moved there.
    // NOLINTNEXTLINE(clang-analyzer-core.StackAddressEscape)
    Entry granted() const noexcept { return chain_ == nullptr ? Entry() : Entry(chain_, lock_, *label_); }

  private:
    LockChain* chain_ = nullptr;
    const void* lock_ = nullptr;
    const LockLabel* label_ = nullptr;
};

inline void LockChain::refuse(const LockLabel& held, const char* why, const LockLabel& asked) noexcept {
    char text[256];
    snprintf(text, sizeof text, "order of locks: %s (rank %u) of '%s' is held%s %s (rank %u) of '%s'",
             held.name, static_cast<unsigned>(held.rank), held.owner, why, asked.name,
             static_cast<unsigned>(asked.rank), asked.owner);
    base::check_failed(text, __FILE__, __LINE__);
}

inline void LockChain::check_pair(const Entry& held, const void* lock, const LockLabel& label) noexcept {
    const LockLabel& other = *held.label_;
    if (held.lock_ == lock) refuse(other, ", asked for again:", label);
    if (other.rank == LockRank::unranked || label.rank == LockRank::unranked) return;
    if (other.rank > label.rank) refuse(other, " before", label);
    if (other.rank < label.rank || label.rank == LockRank::meta) return;
    if (label.rank == LockRank::reqs) refuse(other, ", one at a time, before", label);
    if (other.id >= label.id) refuse(other, " before one with a smaller id:", label);
}

inline void LockChain::check_order(const void* lock, const LockLabel& label) const noexcept {
    for (const LockChain* chain = this; chain != nullptr; chain = chain->parent_) {
        for (const Entry* held = chain->newest_; held != nullptr; held = held->older_) {
            check_pair(*held, lock, label);
        }
    }
}

inline void LockChain::check_may_await(const char* what) const noexcept {
    for (const LockChain* chain = this; chain != nullptr; chain = chain->parent_) {
        for (const Entry* held = chain->newest_; held != nullptr; held = held->older_) {
            if (held->label_->rank != LockRank::meta) continue;
            char text[256];
            snprintf(text, sizeof text, "%s of '%s' is held across %s", held->label_->name,
                     held->label_->owner, what);
            base::check_failed(text, __FILE__, __LINE__);
        }
    }
}

#else

class LockChain::Entry {};

class LockChain::Request {
  public:
    Request(Executor&, const void*, const LockLabel&) noexcept {}
    Request(LockChain&, const void*, const LockLabel&) noexcept {}
    // The list holds it under its new address once it has been moved there.
    // NOLINTNEXTLINE(clang-analyzer-core.StackAddressEscape)
    Entry granted() const noexcept { return {}; }
};

#endif

// So that what takes a lock may be given a chain, or the executor for a chain of this one lock.
inline Executor& executor_of(Executor& executor) noexcept {
    return executor;
}
inline Executor& executor_of(LockChain& chain) noexcept {
    return chain.executor();
}

}  // namespace engine::coro
