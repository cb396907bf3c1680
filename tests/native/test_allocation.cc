// Memory that is short: each allocation of opening, creating, using and closing fails in turn. Nothing
// crashes, nothing leaks (the address sanitizer looks), the error says so, and a second try works.
#include "async_queue.hh"
#include "replaced_new.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;

// Runs `piece` with each of its allocations failing in turn. `piece` says when, and cleans up whatever it
// got.
template <class F>
void fail_each(F&& piece) {
    for (bool lasting : {false, true}) {
        int64_t k = 0;
        for (bool struck = true; struck; k++) {
            Shortage shortage{k, lasting};
            piece(shortage);
            struck = shortage.struck;
            REQUIRE(check::failures == 0);
        }
        CHECK(k > 1 || !new_is_replaced);  // it does allocate
    }
}

// The answer to a call of which an allocation failed, or did not matter.
void judge(int64_t result, const Error& error, const Shortage& shortage) {
    if (result >= 0) return;
    CHECK(shortage.struck);
    CHECK_EQ(result, -ENOMEM);
    CHECK_EQ(error.errnum, ENOMEM);
    CHECK(error.message[0] != '\0');
}

const char* const long_name = "a name that is too long for a small string";
char buffer[4096];

TEST(an_engine_is_made_or_not) {
    auto piece = [](Shortage& shortage) {
        engine_config config{};
        config.size = sizeof config;
        engine_t* engine = nullptr;
        Error error;
        shortage.begin();
        int result = engine_create(&config, &engine, &error);
        shortage.end();
        judge(result, error, shortage);
        if (result == 0) CHECK_EQ(engine_close(engine, &error), 0);
    };
    fail_each(piece);
}

TEST(an_engine_is_closed_or_stays_whole) {
    auto piece = [](Shortage& shortage) {
        Engine engine;
        engine_context_t* context = engine.context("io0");
        for (const char* name : {"first", "second"}) {
            engine_node_t* node =
                engine.open({{"driver", "raw"}, {"node-name", name}, {"file.driver", "null"}});
            engine_user_t* user = Engine::user(node, "test");
            Error error;
            CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, context), 512);
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
        Error error;
        shortage.begin();
        int result = engine_close(engine, &error);
        shortage.end();
        judge(result, error, shortage);
        if (result == 0) engine.closed();
    };
    fail_each(piece);
}

TEST(a_context_is_made_or_not) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        fail_each([&](Shortage& shortage) {
            engine_context_config config = Engine::context_config("io0 has a longer name", backend);
            const int32_t cpu = 0;
            config.cpus = &cpu;
            config.cpu_count = 1;
            engine_context_t* context = nullptr;
            Error error;
            shortage.begin();
            int result = engine_context_create(engine, &config, &context, &error);
            shortage.end();
            judge(result, error, shortage);
            if (result == 0) CHECK_EQ(engine_context_close(context, &error), 0);
            CHECK(engine_context_find(engine, "io0 has a longer name") == nullptr);
        });
    }
}

TEST(a_context_is_closed_or_stays_whole) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "raw"}, {"file.driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    auto piece = [&](Shortage& shortage) {
        engine_context_t* context = engine.context("io0");
        Error error;
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, context), 512);
        shortage.begin();
        int result = engine_context_close(context, &error);
        shortage.end();
        judge(result, error, shortage);
        if (result == 0) return;
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, context), 512);
        CHECK_EQ(engine_context_close(context, &error), 0);
    };
    fail_each(piece);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

void open_and_close(Engine& engine, Engine::Options options) {
    auto piece = [&](Shortage& shortage) {
        engine_node_t* node = nullptr;
        Error error;
        shortage.begin();
        int result = engine.open(options, &node, &error);
        shortage.end();
        judge(result, error, shortage);
        if (result != 0) {
            CHECK(node == nullptr);
            CHECK_EQ(engine_lock_count(engine), 0);  // no node is left
            node = engine.open(options);             // and the names are free
        }
        engine_user_t* user = Engine::user(node, "test");
        CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE, buffer, 0, 512, 0, &error), 512);
        CHECK_EQ(engine_user_close(user, &error), 0);
        Shortage closing{shortage.k, shortage.lasting};
        closing.begin();
        result = engine_node_close(node, &error);
        closing.end();
        judge(result, error, closing);
        if (result != 0) CHECK_EQ(engine_node_close(node, &error), 0);
        CHECK_EQ(engine_lock_count(engine), 0);
    };
    fail_each(piece);
}

TEST(a_node_is_opened_or_not_and_closed_or_stays_whole) {
    embedder::TempFile file(65536);
    Engine engine;
    open_and_close(engine, {{"driver", "null"}, {"node-name", long_name}, {"size", "1M"}});
    open_and_close(engine, {{"driver", "raw"}, {"node-name", long_name}, {"filename", file.name()}});
    open_and_close(engine, {{"driver", "raw"},
                            {"file.driver", "file"},
                            {"file.filename", file.name()},
                            {"file.node-name", long_name}});
}

TEST(a_user_is_attached_or_not) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}});
    auto piece = [&](Shortage& shortage) {
        engine_user_t* user = nullptr;
        Error error;
        shortage.begin();
        int result = engine_user_create(node, long_name, ENGINE_PERM_ALL, 0, &user, &error);
        shortage.end();
        judge(result, error, shortage);
        if (result != 0) user = Engine::user(node, long_name, ENGINE_PERM_ALL, 0);  // nobody is in its way
        CHECK_EQ(engine_user_close(user, &error), 0);
    };
    fail_each(piece);
}

