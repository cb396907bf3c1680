// Timers: the heap against a reference model, exactly one outcome for each arming, cancelling from elsewhere.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "aio/timer.hh"
#include "api/handles.hh"
#include "base/clock.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::run_on;
using embedder::stats_of;
using engine::aio::Timer;
using engine::aio::TimerHeap;

uint64_t random_state = 0x9e3779b97f4a7c15;
uint64_t random_below(uint64_t bound) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % bound;
}

struct Counted : Timer {
    std::vector<Counted*>* order = nullptr;
    int fired = 0;
    int abandoned = 0;
};

// A multiset of (deadline, timer) is what the heap ought to be.
class Model {
  public:
    Model() : timers_(300) {
        for (Counted& timer : timers_) {
            timer.order = &order_;
            timer.fire = [](Timer* t) {
                auto* self = static_cast<Counted*>(t);
                self->fired++;
                self->order->push_back(self);
            };
            timer.abandon = [](Timer* t) { static_cast<Counted*>(t)->abandoned++; };
        }
    }
    void step() {
        Counted& timer = timers_[random_below(timers_.size())];
        switch (random_below(4)) {
            case 0:
            case 1:
                arm(timer, now_ns_ + random_below(1000));
                break;
            case 2:
                cancel(timer);
                break;
            case 3:
                advance(random_below(8), static_cast<unsigned>(random_below(16)) + 1);
                break;
        }
        CHECK_EQ(heap_.size(), armed_.size());
        CHECK_EQ(heap_.next_deadline_ns(), armed_.empty() ? UINT64_MAX : armed_.begin()->first);
    }
    void finish() {
        size_t left = armed_.size();
        heap_.abandon_all();
        CHECK(heap_.empty());
        size_t abandoned = 0;
        for (const Counted& timer : timers_) {
            CHECK(!timer.armed());
            abandoned += static_cast<size_t>(timer.abandoned);
        }
        CHECK_EQ(abandoned, left);
    }

  private:
    void arm(Counted& timer, uint64_t deadline_ns) {
        if (timer.armed()) armed_.erase({timer.deadline_ns, &timer});
        CHECK_EQ(heap_.arm(&timer, deadline_ns), 0);
        armed_.insert({deadline_ns, &timer});
        CHECK(timer.armed() && timer.deadline_ns == deadline_ns);
    }
    void cancel(Counted& timer) {
        size_t there = armed_.erase({timer.deadline_ns, &timer});
        CHECK_EQ(heap_.cancel(&timer), there == 1);
        CHECK(!timer.armed());
    }
    void advance(uint64_t ns, unsigned most) {
        now_ns_ += ns;
        order_.clear();
        unsigned fired = heap_.run_due(now_ns_, most);
        CHECK_EQ(fired, order_.size());
        CHECK(fired <= most);
        uint64_t before = 0;
        for (Counted* timer : order_) {
            CHECK(timer->deadline_ns >= before && timer->deadline_ns <= now_ns_);
            before = timer->deadline_ns;
            CHECK_EQ(armed_.erase({timer->deadline_ns, timer}), 1);
        }
        if (fired < most) CHECK(armed_.empty() || armed_.begin()->first > now_ns_);
    }

    TimerHeap heap_;
    std::vector<Counted> timers_;
    std::vector<Counted*> order_;
    std::set<std::pair<uint64_t, Counted*>> armed_;
    uint64_t now_ns_ = 0;
};

TEST(the_heap_is_a_priority_queue) {
    Model model;
    for (int i = 0; i < 100000; i++) model.step();
    model.finish();
}

TEST(a_timer_that_arms_itself_does_not_hold_the_turn) {
    static TimerHeap* heap;
    TimerHeap own;
    heap = &own;
    Timer timer;
    timer.fire = [](Timer* self) { CHECK_EQ(heap->arm(self, 0), 0); };
    CHECK_EQ(own.arm(&timer, 0), 0);
    CHECK_EQ(own.run_due(1, 256), 256);
    CHECK(own.cancel(&timer));
}

