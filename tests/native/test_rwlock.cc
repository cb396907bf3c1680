// The reader-writer lock: who waits for whom, phases, slots, profile, guards; then real contexts that read
// and write under one.
#include <vector>

#include "check.hh"
#include "coro/completion.hh"
#include "coro/rwlock.hh"
#include "coro/short_lock.hh"
#include "driven.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;
using driven::Contexts;
using driven::Hop;
using driven::Outcome;

// A lock with two executors and a slot on each.
struct Pair {
    driven::Executor here, there;
    RwLock lock;
    RwLock::ReaderSlot slots[2] = {RwLock::ReaderSlot(here), RwLock::ReaderSlot(there)};
    std::vector<int> order;

    explicit Pair(bool profile = false) {
        if (profile) lock.enable_profile();
        for (auto& slot : slots) lock.add(slot);
    }
    ~Pair() {
        LockChain chain(here);
        RwLock::ExclusiveGuard guard = lock.try_lock_exclusive(chain);
        for (auto& slot : slots) lock.remove(guard, slot);
    }
    driven::Executor& executor(int which) { return which == 0 ? here : there; }
    void drain() {
        while (here.drain() + there.drain() != 0) {
        }
    }
};

// Positive names read, negative ones write; each says when it is in.
Task<int64_t> enter(LockChain& chain, Pair& pair, int which, int name) {
    if (name > 0) {
        RwLock::SharedGuard guard = co_await pair.lock.lock_shared(chain, pair.slots[which]);
        pair.order.push_back(name);
        co_return guard.holds(pair.lock) ? name : -EIO;
    }
    RwLock::ExclusiveGuard guard = co_await pair.lock.lock_exclusive(chain);
    pair.order.push_back(name);
    co_return guard.holds(pair.lock) ? name : -EIO;
}

// One that enters, with what it needs.
struct Entering {
    LockChain chain;
    Outcome<> outcome;
    Entering(Pair& pair, int which, int name) : chain(pair.executor(which)) {
        start(pair.executor(which), enter(chain, pair, which, name), &outcome);
    }
};

TEST(readers_do_not_wait_for_readers) {
    Pair pair;
    LockChain a(pair.here), b(pair.here), c(pair.there);
    RwLock::SharedGuard first = pair.lock.try_lock_shared(a, pair.slots[0]);
    RwLock::SharedGuard second = pair.lock.try_lock_shared(b, pair.slots[0]);
    RwLock::SharedGuard third = pair.lock.try_lock_shared(c, pair.slots[1]);
    CHECK(first && second && third);
    LockChain d(pair.here);
    CHECK(!pair.lock.try_lock_exclusive(d));
    RwLock::SharedGuard fourth = pair.lock.try_lock_shared(d, pair.slots[0]);
    CHECK(static_cast<bool>(fourth));  // the attempt left the gate open
    CHECK_EQ(pair.slots[0].acquisitions(), 3);
    CHECK_EQ(pair.slots[1].acquisitions(), 1);
    CHECK_EQ(pair.lock.acquisitions(), 0);
}

TEST(a_free_lock_suspends_nobody) {
    Pair pair;
    Entering reader(pair, 0, 1), writer(pair, 0, -1), other(pair, 1, 2);
    CHECK((pair.order == std::vector<int>{1, -1, 2}));
    pair.drain();
    CHECK_EQ(writer.outcome.result.value_or(0), -1);
    CHECK_EQ(pair.lock.contended() + pair.slots[0].contended() + pair.slots[1].contended(), 0);
}

TEST(a_writer_waits_for_the_last_reader_wherever_it_is) {
    Pair pair;
    LockChain a(pair.here), b(pair.there);
    RwLock::SharedGuard first = pair.lock.try_lock_shared(a, pair.slots[0]);
    RwLock::SharedGuard second = pair.lock.try_lock_shared(b, pair.slots[1]);
    Entering writer(pair, 0, -1);
    {
        RwLock::SharedGuard gone = std::move(first);
    }
    pair.drain();
    CHECK(pair.order.empty());
    {
        RwLock::SharedGuard gone = std::move(second);
    }  // on the other executor: by way of the inbox
    CHECK(pair.order.empty());
    CHECK_EQ(pair.here.posted, 1);
    pair.drain();
    CHECK(pair.order == std::vector<int>{-1});
    CHECK_EQ(pair.lock.contended(), 1);
}

