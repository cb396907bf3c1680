// Background work of a node: kicks become passes, one at a time, with and without a home; it stops and
// settles.
#include "api/handles.hh"
#include "block/home_work.hh"
#include "embedder.hh"

namespace {

using embedder::Engine;
using embedder::eventually;
using engine::block::Channel;
using engine::block::HomeWork;
using engine::coro::Completion;
using engine::coro::Task;

// What a pass does. One test at a time.
struct Pass {
    std::atomic<unsigned> begun{0}, ended{0}, inside{0}, overlapping{0};
    std::atomic<int> result{0};
    std::atomic<bool> holding{false};
    Completion<int>* held = nullptr;  // the context's

    void reset() {
        begun = ended = inside = overlapping = 0;
        result = 0;
        holding = false;
    }
};
Pass pass;

Task<int> run_pass(Channel& home) {
    pass.begun++;
    if (pass.inside++ != 0) pass.overlapping++;
    if (pass.holding) {
        Completion<int> released(home.executor());
        pass.held = &released;
        co_await released;
    }
    pass.inside--;
    pass.ended++;
    int result = pass.result;
    co_return result;
}

// A home, and what is asked of the work there.
struct Home {
    engine_context_t* context;
    Channel channel;
    struct Ended : engine::coro::Callback<int> {
        std::atomic<int> result{1};
    };

    explicit Home(engine_context_t* on) : context(on) { channel.context = engine::api::unwrap(on); }
    void start(HomeWork& work) {
        embedder::run_on(context, [&] { work.start(channel); });
    }
    void begin(Ended& ended, HomeWork& work, Task<int> (HomeWork::*what)(Channel&)) {
        ended.completed = [](engine::coro::Callback<int>* callback, int result) {
            static_cast<Ended*>(callback)->result = result;
        };
        embedder::run_on(context, [&] {
            engine::coro::start(channel.executor(), (work.*what)(channel),
                                static_cast<engine::coro::Callback<int>*>(&ended));
        });
    }
    int run(HomeWork& work, Task<int> (HomeWork::*what)(Channel&)) {
        Ended ended;
        begin(ended, work, what);
        REQUIRE(eventually([&] { return ended.result != 1; }));
        return ended.result;
    }
    void release() {
        embedder::run_on(context, [] {
            pass.holding = false;
            pass.held->complete(0);
        });
    }
    void let_time_pass() {
        for (unsigned i = 0; i < 20; i++) embedder::run_on(context, [] {});
    }
};

TEST(what_is_asked_for_without_a_home_is_done_by_the_next) {
    pass.reset();
    Engine engine;
    Home first(engine.context("io0")), second(engine.context("io1"));
    HomeWork work(run_pass);
    work.kick();
    first.let_time_pass();
    CHECK_EQ(pass.begun.load(), 0);
    first.start(work);
    CHECK(eventually([] { return pass.ended == 1; }));
    CHECK_EQ(first.run(work, &HomeWork::stop), 0);
    work.kick();
    work.kick();
    first.let_time_pass();
    CHECK_EQ(pass.begun.load(), 1);
    second.start(work);
    CHECK(eventually([] { return pass.ended == 2; }));
    second.let_time_pass();
    CHECK_EQ(pass.begun.load(), 2);
    CHECK_EQ(second.run(work, &HomeWork::stop), 0);
}

TEST(a_kick_during_a_pass_makes_another) {
    pass.reset();
    Engine engine;
    Home home(engine.context("io0"));
    HomeWork work(run_pass);
    home.start(work);
    pass.holding = true;
    work.kick();
    CHECK(eventually([] { return pass.begun == 1; }));
    work.kick();
    work.kick();
    home.let_time_pass();
    CHECK_EQ(pass.begun.load(), 1);
    home.release();
    CHECK(eventually([] { return pass.ended == 2; }));
    home.let_time_pass();
    CHECK_EQ(pass.begun.load(), 2);
    CHECK_EQ(home.run(work, &HomeWork::stop), 0);
}

TEST(stopping_waits_for_the_pass_under_way) {
    pass.reset();
    Engine engine;
    Home home(engine.context("io0"));
    HomeWork work(run_pass);
    home.start(work);
    pass.holding = true;
    work.kick();
    CHECK(eventually([] { return pass.begun == 1; }));
    work.kick();
    Home::Ended stopped;
    home.begin(stopped, work, &HomeWork::stop);
    home.let_time_pass();
    CHECK_EQ(stopped.result.load(), 1);
    home.release();
    CHECK(eventually([&] { return stopped.result == 0; }));
    CHECK_EQ(pass.begun.load(), 1);  // the second one waits for a home
    home.start(work);
    CHECK(eventually([] { return pass.ended == 2; }));
    CHECK_EQ(home.run(work, &HomeWork::stop), 0);
}

TEST(settling_leaves_nothing_to_do) {
    pass.reset();
    Engine engine;
    Home home(engine.context("io0"));
    HomeWork work(run_pass);
    home.start(work);
    CHECK_EQ(home.run(work, &HomeWork::settle), 0);
    CHECK_EQ(pass.begun.load(), 0);
    pass.holding = true;
    work.kick();
    CHECK(eventually([] { return pass.begun == 1; }));
    work.kick();
    Home::Ended settled;
    home.begin(settled, work, &HomeWork::settle);
    home.let_time_pass();
    CHECK_EQ(settled.result.load(), 1);
    home.release();
    CHECK(eventually([&] { return settled.result == 0; }));
    CHECK_EQ(pass.ended.load(), 2);
    // One that failed is tried again, there or with the next kick.
    pass.result = -ENOMEM;
    work.kick();
    CHECK(eventually([] { return pass.ended == 3; }));
    home.let_time_pass();
    CHECK_EQ(pass.begun.load(), 3);
    CHECK_EQ(home.run(work, &HomeWork::settle), -ENOMEM);
    CHECK_EQ(pass.begun.load(), 4);
    pass.result = 0;
    CHECK_EQ(home.run(work, &HomeWork::settle), 0);
    CHECK_EQ(home.run(work, &HomeWork::settle), 0);
    CHECK_EQ(pass.begun.load(), 5);
    CHECK_EQ(home.run(work, &HomeWork::stop), 0);
}

TEST(kicks_from_many_threads) {
    pass.reset();
    Engine engine;
    Home home(engine.context("io0"));
    engine_context_t* others[] = {engine.context("io1"), engine.context("io2")};
    HomeWork work(run_pass);
    home.start(work);
    for (unsigned round = 0; round < 200; round++) {
        unsigned before = pass.begun;
        for (engine_context_t* other : others) embedder::run_on(other, [&] { work.kick(); });
        CHECK(eventually([&] { return pass.begun > before; }));
        if (round % 10 == 0) {
            CHECK_EQ(home.run(work, &HomeWork::stop), 0);
            home.start(work);
        }
    }
    CHECK_EQ(pass.overlapping.load(), 0);
    CHECK_EQ(home.run(work, &HomeWork::stop), 0);
}

}  // namespace
