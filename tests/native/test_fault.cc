// The fault filter in the graph, in virtual time: what fails, waits, is held or tears, and what is said of
// it; resuming, cancelling, and letting go where the graph changes. Which request meets which rule is in
// test_fault_rules.cc, several contexts at a time in test_fault_load.cc.
#include "filter_load.hh"
#include "held_requests.hh"

namespace {

using embedder::Error;
using embedder::io;
using engine::block::Channel;
using engine::block::Node;
using filter_load::child_of;
using filter_load::stats_of;
using held::ms;
using held::Op;
using held::Probe;
using held::Requests;
namespace api = engine::api;

// A fault node over 1 MiB of memory.
struct Disk {
    sim::Engine engine;
    engine_node_t* node;
    Error error;

    explicit Disk(const char* rules, const char* seed = "0", uint64_t history = 1)
        : engine(history),
          node(engine.open({{"driver", "fault"},
                            {"node-name", "bad"},
                            {"rules", rules},
                            {"seed", seed},
                            {"file.driver", "memory"},
                            {"file.node-name", "ram"},
                            {"file.size", "1M"},
                            {"file.discard", "unmap"}})) {}
    int resume() { return engine_fault_resume(node, &error); }
};

TEST(each_operation_fails_on_purpose) {
    const struct {
        Op op;
        const char* name;
    } cases[] = {{Op::read, "read"},
                 {Op::write, "write"},
                 {Op::flush, "flush"},
                 {Op::discard, "discard"},
                 {Op::write_zeroes, "write-zeroes"},
                 {Op::block_status, "block-status"}};
    for (const auto& one : cases) {
        Disk disk(("offset=512k-1M,pause;op=" + std::string(one.name) + ",errno=ENOSPC").c_str());
        Requests requests(disk.engine, disk.node);
        for (const auto& other : cases) {
            Probe& probe = requests.submit(other.op, 1, 4096);
            REQUIRE(requests.finish());
            CHECK_EQ(probe.result < 0, other.op == one.op);
            if (other.op != one.op) continue;
            CHECK_EQ(probe.result, -ENOSPC);
            CHECK_EQ(probe.failure.kind, ENGINE_ERROR_OS);
            CHECK_EQ(probe.failure.errnum, ENOSPC);
            CHECK_EQ(std::string_view(probe.failure.node), "bad");
            CHECK_EQ(std::string_view(probe.failure.operation), one.name);
            bool flush = one.op == Op::flush;
            std::string text = "node bad: " + std::string(one.name) + (flush ? " of 0" : " of 512") +
                               " bytes at offset " + (flush ? "0" : "4096") +
                               " fails by rule 2 of 'rules': No space left on device";
            CHECK_EQ(std::string_view(probe.failure.message), text);
        }
        engine_node_stats above = stats_of(disk.node), below = stats_of(child_of(disk.node));
        for (unsigned op = 0; op < ENGINE_OP_COUNT; op++) {
            bool failed = op == static_cast<unsigned>(one.op);
            CHECK_EQ(above.op[op].errors != 0, failed);
            CHECK_EQ(below.op[op].requests == 0, failed || above.op[op].requests == 0);
        }
    }
}

TEST(an_error_of_any_number_is_passed_up) {
    Disk disk("errno=4095");
    engine_user_t* user = embedder::Engine::user(disk.node, "test");
    char data[512];
    CHECK_EQ(io(user, ENGINE_OP_READ, data, 0, 512, 0, &disk.error), -4095);
    CHECK(disk.error.says("node bad: read of 512 bytes at offset 0 fails by rule 1 of 'rules': an error"));
    CHECK_EQ(engine_user_close(user, &disk.error), 0);
}

TEST(without_a_rule_all_is_the_childs) {
    Disk disk("");
    engine_node_info above{}, below{};
    above.size = below.size = sizeof above;
    CHECK_EQ(engine_node_get_info(disk.node, &above), 0);
    CHECK_EQ(engine_node_get_info(child_of(disk.node), &below), 0);
    CHECK_EQ(above.bytes, below.bytes);
    CHECK_EQ(above.request_alignment, below.request_alignment);
    CHECK_EQ(above.memory_alignment, below.memory_alignment);
    CHECK_EQ(above.holes, below.holes);
    CHECK_EQ(above.ops, below.ops & engine::block::ops_of_data);
    CHECK(api::unwrap(disk.node)->driver->locate == nullptr);
    engine_user_t* user = embedder::Engine::user(disk.node, "test");
    CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, &disk.error), 0);
    CHECK_EQ(engine_node_get_info(disk.node, &above), 0);
    CHECK_EQ(above.bytes, 2 << 20);
    CHECK_EQ(engine_user_close(user, &disk.error), 0);
}