TEST(phases_are_fair) {
    Pair pair;
    LockChain chain(pair.here);
    RwLock::ExclusiveGuard guard = pair.lock.try_lock_exclusive(chain);
    Entering writer(pair, 0, -2), first(pair, 0, 1), second(pair, 1, 2), last(pair, 1, -3), third(pair, 0, 3);
    pair.drain();
    CHECK(pair.order.empty());
    {
        RwLock::ExclusiveGuard gone = std::move(guard);
    }
    pair.here.drain();
    // The next writer has closed the gate, and waits for the reader over there, which queued before.
    CHECK((pair.order == std::vector<int>{1, 3}));
    LockChain late(pair.here);
    CHECK(!pair.lock.try_lock_shared(late, pair.slots[0]));
    pair.drain();
    CHECK((pair.order == std::vector<int>{1, 3, 2, -2, -3}));
    CHECK_EQ(pair.lock.acquisitions(), 3);
    CHECK_EQ(pair.slots[0].contended(), 2);
    CHECK_EQ(pair.slots[1].contended(), 1);
}

TEST(a_reader_that_comes_while_a_writer_waits_goes_after_it) {
    Pair pair;
    LockChain a(pair.here);
    RwLock::SharedGuard first = pair.lock.try_lock_shared(a, pair.slots[0]);
    Entering writer(pair, 1, -1), reader(pair, 0, 1);
    pair.drain();
    CHECK(pair.order.empty());
    {
        RwLock::SharedGuard gone = std::move(first);
    }
    pair.drain();
    CHECK((pair.order == std::vector<int>{-1, 1}));
}

TEST(a_slot_that_comes_while_a_writer_waits_waits) {
    Pair pair;
    driven::Executor third;
    RwLock::ReaderSlot slot(third);
    LockChain a(pair.here);
    {
        RwLock::SharedGuard first = pair.lock.try_lock_shared(a, pair.slots[0]);
        Entering writer(pair, 1, -1);
        pair.lock.add(slot);
        LockChain b(third);
        CHECK(!pair.lock.try_lock_shared(b, slot));
        {
            RwLock::SharedGuard gone = std::move(first);
        }
        pair.drain();
        CHECK(static_cast<bool>(pair.lock.try_lock_shared(b, slot)));
    }
    RwLock::ExclusiveGuard guard = pair.lock.try_lock_exclusive(a);
    pair.lock.remove(guard, slot);
}

TEST(slots_may_go_in_any_order_and_what_they_counted_stays) {
    for (int first = 0; first < 3; first++) {
        driven::Executor executor;
        RwLock lock;
        lock.enable_profile();
        LockChain chain(executor);
        RwLock::ReaderSlot slots[3] = {RwLock::ReaderSlot(executor), RwLock::ReaderSlot(executor),
                                       RwLock::ReaderSlot(executor)};
        for (auto& slot : slots) {
            lock.add(slot);
            RwLock::SharedGuard guard = lock.try_lock_shared(chain, slot);
            executor.clock_ns += 7000;
        }
        RwLock::ExclusiveGuard guard = lock.try_lock_exclusive(chain);
        for (int i = 0; i < 3; i++) lock.remove(guard, slots[(first + i) % 3]);
        CHECK_EQ(lock.acquisitions(), 3 + 1);
        engine_histogram wait, hold;
        base::Histogram::reset(&wait);
        base::Histogram::reset(&hold);
        lock.read_profile(&wait, &hold);
        CHECK_EQ(hold.count, 3);
        CHECK_EQ(hold.min, 7000);
        CHECK_EQ(hold.sum, 21000);
        CHECK_EQ(wait.count, 4);
    }
}

