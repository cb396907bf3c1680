// The delay filter: what waits and how long, in virtual time; order, cancelling, letting go where the graph
// changes, and bad options.
#include <algorithm>

#include "async_queue.hh"
#include "filter_load.hh"
#include "held_requests.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::io;
using filter_load::child_of;
using filter_load::Load;
using filter_load::stats_of;
using held::ms;
using held::Op;
using held::Probe;
using held::Requests;

TEST(each_operation_waits_its_own_time) {
    sim::Engine engine(1);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"read", "10ms"},
                                       {"write", "20ms"},
                                       {"flush", "30ms"},
                                       {"other", "40ms"},
                                       {"discard", "unmap"},
                                       {"file.driver", "memory"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node);
    const struct {
        Op op;
        uint64_t delay_ns;
    } cases[] = {{Op::read, 10 * ms},    {Op::write, 20 * ms},        {Op::flush, 30 * ms},
                 {Op::discard, 40 * ms}, {Op::write_zeroes, 40 * ms}, {Op::block_status, 40 * ms}};
    for (const auto& one : cases) {
        Probe& probe = requests.submit(one.op);
        REQUIRE(requests.finish());
        CHECK(probe.result >= 0);
        held::took(probe, one.delay_ns, one.delay_ns);
    }
}

TEST(what_has_no_delay_passes_at_once) {
    sim::Engine engine(2);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"write", "1s"},
                                       {"spread", "1s"},
                                       {"file.driver", "memory"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node);
    Probe& write = requests.submit(Op::write);
    Probe& read = requests.submit(Op::read);
    Probe& flush = requests.submit(Op::flush);
    requests.pass(held::slack_ns);
    CHECK(read.done && flush.done && !write.done);
    REQUIRE(requests.finish());
    held::took(write, 1000 * ms, 2000 * ms);
    CHECK_EQ(write.place, 2);
}

TEST(without_delays_there_is_no_timer) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "delay"}, {"file.driver", "null"}});
    engine_user_t* user = Engine::user(node, "load");
    engine_context_t* context = engine.context("io0");
    {
        Load load(engine, user, context, 20000, 50, 64);
        CHECK_EQ(load.wait()->errors, 0);
        CHECK_EQ(embedder::stats_of(context).timers, 0);
    }
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(equal_deadlines_keep_their_order) {
    sim::Engine engine(3);
    engine_node_t* node =
        engine.open({{"driver", "delay"}, {"read", "5ms"}, {"file.driver", "null"}, {"file.size", "1M"}});
    Requests requests(engine, node);
    requests.submit(Op::read, 200);
    requests.pass(ms);
    requests.submit(Op::read, 200);
    CHECK_EQ(requests.ended, 0);
    CHECK_EQ(stats_of(child_of(node)).in_flight, 0);
    REQUIRE(requests.finish());
    for (unsigned i = 0; i < 400; i++) CHECK_EQ(requests.probes[i]->place, i);
}

TEST(a_shorter_wait_overtakes_a_longer_one) {
    sim::Engine engine(4);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"read", "5ms"},
                                       {"write", "50ms"},
                                       {"file.driver", "memory"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node);
    Probe& write = requests.submit(Op::write);
    Probe& read = requests.submit(Op::read);
    REQUIRE(requests.finish());
    held::took(write, 50 * ms, 50 * ms);
    held::took(read, 5 * ms, 5 * ms);
}

// How long each of so many reads took, to the precision of the disk below.
std::vector<uint64_t> spread_of(const char* seed, size_t context) {
    sim::Engine engine(5);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"read", "10ms"},
                                       {"spread", "40ms"},
                                       {"seed", seed},
                                       {"file.driver", "null"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node, context);
    requests.submit(Op::read, 400);
    REQUIRE(requests.finish());
    std::vector<uint64_t> times;
    for (auto& probe : requests.probes) {
        held::took(*probe, 10 * ms, 50 * ms);
        times.push_back(probe->took_ns());
    }
    return times;
}

TEST(a_spread_goes_by_its_seed) {
    std::vector<uint64_t> times = spread_of("1", 1);
    uint64_t quarters[4] = {};
    for (uint64_t time : times) quarters[std::min<uint64_t>((time - 10 * ms) / (10 * ms), 3)]++;
    for (uint64_t count : quarters) CHECK(count > 60 && count < 140);
    CHECK(times == spread_of("1", 1));
    CHECK(times != spread_of("2", 1));
    CHECK(times != spread_of("1", 2));  // contexts do not go in step
}

