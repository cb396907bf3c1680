// Quiescing (block/quiesce.cc, parking in block/request.cc), as shipped, under the interleaving explorer:
// requests enter by ports on two contexts while main parks them, waits, changes where they lead, and lets
// them go on; and a clock that may run out at any moment.
//
//   1. Between a quiesce that succeeded and its Resume nothing is inside the nodes, and nothing enters.
//   2. Every request enters once, in order; those that were parked enter the node that their port leads to
//      now, and none enters the old one any more.
//   3. Where the deadline expires everything goes on as before: nobody stays parked, and what is late of that
//      quiesce ends no later one.
//   4. Two at the same time on the same ports: both hold.
//   5. What requests did before is seen by who changes the graph, and the other way round.
//
// Then the same with bugs put in: each must be found.
#include "block/quiesce.hh"

#include <memory>
#include <string>
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

Happened waited{"a quiesce had requests to wait for"};
Happened port_was_parked{"a port was parked and let go"};
Happened expired{"a deadline expired"};
Happened in_time{"a deadline did not expire"};
Happened both{"two had the nodes at rest at the same time"};

constexpr uint64_t timeout_ns = 1'000'000'000;
constexpr uint64_t for_ever_ns = UINT64_MAX / 2;

struct State : World {
    NotedDisk disk{*this, "disk", 1};
    NotedDisk other{*this, "other", 2};  // where requests go after a change
    GraphUser user{*this, disk};
    std::vector<block::Port*> ports;
    std::vector<std::unique_ptr<Lane>> lanes;
    int at_rest = 0;  // quiesces that hold

    explicit State(bool both_contexts) {
        for (AioContext* context : {&a, &b}) {
            if (context == &b && !both_contexts) continue;
            ports.push_back(&user.add_port_on(*context, *disk.add_channel(*context)));
            other.add_channel(*context);
        }
    }
    Lane* add_lane(AioContext& context, int count, int depth, unsigned rests) {
        lanes.push_back(std::make_unique<Lane>(*this, *user.find_port(&context), count, depth, rests));
        return lanes.back().get();
    }
    void comes_to_rest() {
        explore::require(disk.inside.empty(), "a request is inside a node at rest");
        disk.at_rest = ++at_rest != 0;
        if (at_rest == 2) both++;
        look_at_notes(0);
    }
    // Nobody else does so meanwhile.
    void look_at_notes(int change) {
        for (auto& lane : lanes) {
            for (auto& sent : lane->requests) {
                bool left = sent->entries == 1 && sent->inside == nullptr;
                if (left)
                    explore::require(sent->note.get() == sent->number + 1, "what it wrote is not there");
                if (change != 0) sent->word.set(change);
            }
        }
    }
    void goes_on() { disk.at_rest = --at_rest != 0; }
    void finish() {
        ended = disk.inside.empty() && other.inside.empty();
        explore::require(ended, "somebody is still inside");
        for (block::Port* port : ports) {
            ended = ended && !port->parked();
            explore::require(!port->parked(), "a port stays parked");
            if (port->pauses.get() != 0) port_was_parked++;
        }
        for (auto& lane : lanes) ended = ended && lane->all_ran_once();
        explore::require(ended, "a request did not run exactly once");
    }
};
using StatePointer = std::shared_ptr<State>;
StatePointer make_state(bool both_contexts) {
    return explore::make_state<State>(both_contexts);
}

// Parks, waits, moves both ports to the other node, and goes on.
Task<int> change(AioContext& here, State& state) {
    block::Quiesced rest;
    std::vector<block::Node*> nodes{state.disk.node};
    if (!state.disk.inside.empty()) waited++;
    int result = co_await block::quiesce(*here.instance, nodes, for_ever_ns, rest, nullptr);
    if (result != 0) co_return result;
    state.comes_to_rest();
    explore::point();
    state.look_at_notes(7);
    for (block::Port* port : state.ports) {
        rest.move_port(*port, block::find_channel(state.other.node, port->context));
    }
    block::Resume going_on(*here.instance, rest);  // the old node stays at rest for good
    co_await going_on;
    co_return 0;
}

// Changes nothing. -ETIMEDOUT will do.
Task<int> rest_once(AioContext& here, State& state) {
    block::Quiesced rest;
    std::vector<block::Node*> nodes{state.disk.node};
    if (!state.disk.inside.empty()) waited++;
    int result = co_await block::quiesce(*here.instance, nodes, timeout_ns, rest, nullptr);
    if (result == -ETIMEDOUT) {
        expired++;
        co_return 0;
    }
    in_time++;
    if (result != 0) co_return result;
    state.comes_to_rest();
    result = co_await block::errand(*here.instance, &state.a, [] {});
    if (result != 0) co_return result;
    state.look_at_notes(0);
    state.goes_on();
    block::Resume going_on(*here.instance, rest);
    co_await going_on;
    co_return 0;
}

