// The explorer itself: litmus tests of its memory (what C11 allows is found, what it forbids is not), and
// that it finds races, lost wake-ups and failed assertions, and replays them.
#include <memory>
#include <set>

#include "base/atomic.hh"
#include "check.hh"
#include "explore/explorer.hh"

namespace {

using engine::base::Atomic;
using explore::Options;
using explore::Program;
using explore::Report;

// Two or more threads, each of which notes what it read; all outcomes that were seen.
struct Litmus {
    Atomic<int> x, y;
    int r[4] = {-1, -1, -1, -1};
};
using Body = void (*)(Litmus&);

std::set<std::string> outcomes(std::initializer_list<Body> bodies) {
    std::set<std::string> seen;
    Options options;
    options.preemptions = 8;
    Report report = explore::explore(options, [&](Program& program) {
        auto state = std::make_shared<Litmus>();
        for (Body body : bodies) program.thread("t", [state, body] { body(*state); });
        program.at_end([state, &seen] {
            std::string text;
            for (int value : state->r) {
                if (value >= 0) text += std::to_string(value);
            }
            seen.insert(text);
        });
    });
    CHECK(!report.failed);
    CHECK(report.complete);
    return seen;
}

bool allows(std::initializer_list<Body> bodies, const char* outcome) {
    return outcomes(bodies).contains(outcome);
}

TEST(store_buffering_is_forbidden_only_when_all_is_seq_cst) {
    Body left_sc = [](Litmus& l) {
        l.x.store_seq_cst(1);
        l.r[0] = l.y.load_seq_cst();
    };
    Body right_sc = [](Litmus& l) {
        l.y.store_seq_cst(1);
        l.r[1] = l.x.load_seq_cst();
    };
    Body right_weak_store = [](Litmus& l) {
        l.y.store_release(1);
        l.r[1] = l.x.load_seq_cst();
    };
    Body right_weak_load = [](Litmus& l) {
        l.y.store_seq_cst(1);
        l.r[1] = l.x.load_acquire();
    };
    Body right_exchange = [](Litmus& l) {
        (void)l.y.exchange_seq_cst(1);
        l.r[1] = l.x.load_seq_cst();
    };
    Body right_weak_exchange = [](Litmus& l) {
        (void)l.y.exchange_acq_rel(1);
        l.r[1] = l.x.load_acquire();
    };
    CHECK((outcomes({left_sc, right_sc}) == std::set<std::string>{"01", "10", "11"}));
    CHECK(!allows({left_sc, right_exchange}, "00"));
    CHECK(allows({left_sc, right_weak_store}, "00"));
    CHECK(allows({left_sc, right_weak_load}, "00"));
    CHECK(allows({left_sc, right_weak_exchange}, "00"));
}

TEST(message_passing_needs_release_and_acquire) {
    Body writes = [](Litmus& l) {
        l.x.store_relaxed(1);
        l.y.store_release(1);
    };
    Body writes_weakly = [](Litmus& l) {
        l.x.store_relaxed(1);
        l.y.store_relaxed(1);
    };
    Body reads = [](Litmus& l) {
        l.r[0] = l.y.load_acquire();
        l.r[1] = l.x.load_relaxed();
    };
    Body reads_weakly = [](Litmus& l) {
        l.r[0] = l.y.load_relaxed();
        l.r[1] = l.x.load_relaxed();
    };
    CHECK((outcomes({writes, reads}) == std::set<std::string>{"00", "01", "11"}));
    CHECK(allows({writes_weakly, reads}, "10"));
    CHECK(allows({writes, reads_weakly}, "10"));
}

TEST(a_release_sequence_goes_through_a_relaxed_read_modify_write) {
    Body writes = [](Litmus& l) {
        l.x.store_relaxed(1);
        l.y.store_release(1);
    };
    Body modifies = [](Litmus& l) { (void)l.y.fetch_add_relaxed(10); };
    Body reads = [](Litmus& l) {
        l.r[0] = l.y.load_acquire() == 11 ? 1 : 0;
        l.r[1] = l.x.load_relaxed();
    };
    Body overwrites = [](Litmus& l) {
        if (l.y.load_relaxed() == 1) l.y.store_relaxed(11);
    };
    CHECK(!allows({writes, modifies, reads}, "10"));
    CHECK(allows({writes, modifies, reads}, "11"));
    CHECK(allows({writes, overwrites, reads}, "10"));
}

TEST(independent_reads_agree_on_an_order_only_when_seq_cst) {
    Body x_sc = [](Litmus& l) { l.x.store_seq_cst(1); };
    Body y_sc = [](Litmus& l) { l.y.store_seq_cst(1); };
    Body xy_sc = [](Litmus& l) {
        l.r[0] = l.x.load_seq_cst();
        l.r[1] = l.y.load_seq_cst();
    };
    Body yx_sc = [](Litmus& l) {
        l.r[2] = l.y.load_seq_cst();
        l.r[3] = l.x.load_seq_cst();
    };
    Body xy = [](Litmus& l) {
        l.r[0] = l.x.load_acquire();
        l.r[1] = l.y.load_acquire();
    };
    Body yx = [](Litmus& l) {
        l.r[2] = l.y.load_acquire();
        l.r[3] = l.x.load_acquire();
    };
    CHECK(!allows({x_sc, y_sc, xy_sc, yx_sc}, "1010"));
    CHECK(allows({x_sc, y_sc, xy, yx}, "1010"));
}

TEST(one_location_is_coherent_however_weak) {
    Body writes = [](Litmus& l) {
        l.x.store_relaxed(1);
        l.x.store_relaxed(2);
    };
    Body reads = [](Litmus& l) {
        l.r[0] = l.x.load_relaxed();
        l.r[1] = l.x.load_relaxed();
    };
    CHECK((outcomes({writes, reads}) == std::set<std::string>{"00", "01", "02", "11", "12", "22"}));
}

TEST(a_read_modify_write_is_one_step) {
    Body adds = [](Litmus& l) { (void)l.x.fetch_add_relaxed(1); };
    Body adds_in_two = [](Litmus& l) { l.x.store_relaxed(l.x.load_relaxed() + 1); };
    for (bool broken : {false, true}) {
        Options options;
        Report report = explore::explore(options, [&](Program& program) {
            auto state = std::make_shared<Litmus>();
            for (int i = 0; i < 3; i++) program.thread("t", [=] { (broken ? adds_in_two : adds)(*state); });
            program.at_end(
                [state] { explore::require(state->x.load_relaxed() == 3, "an addition was lost"); });
        });
        CHECK_EQ(report.failed, broken);
    }
}

TEST(a_weak_compare_exchange_may_fail_for_no_reason) {
    Body once = [](Litmus& l) {
        int expected = 0;
        l.r[0] = l.x.compare_exchange_acq_rel(expected, 1) ? 1 : 0;
        l.r[1] = expected;
    };
    CHECK((outcomes({once}) == std::set<std::string>{"00", "10"}));
}

// --- what it is for

struct Handover {
    Atomic<int> flag{0};
    explore::Plain<int> data{0};
};

Report hand_over(bool release, uint64_t random_executions) {
    Options options;
    options.random_executions = random_executions;
    return explore::explore(options, [=](Program& program) {
        auto state = std::make_shared<Handover>();
        program.thread("writer", [=] {
            state->data.set(42);
            if (release) {
                state->flag.store_release(1);
            } else {
                state->flag.store_relaxed(1);
            }
        });
        program.thread("reader", [=] {
            if (state->flag.load_acquire() == 1) explore::require(state->data.get() == 42, "42 expected");
        });
    });
}

TEST(a_data_race_is_found_by_search_and_by_chance) {
    for (uint64_t random_executions : {0, 1000}) {
        CHECK(!hand_over(true, random_executions).failed);
        Report report = hand_over(false, random_executions);
        CHECK(report.failed);
        CHECK(report.what.find("data race") != std::string::npos);
        CHECK(report.trace.find("reader     fails") != std::string::npos);
    }
}

// The classical lost wake-up: the sleeper looks, then sleeps; the waker sets, then looks whether anybody
// sleeps.
void sleep_and_wake(Program& program, bool look_again) {
    struct State {
        Atomic<int> work{0}, sleeping{0};
        explore::Event event;
    };
    auto state = std::make_shared<State>();
    program.thread("sleeper", [=] {
        while (state->work.load_seq_cst() == 0) {
            state->sleeping.store_seq_cst(1);
            if (!look_again || state->work.load_seq_cst() == 0) state->event.wait();
        }
    });
    program.thread("waker", [=] {
        state->work.store_seq_cst(1);
        if (state->sleeping.load_seq_cst() == 1) state->event.signal();
    });
}

TEST(a_lost_wake_up_is_found_and_replayed) {
    Options options;
    CHECK(!explore::explore(options, [](Program& program) { sleep_and_wake(program, true); }).failed);
    explore::Scenario broken = [](Program& program) { sleep_and_wake(program, false); };
    for (uint64_t random_executions : {0, 1000}) {
        options.random_executions = random_executions;
        Report report = explore::explore(options, broken);
        REQUIRE(report.failed);
        CHECK(report.what.find("these wait: sleeper") != std::string::npos);
        Report again = explore::replay(options, broken, report.schedule);
        CHECK(again.failed);
        CHECK_EQ(again.what, report.what);
        CHECK_EQ(again.trace, report.trace);
        CHECK(!again.trace.empty());
    }
}

TEST(a_loop_that_never_ends_is_found) {
    Report report = explore::explore({}, [](Program& program) {
        auto flag = std::make_shared<Atomic<int>>(0);
        program.thread("spins", [=] {
            while (flag->load_acquire() == 0) explore::pause();
        });
    });
    CHECK(report.failed);
    CHECK(report.what.find("no end") != std::string::npos);
}

TEST(a_loop_that_pauses_lets_others_go_on) {
    Report report = explore::explore({}, [](Program& program) {
        auto flag = std::make_shared<Atomic<int>>(0);
        program.thread("spins", [=] {
            while (flag->load_acquire() == 0) explore::pause();
        });
        program.thread("sets", [=] { flag->store_release(1); });
    });
    CHECK(!report.failed);
    CHECK(report.complete);
}

TEST(use_after_the_end_of_an_atomic_is_found) {
    Report report = explore::explore({}, [](Program& program) {
        struct State {
            alignas(Atomic<int>) unsigned char storage[sizeof(Atomic<int>)];
            Atomic<int>* atomic = new (storage) Atomic<int>(0);
        };
        auto state = std::make_shared<State>();
        program.thread("destroys", [=] { state->atomic->~Atomic<int>(); });
        program.thread("uses", [=] { state->atomic->store_relaxed(1); });
    });
    CHECK(report.failed);
    CHECK(report.what.find("after its end") != std::string::npos);
}

TEST(the_same_seed_is_the_same_history) {
    Options options;
    options.random_executions = 300;
    options.seed = 7;
    explore::Scenario broken = [](Program& program) { sleep_and_wake(program, false); };
    Report first = explore::explore(options, broken);
    Report second = explore::explore(options, broken);
    REQUIRE(first.failed && second.failed);
    CHECK_EQ(first.schedule, second.schedule);
    CHECK_EQ(first.executions, second.executions);
}

}  // namespace
