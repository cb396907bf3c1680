// What tasks wait on beside locks: semaphore, gate, several tasks at once, the clock; and cancellation, which
// ends each wait once. Driven by hand, then on real contexts. Each guard is made to fire.
#include <engine/base.h>

#include <span>
#include <vector>

#include "check.hh"
#include "coro/cancel.hh"
#include "coro/deadline.hh"
#include "coro/gate.hh"
#include "coro/semaphore.hh"
#include "coro/short_lock.hh"
#include "coro/when_all.hh"
#include "driven.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;
using driven::Contexts;
using driven::Outcome;

// --- coro/semaphore.hh

Task<int64_t> takes(Executor&, Semaphore& semaphore, uint64_t units, CancelToken token = {}) {
    int result = co_await semaphore.acquire(units, token);
    co_return result == 0 ? static_cast<int64_t>(units) : result;
}

TEST(a_semaphore_serves_in_order_and_lets_nobody_overtake) {
    driven::Executor executor;
    Semaphore semaphore(executor, 3);
    Outcome<> first, large, small;
    start(executor, takes(executor, semaphore, 2), &first);
    executor.drain();
    CHECK_EQ(first.result.value_or(-1), 2);
    start(executor, takes(executor, semaphore, 3), &large);
    start(executor, takes(executor, semaphore, 1), &small);
    CHECK(!semaphore.try_acquire(1));  // one is there, but others wait
    executor.drain();
    CHECK(!large.done() && !small.done());
    semaphore.release(1);
    executor.drain();
    CHECK(!large.done() && !small.done());
    semaphore.release(1);
    CHECK(!large.done());  // not inside release()
    executor.drain();
    CHECK(large.done() && !small.done());
    semaphore.release(3);
    executor.drain();
    CHECK(small.done());
    CHECK_EQ(semaphore.available(), 2);
    CHECK(semaphore.try_acquire(2));
    CHECK(!semaphore.try_acquire(1));
}

TEST(who_gives_up_waiting_for_units_lets_the_next_go) {
    driven::Executor executor;
    Semaphore semaphore(executor, 2);
    CancelSource source;
    Outcome<> large, small, late;
    start(executor, takes(executor, semaphore, 5, source.token()), &large);
    start(executor, takes(executor, semaphore, 1), &small);
    executor.drain();
    CHECK(!small.done());
    source.cancel();
    start(executor, takes(executor, semaphore, 1, source.token()), &late);
    executor.drain();
    CHECK_EQ(large.result.value_or(0), -ECANCELED);
    CHECK_EQ(small.result.value_or(0), 1);
    CHECK_EQ(late.result.value_or(0), -ECANCELED);
    CHECK_EQ(semaphore.available(), 1);
}

TEST(a_cancellation_that_comes_after_the_grant_changes_nothing) {
    driven::Executor executor;
    Semaphore semaphore(executor, 0);
    CancelSource source;
    Outcome<> outcome;
    start(executor, takes(executor, semaphore, 1, source.token()), &outcome);
    semaphore.release(1);
    source.cancel();  // granted, not yet resumed
    executor.drain();
    CHECK_EQ(outcome.result.value_or(0), 1);
    CHECK_EQ(semaphore.available(), 0);
}

TEST(a_semaphore_destroyed_with_somebody_waiting_aborts) {
    CHECK_ABORTS("waiting_.empty()", {
        driven::Executor executor;
        Outcome<> outcome;
        Semaphore semaphore(executor, 0);
        start(executor, takes(executor, semaphore, 1), &outcome);
    });
}

TEST(waiting_for_units_with_a_short_lock_held_aborts) {
    CHECK_ABORTS("short_locks_ == 0", {
        driven::Executor executor;
        Semaphore semaphore(executor, 0);
        base::Mutex mutex;
        ShortLock lock(executor, mutex);
        Outcome<> outcome;
        start(executor, takes(executor, semaphore, 1), &outcome);
    });
}

// --- coro/gate.hh

Task<int64_t> closes(Executor&, Gate& gate) {
    int result = co_await gate.close();
    co_return result;
}