TEST(the_profile_shows_the_time_held_and_waited) {
    Pair pair(true);
    engine_histogram wait, hold;
    {
        LockChain chain(pair.here);
        RwLock::SharedGuard guard = pair.lock.try_lock_shared(chain, pair.slots[0]);
        Entering writer(pair, 1, -1);
        pair.here.clock_ns = pair.there.clock_ns = 3'001'000;
        {
            RwLock::SharedGuard gone = std::move(guard);
        }
        pair.there.clock_ns = 3'002'000;
        pair.drain();
    }
    base::Histogram::reset(&wait);
    base::Histogram::reset(&hold);
    pair.slots[0].read_profile(&wait, &hold);
    CHECK_EQ(hold.count, 1);
    CHECK_EQ(hold.max, 3'000'000);
    CHECK_EQ(wait.max, 0);
    base::Histogram::reset(&wait);
    base::Histogram::reset(&hold);
    pair.lock.read_profile(&wait, &hold);
    CHECK_EQ(wait.count, 1);
    CHECK_EQ(wait.max, 3'001'000);
    CHECK_EQ(hold.max, 0);
    {
        LockChain chain(pair.here);
        RwLock::ExclusiveGuard guard = pair.lock.try_lock_exclusive(chain);
        Entering reader(pair, 1, 1);
        pair.there.clock_ns += 5000;
        {
            RwLock::ExclusiveGuard gone = std::move(guard);
        }
        pair.drain();
    }
    base::Histogram::reset(&wait);
    pair.slots[1].read_profile(&wait, &hold);
    CHECK_EQ(wait.max, 5000);
    CHECK_EQ(pair.slots[1].contended(), 1);
}

TEST(who_tries_has_not_waited) {
    Pair pair;
    for (int i = 0; i < 2; i++) {
        LockChain chain(pair.here);
        CHECK(pair.lock.try_lock_exclusive(chain));
    }
    {
        LockChain chain(pair.here);
        CHECK(pair.lock.try_lock_shared(chain, pair.slots[0]));
    }
    CHECK_EQ(pair.lock.acquisitions(), 2);
    CHECK_EQ(pair.lock.contended(), 0);
    CHECK_EQ(pair.slots[0].acquisitions(), 1);
    CHECK_EQ(pair.slots[0].contended(), 0);
}

// --- guards

TEST(a_lock_destroyed_with_a_slot_left_aborts) {
    CHECK_ABORTS("slots_.load_acquire() == nullptr", {
        driven::Executor executor;
        RwLock::ReaderSlot slot(executor);
        RwLock lock;
        lock.add(slot);
    });
}

TEST(a_slot_destroyed_before_it_is_removed_aborts) {
    CHECK_ABORTS("lock_ == nullptr", {
        driven::Executor executor;
        RwLock lock;
        RwLock::ReaderSlot slot(executor);
        lock.add(slot);
    });
}

TEST(a_lock_destroyed_while_it_is_held_aborts) {
    CHECK_ABORTS("gate_.load_acquire() == nullptr", {
        driven::Executor executor;
        LockChain chain(executor);
        RwLock::ExclusiveGuard kept;
        RwLock lock;
        new (&kept) RwLock::ExclusiveGuard(lock.try_lock_exclusive(chain));
    });
}

TEST(removing_a_slot_needs_the_lock_itself) {
    CHECK_ABORTS("guard.holds(*this)", {
        Pair pair;
        RwLock other;
        LockChain chain(pair.here);
        RwLock::ExclusiveGuard guard = other.try_lock_exclusive(chain);
        pair.lock.remove(guard, pair.slots[0]);
    });
}

TEST(waiting_with_a_short_lock_held_aborts) {
    for (int name : {1, -1}) {
        CHECK_ABORTS("short_locks_ == 0", {
            Pair pair;
            base::Mutex small;
            LockChain chain(pair.here);
            RwLock::ExclusiveGuard guard = pair.lock.try_lock_exclusive(chain);
            ShortLock lock(pair.here, small);
            Entering waits(pair, 0, name);
        });
    }
}

#ifndef NDEBUG
TEST(the_slot_of_another_executor_aborts_in_debug_builds) {
    CHECK_ABORTS("chain.executor()", {
        Pair pair;
        LockChain chain(pair.here);
        RwLock::SharedGuard guard = pair.lock.try_lock_shared(chain, pair.slots[1]);
    });
}
#endif

// --- real contexts

struct Shared {
    RwLock lock;
    int64_t left = 0, right = 0;  // equal whenever nobody writes; guarded by lock, across suspensions
    std::vector<std::unique_ptr<RwLock::ReaderSlot>> slots;
};