TEST(what_waits_is_cancelled) {
    sim::Engine engine(6);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"node-name", "slow"},
                                       {"read", "1s"},
                                       {"file.driver", "null"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node);
    requests.submit(Op::read, 50);
    for (unsigned i : {0u, 7u, 49u, 20u}) {
        Probe& probe = *requests.probes[i];
        requests.cancel(probe);
        REQUIRE(engine.simulator.run_until([&] { return probe.done; }));
        CHECK(probe.took_ns() < 100 * ms);
        CHECK_EQ(probe.result, -ECANCELED);
        CHECK(probe.failure.says("node slow: read of 512 bytes at offset"));
        CHECK(probe.failure.says("was cancelled while it waited to go on"));
    }
    REQUIRE(requests.finish());
    unsigned place = 4;
    for (unsigned i = 0; i < 50; i++) {
        if (i == 0 || i == 7 || i == 20 || i == 49) continue;
        Probe& probe = *requests.probes[i];
        held::took(probe, 1000 * ms, 1000 * ms);
        CHECK_EQ(probe.place, place++);
    }
    CHECK_EQ(stats_of(child_of(node)).op[ENGINE_OP_READ].requests, 46);
    requests.cancel(*requests.probes[1]);  // too late, and nothing to it
}

TEST(a_waiting_request_of_a_completion_queue_is_cancelled) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node = engine.open({{"driver", "delay"}, {"read", "3600s"}, {"file.driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    embedder::Queue queue(engine);
    char buffer[512];
    CHECK_EQ(queue.submit(user, context, {embedder::request_of(ENGINE_OP_READ, 1, buffer, 0, 512)}), 0);
    embedder::run_on(context, [] {});
    CHECK_EQ(stats_of(node).in_flight, 1);
    CHECK_EQ(engine_cancel(queue, 1), 1);
    REQUIRE(queue.wait_for(1));
    CHECK_EQ(queue.completed[1].result, -ECANCELED);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

// --- changes of the graph

enum class Change : uint8_t { insert_above, insert_below, remove, resize };

TEST(a_change_of_the_graph_does_not_wait_for_them) {
    for (Change change : {Change::insert_above, Change::insert_below, Change::remove, Change::resize}) {
        sim::Engine engine(7);
        engine_node_t* disk = engine.open({{"driver", "memory"}, {"size", "1M"}});
        engine_node_t* delay = nullptr;
        Error error;
        engine_option options[] = {{"driver", "delay"}, {"read", "3600s"}, {"node-name", "slow"}};
        REQUIRE(engine_node_insert_filter(disk, options, 3, 0, &delay, &error) == 0);
        Requests requests(engine, delay);
        requests.submit(Op::read, 20);
        requests.pass(ms);
        CHECK_EQ(requests.ended, 0);
        engine_option passthrough[] = {{"driver", "passthrough"}};
        engine_node_t* filter = nullptr;
        uint64_t start_ns = engine.simulator.now_ns();
        if (change == Change::insert_above || change == Change::insert_below) {
            engine_node_t* at = change == Change::insert_above ? delay : disk;
            CHECK_EQ(engine_node_insert_filter(at, passthrough, 1, 0, &filter, &error), 0);
        } else if (change == Change::remove) {
            CHECK_EQ(engine_node_remove_filter(delay, 0, nullptr, &error), 0);
        } else {
            engine_user_t* user = Engine::user(delay, "resizer");
            CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, &error), 0);
            CHECK_EQ(engine_user_close(user, &error), 0);
            engine_node_info info{};
            info.size = sizeof info;
            CHECK_EQ(engine_node_get_info(delay, &info), 0);
            CHECK_EQ(info.bytes, 2 << 20);
        }
        CHECK_EQ(requests.ended, 20);
        CHECK(engine.simulator.now_ns() - start_ns < 100 * ms);
        for (unsigned i = 0; i < requests.ended; i++) CHECK_EQ(requests.probes[i]->place, i);
        // And afterwards all is as before.
        Probe& next = requests.submit(Op::read);
        requests.pass(10 * ms);
        CHECK_EQ(next.done, change == Change::remove);
        if (!next.done) requests.cancel(next);
        REQUIRE(requests.finish());
    }
}

// A filter above inside of which requests are, because what is below holds them.
TEST(what_is_held_further_down_goes_on_too) {
    sim::Engine engine(8);
    engine.open({{"driver", "delay"},
                 {"read", "3600s"},
                 {"node-name", "slow"},
                 {"file.driver", "memory"},
                 {"file.size", "1M"}});
    engine_node_t* top =
        engine.open({{"driver", "passthrough"}, {"file.driver", "passthrough"}, {"file.file", "slow"}});
    Requests requests(engine, top);
    requests.submit(Op::read, 5);
    requests.pass(ms);
    CHECK_EQ(requests.ended, 0);
    engine_option passthrough[] = {{"driver", "passthrough"}};
    engine_node_t* filter = nullptr;
    Error error;
    CHECK_EQ(engine_node_insert_filter(top, passthrough, 1, 0, &filter, &error), 0);
    CHECK_EQ(requests.ended, 5);
    Probe& next = requests.submit(Op::read);
    requests.pass(10 * ms);
    CHECK(!next.done);      // below, the hurry is over as well
    requests.cancel(next);  // with a level that only hands it on
    CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
    REQUIRE(requests.finish());
}

TEST(it_comes_and_goes_under_load_from_two_contexts) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* disk = engine.open({{"driver", "memory"}, {"size", "1M"}});
        engine_user_t* user = Engine::user(disk, "load");
        {
            Load first(engine, user, engine.context("io0", backend), uint64_t{1} << 40, 50, 32);
            Load second(engine, user, engine.context("io1", backend), uint64_t{1} << 40, 50, 32);
            engine_option options[] = {
                {"driver", "delay"}, {"read", "300us"}, {"write", "100ms"}, {"spread", "1ms"}};
            for (unsigned i = 0; i < 20; i++) {
                engine_node_t* filter = nullptr;
                Error error;
                REQUIRE(engine_node_insert_filter(disk, options, 4, 0, &filter, &error) == 0);
                CHECK(embedder::eventually([&] { return stats_of(filter).in_flight >= 40; }));
                CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
            }
            for (const Load* load : {&first, &second}) {
                CHECK_EQ(engine_workload_stop(load->workload), 0);
                auto result = load->wait();
                CHECK(result->requests[0] + result->requests[1] > 0);
                CHECK_EQ(result->errors, 0);
            }
        }
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(bad_options_are_named) {
    Engine engine;
    const struct {
        engine_option option;
        const char* text;
    } cases[] = {
        {{"read", "soon"}, "option 'read' = 'soon' is not a time such as 20us"},
        {{"write", "3601s"}, "option 'write' = '3601s' is not within its range"},
        {{"other", "-1"}, "option 'other' = '-1' is not a time"},
        {{"spread", "1ms"},
         "delay: option 'spread': it makes delays longer, and there are none: give 'read'"},
        {{"seed", "x"}, "option 'seed' = 'x' is not a number"},
        {{"latency", "1ms"}, "driver delay has no option 'latency'"},
    };
    for (const auto& one : cases) {
        engine_option options[] = {{"driver", "delay"}, {"file.driver", "null"}, one.option};
        engine_node_t* node = nullptr;
        Error error;
        CHECK_EQ(engine_node_open(engine, options, 3, &node, &error), -EINVAL);
        CHECK_EQ(std::string_view(error.field), one.option.key);
        if (!CHECK(error.says(one.text))) fprintf(stderr, "  %s\n", error.message);
    }
}

#ifndef EMBEDDER_TSAN
// The hook is the process's own, so the sanitizer's threads may meet it.
TEST(short_memory_is_an_error) {
    sim::Engine engine(9);
    engine_node_t* node = engine.open({{"driver", "delay"},
                                       {"node-name", "slow"},
                                       {"read", "1ms"},
                                       {"file.driver", "null"},
                                       {"file.size", "1M"}});
    Requests requests(engine, node);
    requests.submit(Op::read, 32);  // as many as there is room for
    requests.probes.reserve(40);
    engine_set_allocation_hook([](size_t, void*) { return 1; }, nullptr);
    Probe& probe = requests.submit(Op::read);
    engine_set_allocation_hook(nullptr, nullptr);
    REQUIRE(requests.finish());
    CHECK_EQ(probe.result, -ENOMEM);
    CHECK(probe.failure.says("node slow: no memory for a request that is to wait"));
    for (unsigned i = 0; i < 32; i++) CHECK(requests.probes[i]->result >= 0);
}
#endif

}  // namespace