// The first request of a node on a context makes its channels there.
TEST(a_request_succeeds_or_not) {
    embedder::TempFile file(65536);
    for (uint32_t backend : both_backends) {
        for (uint32_t op : {ENGINE_OP_READ, ENGINE_OP_WRITE, ENGINE_OP_WRITE_ZEROES}) {
            Engine engine;
            engine_node_t* node = engine.open({{"driver", "raw"}, {"filename", file.name()}});
            engine_user_t* user = Engine::user(node, "test");
            fail_each([&](Shortage& shortage) {
                engine_context_t* context = engine.context("io0", backend);
                Error error;
                shortage.begin();
                int64_t result = embedder::io(user, op, buffer, 0, 4096, ENGINE_FUA * (op != ENGINE_OP_READ),
                                              &error, context);
                shortage.end();
                judge(result, error, shortage);
                CHECK(embedder::io(user, op, buffer, 4096, 4096, 0, &error, context) >= 0);
                CHECK_EQ(engine_context_close(context, &error), 0);
            });
            Error error;
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
    }
}

TEST(callbacks_are_scheduled_or_not) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    struct Seen {
        std::atomic<int> runs{0}, outcomes{0};
    };
    auto piece = [&](Shortage& shortage) {
        Seen seen;
        auto run = [](void* opaque) { static_cast<Seen*>(opaque)->runs.fetch_add(1); };
        auto done = [](void* opaque, int) { static_cast<Seen*>(opaque)->outcomes.fetch_add(1); };
        shortage.begin();
        int shot = engine_schedule_oneshot(context, run, &seen);
        engine_bh_t* bh = engine_bh_new(context, run, &seen);
        int scheduled = bh != nullptr ? engine_bh_schedule(bh) : -ENOMEM;  // needs no memory
        engine_timer_t* timer = engine_timer_new(context, done, &seen);
        int armed = timer != nullptr ? engine_timer_arm(timer, 0) : -ENOMEM;
        int runs = (shot == 0) + (scheduled == 0), outcomes = armed == 0;
        bool all = eventually([&] { return seen.runs.load() == runs && seen.outcomes.load() == outcomes; });
        if (bh != nullptr) engine_bh_delete(bh);
        if (timer != nullptr) engine_timer_delete(timer);
        shortage.end();
        CHECK(all);
        for (int result : {shot, scheduled, armed})
            CHECK(result == 0 || (result == -ENOMEM && shortage.struck));
        embedder::run_on(context, [] {});
        CHECK_EQ(seen.runs.load(), runs);
        CHECK_EQ(seen.outcomes.load(), outcomes);
    };
    fail_each(piece);
}

TEST(a_workload_runs_or_not) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    auto piece = [&](Shortage& shortage) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.read_percent = 100;
        config.block_size = 4096;
        config.iodepth = 64;
        config.count = 1000;
        config.user = user;
        config.context = engine.context("io0");
        config.flags = ENGINE_WORKLOAD_VERIFY;
        engine_workload_t* workload = nullptr;
        Error error;
        shortage.begin();
        int made = engine_workload_create(engine, &config, &workload, &error);
        int started = made == 0 ? engine_workload_start(workload, &error) : 0;
        shortage.end();
        judge(made, error, shortage);
        judge(started, error, shortage);
        if (made == 0) {
            if (started != 0) CHECK_EQ(engine_workload_start(workload, &error), 0);
            CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
            CHECK_EQ(engine_workload_close(workload), 0);
        }
        CHECK_EQ(engine_context_close(config.context, &error), 0);  // nothing holds it
    };
    fail_each(piece);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

// Arrays, vectors and their queue: what was accepted completes, what was refused holds nothing.
TEST(asynchronous_requests_are_submitted_or_not) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    std::vector<engine_request> requests;
    for (uint64_t i = 0; i < 40; i++) {
        requests.push_back(embedder::request_of(ENGINE_OP_READ, i, buffer, 0, 512));
    }
    std::vector<uint64_t> offsets(8, 0);
    std::vector<int64_t> results;
    engine_many many = embedder::many_of(ENGINE_OP_READ, buffer, offsets, 512, results);
    fail_each([&](Shortage& shortage) {
        engine_context_t* context = engine.context("io0");
        engine_cq_t* queue = nullptr;
        Error error;
        shortage.begin();
        int made = engine_cq_create(engine, &queue, &error);
        int array = made != 0 ? -ENOMEM
                              : engine_submit(queue, user, context, requests.data(), requests.size(), &error);
        int vector = made != 0 ? -ENOMEM : engine_submit_many(queue, user, context, &many, 100, &error);
        int64_t waited = engine_user_many(user, context, &many, &error);
        shortage.end();
        for (int result : {made, array, vector}) {
            CHECK(result == 0 || (result == -ENOMEM && shortage.struck));
        }
        judge(waited, error, shortage);
        if (made == 0) {
            CHECK_EQ(engine_cq_wait(queue, nullptr, nullptr, UINT64_MAX, &error), 0);
            engine_completion out[64];
            int64_t expected = (array == 0 ? 40 : 0) + (vector == 0 ? 1 : 0);
            int64_t drained = 0;
            CHECK(eventually([&] { return (drained += engine_cq_drain(queue, out, 64)) >= expected; }));
            CHECK_EQ(drained, expected);
            CHECK_EQ(engine_cq_close(queue, &error), 0);
        }
        CHECK_EQ(engine_context_close(context, &error), 0);  // nothing holds it
    });
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

}  // namespace
