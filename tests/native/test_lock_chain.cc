// The order of locks: what a chain may take, and each message of one that may not. Debug builds only:
// elsewhere a chain keeps nothing, which is what is tested there.
#include "check.hh"
#include "coro/lock_chain.hh"
#include "coro/mutex.hh"
#include "coro/rwlock.hh"
#include "coro/short_lock.hh"
#include "driven.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;

constexpr LockLabel edges(uint64_t id, const char* node) {
    return {.name = "edges", .owner = node, .rank = LockRank::edges, .id = id};
}
constexpr LockLabel meta(const char* node) {
    return {.name = "meta", .owner = node, .rank = LockRank::meta};
}
constexpr LockLabel reqs(const char* node) {
    return {.name = "reqs", .owner = node, .rank = LockRank::reqs};
}

// Two nodes, with all that they have.
struct Nodes {
    driven::Executor executor;
    Mutex edges1{edges(1, "top")}, edges2{edges(2, "bottom")};
    RwLock meta1{meta("top")}, meta2{meta("bottom")};
    RwLock::ReaderSlot slot1{executor}, slot2{executor};
    base::Mutex reqs1, reqs2;
    LockLabel label1 = reqs("top"), label2 = reqs("bottom");

    Nodes() {
        meta1.add(slot1);
        meta2.add(slot2);
    }
    ~Nodes() {
        LockChain chain(executor);
        meta1.remove(meta1.try_lock_exclusive(chain), slot1);
        meta2.remove(meta2.try_lock_exclusive(chain), slot2);
    }
};

TEST(the_whole_order_in_one_chain) {
    Nodes n;
    LockChain chain(n.executor);
    Mutex::Guard e1 = n.edges1.try_lock(chain);
    Mutex::Guard e2 = n.edges2.try_lock(chain);
    RwLock::SharedGuard m1 = n.meta1.try_lock_shared(chain, n.slot1);
    RwLock::ExclusiveGuard m2 = n.meta2.try_lock_exclusive(chain);
    ShortLock r(chain, n.reqs1, n.label1);
    CHECK(e1 && e2 && m1 && m2);
}

TEST(what_was_let_go_is_forgotten) {
    Nodes n;
    LockChain chain(n.executor);
    {
        RwLock::SharedGuard m = n.meta1.try_lock_shared(chain, n.slot1);
    }
    {
        ShortLock r(chain, n.reqs1, n.label1);
    }
    {
        Mutex::Guard e = n.edges2.try_lock(chain);
    }
    Mutex::Guard e = n.edges1.try_lock(chain);
    Mutex::Guard moved = std::move(e);
    {
        Mutex::Guard gone = std::move(moved);
    }
    Mutex::Guard again = n.edges1.try_lock(chain);
    CHECK(static_cast<bool>(again));
    chain.check_may_await("I/O");
}

TEST(chains_do_not_mind_each_other) {
    Nodes n;
    LockChain one(n.executor), other(n.executor);
    RwLock::SharedGuard m = n.meta1.try_lock_shared(one, n.slot1);
    RwLock::SharedGuard same = n.meta1.try_lock_shared(other, n.slot1);
    Mutex::Guard e = n.edges1.try_lock(other.executor());  // a chain of one lock
    CHECK(m && same && e);
}

#ifndef NDEBUG

TEST(edges_after_meta_aborts_and_names_both) {
    CHECK_ABORTS("meta (rank 2) of 'bottom' is held before edges (rank 1) of 'top'", {
        Nodes n;
        LockChain chain(n.executor);
        RwLock::SharedGuard m = n.meta2.try_lock_shared(chain, n.slot2);
        Mutex::Guard e = n.edges1.try_lock(chain);
    });
}

TEST(edges_after_reqs_aborts) {
    CHECK_ABORTS("reqs (rank 3) of 'top' is held before edges (rank 1) of 'top'", {
        Nodes n;
        LockChain chain(n.executor);
        ShortLock r(chain, n.reqs1, n.label1);
        (void)n.edges1.lock(chain);
    });
}

TEST(meta_after_reqs_aborts) {
    CHECK_ABORTS("reqs (rank 3) of 'top' is held before meta (rank 2) of 'top'", {
        Nodes n;
        LockChain chain(n.executor);
        ShortLock r(chain, n.reqs1, n.label1);
        (void)n.meta1.lock_exclusive(chain);
    });
}

TEST(edges_by_descending_id_aborts) {
    CHECK_ABORTS("edges (rank 1) of 'bottom' is held before one with a smaller id: edges (rank 1) of 'top'", {
        Nodes n;
        LockChain chain(n.executor);
        Mutex::Guard e2 = n.edges2.try_lock(chain);
        Mutex::Guard e1 = n.edges1.try_lock(chain);
    });
}

TEST(two_reqs_abort) {
    CHECK_ABORTS("reqs (rank 3) of 'top' is held, one at a time, before reqs (rank 3) of 'bottom'", {
        Nodes n;
        LockChain chain(n.executor);
        ShortLock r1(chain, n.reqs1, n.label1);
        ShortLock r2(chain, n.reqs2, n.label2);
    });
}

TEST(recursion_aborts_shared_as_well) {
    CHECK_ABORTS("meta (rank 2) of 'top' is held, asked for again: meta (rank 2) of 'top'", {
        Nodes n;
        LockChain chain(n.executor);
        RwLock::SharedGuard m1 = n.meta1.try_lock_shared(chain, n.slot1);
        RwLock::SharedGuard m2 = n.meta1.try_lock_shared(chain, n.slot1);
    });
    CHECK_ABORTS("lock (rank 0) of '' is held, asked for again", {
        driven::Executor executor;
        Mutex mutex;
        LockChain chain(executor);
        Mutex::Guard first = mutex.try_lock(chain);
        (void)mutex.lock(chain);
    });
}

TEST(a_branch_answers_for_what_its_parent_holds) {
    CHECK_ABORTS("meta (rank 2) of 'top' is held before edges (rank 1) of 'bottom'", {
        Nodes n;
        LockChain chain(n.executor);
        RwLock::SharedGuard m = n.meta1.try_lock_shared(chain, n.slot1);
        LockChain branch(LockChain::BranchOf{chain});
        Mutex::Guard e = n.edges2.try_lock(branch);
    });
}

TEST(meta_across_a_wait_aborts) {
    CHECK_ABORTS("meta of 'bottom' is held across read of the L2 table", {
        Nodes n;
        LockChain chain(n.executor);
        RwLock::SharedGuard m = n.meta2.try_lock_shared(chain, n.slot2);
        LockChain branch(LockChain::BranchOf{chain});
        branch.check_may_await("read of the L2 table");
    });
    Nodes n;
    LockChain chain(n.executor);
    Mutex::Guard e = n.edges1.try_lock(chain);
    chain.check_may_await("grace");  // edges may be held
}

TEST(a_chain_that_ends_with_a_lock_held_aborts) {
    CHECK_ABORTS("newest_ == nullptr", {
        Nodes n;
        Mutex::Guard kept;
        LockChain chain(n.executor);
        new (&kept) Mutex::Guard(n.edges1.try_lock(chain));
    });
}

#else

TEST(a_release_build_keeps_nothing) {
    CHECK_EQ(sizeof(LockChain), sizeof(Executor*));
    Nodes n;
    LockChain chain(n.executor);
    RwLock::SharedGuard m = n.meta2.try_lock_shared(chain, n.slot2);
    Mutex::Guard e = n.edges1.try_lock(chain);
    chain.check_may_await("I/O");
    CHECK(m && e);
}

#endif

}  // namespace
