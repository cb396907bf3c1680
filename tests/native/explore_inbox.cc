// The inbox and its sleep/wake protocol, as shipped, under the interleaving explorer. The home thread below
// is the loop of aio/context.cc reduced to what touches the inbox. Then the same with bugs put in: each must
// be found.
#include <memory>
#include <vector>

#include "aio/inbox.hh"
#include "check.hh"
#include "explore/explorer.hh"

namespace {

using engine::aio::Inbox;
using engine::aio::Message;
using engine::aio::Push;
using engine::aio::SendGate;
using explore::Mutation;
using explore::Options;
using explore::Program;
using explore::Report;
using explore::Scenario;

struct State;

struct Sent : Message {
    State* state = nullptr;
    explore::Plain<int> content;
    int sender = 0;
    int number = 0;  // among those of its sender
    int runs = 0;
    int result = 1;  // of send(): 0 or -ESHUTDOWN
    bool stops = false;
    Sent* resend = nullptr;  // from its run(), on the home thread
};

constexpr int senders_max = 4;

struct State {
    Inbox inbox;
    explore::Event event;
    engine::base::Atomic<uint32_t> closed{0};
    std::vector<std::unique_ptr<Sent>> messages;
    int last_run[senders_max] = {};
    int wakes = 0;
    int sleeps = 0;
    bool stopping = false;
    bool may_time_out = false;

    Sent* message(int sender) {
        int number = 1;
        for (auto& other : messages) number += other->sender == sender ? 1 : 0;
        messages.push_back(std::make_unique<Sent>());
        Sent* sent = messages.back().get();
        sent->state = this;
        sent->sender = sender;
        sent->number = number;
        sent->run = [](Message* item) {
            auto* self = static_cast<Sent*>(item);
            self->state->ran(self);
        };
        return sent;
    }

    // As AioContext::send().
    void send(Sent* sent) {
        bool was_closed = closed.load_acquire() != 0;
        sent->content.set(sent->sender * 100 + sent->number);
        switch (inbox.push(sent)) {
            case Push::closed:
                sent->result = -ESHUTDOWN;
                return;
            case Push::wake:
                wakes++;
                event.signal();
                break;
            case Push::queued:
                break;
        }
        sent->result = 0;
        explore::require(!was_closed, "a closed inbox accepted a message");
    }

    void ran(Sent* sent) {
        sent->runs++;
        explore::require(sent->runs == 1, "a message ran twice");
        explore::require(sent->content.get() == sent->sender * 100 + sent->number, "the content is another");
        explore::require(last_run[sent->sender] < sent->number, "out of order");
        last_run[sent->sender] = sent->number;
        if (sent->stops) stopping = true;
        if (sent->resend != nullptr) send(sent->resend);
    }

    void run_all(Message* message) {
        while (message != nullptr) {
            Message* next = message->next;
            message->run(message);
            message = next;
        }
    }

    // As AioContext::run(), idle() and wind_up().
    void home() {
        while (!stopping) {
            run_all(inbox.take_all());
            if (stopping || !inbox.empty()) continue;
            sleeps++;
            if (inbox.may_sleep()) {
                if (!may_time_out || explore::choose(2) == 0) event.wait();
                may_time_out = false;
                inbox.woke_up();
            }
        }
        run_all(inbox.close());
        closed.store_release(1);
    }