Task<int64_t> read_and_write(Executor& executor, Shared& shared, RwLock::ReaderSlot& slot,
                             unsigned write_every, int64_t rounds) {
    LockChain chain(executor);
    int64_t writes = 0;
    for (int64_t i = 0; i < rounds; i++) {
        if (i % write_every == 0) {
            RwLock::ExclusiveGuard guard = co_await shared.lock.lock_exclusive(chain);
            int64_t before = shared.left;
            shared.left = before + 1;
            Hop hop(executor);
            co_await hop;
            if (shared.right != before) co_return -EIO;
            shared.right = before + 1;
            writes++;
        } else {
            RwLock::SharedGuard guard = co_await shared.lock.lock_shared(chain, slot);
            int64_t seen = shared.left;
            if (i % 3 == 0) {
                Hop hop(executor);
                co_await hop;
            }
            if (shared.left != seen || shared.right != seen) co_return -EIO;
        }
    }
    co_return writes;
}

TEST(contexts_that_read_and_write_see_no_half) {
    constexpr unsigned tasks = 4;
    constexpr int64_t rounds = 600;
    for (unsigned count : {2u, 4u}) {
        for (unsigned write_every : {2u, 10u}) {
            Contexts contexts(count);
            Shared shared;
            shared.lock.enable_profile();
            for (unsigned i = 0; i < count; i++) {
                shared.slots.push_back(std::make_unique<RwLock::ReaderSlot>(contexts[i]));
                shared.lock.add(*shared.slots[i]);
            }
            int64_t writes = contexts.run(tasks, [&](Executor& executor, unsigned i) {
                return read_and_write(executor, shared, *shared.slots[i % count], write_every, rounds);
            });
            CHECK_EQ(writes, tasks * count * rounds / write_every);
            CHECK_EQ(shared.left, writes);
            CHECK_EQ(shared.right, writes);
            CHECK_EQ(shared.lock.acquisitions(), writes);
            CHECK(shared.lock.contended() > 0);
            driven::Executor here;
            LockChain chain(here);
            RwLock::ExclusiveGuard guard = shared.lock.try_lock_exclusive(chain);
            REQUIRE(static_cast<bool>(guard));
            for (auto& slot : shared.slots) shared.lock.remove(guard, *slot);
            CHECK_EQ(shared.lock.acquisitions(), tasks * count * rounds + 1);
        }
    }
}

// Contexts come and go while others read and write.
Task<int64_t> join_and_leave(Executor& executor, Shared& shared, int64_t rounds) {
    LockChain chain(executor);
    for (int64_t i = 0; i < rounds; i++) {
        auto slot = std::make_unique<RwLock::ReaderSlot>(executor);
        shared.lock.add(*slot);
        {
            RwLock::SharedGuard guard = co_await shared.lock.lock_shared(chain, *slot);
            if (shared.left != shared.right) co_return -EIO;
        }
        RwLock::ExclusiveGuard guard = co_await shared.lock.lock_exclusive(chain);
        shared.lock.remove(guard, *slot);
    }
    co_return 0;
}

Task<int64_t> join_or_work(Executor& executor, Shared& shared, RwLock::ReaderSlot& slot, bool joins) {
    int64_t result;
    if (joins) {
        result = co_await join_and_leave(executor, shared, 200);
    } else {
        result = co_await read_and_write(executor, shared, slot, 8, 800);
    }
    co_return result;
}

TEST(slots_come_and_go_under_load) {
    Contexts contexts(3);
    Shared shared;
    for (unsigned i = 0; i < 3; i++) {
        shared.slots.push_back(std::make_unique<RwLock::ReaderSlot>(contexts[i]));
        shared.lock.add(*shared.slots[i]);
    }
    int64_t writes = contexts.run(3, [&](Executor& executor, unsigned i) {
        return join_or_work(executor, shared, *shared.slots[i % 3], i % 3 == 2);
    });
    CHECK_EQ(writes, 6 * 100);
    CHECK_EQ(shared.left, 600);
    driven::Executor here;
    LockChain chain(here);
    RwLock::ExclusiveGuard guard = shared.lock.try_lock_exclusive(chain);
    for (auto& slot : shared.slots) shared.lock.remove(guard, *slot);
}

}  // namespace