TEST(closing_a_gate_waits_for_the_last_to_leave) {
    driven::Executor executor;
    Gate gate(executor);
    CHECK_EQ(gate.enter(), 0);
    Outcome<> closed;
    {
        Gate::Pass pass(gate);
        CHECK(static_cast<bool>(pass));
        CHECK_EQ(gate.inside(), 2);
        start(executor, closes(executor, gate), &closed);
        executor.drain();
        CHECK(!closed.done() && gate.closed());
        CHECK_EQ(gate.enter(), -ESHUTDOWN);
        Gate::Pass late(gate);
        CHECK(!late);
        gate.leave();
        executor.drain();
        CHECK(!closed.done());
    }
    CHECK(!closed.done());  // not inside leave()
    executor.drain();
    CHECK_EQ(closed.result.value_or(-1), 0);
}

TEST(an_empty_gate_closes_at_once) {
    driven::Executor executor;
    Gate gate(executor);
    Task<int64_t> task = closes(executor, gate);
    REQUIRE(task.done());
    CHECK_EQ(task.take(), 0);
    CHECK_EQ(gate.enter(), -ESHUTDOWN);
}

TEST(a_gate_destroyed_with_something_inside_aborts) {
    CHECK_ABORTS("inside_ == 0", {
        driven::Executor executor;
        Gate gate(executor);
        (void)gate.enter();
    });
}

TEST(leaving_a_gate_that_nothing_is_inside_aborts) {
    CHECK_ABORTS("inside_ != 0", {
        driven::Executor executor;
        Gate gate(executor);
        gate.leave();
    });
}

TEST(closing_a_gate_twice_aborts) {
    CHECK_ABORTS("!closed_", {
        driven::Executor executor;
        Gate gate(executor);
        (void)gate.close();
        (void)gate.close();
    });
}

// --- coro/when_all.hh

Task<int64_t> waits(Executor&, Completion<int64_t>& done) {
    int64_t result = co_await done;
    co_return result;
}

Task<int64_t> all_of_three(Executor& executor, Completion<int64_t>* done) {
    Task<int64_t> a = waits(executor, done[0]), b = waits(executor, done[1]), c = waits(executor, done[2]);
    co_await when_all(executor, a, b, c);
    int64_t first = a.take(), second = b.take();
    int64_t third = co_await c;  // as good: it has ended
    co_return first * 100 + second * 10 + third;
}

TEST(when_all_waits_for_each_in_whatever_order_they_end) {
    const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (const auto& order : orders) {
        for (bool at_once : {false, true}) {
            driven::Executor executor;
            Completion<int64_t> done[3] = {Completion<int64_t>(executor), Completion<int64_t>(executor),
                                           Completion<int64_t>(executor)};
            Outcome<> outcome;
            start(executor, all_of_three(executor, done), &outcome);
            for (int i = 0; i < 3; i++) {
                CHECK(!outcome.done());
                done[order[i]].complete(order[i] + 1);
                if (!at_once) executor.drain();
            }
            executor.drain();
            CHECK_EQ(outcome.result.value_or(-1), 123);
        }
    }
}

Task<int64_t> all_of_many(Executor& executor, std::vector<std::unique_ptr<Completion<int64_t>>>& done) {
    std::vector<Task<int64_t>> tasks;
    for (auto& completion : done) tasks.push_back(waits(executor, *completion));
    co_await when_all(executor, std::span(tasks));
    int64_t sum = 0;
    for (auto& task : tasks) sum += task.take();
    co_return sum;
}

TEST(when_all_of_a_span) {
    for (size_t count : {0u, 1u, 100u}) {
        driven::Executor executor;
        std::vector<std::unique_ptr<Completion<int64_t>>> done;
        for (size_t i = 0; i < count; i++) done.push_back(std::make_unique<Completion<int64_t>>(executor));
        Outcome<> outcome;
        start(executor, all_of_many(executor, done), &outcome);
        for (size_t i = count; i-- > 0;) {
            executor.drain();
            CHECK(!outcome.done());
            done[i]->complete(static_cast<int64_t>(i));
        }
        executor.drain();
        CHECK_EQ(outcome.result.value_or(-1), count * (count == 0 ? 0 : count - 1) / 2);
        CHECK_EQ(executor.frames().in_use(), 0);
    }
}

