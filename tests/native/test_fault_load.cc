// The fault filter under load: it comes and goes while two contexts work, holds requests of both until they
// are resumed, and counts exactly over both. In the simulator one seed is one history.
#include <thread>

#include "async_queue.hh"
#include "filter_load.hh"
#include "sim_engine.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using filter_load::child_of;
using filter_load::Load;
using filter_load::stats_of;

constexpr uint64_t endless = uint64_t{1} << 40;

struct Disk {
    Engine engine;
    engine_context_t* contexts[2];
    engine_node_t* node = nullptr;
    engine_user_t* user = nullptr;
    Error error;

    Disk(uint32_t backend, Engine::Options options)
        : contexts{engine.context("io0", backend), engine.context("io1", backend)} {
        node = engine.open(options);
        user = Engine::user(node, "load");
    }
    ~Disk() { CHECK_EQ(engine_user_close(user, &error), 0); }
};

TEST(it_comes_and_goes_under_load_from_two_contexts) {
    const char* rules[] = {
        "op=read,pause;op=write,probability=0.5,delay=100us",
        "op=write,pause;delay=3600s",
        "probability=0.5,delay=1ms;op=write,offset=0-512k,probability=0.5,pause",
        "op=read,skip=100,count=5,pause",
        "",
    };
    for (uint32_t backend : both_backends) {
        Disk disk(backend, {{"driver", "memory"}, {"size", "1M"}});
        Load first(disk.engine, disk.user, disk.contexts[0], endless, 50, 32);
        Load second(disk.engine, disk.user, disk.contexts[1], endless, 50, 32);
        for (unsigned i = 0; i < 25; i++) {
            engine_option options[] = {{"driver", "fault"}, {"rules", rules[i % 5]}};
            engine_node_t *filter = nullptr, *above = nullptr;
            REQUIRE(engine_node_insert_filter(disk.node, options, 2, 0, &filter, &disk.error) == 0);
            auto worked = [&] {
                engine_node_stats stats = stats_of(filter);
                return stats.in_flight + stats.op[ENGINE_OP_READ].requests >= 64;
            };
            CHECK(embedder::eventually(worked));
            engine_option passthrough[] = {{"driver", "passthrough"}};
            engine_node_t* at = i % 2 == 0 ? disk.node : filter;  // below it or above
            CHECK_EQ(engine_node_insert_filter(at, passthrough, 1, 0, &above, &disk.error), 0);
            CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &disk.error), 0);
            CHECK_EQ(engine_node_remove_filter(above, 0, nullptr, &disk.error), 0);
        }
        for (const Load* load : {&first, &second}) {
            CHECK_EQ(engine_workload_stop(load->workload), 0);
            CHECK_EQ(load->wait()->errors, 0);
        }
    }
}

TEST(what_both_contexts_hold_is_resumed) {
    for (uint32_t backend : both_backends) {
        Disk disk(backend, {{"driver", "fault"},
                            {"rules", "op=write,probability=0.2,pause"},
                            {"file.driver", "memory"},
                            {"file.size", "1M"}});
        Load first(disk.engine, disk.user, disk.contexts[0], 5000, 50, 16);
        Load second(disk.engine, disk.user, disk.contexts[1], 5000, 50, 16);
        int resumed = 0;
        bool over = embedder::eventually([&] {
            int count = engine_fault_resume(disk.node, &disk.error);
            CHECK(count >= 0);
            resumed += count;
            return first.result()->running == 0 && second.result()->running == 0;
        });
        CHECK(over);
        if (!over) engine_fault_resume(disk.node, nullptr);
        for (const Load* load : {&first, &second}) {
            auto result = load->wait();
            CHECK_EQ(result->requests[0] + result->requests[1], 5000);
            CHECK_EQ(result->errors, 0);
        }
        CHECK(resumed > 500 && resumed < 1500);
        CHECK_EQ(stats_of(disk.node).in_flight, 0);
    }
}