int no_memory(size_t, void* opaque) {
    ++*static_cast<unsigned*>(opaque);
    return 1;
}

TEST(memory_that_is_short_refuses_an_arming_and_spares_what_is_reserved) {
    TimerHeap heap;
    std::vector<Timer> timers(100);
    Timer kept[3];
    unsigned refusals = 0;
    engine_set_allocation_hook(no_memory, &refusals);
    CHECK_EQ(heap.arm(&timers[0], 1), -ENOMEM);
    CHECK_EQ(heap.reserve(&kept[0]), -ENOMEM);
    CHECK(!timers[0].armed() && heap.empty());
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(refusals, 2);
    for (Timer& timer : kept) CHECK_EQ(heap.reserve(&timer), 0);
    engine_set_allocation_hook(no_memory, &refusals);
    size_t armed = 0;  // whatever place is left, the reserved ones are not given away
    while (heap.arm(&timers[armed], 100 + armed) == 0) armed++;
    CHECK_EQ(heap.size(), armed);
    CHECK_EQ(heap.arm(&timers[0], 7), 0);  // moving one needs no place
    for (int round = 0; round < 3; round++) {
        for (Timer& timer : kept) heap.arm_reserved(&timer, 5);
        CHECK_EQ(heap.size(), armed + 3);
        CHECK_EQ(heap.next_deadline_ns(), 5);
        CHECK_EQ(heap.arm(&timers[armed], 1), -ENOMEM);
        for (Timer& timer : kept) CHECK(heap.cancel(&timer));
    }
    CHECK(heap.cancel(&timers[0]));
    CHECK_EQ(heap.arm(&timers[armed], 1), 0);  // a place that another one has left
    heap.unreserve(&kept[0]);
    CHECK_EQ(heap.arm(&timers[0], 1), 0);
    engine_set_allocation_hook(nullptr, nullptr);
    heap.abandon_all();
    CHECK(heap.empty());
    CHECK_ABORTS("reserved", heap.arm_reserved(&timers[0], 1));
}

struct Outcome {
    std::atomic<unsigned> fired{0};
    std::atomic<unsigned> cancelled{0};
    engine_timer_t* timer = nullptr;
    static void done(void* opaque, int fired) {
        auto* self = static_cast<Outcome*>(opaque);
        (fired != 0 ? self->fired : self->cancelled).fetch_add(1);
    }
    unsigned sum() const { return fired.load() + cancelled.load(); }
};

constexpr uint64_t far_ns = 3600'000'000'000;

TEST(timers_fire_in_the_order_of_their_deadlines) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        struct Mark {
            std::vector<int>* order;
            int number;
        };
        std::vector<int> order;
        std::vector<Mark> marks;
        std::vector<engine_timer_t*> timers;
        for (int i = 0; i < 20; i++) marks.push_back({&order, i});
        for (Mark& mark : marks) {
            timers.push_back(engine_timer_new(
                context,
                [](void* opaque, int) {
                    auto* self = static_cast<Mark*>(opaque);
                    self->order->push_back(self->number);
                },
                &mark));
        }
        run_on(context, [&] {  // in one piece: none falls due before all are armed
            uint64_t now_ns = engine_now_ns();
            for (int i = 0; i < 20; i++) {
                CHECK_EQ(engine_timer_arm(timers[static_cast<size_t>(i)],
                                          now_ns + static_cast<uint64_t>(i * 7 % 20)),
                         0);
            }
        });
        size_t count = 0;
        REQUIRE(eventually([&] {
            run_on(context, [&] { count = order.size(); });
            return count == 20;
        }));
        for (size_t i = 1; i < order.size(); i++) CHECK((order[i - 1] * 7 % 20) < (order[i] * 7 % 20));
        for (engine_timer_t* timer : timers) engine_timer_delete(timer);
        CHECK_EQ(stats_of(context).timers, 20);
    }
}

