// The reader-writer lock, as shipped, under the interleaving explorer: tasks of several contexts that read
// and write. Then the same with bugs put in, each of which must be found.
#include <memory>

#include "check.hh"
#include "coro/rwlock.hh"
#include "explore/context.hh"
#include "explore/explored.hh"

namespace {

using engine::coro::Executor;
using engine::coro::LockChain;
using engine::coro::RwLock;
using engine::coro::Task;
using explore::Context;
using explore::Hop;
using explore::Mutation;
using explore::Program;
using explore::Scenario;
using Slot = RwLock::ReaderSlot;

struct State : explore::Ends {
    RwLock lock;
    Context contexts[3];
    std::unique_ptr<Slot> slots[3];
    explore::Plain<int> value;  // guarded by lock: written by writers, looked at by readers
    int readers = 0, writers = 0;
    int reads = 0, writes = 0;

    explicit State(int slot_count = 3) {
        for (int i = 0; i < slot_count; i++) {
            slots[i] = std::make_unique<Slot>(contexts[i]);
            lock.add(*slots[i]);
        }
    }
    void enter(bool writes_it) {
        (writes_it ? writers : readers)++;
        explore::require(writers == 0 || (writers == 1 && readers == 0), "a writer is not alone");
        int seen = value.get();
        if (writes_it) value.set(seen + 1);
        (writes_it ? writes : reads)++;
    }
    void leave(bool writes_it) { (writes_it ? writers : readers)--; }

