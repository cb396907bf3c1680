// The mutex that suspends: order, whose ready queue resumes a waiter, profile, guards; then real contexts
// that fight for one.
#include <engine/base.h>

#include <vector>

#include "base/alloc.hh"
#include "check.hh"
#include "coro/completion.hh"
#include "coro/mutex.hh"
#include "coro/short_lock.hh"
#include "driven.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;
using driven::Contexts;
using driven::Hop;
using driven::Outcome;

// Takes the mutex, holds it until `go`, and says when it had it.
Task<int64_t> hold(Executor& executor, Mutex& mutex, std::vector<int>& order, int name,
                   Completion<int64_t>& go) {
    Mutex::Guard guard = co_await mutex.lock(executor);
    order.push_back(name);
    int64_t result = co_await go;
    co_return guard.holds(mutex) ? result : -EIO;
}

Task<int64_t> hold_no_longer(Executor& executor, Mutex& mutex, std::vector<int>& order, int name) {
    Mutex::Guard guard = co_await mutex.lock(executor);
    order.push_back(name);
    co_return name;
}

TEST(a_free_mutex_suspends_nobody) {
    driven::Executor executor;
    Mutex mutex;
    std::vector<int> order;
    for (int i = 0; i < 3; i++) {
        Task<int64_t> task = hold_no_longer(executor, mutex, order, i);
        REQUIRE(task.done());
        CHECK_EQ(task.take(), i);
    }
    CHECK(!executor.has_ready());
    CHECK_EQ(mutex.acquisitions(), 3);
    CHECK_EQ(mutex.contended(), 0);
}

TEST(waiters_go_in_order_each_from_its_own_ready_queue) {
    driven::Executor here, there;
    Mutex mutex;
    std::vector<int> order;
    Completion<int64_t> go(here);
    Outcome<> outcomes[5];
    start(here, hold(here, mutex, order, 0, go), &outcomes[0]);
    for (int i = 1; i < 5; i++) {
        driven::Executor& executor = i % 2 == 1 ? there : here;
        start(executor, hold_no_longer(executor, mutex, order, i), &outcomes[i]);
    }
    CHECK(order == std::vector<int>{0});
    go.complete(100);
    here.drain();  // unlocks; the next one is of the other executor, and not on this stack
    CHECK(order == std::vector<int>{0});
    CHECK_EQ(there.posted, 1);
    there.drain();
    CHECK((order == std::vector<int>{0, 1}));
    CHECK_EQ(here.posted, 1);
    here.drain();
    CHECK((order == std::vector<int>{0, 1, 2}));
    there.drain();
    here.drain();
    CHECK((order == std::vector<int>{0, 1, 2, 3, 4}));
    there.drain();
    for (int i = 1; i < 5; i++) CHECK_EQ(outcomes[i].result.value_or(-1), i);
    CHECK_EQ(outcomes[0].result.value_or(-1), 100);
    CHECK_EQ(mutex.acquisitions(), 5);
    CHECK_EQ(mutex.contended(), 4);
}

TEST(a_waiter_of_the_same_executor_is_not_resumed_inside_unlock) {
    driven::Executor executor;
    Mutex mutex;
    std::vector<int> order;
    Outcome<> outcome;
    {
        Mutex::Guard guard = mutex.try_lock(executor);
        REQUIRE(static_cast<bool>(guard));
        start(executor, hold_no_longer(executor, mutex, order, 1), &outcome);
    }
    CHECK(order.empty());
    CHECK_EQ(executor.posted, 0);  // its own ready queue, without the inbox
    executor.drain();
    CHECK(order == std::vector<int>{1});
}

// A mutex that is handed over was never free in between: nobody overtakes.
TEST(nobody_overtakes_a_waiter) {
    driven::Executor executor;
    Mutex mutex;
    std::vector<int> order;
    Outcome<> waiting, late;
    {
        Mutex::Guard guard = mutex.try_lock(executor);
        start(executor, hold_no_longer(executor, mutex, order, 1), &waiting);
    }
    CHECK(!mutex.try_lock(executor));
    start(executor, hold_no_longer(executor, mutex, order, 2), &late);
    executor.drain();
    CHECK((order == std::vector<int>{1, 2}));
    CHECK(static_cast<bool>(mutex.try_lock(executor)));
}