TEST(both_contexts_share_what_a_rule_counts) {
    for (uint32_t backend : both_backends) {
        Disk disk(backend,
                  {{"driver", "fault"},
                   {"rules", "op=read,skip=1000,count=321,errno=EIO;op=write,count=50,torn,errno=EIO"},
                   {"file.driver", "memory"},
                   {"file.size", "1M"}});
        Load first(disk.engine, disk.user, disk.contexts[0], 5000, 50, 16);
        Load second(disk.engine, disk.user, disk.contexts[1], 5000, 50, 16);
        uint64_t errors = first.wait()->errors + second.wait()->errors;
        CHECK_EQ(errors, 321 + 50);
        CHECK_EQ(stats_of(disk.node).op[ENGINE_OP_READ].errors, 321);
        CHECK_EQ(stats_of(disk.node).op[ENGINE_OP_WRITE].errors, 50);
        CHECK_EQ(stats_of(child_of(disk.node)).op[ENGINE_OP_READ].errors, 0);
    }
}

// A context that closes takes nothing along: what it held has gone on by then.
TEST(a_context_closes_after_what_it_held) {
    Disk disk(
        ENGINE_BACKEND_AUTO,
        {{"driver", "fault"}, {"rules", "op=write,pause"}, {"file.driver", "memory"}, {"file.size", "1M"}});
    {
        Load load(disk.engine, disk.user, disk.contexts[0], 8, 0, 8);
        CHECK(embedder::eventually([&] { return stats_of(disk.node).in_flight == 8; }));
        CHECK_EQ(engine_context_close(disk.contexts[0], &disk.error), -EBUSY);
        CHECK_EQ(engine_fault_resume(disk.node, &disk.error), 8);
        CHECK_EQ(load.wait()->errors, 0);
    }
    CHECK_EQ(engine_context_close(disk.contexts[0], &disk.error), 0);
    CHECK_EQ(engine_fault_resume(disk.node, &disk.error), 0);
}

// --- who closes waits for nothing that nobody would let go

struct Stuck : Disk {
    Stuck()
        : Disk(ENGINE_BACKEND_AUTO, {{"driver", "fault"},
                                     {"rules", "op=write,pause;op=read,delay=3600s"},
                                     {"file.driver", "memory"},
                                     {"file.size", "1M"}}) {}
    bool holds(uint64_t count) {
        return embedder::eventually([&] { return stats_of(node).in_flight == count; });
    }
    ~Stuck() { CHECK_EQ(stats_of(node).in_flight, 0); }
};

TEST(a_completion_queue_closes) {
    Stuck disk;
    std::vector<char> buffer(64 * 512);
    std::vector<engine_request> requests;
    for (unsigned i = 0; i < 8; i++) {
        requests.push_back(embedder::request_of(i % 2, i, &buffer[i * 512], i * 512, 512));
    }
    std::vector<uint64_t> offsets(32);
    std::vector<int64_t> results;
    embedder::Queue queue(disk.engine);
    for (engine_context_t* context : disk.contexts) {
        CHECK_EQ(queue.submit(disk.user, context, requests), 0);
    }
    engine_many many = embedder::many_of(ENGINE_OP_WRITE, buffer.data(), offsets, 512, results, 16);
    CHECK_EQ(engine_submit_many(queue, disk.user, disk.contexts[0], &many, 1, &disk.error), 0);
    CHECK(disk.holds(32));
    queue.close();
    for (int64_t result : results) CHECK_EQ(result, 512);
    engine_node_stats stats = stats_of(child_of(disk.node));
    CHECK_EQ(stats.op[ENGINE_OP_WRITE].requests, 8 + 32);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, 8);
}

TEST(a_workload_closes) {
    Stuck disk;
    Load load(disk.engine, disk.user, disk.contexts[0], endless, 50, 16);
    CHECK(disk.holds(16));
}