    void check_at_end() {
        for (auto& sent : messages) {
            explore::require(sent->runs == (sent->result == 0 ? 1 : 0),
                             "accepted and not run, or refused and run");
        }
        explore::require(wakes <= sleeps, "more than one wake-up for one sleep");
    }
};

// The last message of a sender stops the loop: all of its messages must be accepted and run.
void one_sender(Program& program) {
    auto state = std::make_shared<State>();
    Sent* first = state->message(0);
    Sent* second = state->message(0);
    second->stops = true;
    program.thread("home", [=] { state->home(); });
    program.thread("sender", [=] {
        state->send(first);
        state->send(second);
        explore::require(first->result == 0 && second->result == 0, "refused by an open inbox");
    });
    program.at_end([=] { state->check_at_end(); });
}

// Two senders; a third thread stops the loop at any moment, so that a message may be refused.
void senders_against_stop(Program& program) {
    auto state = std::make_shared<State>();
    Sent* left = state->message(0);
    Sent* right = state->message(1);
    Sent* stop = state->message(2);
    stop->stops = true;
    program.thread("home", [=] { state->home(); });
    program.thread("left", [=] { state->send(left); });
    program.thread("right", [=] { state->send(right); });
    program.thread("stop", [=] {
        state->send(stop);
        explore::require(stop->result == 0, "stop was refused");
    });
    program.at_end([=] { state->check_at_end(); });
}

// The loop stops only when both have arrived: a lost wake-up of either is a deadlock.
void both_must_arrive(Program& program) {
    auto state = std::make_shared<State>();
    Sent* left[] = {state->message(0), state->message(0)};
    Sent* right = state->message(1);
    Sent* last = state->message(2);
    last->stops = true;
    auto arrived = std::make_shared<engine::base::Atomic<uint32_t>>(0u);
    auto finish = [=] {
        if (arrived->fetch_add_acq_rel(1) == 1) state->send(last);
    };
    program.thread("home", [=] { state->home(); });
    program.thread("left", [=] {
        state->send(left[0]);
        state->send(left[1]);
        finish();
    });
    program.thread("right", [=] {
        state->send(right);
        finish();
    });
    program.at_end([=] { state->check_at_end(); });
}

// Sleeping ends for other reasons as well, and a message that runs sends another one to its own context.
void timeouts_and_resends(Program& program) {
    auto state = std::make_shared<State>();
    state->may_time_out = true;
    Sent* first = state->message(0);
    first->resend = state->message(1);
    first->resend->resend = state->message(1);
    first->resend->resend->stops = true;
    Sent* other = state->message(2);
    program.thread("home", [=] { state->home(); });
    program.thread("sender", [=] { state->send(first); });
    program.thread("other", [=] { state->send(other); });
    program.at_end([=] { state->check_at_end(); });
}

// Who is refused sees all that the home thread did before it closed: nothing else tells it.
void refused_by_a_closed_inbox(Program& program) {
    struct Closing {
        Inbox inbox;
        explore::Plain<int> reason;
        Message message;
    };
    auto state = std::make_shared<Closing>();
    program.thread("home", [=] {
        state->reason.set(1);
        (void)state->inbox.close();
    });
    program.thread("sender", [=] {
        bool refused = state->inbox.push(&state->message) == Push::closed;
        explore::require(!refused || state->reason.get() == 1, "refused without a reason");
    });
}

// The same of the gate. And who finds it closed and empty may free what those inside have used.
void a_gate_that_closes(Program& program) {
    struct Gated {
        SendGate gate;
        explore::Plain<int> used, reason;
    };
    auto state = std::make_shared<Gated>();
    program.thread("home", [=] {
        state->reason.set(1);
        state->gate.close();
        if (state->gate.empty()) state->used.set(1);
    });
    for (const char* name : {"left", "right"}) {
        program.thread(name, [=] {
            if (state->gate.enter()) {
                explore::require(state->used.get() == 0, "freed while somebody was inside");
                state->gate.leave();
            } else {
                explore::require(state->reason.get() == 1, "refused without a reason");
            }
        });
    }
}

void must_hold(const char* name, const Scenario& scenario, unsigned preemptions, unsigned stale_reads) {
    Options options;
    options.preemptions = preemptions;
    options.stale_reads = stale_reads;
    Report report = explore::explore(options, scenario);
    CHECK(!report.failed);
    CHECK(report.complete);
    printf("     %s: %llu executions, all with at most %u preemptions and %u stale reads\n", name,
           static_cast<unsigned long long>(report.executions), preemptions, options.stale_reads);
    if (!report.failed) {
        options.random_executions = 20000;
        report = explore::explore(options, scenario);
        CHECK(!report.failed);
    }
    if (report.failed)
        fprintf(stderr, "%s\nschedule %s\n%s", report.what.c_str(), report.schedule.c_str(),
                report.trace.c_str());
}

TEST(one_sender) {
    must_hold("one sender", one_sender, 5, 4);
}
TEST(senders_against_stop) {
    must_hold("senders against stop", senders_against_stop, 2, 1);
}
TEST(both_must_arrive) {
    must_hold("both must arrive", both_must_arrive, 2, 3);
}
TEST(timeouts_and_resends) {
    must_hold("timeouts and resends", timeouts_and_resends, 2, 3);
}
TEST(who_is_refused_sees_why) {
    must_hold("refused by a closed inbox", refused_by_a_closed_inbox, 4, 4);
}
TEST(who_closes_an_empty_gate_is_alone) {
    must_hold("a gate that closes", a_gate_that_closes, 4, 4);
}

// The bug must be found by search and by random choices, and its schedule must show it again.
void must_be_found(Mutation mutation, const char* expected) {
    explore::set_mutation(mutation);
    for (uint64_t random_executions : {0, 50000}) {
        bool found = false;
        for (const Scenario& scenario :
             {Scenario(one_sender), Scenario(senders_against_stop), Scenario(both_must_arrive)}) {
            Options options;
            options.preemptions = 2;
            options.random_executions = random_executions;
            Report report = explore::explore(options, scenario);
            if (!report.failed) continue;
            found = true;
            CHECK(report.what.find(expected) != std::string::npos);
            CHECK_EQ(explore::replay(options, scenario, report.schedule).what, report.what);
            printf("     found after %llu %s executions: %s\n",
                   static_cast<unsigned long long>(report.executions),
                   random_executions != 0 ? "random" : "searched", report.what.c_str());
            break;
        }
        CHECK(found);
    }
    explore::set_mutation(Mutation::none);
}

TEST(bug_sleeping_is_stored_with_release) {
    must_be_found(Mutation::store_seq_cst_is_release, "lost wake-up");
}
TEST(bug_loads_of_the_handshake_are_acquire) {
    must_be_found(Mutation::load_seq_cst_is_acquire, "lost wake-up");
}
TEST(bug_no_second_look_before_sleeping) {
    must_be_found(Mutation::null_is_read_unseen, "lost wake-up");
}
TEST(bug_push_is_relaxed) {
    must_be_found(Mutation::compare_exchange_is_relaxed, "");
}
TEST(bug_take_is_relaxed) {
    must_be_found(Mutation::exchange_acq_rel_is_relaxed, "data race");
}
TEST(bug_whoever_sees_sleeping_wakes) {
    must_be_found(Mutation::exchange_seq_cst_is_two_steps, "wake-up");
}
TEST(bug_take_is_a_load_and_a_store) {
    must_be_found(Mutation::exchange_acq_rel_is_two_steps, "");
}

}  // namespace