TEST(a_timer_never_fires_early_and_wakes_a_sleeper) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Late {
            std::atomic<uint64_t> at_ns{0};
        } late;
        engine_timer_t* timer = engine_timer_new(
            engine.context("io0", backend),
            [](void* opaque, int) { static_cast<Late*>(opaque)->at_ns = engine_now_ns(); }, &late);
        uint64_t deadline_ns = engine_now_ns() + 20'000'000;
        CHECK_EQ(engine_timer_arm(timer, deadline_ns), 0);
        REQUIRE(eventually([&] { return late.at_ns.load() != 0; }));
        CHECK(late.at_ns.load() >= deadline_ns);
        engine_timer_delete(timer);
    }
}

TEST(arming_again_moves_the_deadline) {
    Engine engine;
    Outcome outcome;
    engine_timer_t* timer = engine_timer_new(engine.context("io0"), Outcome::done, &outcome);
    CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + far_ns), 0);
    CHECK_EQ(engine_timer_arm(timer, engine_now_ns()), 0);
    REQUIRE(eventually([&] { return outcome.sum() == 1; }));
    CHECK_EQ(outcome.fired.load(), 1);
    CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + far_ns), 0);
    CHECK_EQ(engine_timer_cancel(timer), 0);
    CHECK_EQ(engine_timer_cancel(timer), 0);  // nothing is armed: nothing happens
    REQUIRE(eventually([&] { return outcome.sum() == 2; }));
    CHECK_EQ(outcome.cancelled.load(), 1);
    CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + far_ns), 0);
    engine_timer_delete(timer);
    REQUIRE(eventually([&] { return outcome.sum() == 3; }));
    CHECK_EQ(outcome.cancelled.load(), 2);
}

// The cancel races with the expiry: one of the two, never both, never none.
TEST(each_arming_has_one_outcome) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Outcome outcome;
        engine_timer_t* timer = engine_timer_new(context, Outcome::done, &outcome);
        for (unsigned i = 1; i <= 3000; i++) {
            CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + i % 64 * 200), 0);
            for (unsigned spin = 0; spin < i % 37 * 8; spin++)
                std::atomic_signal_fence(std::memory_order_seq_cst);
            CHECK_EQ(engine_timer_cancel(timer), 0);
            REQUIRE(eventually([&] { return outcome.sum() >= i; }));
            CHECK_EQ(outcome.sum(), i);
        }
        engine_timer_delete(timer);
        run_on(context, [] {});
        CHECK_EQ(outcome.sum(), 3000);
    }
}

// Many at once, cancelled from two threads around the time at which they are due: each has one outcome.
TEST(foreign_cancels_race_with_the_expiry_of_many_timers) {
    constexpr unsigned count = 2000;
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        std::vector<Outcome> outcomes(count);
        for (Outcome& outcome : outcomes) {
            outcome.timer = engine_timer_new(context, Outcome::done, &outcome);
        }
        // How soon the first falls due follows the speed of the machine, until both sides win some.
        uint64_t delay_ns = 1000'000;
        unsigned fired = 0;
        unsigned rounds = 0;
        for (uint64_t spread_ns = 1000;
             rounds < 4 || (rounds < 200 && (fired == 0 || fired == rounds * count));
             rounds++, spread_ns = spread_ns * 7 % 1000003) {
            uint64_t start_ns = engine_now_ns() + delay_ns;
            unsigned before = fired;
            for (unsigned i = 0; i < count; i++) {
                CHECK_EQ(engine_timer_arm(outcomes[i].timer, start_ns + i * spread_ns / 16), 0);
            }
            auto cancel = [&](unsigned first) {
                for (unsigned i = first; i < count; i += 2) {
                    CHECK_EQ(engine_timer_cancel(outcomes[i].timer), 0);
                    if (i % 3 == 0) CHECK_EQ(engine_timer_cancel(outcomes[count - 1 - i].timer), 0);
                }
            };
            std::thread other(cancel, 1);
            cancel(0);
            other.join();
            for (Outcome& outcome : outcomes) {
                REQUIRE(eventually([&] { return outcome.sum() >= rounds + 1; }));
                CHECK_EQ(outcome.sum(), rounds + 1);
            }
            fired = 0;
            for (Outcome& outcome : outcomes) fired += outcome.fired.load();
            if (fired == before) delay_ns = delay_ns / 2;
            if (fired == before + count) delay_ns = delay_ns * 2 + 1000;
        }
        CHECK(fired > 0 && fired < rounds * count);  // it did race
        for (Outcome& outcome : outcomes) engine_timer_delete(outcome.timer);
        run_on(context, [] {});
        for (Outcome& outcome : outcomes) CHECK_EQ(outcome.sum(), rounds);
    }
}