TEST(a_workload_over_a_queue_closes) {
    Stuck disk;
    engine_disk_config config{};
    config.size = sizeof config;
    config.name = "guest";
    config.queue_count = 1;
    config.contexts = disk.contexts;
    engine_disk_t* guest = nullptr;
    REQUIRE(engine_disk_create(disk.node, &config, &guest, &disk.error) == 0);
    engine_workload_config load{};
    load.size = sizeof load;
    load.read_percent = 50;
    load.block_size = 4096;
    load.iodepth = 16;
    load.count = endless;
    load.queue = engine_disk_get_queue(guest, 0);
    load.context = disk.contexts[1];  // the queue's is the other
    engine_workload_t* workload = nullptr;
    REQUIRE(engine_workload_create(disk.engine, &load, &workload, &disk.error) == 0);
    CHECK_EQ(engine_workload_start(workload, &disk.error), 0);
    CHECK(disk.holds(16));
    CHECK_EQ(engine_workload_close(workload), 0);
    CHECK_EQ(engine_disk_close(guest, &disk.error), 0);
}

TEST(a_copy_closes) {
    Stuck disk;
    engine_node_t* from = disk.engine.open({{"driver", "null"}, {"size", "1M"}});
    engine_copy_config config{};
    config.size = sizeof config;
    config.source = from;
    config.target = disk.node;
    config.target_shared = ENGINE_PERM_ALL;
    config.context = disk.contexts[0];
    engine_copy_t* copy = nullptr;
    REQUIRE(engine_copy_create(disk.engine, &config, &copy, &disk.error) == 0);
    CHECK_EQ(engine_copy_start(copy, &disk.error), 0);
    CHECK(embedder::eventually([&] { return stats_of(disk.node).in_flight != 0; }));
    CHECK_EQ(engine_copy_close(copy), 0);
}

// --- in the simulator

uint64_t live(uint64_t seed) {
    sim::Engine engine(seed);
    engine_node_t* disk = engine.open_disk(engine.simulator.files().add(1 << 20), 1 << 20);
    engine_node_info info = embedder::info_of(disk);
    engine_node_t* delay = engine.open(
        {{"driver", "delay"}, {"read", "50us"}, {"spread", "200us"}, {"seed", "9"}, {"file", info.name}});
    CHECK_EQ(engine_node_get_info(delay, &info), 0);
    engine_node_t* node = engine.open({{"driver", "fault"},
                                       {"rules",
                                        "op=read,probability=0.1,errno=EIO;op=write,probability=0.1,pause;"
                                        "op=write,probability=0.1,torn,errno=EIO;probability=0.2,delay=1ms"},
                                       {"seed", std::to_string(seed).c_str()},
                                       {"file", info.name}});
    engine_user_t* user = Engine::user(node, "test");
    {
        Load first(engine.handle(), user, engine.context_handle(1), 300, 50, 8);
        Load second(engine.handle(), user, engine.context_handle(2), 300, 50, 8);
        int resumed = 0;
        auto running = [&] { return first.result()->running + second.result()->running; };
        while (running() != 0) {
            engine.simulator.run_until([&] { return running() == 0; });
            resumed += engine_fault_resume(node, nullptr);
        }
        CHECK(resumed > 0);
        uint64_t errors = first.result()->errors + second.result()->errors;
        CHECK(errors > 20 && errors < 150);
        engine.simulator.trace(errors);
    }
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
    for (engine_node_t* each : {node, delay, disk}) CHECK_EQ(engine_node_close(each, &error), 0);
    return engine.simulator.trace_hash();
}

TEST(each_seed_is_another_history) {
    uint64_t before = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        uint64_t history = live(seed);
        CHECK(history != before);
        if (seed % 4 == 0) CHECK_EQ(live(seed), history);
        before = history;
        REQUIRE(check::failures == 0);
    }
}

}  // namespace