TEST(when_all_of_what_has_ended_or_found_no_memory_suspends_nobody) {
    driven::Executor executor;
    Completion<int64_t> done(executor);
    done.complete(4);
    Task<int64_t> ended = waits(executor, done);
    engine_set_allocation_hook([](size_t, void*) { return 1; }, nullptr);
    Completion<int64_t> never(executor);
    Task<int64_t> one = waits(executor, never);
    engine_set_allocation_hook(nullptr, nullptr);
    REQUIRE(one.done());
    auto all = when_all(executor, ended, one);
    CHECK(all.await_ready());
    CHECK_EQ(ended.take(), 4);
    CHECK_EQ(one.take(), -ENOMEM);
}

// --- coro/cancel.hh

struct Hook : CancelHook {
    int calls = 0;
    Hook* detaches = nullptr;
    Hook()
        : CancelHook([](CancelHook* hook) noexcept {
              auto* self = static_cast<Hook*>(hook);
              self->calls++;
              if (self->detaches != nullptr) self->detaches->detach();
          }) {}
};

TEST(a_hook_is_called_once_and_not_when_it_was_detached) {
    CancelSource source;
    Hook called, detached, by_another, late;
    CHECK_EQ(called.attach(source.token()), 0);
    CHECK_EQ(detached.attach(source.token()), 0);
    CHECK_EQ(by_another.attach(source.token()), 0);
    called.detaches = &by_another;
    detached.detach();
    CHECK(!source.token().cancelled());
    source.cancel();
    source.cancel();
    CHECK(source.token().cancelled());
    CHECK_EQ(late.attach(source.token()), -ECANCELED);
    CHECK_EQ(called.calls, 1);
    CHECK_EQ(detached.calls + by_another.calls + late.calls, 0);
    CHECK(!CancelToken().cancelled());
    CHECK_EQ(late.attach(CancelToken()), 0);
}

TEST(a_source_is_cancelled_with_its_parent_and_not_the_other_way) {
    CancelSource parent;
    CancelSource child(parent.token()), sibling(parent.token());
    Hook hook;
    CHECK_EQ(hook.attach(child.token()), 0);
    sibling.cancel();
    CHECK(!parent.cancelled() && !child.cancelled());
    parent.cancel();
    CHECK(child.cancelled());
    CHECK_EQ(hook.calls, 1);
    CancelSource late(parent.token());
    CHECK(late.cancelled());
}

TEST(a_source_outlived_by_a_hook_aborts) {
    CHECK_ABORTS("hooks_.empty()", {
        Hook hook;
        CancelSource source;
        (void)hook.attach(source.token());
    });
}

// --- coro/deadline.hh

Task<int64_t> sleeps(Executor& executor, uint64_t deadline_ns, CancelToken token = {}) {
    Sleep sleep(executor, deadline_ns, token);
    int result = co_await sleep;
    co_return result;
}

TEST(a_sleep_ends_when_its_time_has_come) {
    driven::Executor executor;
    Outcome<> late, early;
    start(executor, sleeps(executor, 9000), &late);
    start(executor, sleeps(executor, 5000), &early);
    executor.advance_to(4999);
    CHECK(!early.done());
    executor.advance_to(5000);
    CHECK_EQ(early.result.value_or(-1), 0);
    CHECK(!late.done());
    executor.advance_to(20000);
    CHECK_EQ(late.result.value_or(-1), 0);
}

TEST(a_sleep_ends_once_cancelled_or_not) {
    driven::Executor executor;
    CancelSource source;
    Outcome<> cancelled, fired, late;
    start(executor, sleeps(executor, 9000, source.token()), &cancelled);
    start(executor, sleeps(executor, 5000, source.token()), &fired);
    executor.clock_ns = 5000;
    executor.timers.run_due(5000, 10);  // fired, not yet resumed
    source.cancel();
    start(executor, sleeps(executor, 9000, source.token()), &late);
    executor.drain();
    CHECK_EQ(fired.result.value_or(-1), 0);
    CHECK_EQ(cancelled.result.value_or(0), -ECANCELED);
    CHECK_EQ(late.result.value_or(0), -ECANCELED);
    CHECK(executor.timers.empty());
}