TEST(a_guard_moves_and_lets_go_once) {
    driven::Executor executor;
    Mutex mutex, other;
    std::vector<Mutex::Guard> guards;
    {
        Mutex::Guard first = mutex.try_lock(executor);
        CHECK(first.holds(mutex));
        CHECK(!first.holds(other));
        guards.push_back(std::move(first));
        guards.push_back(other.try_lock(executor));
    }
    CHECK(!mutex.try_lock(executor));
    guards.pop_back();
    CHECK(static_cast<bool>(other.try_lock(executor)));
    CHECK(!mutex.try_lock(executor));
    guards.clear();
    CHECK(static_cast<bool>(mutex.try_lock(executor)));
    CHECK_EQ(mutex.acquisitions(), 2);
}

Task<int64_t> destroys(Executor& executor, std::unique_ptr<Mutex>& mutex) {
    {
        Mutex::Guard guard = co_await mutex->lock(executor);
    }
    mutex.reset();
    co_return 0;
}

TEST(the_last_holder_may_destroy_it) {
    driven::Executor executor;
    auto mutex = std::make_unique<Mutex>();
    Outcome<> outcome;
    {
        Mutex::Guard guard = mutex->try_lock(executor);
        start(executor, destroys(executor, mutex), &outcome);
    }
    executor.drain();
    CHECK_EQ(outcome.result.value_or(-1), 0);
    CHECK(mutex == nullptr);
}

TEST(destroying_a_held_mutex_aborts) {
    CHECK_ABORTS("state_.load_acquire() == nullptr", {
        driven::Executor executor;
        Mutex::Guard guard;
        {
            Mutex mutex;
            Mutex::Guard inner = mutex.try_lock(executor);
            new (&guard) Mutex::Guard(std::move(inner));  // outlives the mutex
        }
    });
}

TEST(waiting_with_a_short_lock_held_aborts) {
    CHECK_ABORTS("short_locks_ == 0", {
        driven::Executor executor;
        Mutex mutex;
        std::vector<int> order;
        base::Mutex small;
        Mutex::Guard guard = mutex.try_lock(executor);
        ShortLock lock(executor, small);
        Outcome<> outcome;
        start(executor, hold_no_longer(executor, mutex, order, 1), &outcome);
    });
}

TEST(a_waiter_whose_executor_is_closed_aborts) {
    CHECK_ABORTS("posted == 0", {
        driven::Executor here;
        driven::Executor there;
        Mutex mutex;
        std::vector<int> order;
        Outcome<> outcome;
        Mutex::Guard guard = mutex.try_lock(here);
        start(there, hold_no_longer(there, mutex, order, 1), &outcome);
        there.refuses = true;
        Mutex::Guard gone = std::move(guard);
    });
}

TEST(waiting_allocates_nothing) {
    driven::Executor executor;
    Mutex mutex;
    std::vector<int> order;
    order.reserve(100);
    for (int round = 0; round < 2; round++) {
        size_t calls = 0;
        engine_set_allocation_hook(
            [](size_t, void* opaque) {
                ++*static_cast<size_t*>(opaque);
                return 0;
            },
            &calls);
        {
            Outcome<> outcomes[3];
            Mutex::Guard guard = mutex.try_lock(executor);
            for (auto& outcome : outcomes)
                start(executor, hold_no_longer(executor, mutex, order, 1), &outcome);
            {
                Mutex::Guard gone = std::move(guard);
            }
            executor.drain();
        }
        engine_set_allocation_hook(nullptr, nullptr);
        if (round == 1) CHECK_EQ(calls, 0);
    }
    CHECK_EQ(mutex.contended(), 6);
}

struct Histograms {
    engine_histogram wait, hold;
    explicit Histograms(const Mutex& mutex) {
        base::Histogram::reset(&wait);
        base::Histogram::reset(&hold);
        mutex.read_profile(&wait, &hold);
    }
};

