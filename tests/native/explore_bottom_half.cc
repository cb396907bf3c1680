// Bottom halves as shipped (aio/bottom_half.cc), on the real inbox, under the interleaving explorer:
// scheduled, cancelled and destroyed by several threads while the context closes.
#include "aio/bottom_half.hh"

#include <cstdlib>
#include <memory>
#include <new>

#include "base/alloc.hh"
#include "check.hh"
#include "explore/explorer.hh"

// The bottom half that a scenario watches is not freed by `delete` but filled with the address of a function
// that fails, so that calling through it afterwards is found. Its atomic notices by itself.
static void* watched = nullptr;
static int watched_frees = 0;
static void used_after_free(void*) {
    explore::fail("a callback was called through freed memory");
}

void operator delete(void* block, size_t bytes) noexcept {
    if (block != watched) {
        free(block);
        return;
    }
    watched_frees++;
    for (size_t i = 0; i < bytes / sizeof(void*); i++)
        static_cast<void (**)(void*)>(block)[i] = used_after_free;
}
void operator delete(void* block) noexcept {
    operator delete(block, size_t{0});
}

void* engine::base::allocate(size_t bytes, size_t) noexcept {
    return malloc(bytes);
}
void engine::base::deallocate(void* block) noexcept {
    free(block);
}

namespace {

using engine::aio::AioContext;
using engine::aio::BottomHalf;
using explore::Options;
using explore::Program;
using explore::Report;
using explore::Scenario;

struct State {
    AioContext context;
    alignas(BottomHalf) unsigned char memory[sizeof(BottomHalf)];
    BottomHalf* bh;
    engine::base::Atomic<uint32_t> written[2];
    bool seen[2] = {};
    int result[2] = {1, 1};
    int runs = 0;

    State() {
        bh = new (memory)
            BottomHalf(context, [](void* opaque) { static_cast<State*>(opaque)->callback(); }, this);
        watched = bh;
        watched_frees = 0;
    }
    void callback() {
        runs++;
        for (int i = 0; i < 2; i++) seen[i] = seen[i] || written[i].load_relaxed() == 1;
    }
    void schedule(int who) {
        written[who].store_relaxed(1);
        result[who] = bh->schedule();
    }
    int started() { return context.stats().bottom_halves.count; }
    void check_freed_once() {
        explore::require(watched_frees == 1, watched_frees == 0 ? "never freed" : "freed twice");
    }
};

// 0 means that it runs after the call; -ESHUTDOWN that it does not.
void two_schedule(Program& program) {
    auto state = std::make_shared<State>();
    program.thread("home", [=] { state->context.run(); });
    program.thread("left", [=] { state->schedule(0); });
    program.thread("right", [=] { state->schedule(1); });
    program.thread("stop", [=] { state->context.stop(); });
    program.at_end([=] {
        int accepted = 0;
        for (int i = 0; i < 2; i++) {
            explore::require(state->result[i] == 0 || state->result[i] == -ESHUTDOWN, "neither yes nor no");
            if (state->result[i] != 0) continue;
            accepted++;
            explore::require(state->seen[i], "accepted, and no run came after it");
        }
        explore::require(state->runs <= accepted, "ran more often than it was scheduled");
        BottomHalf::destroy(state->bh);
        state->check_freed_once();
    });
}

// After cancel() has returned, what was scheduled before does not begin to run; a later schedule does.
void cancel_then_schedule(Program& program) {
    auto state = std::make_shared<State>();
    program.thread("home", [=] { state->context.run(); });
    program.thread("user", [=] {
        state->schedule(0);
        state->bh->cancel();
        int started = state->started();
        explore::point();
        explore::point();
        explore::require(state->started() == started, "began to run after it was cancelled");
        state->schedule(1);
        state->context.stop();
    });
    program.at_end([=] {
        explore::require(state->result[0] == 0 && state->result[1] == 0, "refused by an open context");
        explore::require(state->seen[1], "scheduled after the cancellation, and not run");
        BottomHalf::destroy(state->bh);
        state->check_freed_once();
    });
}

// Freed once, not before the callback has been called, by whichever thread.
void destroy_while_closing(Program& program) {
    auto state = std::make_shared<State>();
    program.thread("home", [=] { state->context.run(); });
    program.thread("user", [=] {
        state->schedule(0);
        BottomHalf::destroy(state->bh);
        int started = state->started();
        explore::point();
        explore::point();
        explore::require(state->started() == started, "began to run after it was destroyed");
    });
    program.thread("stop", [=] { state->context.stop(); });
    program.at_end([=] { state->check_freed_once(); });
}

void must_hold(const Scenario& scenario, unsigned preemptions, unsigned stale_reads) {
    Options options;
    options.preemptions = preemptions;
    options.stale_reads = stale_reads;
    Report report = explore::explore(options, scenario);
    CHECK(report.failed || report.complete);
    printf("     %llu executions\n", static_cast<unsigned long long>(report.executions));
    if (!report.failed) {
        options.random_executions = 20000;
        report = explore::explore(options, scenario);
    }
    CHECK(!report.failed);
    if (report.failed) {
        fprintf(stderr, "%s\nschedule %s\n%s", report.what.c_str(), report.schedule.c_str(),
                report.trace.c_str());
    }
}

TEST(two_schedule_while_the_context_closes) {
    must_hold(two_schedule, 2, 0);
}
TEST(cancel_then_schedule_again) {
    must_hold(cancel_then_schedule, 3, 2);
}
TEST(destroy_while_the_context_closes) {
    must_hold(destroy_while_closing, 3, 0);
}

TEST(bugs_are_found) {
    Options options;
    options.preemptions = 2;
    explore::set_mutation(explore::Mutation::compare_exchange_is_relaxed);
    CHECK(explore::explore(options, two_schedule).failed);
    explore::set_mutation(explore::Mutation::none);
    AioContext::hurries = true;
    CHECK(explore::explore(options, two_schedule).failed);
    AioContext::hurries = false;
}

}  // namespace