TEST(one_failure_leads_to_the_next) {
    Disk disk(
        "state=1,op=write,offset=4k-8k,new-state=2;state=2,op=flush,errno=EIO,new-state=3;"
        "state=3,op=read+write,errno=ENODEV");
    Requests requests(disk.engine, disk.node);
    auto result = [&](Op op, uint64_t offset = 0) {
        Probe& probe = requests.submit(op, 1, offset);
        CHECK(requests.finish());
        return probe.result;
    };
    CHECK_EQ(result(Op::flush), 0);
    CHECK_EQ(result(Op::write), 0);
    CHECK_EQ(result(Op::flush), 0);
    CHECK_EQ(result(Op::write, 4096), 0);
    CHECK_EQ(result(Op::read), 0);
    CHECK_EQ(result(Op::flush), -EIO);
    CHECK_EQ(result(Op::read), -ENODEV);
    CHECK_EQ(result(Op::flush), 0);
}

TEST(a_delay_is_as_long_as_it_says) {
    Disk disk("op=read,offset=0-4k,delay=20ms;op=read,count=3,delay=5ms");
    Requests requests(disk.engine, disk.node);
    Probe& slow = requests.submit(Op::read);
    Probe& write = requests.submit(Op::write);
    requests.submit(Op::read, 4, 65536);
    REQUIRE(requests.finish());
    held::took(slow, 20 * ms, 20 * ms);
    held::took(write, 0, 0);
    for (unsigned i = 2; i < 5; i++) held::took(*requests.probes[i], 5 * ms, 5 * ms);
    held::took(*requests.probes[5], 0, 0);
    for (unsigned i = 2; i < 4; i++) CHECK(requests.probes[i]->place < requests.probes[i + 1]->place);
}

// --- held until resumed

TEST(a_pause_ends_when_it_is_resumed) {
    Disk disk("op=write,pause");
    Requests first(disk.engine, disk.node, 1), second(disk.engine, disk.node, 2);
    CHECK_EQ(disk.resume(), 0);
    first.submit(Op::write, 5);
    second.submit(Op::write, 3, 65536);
    Probe& read = first.submit(Op::read);
    first.pass(3'600'000 * ms);
    CHECK(read.done);
    CHECK_EQ(first.ended + second.ended, 1);
    CHECK_EQ(stats_of(disk.node).in_flight, 8);
    CHECK_EQ(stats_of(child_of(disk.node)).in_flight, 0);
    CHECK_EQ(disk.resume(), 8);
    REQUIRE(first.finish() && second.finish());
    for (unsigned i = 0; i < 5; i++) CHECK_EQ(first.probes[i]->place, i + 1);
    for (auto& probe : first.probes) CHECK(probe->result >= 0);
    CHECK_EQ(disk.resume(), 0);
    // It holds again: what went on was what was there.
    Probe& next = first.submit(Op::write);
    first.pass(ms);
    CHECK(!next.done);
    CHECK_EQ(engine_fault_resume(disk.node, nullptr), 1);
    REQUIRE(first.finish());
    CHECK_EQ(stats_of(child_of(disk.node)).op[ENGINE_OP_WRITE].requests, 9);
}

TEST(what_is_held_is_cancelled) {
    Disk disk("op=write,pause;op=read,delay=3600s");
    Requests requests(disk.engine, disk.node);
    requests.submit(Op::write, 3);
    requests.submit(Op::read, 3);
    for (unsigned i : {1u, 0u, 4u}) {
        Probe& probe = *requests.probes[i];
        requests.cancel(probe);
        REQUIRE(disk.engine.simulator.run_until([&] { return probe.done; }));
        CHECK_EQ(probe.result, -ECANCELED);
        CHECK(probe.failure.says(i < 3 ? "node bad: write of 512 bytes at offset"
                                       : "node bad: read of 512 bytes at offset"));
        CHECK(probe.failure.says("was cancelled while a rule of 'rules' held it back"));
    }
    requests.pass(ms);
    CHECK_EQ(requests.ended, 3);
    CHECK_EQ(disk.resume(), 1);
    REQUIRE(requests.finish());
    held::took(*requests.probes[3], 3'600'000 * ms, 3'600'000 * ms);
    CHECK_EQ(stats_of(child_of(disk.node)).op[ENGINE_OP_WRITE].requests, 1);
    CHECK_EQ(stats_of(child_of(disk.node)).op[ENGINE_OP_READ].requests, 2);
}

enum class Change : uint8_t { insert_above, insert_below, remove, resize };