TEST(a_sleep_that_cannot_begin_says_so) {
    driven::Executor executor;
    for (int answer : {-ENOMEM, -ESHUTDOWN}) {
        executor.arming_answers = answer;
        Task<int64_t> task = sleeps(executor, 9000);
        REQUIRE(task.done());
        CHECK_EQ(task.take(), answer);
    }
    executor.arming_answers = 0;
    Outcome<> outcome;
    start(executor, sleeps(executor, 9000), &outcome);
    executor.timers.abandon_all();
    executor.drain();
    CHECK_EQ(outcome.result.value_or(0), -ESHUTDOWN);
    Executor bare;  // driven by hand, without timers
    CHECK_EQ(sleeps(bare, 1).take(), -ESHUTDOWN);
}

// What takes `needed` ns and can be cancelled, with a deadline.
Task<int64_t> in_time(Executor& executor, uint64_t needed_until_ns, uint64_t deadline_ns, CancelToken token) {
    CancelSource source(token);
    Deadline deadline(executor, source);
    int result = deadline.arm(deadline_ns);
    if (result != 0) co_return result;
    int64_t n = co_await sleeps(executor, needed_until_ns, source.token());
    co_return deadline.outcome(n);
}

TEST(a_deadline_cancels_what_takes_too_long) {
    driven::Executor executor;
    CancelSource source;
    Outcome<> fast, slow, cancelled;
    start(executor, in_time(executor, 3000, 5000, {}), &fast);
    start(executor, in_time(executor, 9000, 5000, {}), &slow);
    start(executor, in_time(executor, 9000, 8000, source.token()), &cancelled);
    executor.advance_to(3000);
    CHECK_EQ(fast.result.value_or(-1), 0);
    executor.advance_to(5000);
    CHECK_EQ(slow.result.value_or(0), -ETIMEDOUT);
    source.cancel();
    executor.advance_to(9000);
    CHECK_EQ(cancelled.result.value_or(0), -ECANCELED);  // not by the deadline
    CHECK(executor.timers.empty());
}

TEST(a_result_that_is_faster_than_the_cancellation_counts) {
    driven::Executor executor;
    Outcome<> outcome;
    start(executor, in_time(executor, 5000, 5000, {}), &outcome);
    executor.advance_to(6000);
    // Both were due; the deadline was armed first, or the result came first: one of the two, and only once.
    REQUIRE(outcome.done());
    CHECK(*outcome.result == 0 || *outcome.result == -ETIMEDOUT);
    CHECK(executor.timers.empty());
}

// --- real contexts

Task<int64_t> mixed(Executor& executor, unsigned i) {
    uint64_t start_ns = executor.now_ns();
    CancelSource source;
    Deadline deadline(executor, source);
    int armed = deadline.arm(start_ns + 2'000'000);
    if (armed != 0) co_return armed;
    bool fast = i % 2 == 0;
    Task<int64_t> a = sleeps(executor, start_ns + 500'000);
    Task<int64_t> b = sleeps(executor, fast ? start_ns : start_ns + 600'000'000'000, source.token());
    co_await when_all(executor, a, b);
    uint64_t slept_ns = executor.now_ns() - start_ns;
    if (slept_ns < (fast ? 500'000u : 2'000'000u)) co_return -EIO;
    int64_t result = a.take();
    if (result == 0) result = deadline.outcome(b.take());
    co_return fast ? result : (result == -ETIMEDOUT ? 0 : -EIO);
}

TEST(timers_of_real_contexts) {
    Contexts contexts(2);
    CHECK_EQ(contexts.run(4, [](Executor& executor, unsigned i) { return mixed(executor, i); }), 0);
}

}  // namespace