TEST(the_profile_shows_the_time_held_and_waited) {
    driven::Executor here, there;
    Mutex mutex;
    mutex.enable_profile();
    std::vector<int> order;
    Outcome<> outcome;
    {
        Mutex::Guard guard = mutex.try_lock(here);
        here.clock_ns = there.clock_ns = 5000;
        start(there, hold_no_longer(there, mutex, order, 1), &outcome);
        here.clock_ns = there.clock_ns = 1'001'000;
    }
    there.clock_ns = 1'002'000;
    there.drain();
    Histograms histograms(mutex);
    CHECK_EQ(histograms.hold.count, 2);
    CHECK_EQ(histograms.hold.max, 1'000'000);
    CHECK_EQ(histograms.hold.min, 0);
    CHECK_EQ(histograms.wait.count, 2);
    CHECK_EQ(histograms.wait.max, 997'000);  // until it runs, the way of the wake-up included
    CHECK_EQ(histograms.wait.min, 0);
    CHECK_EQ(mutex.contended(), 1);
}

TEST(without_profiling_only_counts_are_kept) {
    driven::Executor executor;
    Mutex mutex;
    {
        Mutex::Guard guard = mutex.try_lock(executor);
    }
    Histograms histograms(mutex);
    CHECK_EQ(mutex.acquisitions(), 1);
    CHECK_EQ(histograms.hold.count, 0);
    CHECK_EQ(histograms.wait.count, 0);
}

// --- real contexts

struct Shared {
    Mutex mutex;
    int64_t value = 0;  // guarded by mutex, across suspensions
    std::vector<int64_t> last;
};

Task<int64_t> add_often(Executor& executor, Shared& shared, int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++) {
        Mutex::Guard guard = co_await shared.mutex.lock(executor);
        int64_t before = shared.value;
        if (i % 4 == 0) {
            Hop hop(executor);
            co_await hop;
        }
        shared.value = before + 1;
    }
    co_return rounds;
}

TEST(contexts_that_fight_for_it_lose_nothing) {
    constexpr unsigned tasks = 4;
    constexpr int64_t rounds = 500;
    for (unsigned count : {2u, 4u}) {
        Contexts contexts(count);
        Shared shared;
        shared.mutex.enable_profile();
        int64_t sum = contexts.run(
            tasks, [&](Executor& executor, unsigned) { return add_often(executor, shared, rounds); });
        CHECK_EQ(sum, tasks * count * rounds);
        CHECK_EQ(shared.value, tasks * count * rounds);
        CHECK_EQ(shared.mutex.acquisitions(), tasks * count * rounds);
        CHECK(shared.mutex.contended() > 0);  // tasks of one context meet in it, whatever the threads do
        Histograms histograms(shared.mutex);
        CHECK_EQ(histograms.hold.count, tasks * count * rounds);
        CHECK_EQ(histograms.wait.count, tasks * count * rounds);
        CHECK(histograms.wait.max > 0);
    }
}

Task<int64_t> hold_for(Executor& executor, Mutex& mutex, uint64_t ns) {
    Mutex::Guard guard = co_await mutex.lock(executor);
    uint64_t end_ns = executor.now_ns() + ns;
    while (executor.now_ns() < end_ns) {
        Hop hop(executor);
        co_await hop;
    }
    co_return 1;
}

TEST(a_lock_held_for_a_known_time_shows_it) {
    Contexts contexts(2);
    Mutex mutex;
    mutex.enable_profile();
    constexpr uint64_t held_ns = 2'000'000;
    contexts.run(2, [&](Executor& executor, unsigned) { return hold_for(executor, mutex, held_ns); });
    Histograms histograms(mutex);
    CHECK_EQ(histograms.hold.count, 4);
    CHECK(histograms.hold.min >= held_ns);
    // The two tasks of one context started one after the other: the second waited for most of the first.
    CHECK(histograms.wait.max > 0);
    CHECK(mutex.contended() >= 1);
}

}  // namespace
