// Grace (block/grace.cc, the marks of block/in_flight.hh), as shipped, under the interleaving explorer:
// requests go in and out on two contexts while others wait for them.
//
//   1. It returns when every request that was inside at the call has left, not before.
//   2. It always returns: no answer is lost.
//   3. What such a request wrote before it left is seen by who waited.
//   4. So it is while a context, with its channel, comes or goes.
//
// Then the same with bugs put in: each must be found.
#include "block/grace.hh"

#include <memory>
#include <vector>

#include "explore/graph.hh"

namespace {

namespace block = engine::block;
using engine::aio::AioContext;
using explore::GraphUser;
using explore::Happened;
using explore::Lane;
using explore::Mutation;
using explore::NotedDisk;
using explore::Program;
using explore::Scenario;
using explore::Sent;
using explore::Task;
using explore::World;

Happened waited{"a grace had requests to wait for"};
Happened refused{"a grace found a context closed"};
Happened gone{"a grace came to a context after its channel had gone"};
Happened came{"a request entered through a channel that came during a grace"};

struct State : World {
    NotedDisk disk{*this, "disk", 1};
    GraphUser user{*this, disk};
    std::vector<std::unique_ptr<Lane>> lanes;
    int graces = 0;  // under way

    Lane& add_lane(AioContext& context, int count, unsigned rests) {
        block::Port* port = user.find_port(&context);
        if (port == nullptr) port = &user.add_port_on(context, *disk.add_channel(context));
        lanes.push_back(std::make_unique<Lane>(*this, *port, count, count, rests));
        return *lanes.back();
    }
    void finish() {
        ended = disk.inside.empty();
        explore::require(ended, "somebody is still inside");
        for (auto& lane : lanes) ended = ended && lane->all_ran_once();
        explore::require(ended, "a request did not run exactly once");
    }
};
using StatePointer = std::shared_ptr<State>;

Task<int> wait_once(AioContext& here, State& state) {
    std::vector<Sent*> before = state.disk.inside;
    if (!before.empty()) waited++;
    state.graces++;
    int result = co_await block::grace(here, *state.disk.node);
    state.graces--;
    for (Sent* sent : before) {
        explore::require(sent->inside == nullptr, "a request that was inside has not left");
        explore::require(sent->note.get() == sent->number + 1, "what it wrote is not there");
    }
    co_return result;
}

Task<int> wait_twice(AioContext& here, State& state) {
    int result = co_await wait_once(here, state);
    if (result == 0) result = co_await wait_once(here, state);
    co_return result;
}

// Main waits, for both contexts.
void main_waits(Program& program) {
    auto state = explore::make_state<State>();
    Lane* left = &state->add_lane(state->a, 1, 2);
    Lane* right = &state->add_lane(state->b, 2, 0);
    state->expect(1);
    program.thread("a", [=] { state->a.run([=] { left->start(); }); });
    program.thread("b", [=] { state->b.run([=] { right->start(); }); });
    program.thread(
        "main", [=] { state->main.run([=] { state->start(state->main, wait_once(state->main, *state)); }); });
    program.at_end([=] { state->finish(); });
}

// Two wait at the same time, one of them on a context with requests of its own, and then again.
void two_wait(Program& program) {
    auto state = explore::make_state<State>();
    Lane* left = &state->add_lane(state->a, 1, 2);
    Lane* right = &state->add_lane(state->b, 1, 2);
    state->expect(2);
    program.thread("a", [=] {
        state->a.run([=] {
            left->start();
            state->start(state->a, wait_once(state->a, *state));
        });
    });
    program.thread("b", [=] { state->b.run([=] { right->start(); }); });
    program.thread("main", [=] {
        state->main.run([=] { state->start(state->main, wait_twice(state->main, *state)); });
    });
    program.at_end([=] { state->finish(); });
}

// Its channel goes, then it closes: what a context that is removed does to whoever waits elsewhere.
Task<int> remove_b(AioContext& here, State& state) {
    int result = co_await block::drop_channels_of(*here.instance, state.disk.node, &state.b);
    if (state.graces != 0) gone++;
    state.has_stopped(state.b);
    state.b.stop();
    co_return result;
}

void a_context_goes(Program& program) {
    auto state = explore::make_state<State>();
    Lane* left = &state->add_lane(state->a, 1, 5);
    state->disk.add_channel(state->b);
    state->expect(2);
    program.thread("a", [=] {
        state->a.run([=] {
            left->start();
            state->start(state->a, wait_twice(state->a, *state));
        });
    });
    program.thread("b", [=] { state->b.run(); });
    program.thread(
        "main", [=] { state->main.run([=] { state->start(state->main, remove_b(state->main, *state)); }); });
    program.at_end([=] { state->finish(); });
}

// A channel is made on b, and a request enters by it at once.
Task<int> add_b(AioContext& here, State& state) {
    std::vector<AioContext*> contexts{&state.b};
    int result = co_await block::make_channels(*here.instance, state.disk.node, contexts);
    if (result != 0) co_return result;
    state.user.add_port_on(state.b, *block::find_channel(state.disk.node, &state.b));
    Lane* lane = &state.add_lane(state.b, 1, 2);
    result = co_await block::errand(*here.instance, &state.b, [lane, &state] {
        if (state.graces != 0) came++;
        lane->start();
    });
    co_return result;
}

void a_context_comes(Program& program) {
    auto state = explore::make_state<State>();
    Lane* left = &state->add_lane(state->a, 1, 5);
    state->expect(2);
    program.thread("a", [=] {
        state->a.run([=] {
            left->start();
            state->start(state->a, wait_twice(state->a, *state));
        });
    });
    program.thread("b", [=] { state->b.run(); });
    program.thread("main",
                   [=] { state->main.run([=] { state->start(state->main, add_b(state->main, *state)); }); });
    program.at_end([=] { state->finish(); });
}

TEST(main_waits_for_two_contexts) {
    explore::must_hold(main_waits, {1, 1, 2});
    waited.check();
}
TEST(two_wait_at_the_same_time) {
    explore::must_hold(two_wait, {1, 0, 1});
    waited.check();
}
TEST(a_context_is_removed_meanwhile) {
    explore::must_hold(a_context_goes, {1, 0, 2});
    gone.check();
}
TEST(a_context_is_added_meanwhile) {
    explore::must_hold(a_context_comes, {1, 0, 2});
    came.check();
}

const explore::Bounds bounds{.preemptions = 1, .stale_reads = 0, .detours = 2};

TEST(bug_the_answer_comes_before_the_mark) {
    explore::must_be_found(Mutation::grace_answers_before_the_marks, {main_waits}, "", bounds);
}
TEST(bug_the_mark_passes_whoever_is_inside) {
    for (void (*scenario)(Program&) : {main_waits, a_context_goes, a_context_comes}) {
        explore::must_be_found(Mutation::marks_pass_whoever_is_inside, {scenario}, "", bounds);
    }
}
TEST(bug_a_closed_context_is_waited_for) {
    explore::must_be_found(Mutation::grace_waits_for_a_closed_context, {a_context_goes}, "lost wake-up",
                           {.preemptions = 1, .stale_reads = 0, .detours = 3});
}
TEST(bug_a_context_that_was_added_first_is_not_asked) {
    explore::must_be_found(Mutation::grace_asks_the_first_context_alone, {main_waits}, "", bounds);
}
TEST(bug_the_inbox_is_taken_without_acquiring) {
    explore::must_be_found(Mutation::exchange_acq_rel_is_relaxed, {main_waits}, "data race", bounds);
}

}  // namespace
