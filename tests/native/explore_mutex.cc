// The mutex that suspends, as shipped, under the interleaving explorer: tasks of several contexts. Then the
// same with bugs put in, each of which must be found.
#include <cstdlib>
#include <memory>

#include "base/alloc.hh"
#include "check.hh"
#include "coro/mutex.hh"
#include "explore/context.hh"
#include "explore/explored.hh"

namespace {

using engine::coro::Executor;
using engine::coro::Mutex;
using engine::coro::Task;
using explore::Context;
using explore::Hop;
using explore::Mutation;
using explore::Program;
using explore::Scenario;

struct State : explore::Ends {
    std::unique_ptr<Mutex> mutex = std::make_unique<Mutex>();
    explore::Plain<int> value;  // guarded by mutex
    int inside = 0;
    int entries = 0;
    Context contexts[3];

    void enter() {
        explore::require(++inside == 1, "two hold it");
        entries++;
        value.set(value.get() + 1);
    }
    void leave() { inside--; }
};

Task<int64_t> lock_once(Executor& executor, State& state, bool hops) {
    Mutex::Guard guard = co_await state.mutex->lock(executor);
    state.enter();
    if (hops) {
        Hop hop(executor);
        co_await hop;
    }
    state.leave();
    co_return 0;
}

Task<int64_t> lock_twice(Executor& executor, State& state) {
    for (int i = 0; i < 2; i++) {
        Mutex::Guard guard = co_await state.mutex->lock(executor);
        state.enter();
        state.leave();
    }
    co_return 0;
}

void check(const std::shared_ptr<State>& state, int entries) {
    state->ended = true;
    explore::require(state->entries == entries, "somebody never got it, or did twice");
    explore::require(state->value.get() == entries, "what a holder did is lost");
    explore::require(state->mutex->acquisitions() == static_cast<uint64_t>(entries), "miscounted");
}

// Exclusion, no lost wake-up, and each waiter resumed once: two contexts, one of which comes back.
void two_contexts(Program& program) {
    auto state = explore::make_state<State>();
    program.thread("left", [=] {
        state->contexts[0].start(lock_twice(state->contexts[0], *state));
        state->contexts[0].run();
    });
    program.thread("right", [=] {
        state->contexts[1].start(lock_once(state->contexts[1], *state, true));
        state->contexts[1].run();
    });
    program.at_end([=] { check(state, 3); });
}

// The same with two tasks of one context, and a chain of handovers.
void three_contexts(Program& program) {
    auto state = explore::make_state<State>();
    for (int i = 0; i < 3; i++) {
        program.thread(i == 0   ? "left"
                       : i == 1 ? "middle"
                                : "right",
                       [=] {
                           Context& context = state->contexts[i];
                           context.start(lock_once(context, *state, i == 0));
                           if (i == 0) context.start(lock_once(context, *state, false));
                           context.run();
                       });
    }
    program.at_end([=] { check(state, 4); });
}

// Who waited first goes first, wherever it waits.
void first_come_first_served(Program& program) {
    struct Steps {
        explore::Event held, first_waits_for_holder, first_waits_for_second;
        int entered = 0;
    };
    struct Tasks {
        static Task<int64_t> waits(Executor& executor, State& state, Steps& steps, int place) {
            Mutex::Guard guard = co_await state.mutex->lock(executor);
            state.enter();
            explore::require(steps.entered++ == place, "overtaken");
            state.leave();
            co_return 0;
        }
        static Task<int64_t> holds(Executor& executor, State& state, Steps& steps) {
            Mutex::Guard guard = co_await state.mutex->lock(executor);
            state.enter();
            steps.held.signal();
            steps.first_waits_for_holder.wait();
            state.leave();
            co_return 0;
        }
    };
    auto state = explore::make_state<State>();
    auto steps = std::make_shared<Steps>();
    program.thread("holder", [=] {
        Context& context = state->contexts[0];
        context.start(Tasks::holds(context, *state, *steps));
        context.run();
    });
    program.thread("first", [=] {
        steps->held.wait();
        Context& context = state->contexts[1];
        context.start(Tasks::waits(context, *state, *steps, 0));
        steps->first_waits_for_holder.signal();
        steps->first_waits_for_second.signal();
        context.run();
    });
    program.thread("second", [=] {
        steps->first_waits_for_second.wait();
        Context& context = state->contexts[2];
        context.start(Tasks::waits(context, *state, *steps, 1));
        context.run();
    });
    program.at_end([=] { check(state, 3); });
}

// The last to have held it may destroy it: nobody who let go before still touches it.
void the_last_destroys(Program& program) {
    auto state = explore::make_state<State>();
    struct Tasks {
        static Task<int64_t> last_destroys(Executor& executor, State& state) {
            bool last;
            {
                Mutex::Guard guard = co_await state.mutex->lock(executor);
                state.enter();
                last = state.entries == 2;
                state.leave();
            }
            if (last) state.mutex.reset();
            co_return 0;
        }
    };
    for (int i = 0; i < 2; i++) {
        program.thread(i == 0 ? "left" : "right", [=] {
            Context& context = state->contexts[i];
            context.start(Tasks::last_destroys(context, *state));
            context.run();
        });
    }
    program.at_end([=] {
        state->ended = true;
        explore::require(state->mutex == nullptr, "nobody was the last");
    });
}

// Who hands over sees what each waiter wrote before it queued.
void the_waiters_are_seen(Program& program) {
    struct Notes {
        explore::Plain<int> of[3];
    };
    auto state = explore::make_state<State>();
    auto notes = std::make_shared<Notes>();
    for (int i = 0; i < 3; i++) {
        state->contexts[i].look_at_posted = [=](engine::coro::ReadyItem*) {
            explore::require(notes->of[i].get() == 7, "the note is another");
        };
        program.thread(i == 0   ? "left"
                       : i == 1 ? "middle"
                                : "right",
                       [=] {
                           Context& context = state->contexts[i];
                           notes->of[i].set(7);
                           context.start(lock_once(context, *state, false));
                           context.run();
                       });
    }
    program.at_end([=] { check(state, 3); });
}

TEST(two_contexts_fight) {
    explore::must_hold(two_contexts, 3, 2);
}
TEST(three_contexts_fight) {
    explore::must_hold(three_contexts, 2, 1);
}
TEST(waiters_go_in_order) {
    explore::must_hold(first_come_first_served, 2, 1);
}
TEST(whoever_is_last_destroys_it) {
    explore::must_hold(the_last_destroys, 4, 3);
}
TEST(who_hands_over_sees_the_waiters) {
    explore::must_hold(the_waiters_are_seen, 2, 1);
}

TEST(bug_lock_and_unlock_are_relaxed) {
    explore::must_be_found(Mutation::compare_exchange_is_relaxed, {two_contexts, the_waiters_are_seen},
                           "data race");
}
TEST(bug_the_waiters_are_taken_without_acquiring) {
    explore::must_be_found(Mutation::exchange_acq_rel_is_relaxed, {the_waiters_are_seen}, "data race");
}
TEST(bug_the_waiters_are_taken_in_two_steps) {
    explore::must_be_found(Mutation::exchange_acq_rel_is_two_steps, {two_contexts, three_contexts},
                           "lost wake-up");
}
TEST(bug_unlock_looks_and_then_stores) {
    explore::must_be_found(Mutation::compare_exchange_is_two_steps, {two_contexts}, "");
}

}  // namespace