TEST(a_closing_context_cancels_its_timers) {
    for (uint32_t backend : both_backends) {
        for (int round = 0; round < 20; round++) {
            Engine engine;
            engine_context_t* context = engine.context("io0", backend);
            std::vector<Outcome> outcomes(10);
            for (Outcome& outcome : outcomes) {
                outcome.timer = engine_timer_new(context, Outcome::done, &outcome);
                CHECK_EQ(engine_timer_arm(outcome.timer, engine_now_ns() + far_ns), 0);
            }
            Error error;
            CHECK_EQ(engine_context_close(context, &error), 0);
            for (Outcome& outcome : outcomes) {
                CHECK_EQ(outcome.cancelled.load(), 1);
                CHECK_EQ(outcome.fired.load(), 0);
                engine_timer_delete(outcome.timer);
                CHECK_EQ(outcome.sum(), 1);
            }
        }
    }
}

TEST(a_timer_armed_anew_while_its_context_closes_is_refused) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    struct Again {
        engine_timer_t* timer = nullptr;
        std::atomic<unsigned> runs{0};
        std::atomic<int> result{1};
    } again;
    again.timer = engine_timer_new(
        context,
        [](void* opaque, int) {
            auto* self = static_cast<Again*>(opaque);
            self->runs.fetch_add(1);
            self->result = engine_timer_arm(self->timer, engine_now_ns() + far_ns);
        },
        &again);
    CHECK_EQ(engine_timer_arm(again.timer, engine_now_ns() + far_ns), 0);
    Error error;
    CHECK_EQ(engine_context_close(context, &error), 0);
    CHECK_EQ(again.runs.load(), 1);
    CHECK_EQ(again.result.load(), -ESHUTDOWN);
    engine_timer_delete(again.timer);
}

TEST(a_timer_is_deleted_in_its_own_callback) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    Outcome outcome;
    outcome.timer = engine_timer_new(
        context,
        [](void* opaque, int fired) {
            engine_timer_delete(static_cast<Outcome*>(opaque)->timer);
            Outcome::done(opaque, fired);
        },
        &outcome);
    CHECK_EQ(engine_timer_arm(outcome.timer, 0), 0);
    REQUIRE(eventually([&] { return outcome.sum() == 1; }));
    run_on(context, [] {});
    CHECK_EQ(outcome.sum(), 1);
}

// At once, there: nothing of it is called afterwards.
TEST(an_armed_timer_is_deleted_on_its_own_context) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    Outcome outcome;
    engine_timer_t* timer = engine_timer_new(context, Outcome::done, &outcome);
    CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + far_ns), 0);
    run_on(context, [&] {
        engine_timer_delete(timer);
        CHECK_EQ(outcome.cancelled.load(), 1);
    });
    Error error;
    CHECK_EQ(engine_context_close(context, &error), 0);
    CHECK_EQ(outcome.sum(), 1);
}

}  // namespace