TEST(a_change_of_the_graph_lets_go_of_all) {
    for (Change change : {Change::insert_above, Change::insert_below, Change::remove, Change::resize}) {
        sim::Engine engine(2);
        engine_node_t* disk = engine.open({{"driver", "memory"}, {"size", "1M"}});
        engine_option options[] = {{"driver", "fault"}, {"rules", "op=write,pause;op=read,delay=3600s"}};
        engine_option passthrough[] = {{"driver", "passthrough"}};
        engine_node_t *fault = nullptr, *filter = nullptr;
        Error error;
        REQUIRE(engine_node_insert_filter(disk, options, 2, 0, &fault, &error) == 0);
        Requests requests(engine, fault);
        requests.submit(Op::write, 10);
        requests.submit(Op::read, 10);
        requests.pass(ms);
        CHECK_EQ(requests.ended, 0);
        if (change == Change::insert_above || change == Change::insert_below) {
            engine_node_t* at = change == Change::insert_above ? fault : disk;
            CHECK_EQ(engine_node_insert_filter(at, passthrough, 1, 0, &filter, &error), 0);
        } else if (change == Change::remove) {
            CHECK_EQ(engine_node_remove_filter(fault, 0, nullptr, &error), 0);
        } else {
            engine_user_t* user = embedder::Engine::user(fault, "resizer");
            CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, &error), 0);
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
        CHECK_EQ(requests.ended, 20);
        for (auto& probe : requests.probes) CHECK(probe->result >= 0);
        Probe& next = requests.submit(Op::write);
        requests.pass(ms);
        CHECK_EQ(next.done, change == Change::remove);
        if (!next.done) CHECK_EQ(engine_fault_resume(fault, &error), 1);
        REQUIRE(requests.finish());
    }
}

// What comes while the node is to come to rest is not held, and fails as ever.
TEST(in_a_hurry_nothing_is_held) {
    Disk disk("op=write,pause;op=read,delay=1s;op=flush,errno=EIO");
    Requests requests(disk.engine, disk.node);
    const auto& driver = *api::unwrap(disk.node)->driver;
    Probe& write = requests.submit(Op::write);
    requests.on_home([&] { driver.hurry(*write.channel, true); });
    Probe& read = requests.submit(Op::read);
    Probe& again = requests.submit(Op::write);
    Probe& flush = requests.submit(Op::flush);
    REQUIRE(requests.finish());
    CHECK(write.result >= 0 && again.result >= 0);
    CHECK_EQ(flush.result, -EIO);
    held::took(read, 0, 0);
    Channel* channel = nullptr;
    Node* native = api::unwrap(disk.node);
    {
        engine::base::Guard guard(native->control->lists);
        channel = native->control->channels[0].get();
    }
    requests.on_home([&] { driver.hurry(*channel, false); });
    Probe& held_again = requests.submit(Op::write);
    requests.pass(ms);
    CHECK(!held_again.done);
    CHECK_EQ(disk.resume(), 1);
    REQUIRE(requests.finish());
}

TEST(only_a_fault_node_can_be_resumed) {
    embedder::Engine engine;
    engine_node_t* node =
        engine.open({{"driver", "fault"}, {"file.driver", "null"}, {"file.node-name", "nothing"}});
    Error error;
    CHECK_EQ(engine_fault_resume(child_of(node), &error), -EINVAL);
    CHECK(error.says("node nothing has driver null: only a fault node holds requests"));
    CHECK_EQ(engine_fault_resume(node, &error), 0);
    int result = 0;
    embedder::run_on(engine.context("io0"), [&] { result = engine_fault_resume(node, nullptr); });
    CHECK_EQ(result, -EDEADLK);
}

TEST(bad_options_are_named) {
    embedder::Engine engine;
    const struct {
        engine_option option;
        const char* text;
    } cases[] = {
        {{"rules", "op=read,errno=EIO;op=rad,errno=EIO"},
         "fault: option 'rules': rule 2 has key 'op' = 'rad'"},
        {{"seed", "x"}, "option 'seed' = 'x' is not a number"},
        {{"rule", "errno=EIO"}, "driver fault has no option 'rule'; it knows: rules, seed"},
    };
    for (const auto& one : cases) {
        engine_option options[] = {{"driver", "fault"}, {"file.driver", "null"}, one.option};
        engine_node_t* node = nullptr;
        Error error;
        CHECK_EQ(engine_node_open(engine, options, 3, &node, &error), -EINVAL);
        CHECK_EQ(std::string_view(error.field), one.option.key);
        if (!CHECK(error.says(one.text))) fprintf(stderr, "  %s\n", error.message);
    }
}

}  // namespace