Task<int> rest_then_change(AioContext& here, State& state) {
    int result = co_await rest_once(here, state);
    if (result == 0) result = co_await change(here, state);
    co_return result;
}

void add_contexts(Program& program, const StatePointer& state, Lane* left, Lane* right) {
    program.thread("a", [=] {
        state->a.run([=] {
            if (left != nullptr) left->start();
        });
    });
    program.thread("b", [=] {
        state->b.run([=] {
            if (right != nullptr) right->start();
        });
    });
    program.at_end([=] { state->finish(); });
}

void one_changes(Program& program) {
    auto state = make_state(true);
    Lane* left = state->add_lane(state->a, 3, 2, 1);
    Lane* right = state->add_lane(state->b, 1, 1, 0);
    state->expect(1);
    add_contexts(program, state, left, right);
    program.thread("main",
                   [=] { state->main.run([=] { state->start(state->main, change(state->main, *state)); }); });
}

void two_at_once(Program& program) {
    auto state = make_state(false);
    Lane* left = state->add_lane(state->a, 3, 1, 1);
    state->expect(2);
    add_contexts(program, state, left, nullptr);
    program.thread("main", [=] {
        state->main.run([=] {
            state->start(state->main, rest_once(state->main, *state));
            state->start(state->main, rest_once(state->main, *state));
        });
    });
}

// The clock comes before, within or after the first quiesce; the second has all the time it needs.
void one_expires(Program& program) {
    auto state = make_state(false);
    Lane* left = state->add_lane(state->a, 2, 1, 2);
    state->expect(1);
    program.thread("main", [=] {
        state->main.run([=] { state->start(state->main, rest_then_change(state->main, *state)); });
    });
    program.thread("clock", [=] { state->main.advance_clock(timeout_ns); });
    add_contexts(program, state, left, nullptr);
}

// The clock comes while a request is inside, which leaves after everything has gone on.
void one_expires_early(Program& program) {
    auto state = make_state(false);
    Lane* left = state->add_lane(state->a, 1, 1, 3);
    left->requests[0]->slow = true;
    state->expect(1);
    program.thread(
        "main", [=] { state->main.run([=] { state->start(state->main, rest_once(state->main, *state)); }); });
    add_contexts(program, state, left, nullptr);
    program.thread("clock", [=] { state->main.advance_clock(timeout_ns); });
}

TEST(one_changes_the_graph) {
    explore::must_hold(one_changes, {1, 0, 2});
    waited.check();
    port_was_parked.check();
}
TEST(two_at_the_same_time) {
    explore::must_hold(two_at_once, {1, 0, 2});
    both.check();
    port_was_parked.check();
}
TEST(a_deadline_expires_long_before_the_request_has_left) {
    explore::must_hold(one_expires_early, {1, 0, 2});
    expired.check();
    in_time.check();
}
TEST(a_deadline_may_expire) {
    explore::must_hold(one_expires, {1, 0, 1});
    expired.check();
    in_time.check();
}

const explore::Bounds bounds{.preemptions = 1, .stale_reads = 0, .detours = 2};

TEST(bug_requests_are_parked_after_the_wait) {
    explore::must_be_found(Mutation::quiesce_parks_after_the_wait, {one_changes}, "", bounds);
}
TEST(bug_requests_go_on_before_the_change) {
    explore::must_be_found(Mutation::quiesce_goes_on_before_the_change, {one_changes},
                           "entered a node at rest", bounds);
}
TEST(bug_the_deadline_leaves_marks_standing) {
    explore::must_be_found(Mutation::quiesce_leaves_marks_standing, {one_expires_early},
                           "assertion failed: standing_ == 0", bounds);
}
TEST(bug_the_deadline_passes_for_rest) {
    explore::must_be_found(Mutation::quiesce_takes_the_deadline_for_rest, {one_expires}, "", bounds);
}
// What had passed when the deadline came is still on its way when everything goes on.
TEST(bug_messages_overtake_what_is_ready) {
    AioContext::overtakes = true;
    explore::Report report = explore::explore({.random_executions = 50000}, one_expires);
    AioContext::overtakes = false;
    CHECK_EQ(report.what, std::string("main: assertion failed: standing_ == 0"));
}
TEST(bug_the_first_to_go_on_takes_all_along) {
    explore::must_be_found(Mutation::unpark_counts_nothing, {two_at_once}, "", bounds);
}

}  // namespace
