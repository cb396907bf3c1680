// The throttle filter in the graph: what is held back and what is not, alone and in a group over several
// contexts, new limits while requests wait, letting go in a hurry, and bad options. Times are judged by lower
// bounds alone; the arithmetic is in test_throttle_group.cc.
#include <memory>

#include "api/handles.hh"
#include "filter_load.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::io;
using filter_load::child_of;
using filter_load::Load;
using filter_load::stats_of;

int set(engine_node_t* node, Engine::Options options, engine_error* error = nullptr) {
    return engine_throttle_set(node, options.begin(), options.size(), error);
}

constexpr Engine::Options unlimited{};

TEST(requests_take_their_time) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* node =
            engine.open({{"driver", "throttle"}, {"limits.iops-total", "2000"}, {"file.driver", "null"}});
        engine_user_t* user = Engine::user(node, "load");
        {
            Load load(engine, user, engine.context("io0", backend), 600, 50);
            auto result = load.wait();
            CHECK_EQ(result->requests[0] + result->requests[1], 600);
            CHECK_EQ(result->errors, 0);
            // 200 and one come at once.
            CHECK(result->ended_ns - result->started_ns >= (600 - 201) * 500'000u);
        }
        for (engine_node_t* each : {node, child_of(node)}) {
            engine_node_stats stats = stats_of(each);
            CHECK_EQ(stats.op[ENGINE_OP_READ].requests + stats.op[ENGINE_OP_WRITE].requests, 600);
            CHECK_EQ(stats.in_flight, 0);
        }
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(bytes_are_limited_too) {
    Engine engine;
    engine_node_t* node = engine.open(
        {{"driver", "throttle"}, {"limits.bps-read", "4M"}, {"file.driver", "memory"}, {"file.size", "1M"}});
    engine_user_t* user = Engine::user(node, "load");
    {
        Load load(engine, user, engine.context("io0"), 400);  // 1024 of them a second
        auto result = load.wait();
        CHECK_EQ(result->requests[0], 400);
        CHECK(result->ended_ns - result->started_ns >= (400 - 104) * 970'000u);
    }
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

// Two nodes of one group, each served by two contexts: together they get what one alone would.
TEST(a_group_is_shared_by_nodes_on_several_contexts) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* nodes[2];
        engine_user_t* users[2];
        nodes[0] = engine.open({{"driver", "throttle"},
                                {"throttle-group", "g"},
                                {"limits.iops-total", "4000"},
                                {"file.driver", "null"}});
        nodes[1] = engine.open({{"driver", "throttle"}, {"throttle-group", "g"}, {"file.driver", "null"}});
        engine_context_t* contexts[2] = {engine.context("io0", backend), engine.context("io1", backend)};
        for (unsigned i = 0; i < 2; i++) users[i] = Engine::user(nodes[i], "load");
        {
            std::vector<std::unique_ptr<Load>> loads;
            for (unsigned i = 0; i < 4; i++) {
                loads.push_back(std::make_unique<Load>(engine, users[i / 2], contexts[i % 2], 400));
            }
            uint64_t first = UINT64_MAX, last = 0;
            for (const auto& load : loads) {
                auto result = load->wait();
                CHECK_EQ(result->requests[0], 400);
                first = std::min(first, result->started_ns);
                last = std::max(last, result->ended_ns);
            }
            CHECK(last - first >= (1600 - 401) * 250'000u);
        }
        Error error;
        for (engine_user_t* user : users) CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(without_limits_nothing_waits) {
    Engine engine;
    for (const char* limit : {"0", "1000000000000000"}) {
        engine_node_t* node =
            engine.open({{"driver", "throttle"}, {"limits.bps-total", limit}, {"file.driver", "null"}});
        engine_user_t* user = Engine::user(node, "load");
        engine_context_t* context = engine.context(*limit == '0' ? "io0" : "io1");
        {
            Load load(engine, user, context, 20000, 50, 64);
            CHECK_EQ(load.wait()->errors, 0);
            CHECK_EQ(embedder::stats_of(context).timers, 0);
        }
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

// An engine with a disk where a write waits for hours: its first has gone, and taken all there was.
struct Stuck {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node;
    engine_user_t* user;
    std::unique_ptr<Load> load;
    Error error;

    explicit Stuck(Engine::Options options = {{"driver", "throttle"},
                                              {"limits.bps-write", "1"},
                                              {"node-name", "slow"},
                                              {"file.driver", "memory"},
                                              {"file.size", "1M"}})
        : node(engine.open(options)), user(Engine::user(node, "test")) {
        load = std::make_unique<Load>(engine, user, context, 9, 0, 9);
        REQUIRE(eventually([&] { return stats_of(node).op[ENGINE_OP_WRITE].requests == 1; }));
        CHECK_EQ(stats_of(node).in_flight, 8);
        CHECK_EQ(load->result()->running, 1);
    }
    void released() {
        auto result = load->wait();
        CHECK_EQ(result->requests[1], 9);
        CHECK_EQ(result->errors, 0);
        CHECK_EQ(stats_of(node).in_flight, 0);
    }
    ~Stuck() {
        CHECK_EQ(set(node, unlimited), 0);
        load.reset();
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
};

TEST(what_has_no_limit_passes_what_waits) {
    Stuck stuck;
    char data[4096];
    CHECK_EQ(io(stuck.user, ENGINE_OP_READ, data, 0, 4096, 0, &stuck.error, stuck.context), 4096);
    CHECK_EQ(io(stuck.user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &stuck.error, stuck.context), 0);
    engine_extent extent;
    CHECK(engine_user_block_status(stuck.user, stuck.context, 0, 4096, &extent, 1, &stuck.error) == 1);
    CHECK_EQ(stats_of(stuck.node).in_flight, 8);
}

// What brings the node to rest does not wait for hours.
TEST(a_resize_lets_go_of_what_waits) {
    Stuck stuck;
    char data[4096];
    CHECK_EQ(io(stuck.user, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, &stuck.error, stuck.context), 0);
    stuck.released();
    CHECK_EQ(io(stuck.user, ENGINE_OP_READ, data, 1 << 20, 4096, 0, &stuck.error, stuck.context), 4096);
}

TEST(new_limits_reach_those_that_wait) {
    Stuck stuck;
    // Not by a limit for something else.
    CHECK_EQ(set(stuck.node, {{"limits.bps-write", "1"}, {"limits.iops-read", "5"}}), 0);
    CHECK_EQ(stats_of(stuck.node).in_flight, 8);
    CHECK_EQ(set(stuck.node, {{"limits.bps-write", "10M"}}), 0);
    stuck.released();
}

TEST(no_limits_release_those_that_wait) {
    Stuck stuck;
    CHECK_EQ(set(stuck.node, unlimited), 0);
    stuck.released();
}

TEST(a_node_that_must_be_idle_lets_go) {
    Stuck stuck;
    engine::block::Node* node = engine::api::unwrap(stuck.node);
    engine::block::Port* port = nullptr;
    REQUIRE(open_port(engine::api::unwrap(stuck.user), engine::api::unwrap(stuck.context), &port,
                      &stuck.error) == 0);
    embedder::run_on(stuck.context, [&] { node->driver->hurry(*port->channel, true); });
    stuck.released();
    // And holds back nothing until it is over; what goes meanwhile counts nevertheless.
    char data[4096] = {};
    CHECK_EQ(io(stuck.user, ENGINE_OP_WRITE, data, 0, 4096, 0, &stuck.error, stuck.context), 4096);
    embedder::run_on(stuck.context, [&] { node->driver->hurry(*port->channel, false); });
    Load load(stuck.engine, stuck.user, stuck.context, 1, 0, 1);
    CHECK_EQ(engine_workload_wait(load.workload, 1'000'000), -ETIMEDOUT);
    CHECK_EQ(stats_of(stuck.node).in_flight, 1);
    CHECK_EQ(set(stuck.node, unlimited), 0);
    CHECK_EQ(load.wait()->errors, 0);
}

// What it holds belongs to requests that are inside the nodes above.
TEST(a_change_further_up_lets_go_of_what_waits) {
    Engine engine;
    engine_node_t* slow = engine.open({{"driver", "throttle"},
                                       {"limits.bps-write", "1"},
                                       {"node-name", "slow"},
                                       {"file.driver", "memory"},
                                       {"file.size", "1M"}});
    engine_node_t* top = engine.open({{"driver", "passthrough"}, {"file", "slow"}});
    engine_user_t* user = Engine::user(top, "test");
    Error error;
    {
        Load load(engine, user, engine.context("io0"), 9, 0, 9);
        REQUIRE(eventually([&] { return stats_of(slow).op[ENGINE_OP_WRITE].requests == 1; }));
        engine_option options[] = {{"driver", "passthrough"}};
        engine_node_t* filter = nullptr;
        CHECK_EQ(engine_node_insert_filter(top, options, 1, 0, &filter, &error), 0);
        CHECK_EQ(load.wait()->errors, 0);
        CHECK_EQ(stats_of(slow).op[ENGINE_OP_WRITE].requests, 9);
    }
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(a_node_in_use_stays_open) {
    Stuck stuck;
    CHECK_EQ(engine_node_close(stuck.node, &stuck.error), -EBUSY);
    CHECK(stuck.error.says("node slow is in use by 'test'"));
    CHECK_EQ(engine_workload_stop(stuck.load->workload), 0);
    CHECK_EQ(engine_workload_wait(stuck.load->workload, 1'000'000),
             -ETIMEDOUT);  // what is in flight completes
    CHECK_EQ(set(stuck.node, unlimited), 0);
    stuck.released();
}

// Zeroes and discards are writes.
TEST(zeroes_and_discards_count_as_writes) {
    for (uint32_t op : {ENGINE_OP_DISCARD, ENGINE_OP_WRITE_ZEROES}) {
        Engine engine;
        engine_node_t* node = engine.open({{"driver", "throttle"},
                                           {"limits.iops-write", "10"},
                                           {"discard", "unmap"},
                                           {"file.driver", "memory"},
                                           {"file.size", "1M"}});
        engine_user_t* user = Engine::user(node, "test");
        Error error;
        uint64_t start = engine_now_ns();
        for (int i = 0; i < 5; i++) CHECK_EQ(io(user, op, nullptr, 0, 65536, 0, &error), 0);
        CHECK(engine_now_ns() - start >= 3 * 100'000'000u);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(bad_options_are_named) {
    Engine engine;
    Error error;
    const struct {
        std::vector<engine_option> options;
        const char *field, *text;
    } cases[] = {
        {{{"limits.iops-total-max", "10"}}, "limits.iops-total-max", "give 'limits.iops-total' as well"},
        {{{"limits.bps-read", "1M"}, {"limits.bps-read-max", "1k"}},
         "limits.bps-read-max",
         "must not be slower than 'limits.bps-read'"},
        {{{"limits.bps-write", "1M"}, {"limits.bps-write-max-length", "5"}},
         "limits.bps-write-max-length",
         "give 'limits.bps-write-max' as well"},
        {{{"limits.iops-total", "5"}, {"limits.iops-write", "5"}},
         "limits.iops-write",
         "'limits.iops-total' limits that already"},
        {{{"limits.bps-total", "5"}, {"limits.bps-read", "5"}},
         "limits.bps-read",
         "'limits.bps-total' limits that already"},
        {{{"limits.iops-size", "4k"}, {"limits.bps-total", "5"}},
         "limits.iops-size",
         "give 'limits.iops-total'"},
        {{{"limits.bps-total", "fast"}}, "limits.bps-total", "'fast' is not a size"},
        {{{"limits.bps-total", "1000000000000001"}}, "limits.bps-total", "is not within its range"},
        {{{"limits.iops-total", "5"}, {"limits.iops-total-max", "5"}, {"limits.iops-total-max-length", "0"}},
         "limits.iops-total-max-length",
         "is not within its range (1..4294967295)"},
        {{{"limits.iops", "5"}}, "limits.iops", "driver throttle has no option 'limits.iops'"},
        {{{"throttle-group", ""}}, "throttle-group", "a name is needed"},
    };
    engine_node_t* good =
        engine.open({{"driver", "throttle"}, {"file.driver", "null"}, {"node-name", "good"}});
    for (const auto& one : cases) {
        std::vector<engine_option> options = one.options;
        int changed = engine_throttle_set(good, options.data(), options.size(), &error);
        CHECK_EQ(changed, -EINVAL);
        CHECK_EQ(std::string_view(error.field), one.field);
        options.push_back({"driver", "throttle"});
        options.push_back({"file.driver", "null"});
        engine_node_t* node = nullptr;
        CHECK_EQ(engine_node_open(engine, options.data(), options.size(), &node, &error), -EINVAL);
        CHECK_EQ(std::string_view(error.field), one.field);
        CHECK(error.says(one.text));
        CHECK(node == nullptr);
    }
    CHECK_EQ(set(good, {{"throttle-group", "g"}}, &error), -EINVAL);
    CHECK(error.says("option 'throttle-group' cannot be changed here"));
    CHECK_EQ(set(good, {{"driver", "null"}}, &error), -EINVAL);
    CHECK_EQ(set(child_of(good), {{"limits.iops-total", "5"}}, &error), -EINVAL);
    CHECK(error.says("has driver null: only a throttle node has limits"));
}

TEST(who_joins_a_group_takes_its_limits) {
    Engine engine;
    Engine other;
    Error error;
    engine_node_t* node = nullptr;
    auto open = [&](Engine& in, const char* group, const char* limit) {
        return in.open({{"driver", "throttle"},
                        {"throttle-group", group},
                        {"limits.iops-read", limit},
                        {"file.driver", "null"}},
                       &node, &error);
    };
    CHECK_EQ(open(engine, "g", "500"), 0);
    engine_node_t* first = node;
    CHECK_EQ(open(engine, "g", "600"), -EEXIST);
    CHECK_EQ(error.kind, ENGINE_ERROR_CONFLICT);
    CHECK(error.says("option 'limits.iops-read': group 'g' has other limits already"));
    CHECK_EQ(open(engine, "g", "500"), 0);
    engine_node_t* second = node;
    CHECK_EQ(open(engine, "h", "600"), 0);
    CHECK_EQ(open(other, "g", "600"), 0);
    // New limits are the group's.
    CHECK_EQ(set(second, {{"limits.iops-read", "700"}}, &error), 0);
    CHECK_EQ(open(engine, "g", "500"), -EEXIST);
    CHECK_EQ(open(engine, "g", "700"), 0);
    // It goes with its last node.
    CHECK_EQ(engine_node_close(node, &error), 0);
    CHECK_EQ(engine_node_close(first, &error), 0);
    CHECK_EQ(open(engine, "g", "500"), -EEXIST);
    CHECK_EQ(engine_node_close(second, &error), 0);
    CHECK_EQ(open(engine, "g", "500"), 0);
}

}  // namespace