    void check(int reads_wanted, int writes_wanted) {
        ended = true;
        explore::require(reads == reads_wanted && writes == writes_wanted, "somebody never got in, or twice");
        explore::require(value.get() == writes_wanted, "what a writer did is lost");
        LockChain chain(contexts[0]);
        RwLock::ExclusiveGuard guard = lock.try_lock_exclusive(chain);
        if (!guard) {
            ended = false;
            explore::fail("it is not free in the end");
            return;
        }
        for (auto& slot : slots) {
            if (slot == nullptr) continue;
            lock.remove(guard, *slot);
        }
        explore::require(lock.acquisitions() == static_cast<uint64_t>(reads + writes) + 1, "miscounted");
    }
};

Task<int64_t> reads(Executor& executor, State& state, int which, int times, bool hops) {
    LockChain chain(executor);
    for (int i = 0; i < times; i++) {
        RwLock::SharedGuard guard = co_await state.lock.lock_shared(chain, *state.slots[which]);
        state.enter(false);
        if (hops) {
            Hop hop(executor);
            co_await hop;
        }
        state.leave(false);
    }
    co_return 0;
}

Task<int64_t> writes(Executor& executor, State& state, int times, bool hops) {
    LockChain chain(executor);
    for (int i = 0; i < times; i++) {
        RwLock::ExclusiveGuard guard = co_await state.lock.lock_exclusive(chain);
        state.enter(true);
        if (hops) {
            Hop hop(executor);
            co_await hop;
        }
        state.leave(true);
    }
    co_return 0;
}

void reader(Program& program, const std::shared_ptr<State>& state, int which, int times, bool hops) {
    program.thread(which == 0   ? "reader 0"
                   : which == 1 ? "reader 1"
                                : "reader 2",
                   [=] {
                       Context& context = state->contexts[which];
                       context.start(reads(context, *state, which, times, hops));
                       context.run();
                   });
}
void writer(Program& program, const std::shared_ptr<State>& state, int which, int times, bool hops) {
    program.thread(which == 0   ? "writer 0"
                   : which == 1 ? "writer 1"
                                : "writer 2",
                   [=] {
                       Context& context = state->contexts[which];
                       context.start(writes(context, *state, times, hops));
                       context.run();
                   });
}

// Exclusion, no lost wake-up, each woken once; with a reader that comes back.
void reader_against_writer(Program& program) {
    auto state = explore::make_state<State>();
    reader(program, state, 0, 2, true);
    writer(program, state, 1, 1, false);
    program.at_end([=] { state->check(2, 1); });
}

void two_readers_against_writer(Program& program) {
    auto state = explore::make_state<State>();
    reader(program, state, 0, 1, true);
    reader(program, state, 1, 1, false);
    writer(program, state, 2, 1, false);
    program.at_end([=] { state->check(2, 1); });
}

// A reader that leaves late may meet the next writer, at the same address as the last.
void reader_against_two_writers(Program& program) {
    auto state = explore::make_state<State>();
    reader(program, state, 0, 2, false);
    writer(program, state, 1, 2, false);
    program.at_end([=] { state->check(2, 2); });
}

void writers_against_writer(Program& program) {
    auto state = explore::make_state<State>();
    reader(program, state, 0, 1, false);
    writer(program, state, 1, 1, true);
    writer(program, state, 2, 1, false);
    program.at_end([=] { state->check(1, 2); });
}

// A reader that waits behind a writer goes before a writer that waits as well, whichever came first.
void phases_are_fair(Program& program) {
    struct Phases {
        explore::Event held[2], waits[2];
        int place = 0;
    };
    struct Tasks {
        static Task<int64_t> holds(Executor& executor, State& state, Phases& phases) {
            LockChain chain(executor);
            RwLock::ExclusiveGuard guard = co_await state.lock.lock_exclusive(chain);
            state.enter(true);
            for (auto& event : phases.held) event.signal();
            for (auto& event : phases.waits) event.wait();
            state.leave(true);
            co_return 0;
        }
        static Task<int64_t> waits(Executor& executor, State& state, Phases& phases, int which, int place) {
            LockChain chain(executor);
            if (place == 0) {
                RwLock::SharedGuard guard = co_await state.lock.lock_shared(chain, *state.slots[which]);
                state.enter(false);
                explore::require(phases.place++ == 0, "the reader waited for the next writer");
                state.leave(false);
            } else {
                RwLock::ExclusiveGuard guard = co_await state.lock.lock_exclusive(chain);
                state.enter(true);
                explore::require(phases.place++ == 1, "the next writer did not wait for the reader");
                state.leave(true);
            }
            co_return 0;
        }
    };
    auto state = explore::make_state<State>();
    auto phases = std::make_shared<Phases>();
    program.thread("holder", [=] {
        Context& context = state->contexts[0];
        context.start(Tasks::holds(context, *state, *phases));
        context.run();
    });
    for (int place : {0, 1}) {
        program.thread(place == 0 ? "reader" : "writer", [=] {
            phases->held[place].wait();
            Context& context = state->contexts[1 + place];
            context.start(Tasks::waits(context, *state, *phases, 1 + place, place));
            phases->waits[place].signal();
            context.run();
        });
    }
    program.at_end([=] { state->check(1, 2); });
}

// A slot that was removed under the lock is gone at once: nobody still counts it.
void slots_come_and_go(Program& program) {
    struct Tasks {
        static Task<int64_t> joins_and_leaves(Executor& executor, State& state) {
            LockChain chain(executor);
            auto slot = std::make_unique<Slot>(executor);
            state.lock.add(*slot);
            {
                RwLock::SharedGuard guard = co_await state.lock.lock_shared(chain, *slot);
                state.enter(false);
                state.leave(false);
            }
            {
                RwLock::ExclusiveGuard guard = co_await state.lock.lock_exclusive(chain);
                state.enter(true);
                state.leave(true);
                state.lock.remove(guard, *slot);
            }
            slot.reset();
            co_return 0;
        }
    };
    auto state = explore::make_state<State>();
    reader(program, state, 0, 1, false);
    program.thread("joins", [=] {
        Context& context = state->contexts[1];
        context.start(Tasks::joins_and_leaves(context, *state));
        context.run();
    });
    writer(program, state, 2, 1, false);
    program.at_end([=] { state->check(2, 2); });
}

// A slot that is published while a writer looks: the writer counts it, or its first reader sees the writer.
void slot_joins_against_writer(Program& program) {
    struct Tasks {
        static Task<int64_t> joins(Executor& executor, State& state) {
            LockChain chain(executor);
            state.slots[0] = std::make_unique<Slot>(executor);
            state.lock.add(*state.slots[0]);
            RwLock::SharedGuard guard = co_await state.lock.lock_shared(chain, *state.slots[0]);
            state.enter(false);
            state.leave(false);
            co_return 0;
        }
    };
    auto state = explore::make_state<State>(0);
    program.thread("joins", [=] {
        Context& context = state->contexts[0];
        context.start(Tasks::joins(context, *state));
        context.run();
    });
    writer(program, state, 1, 1, false);
    program.at_end([=] { state->check(1, 1); });
}

TEST(a_reader_and_a_writer) {
    explore::must_hold(reader_against_writer, 3, 2);
}
TEST(two_readers_and_a_writer) {
    explore::must_hold(two_readers_against_writer, 2, 1);
}
TEST(a_reader_and_a_writer_that_comes_back) {
    explore::must_hold(reader_against_two_writers, 3, 1);
}
TEST(two_writers_and_a_reader) {
    explore::must_hold(writers_against_writer, 2, 1);
}
TEST(readers_that_queue_go_before_the_next_writer) {
    explore::must_hold(phases_are_fair, 2, 0);
}
TEST(a_removed_slot_is_counted_by_nobody) {
    explore::must_hold(slots_come_and_go, 2, 0);
}

TEST(a_slot_that_joins_is_counted) {
    explore::must_hold(slot_joins_against_writer, 3, 2);
}

const std::vector<Scenario> all = {reader_against_writer, two_readers_against_writer, writers_against_writer,
                                   reader_against_two_writers};

TEST(bug_entering_is_not_ordered_before_the_look_at_the_gate) {
    explore::must_be_found(Mutation::fetch_add_seq_cst_is_acq_rel, all, "");
}
TEST(bug_leaving_is_not_ordered_before_the_look_at_the_gate) {
    explore::must_be_found(Mutation::fetch_sub_seq_cst_is_acq_rel, all, "lost wake-up");
}
TEST(bug_the_gate_is_closed_with_release) {
    explore::must_be_found(Mutation::store_seq_cst_is_release, all, "");
}
TEST(bug_gate_and_count_are_read_with_acquire) {
    explore::must_be_found(Mutation::load_seq_cst_is_acquire, all, "");
}
TEST(bug_claiming_is_a_load_and_a_store) {
    explore::must_be_found(Mutation::compare_exchange_is_two_steps, all, "");
}
TEST(bug_opening_is_a_load_and_a_store) {
    explore::must_be_found(Mutation::exchange_seq_cst_is_two_steps, all, "lost wake-up");
}
TEST(bug_a_reader_that_finds_the_gate_closed_checks_nothing) {
    explore::must_be_found(Mutation::failed_reader_checks_nothing, all, "lost wake-up");
}
TEST(bug_a_reader_queues_at_an_open_gate) {
    explore::must_be_found(Mutation::reader_queues_at_an_open_gate, all, "");
}
TEST(bug_leaving_during_a_check_goes_unseen) {
    explore::must_be_found(Mutation::leaving_during_a_check_goes_unseen, all, "lost wake-up");
}
TEST(bug_the_turn_passes_before_the_readers) {
    explore::must_be_found(Mutation::turn_passes_before_readers, {phases_are_fair}, "");
}

}  // namespace
