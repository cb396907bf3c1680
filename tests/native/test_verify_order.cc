// The verify filter, in virtual time: which requests wait for which, cancelling, short memory, and coming and
// going in a graph that is in use.
#include <random>

#include "block/registry.hh"
#include "verify_bench.hh"

namespace {

using namespace verify_bench;
using filter_load::stats_of;
namespace api = engine::api;

// Two RAM disks, `file` under a delay.
struct Slow {
    sim::Engine engine;
    engine_node_t* node;
    Requests first, second;  // on two contexts

    Slow(std::initializer_list<engine_option> delays)
        : engine(1), node(open(engine, delays)), first(engine, node, 1), second(engine, node, 2) {}
    bool finish() { return first.finish() && second.finish(); }

  private:
    static engine_node_t* open(sim::Engine& engine, std::initializer_list<engine_option> delays) {
        std::vector<engine_option> options{
            {"driver", "delay"}, {"node-name", "slow"}, {"file.driver", "memory"}, {"file.size", "1M"}};
        options.insert(options.end(), delays.begin(), delays.end());
        engine.open(options);
        return engine.open({{"driver", "verify"},
                            {"node-name", "both"},
                            {"file", "slow"},
                            {"reference.driver", "memory"},
                            {"reference.size", "1M"}});
    }
};

bool ok(const Probe& probe) {
    return CHECK(probe.done && probe.result >= 0);
}

// One that waited for another began a little after it.
void about(const Probe& probe, uint64_t ns) {
    held::took(probe, ns < ms ? 0 : ns - ms, ns);
}

// One more request, and all that there are.
bool works(Requests& requests, Op op, uint64_t length = 512) {
    Probe& probe = requests.submit(op, 1, 0, length);
    return requests.finish() && ok(probe);
}

// --- order

TEST(reads_wait_for_writes_that_they_overlap) {
    Slow slow{{"write", "100ms"}, {"read", "50ms"}};
    Probe& write = slow.first.submit(Op::write, 1, 4096, 4096);
    Probe& inside = slow.second.submit(Op::read, 1, 8191, 512);
    Probe& before = slow.second.submit(Op::read, 1, 3584, 512);
    Probe& after = slow.second.submit(Op::read, 1, 8192, 512);
    REQUIRE(slow.finish());
    about(write, 100 * ms);
    about(inside, 150 * ms);
    about(before, 50 * ms);
    about(after, 50 * ms);
    for (const Probe* probe : {&write, &inside, &before, &after}) ok(*probe);
    CHECK_EQ(inside.data[0], 'n');
    CHECK_EQ(inside.data[1], 0);
}

TEST(changes_wait_for_reads_and_changes) {
    for (Op op : {Op::write, Op::write_zeroes, Op::discard}) {
        Slow slow{{"write", "100ms"}, {"read", "50ms"}, {"other", "20ms"}};
        slow.first.submit(Op::read, 1, 0, 8192);
        slow.second.submit(Op::read, 1, 0, 8192);  // reads do not wait for each other
        Probe& change = slow.first.submit(op, 1, 4096, 4096);
        Probe& late = slow.second.submit(Op::write, 1, 8191, 4096);
        Probe& status = slow.first.submit(Op::block_status, 1, 0, 4097);
        REQUIRE(slow.finish());
        uint64_t took_ns = op == Op::write ? 100 * ms : 20 * ms;
        about(*slow.first.probes[0], 50 * ms);
        about(*slow.second.probes[0], 50 * ms);
        about(change, 50 * ms + took_ns);
        about(late, 150 * ms + took_ns);
        about(status, 70 * ms + took_ns);
    }
}

// First come, first served: a stream of reads does not keep a write out, and none overtakes it.
TEST(nobody_is_overtaken) {
    Slow slow{{"write", "10ms"}, {"read", "10ms"}};
    for (unsigned i = 0; i < 10; i++) {
        slow.first.submit(i % 2 == 0 ? Op::read : Op::write, 1, 0, 512);
        slow.second.submit(i % 2 == 0 ? Op::read : Op::write, 1, 256, 512);
    }
    REQUIRE(slow.finish());
    for (unsigned i = 0; i < 10; i++) {
        ok(*slow.first.probes[i]);
        CHECK_EQ(slow.first.probes[i]->place, i);
        CHECK_EQ(slow.second.probes[i]->place, i);
    }
    CHECK(slow.engine.simulator.now_ns() >= 150 * ms);
}

TEST(flushes_wait_for_nobody) {
    Slow slow{{"write", "100ms"}};
    Probe& write = slow.first.submit(Op::write);
    Probe& flush = slow.first.submit(Op::flush);
    REQUIRE(slow.finish());
    about(flush, 0);
    about(write, 100 * ms);
}

// All sorts of requests on two contexts, each child in an order of its own, some cancelled: no false alarm.
TEST(what_overlaps_never_looks_different) {
    for (uint64_t seed = 1; seed <= 30; seed++) {
        sim::Engine engine(seed);
        auto child = [&](const char* name, const char* its_seed) {
            engine.open({{"driver", "delay"},
                         {"node-name", name},
                         {"read", "1ms"},
                         {"write", "1ms"},
                         {"other", "1ms"},
                         {"spread", "5ms"},
                         {"seed", its_seed},
                         {"file.driver", "memory"},
                         {"file.size", "1M"}});
        };
        child("left", "1");
        child("right", "2");
        engine_node_t* node = engine.open({{"driver", "verify"}, {"file", "left"}, {"reference", "right"}});
        Requests first(engine, node, 1), second(engine, node, 2);
        std::mt19937_64 random(seed);
        std::vector<Probe*> cancelled;
        const Op ops[] = {Op::read,  Op::read,    Op::read,         Op::write,       Op::write,
                          Op::write, Op::discard, Op::write_zeroes, Op::block_status};
        for (unsigned step = 0; step < 200; step++) {
            Requests& requests = random() % 2 == 0 ? first : second;
            uint64_t offset = random() % 16384, length = 1 + random() % 4096;
            Probe& probe = requests.submit(ops[random() % std::size(ops)], 1, offset, length);
            std::fill(probe.data.begin(), probe.data.end(), static_cast<char>(step));
            if (random() % 3 == 0) requests.pass(random() % ms);
            Probe& victim = *requests.probes[random() % requests.probes.size()];
            if (random() % 4 == 0 && !victim.done) {
                requests.cancel(victim);
                cancelled.push_back(&victim);
            }
        }
        REQUIRE(first.finish() && second.finish());
        size_t without = 0;
        for (const Requests* requests : {&first, &second}) {
            for (const auto& probe : requests->probes) {
                if (probe->result == -ECANCELED) {
                    without++;
                    CHECK(std::find(cancelled.begin(), cancelled.end(), probe.get()) != cancelled.end());
                } else if (!ok(*probe)) {
                    fprintf(stderr, "  seed %lu: %s\n", seed, probe->failure.message);
                }
            }
        }
        CHECK(cancelled.size() > 10 && without > 0);
        Probe& all = first.submit(Op::read, 1, 0, 32768);
        REQUIRE(first.finish());
        ok(all);
    }
}

// --- cancelling

TEST(one_that_waits_for_another_is_cancelled) {
    Slow slow{{"write", "100ms"}};
    Probe& write = slow.first.submit(Op::write);
    Probe& read = slow.second.submit(Op::read);
    Probe& second = slow.second.submit(Op::write);
    Probe& third = slow.first.submit(Op::write);
    slow.first.pass(ms);
    for (Probe* probe : {&read, &second}) {
        slow.second.cancel(*probe);
        REQUIRE(slow.engine.simulator.run_until([&] { return probe->done; }));
        CHECK_EQ(probe->result, -ECANCELED);
        CHECK(probe->took_ns() < 10 * ms);
        CHECK_EQ(std::string_view(probe->failure.operation), probe == &read ? "read" : "write");
        CHECK(probe->failure.says("of 512 bytes at offset 0 was cancelled while it waited"));
    }
    CHECK(!write.done);
    REQUIRE(slow.finish());
    about(write, 100 * ms);
    about(third, 200 * ms);
    CHECK_EQ(stats_of(filter_load::child_of(slow.node)).op[ENGINE_OP_WRITE].requests, 2);
    slow.second.cancel(read);  // too late, and nothing to it
}

// The one before it has left, so it has been woken, and has not gone on yet.
Probe* woken = nullptr;
void (*complete)(Request*) = nullptr;

TEST(one_whose_turn_has_come_is_cancelled) {
    Slow slow{{"write", "10ms"}};
    Probe& write = slow.first.submit(Op::write);
    woken = &slow.first.submit(Op::read);
    Probe& late = slow.second.submit(Op::write);
    complete = write.complete;
    write.complete = [](Request* request) {
        woken->channel->node->driver->cancel(*woken->channel, woken);
        complete(request);
    };
    REQUIRE(slow.finish());
    ok(write);
    CHECK_EQ(woken->result, -ECANCELED);
    ok(late);
    CHECK_EQ(stats_of(filter_load::child_of(slow.node)).op[ENGINE_OP_READ].requests, 0);
}

TEST(a_read_that_a_child_holds_back_is_cancelled) {
    for (Op op : {Op::read, Op::flush, Op::block_status}) {
        Slow slow{{"read", "3600s"}, {"flush", "3600s"}, {"other", "3600s"}};
        Probe& probe = slow.first.submit(op);
        Probe& write = slow.second.submit(Op::write);
        slow.first.pass(ms);
        CHECK(!probe.done);
        CHECK_EQ(write.done, op == Op::flush);
        slow.first.cancel(probe);
        slow.first.cancel(probe);
        REQUIRE(slow.finish());
        CHECK_EQ(probe.result, -ECANCELED);
        CHECK(probe.took_ns() < 100 * ms);
        CHECK(probe.failure.says("was cancelled while it waited"));
        ok(write);
    }
}

// Half of it would be in one child and not in the other.
TEST(a_write_that_has_begun_runs_to_its_end) {
    for (Op op : {Op::write, Op::write_zeroes, Op::discard}) {
        Slow slow{{"write", "50ms"}, {"other", "50ms"}};
        Probe& write = slow.first.submit(op, 1, 0, 4096);
        slow.first.pass(ms);
        slow.first.cancel(write);
        REQUIRE(slow.finish());
        ok(write);
        about(write, 50 * ms);
        CHECK(works(slow.first, Op::read, 4096));
    }
}

// --- memory

engine::block::Limits& limits_of(sim::Engine& engine) {
    return api::unwrap(engine.handle())->limits;
}

TEST(without_bounce_memory_reads_take_turns) {
    Slow slow{{"read", "10ms"}};
    slow.first.submit(Op::write, 1, 0, 400000);
    REQUIRE(slow.finish());
    limits_of(slow.engine).bounce_bytes.set_most(0);
    slow.first.submit(Op::read, 8, 1000, 40000);
    slow.second.submit(Op::read, 8, 1000, 40000);
    slow.first.submit(Op::block_status);
    REQUIRE(slow.finish());
    for (const Requests* requests : {&slow.first, &slow.second}) {
        for (const auto& probe : requests->probes) ok(*probe);
    }
    // One after the other on each context, side by side on the two.
    for (unsigned i = 0; i < 8; i++) {
        Probe& read = *slow.second.probes[i];
        about(read, 10 * ms * (i + 1));
        CHECK(std::all_of(read.data.begin(), read.data.end(), [](char byte) { return byte == 'n'; }));
    }
    // One that waits for its turn is cancelled.
    Probe& one = slow.first.submit(Op::read, 1, 0, 512);
    Probe& two = slow.first.submit(Op::read, 1, 4096, 512);
    Probe& three = slow.first.submit(Op::read, 1, 8192, 512);
    slow.first.pass(ms);
    slow.first.cancel(two);
    REQUIRE(slow.finish());
    CHECK_EQ(two.result, -ECANCELED);
    CHECK(two.took_ns() < 5 * ms);
    about(one, 10 * ms);
    about(three, 20 * ms);
    CHECK_EQ(limits_of(slow.engine).bounce_bytes.used(), 0);
}

TEST(bounce_memory_is_given_back) {
    Pair pair;
    CHECK_EQ(pair.read(0, 300000), 300000);
    platter.data[5] = 'x';
    CHECK_EQ(pair.read(0, 300000), -EIO);
    platter.before = [](Request&) { platter.answer = -ENODEV; };
    CHECK_EQ(pair.read(0, 300000), -ENODEV);
    CHECK_EQ(limits_of(pair.engine).bounce_bytes.used(), 0);
}

#ifndef EMBEDDER_TSAN
// The hook is the process's own, so the sanitizer's threads may meet it.
TEST(short_memory_is_an_error) {
    for (Op op : {Op::read, Op::write, Op::discard, Op::write_zeroes, Op::flush, Op::block_status}) {
        static int until = 0;
        unsigned failures = 0;
        for (int nth = 1;; nth++) {
            Slow slow{};
            slow.first.probes.reserve(10);
            until = nth;
            engine_set_allocation_hook([](size_t, void*) { return --until == 0 ? 1 : 0; }, nullptr);
            Probe& probe = slow.first.submit(op, 1, 0, 200000);
            bool finished = slow.first.finish();
            engine_set_allocation_hook(nullptr, nullptr);
            REQUIRE(finished);
            if (until > 0) break;  // it needs no more than that
            failures += probe.result < 0 ? 1 : 0;
            // A buffer that cannot be had is one that others wait for.
            CHECK(probe.result >= 0 || probe.result == -ENOMEM);
            // The request layer, which has zeroes first, has no words for it.
            if (probe.result < 0) CHECK(op == Op::write_zeroes || probe.failure.says("memory"));
            CHECK(works(slow.first, Op::write, 200000));
            CHECK(works(slow.first, Op::read));
            REQUIRE(nth < 100);
        }
        CHECK(failures >= 2);
    }
}
#endif

// --- in a graph that is in use

TEST(what_a_child_holds_goes_on_where_the_graph_changes) {
    sim::Engine engine(9);
    engine_node_t* node = engine.open({{"driver", "verify"},
                                       {"file.driver", "memory"},
                                       {"file.size", "1M"},
                                       {"reference.driver", "fault"},
                                       {"reference.rules", "op=write,pause"},
                                       {"reference.file.driver", "memory"},
                                       {"reference.file.size", "1M"}});
    Requests requests(engine, node);
    for (unsigned i = 0; i < 20; i++) requests.submit(i % 2 == 0 ? Op::write : Op::read);
    requests.pass(ms);
    CHECK_EQ(requests.ended, 0);
    engine_option options[] = {{"driver", "passthrough"}};
    engine_node_t* filter = nullptr;
    Error error;
    CHECK_EQ(engine_node_insert_filter(node, options, 1, 0, &filter, &error), 0);
    REQUIRE(requests.finish());
    for (auto& probe : requests.probes) ok(*probe);
}

struct Busy {
    sim::Engine engine{10};
    engine_node_t* disk;
    engine_node_t* spare;
    Requests requests;
    Error error;

    Busy()
        : disk(engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "disk"}})),
          spare(engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "spare"}})),
          requests(engine, disk) {}
    int insert(std::vector<engine_option> options, engine_node_t** filter) {
        error = {};
        options.push_back({"driver", "verify"});
        return engine_node_insert_filter(disk, options.data(), options.size(), 0, filter, &error);
    }
};

TEST(it_is_inserted_above_a_node_and_removed) {
    Busy busy;
    engine_node_t* filter = nullptr;
    REQUIRE(busy.insert({{"reference", "spare"}, {"node-name", "both"}}, &filter) == 0);
    char role[16];
    CHECK(engine_node_get_child(filter, 0, role, sizeof role) == busy.disk);
    CHECK_EQ(std::string_view(role), "file");
    CHECK(engine_node_get_child(filter, 1, role, sizeof role) == busy.spare);
    CHECK_EQ(std::string_view(role), "reference");
    Probe& write = busy.requests.submit(Op::write);
    Probe& read = busy.requests.submit(Op::read);
    REQUIRE(busy.requests.finish());
    ok(write);
    ok(read);
    CHECK_EQ(stats_of(filter).op[ENGINE_OP_READ].requests, 1);
    CHECK_EQ(stats_of(busy.spare).op[ENGINE_OP_WRITE].requests, 1);
    CHECK_EQ(engine_node_close(busy.spare, &busy.error), -EBUSY);
    CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &busy.error), 0);
    CHECK(works(busy.requests, Op::write));
    CHECK_EQ(stats_of(busy.spare).op[ENGINE_OP_WRITE].requests, 1);
    CHECK_EQ(engine_node_close(busy.spare, &busy.error), 0);
}

// The reference that was opened along with it is closed with it; what was below it stays.
TEST(it_takes_its_own_reference_along) {
    Busy busy;
    engine_node_t *filter = nullptr, *freed = nullptr;
    REQUIRE(busy.insert(
                {{"reference.driver", "memory"}, {"reference.size", "1M"}, {"reference.node-name", "own"}},
                &filter) == 0);
    CHECK(engine_node_find(busy.engine.handle(), "own") != nullptr);
    CHECK_EQ(engine_node_remove_filter(filter, 0, &freed, &busy.error), 0);
    CHECK(freed == nullptr);
    CHECK(engine_node_find(busy.engine.handle(), "own") == nullptr);
    CHECK(engine_node_find(busy.engine.handle(), "disk") == busy.disk);
    CHECK(works(busy.requests, Op::write));
}

TEST(what_cannot_be_inserted_changes_nothing) {
    const struct {
        std::vector<engine_option> options;
        int result;
        const char* text;
    } cases[] = {
        {{}, -EINVAL, "driver verify needs a 'reference'"},
        {{{"reference", "disk"}}, -EBUSY, "conflicts with user 'probe'"},
        {{{"reference", "small"}}, -EINVAL, "'reference' (node small) 4096: give them the same size"},
        {{{"file", "spare"}, {"reference", "spare"}},
         -EINVAL,
         "what is below an inserted filter is node disk"},
    };
    for (const auto& one : cases) {
        Busy busy;
        busy.engine.open({{"driver", "memory"}, {"size", "4k"}, {"node-name", "small"}});
        engine_node_t* filter = nullptr;
        CHECK_EQ(busy.insert(one.options, &filter), one.result);
        if (!CHECK(busy.error.says(one.text))) fprintf(stderr, "  %s\n", busy.error.message);
        CHECK(works(busy.requests, Op::write));
        CHECK_EQ(engine_node_close(busy.spare, &busy.error), 0);
    }
}

// That would be a circle of comparisons: what is above `file` reads it.
TEST(a_reference_above_file_is_refused) {
    sim::Engine engine(11);
    engine_node_t* disk = engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "disk"}});
    engine.open({{"driver", "passthrough"}, {"file", "disk"}, {"node-name", "above"}});
    engine_option options[] = {{"driver", "verify"}, {"reference", "above"}};
    engine_node_t* filter = nullptr;
    Error error;
    CHECK_EQ(engine_node_insert_filter(disk, options, 2, 0, &filter, &error), -EBUSY);
    if (!CHECK(error.says("conflicts with user 'node above'"))) fprintf(stderr, "  %s\n", error.message);
    CHECK_EQ(engine_node_close(engine_node_find(engine.handle(), "above"), &error), 0);
}

engine_user_t* resizer = nullptr;

// The node below is resized after verify has compared the sizes, and before the users move.
TEST(a_resize_meanwhile_is_noticed) {
    Busy busy;
    resizer = embedder::Engine::user(busy.disk, "resizer");
    engine::block::Driver late = engine::block::verify_driver;
    late.open = [](Node& node, const engine::block::OpenArguments& arguments) {
        int result = engine::block::verify_driver.open(node, arguments);
        CHECK_EQ(io(resizer, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, nullptr), 0);
        return result;
    };
    engine::block::OptionBag bag;
    bag.set("reference", "spare");
    Node* filter = nullptr;
    CHECK_EQ(insert_filter(api::unwrap(busy.disk), late, std::move(bag), 1'000'000'000, &filter, &busy.error),
             -EBUSY);
    CHECK(busy.error.says(
        "node disk was resized from 1048576 to 2097152 bytes while driver verify was opened above it"));
    CHECK_EQ(engine_user_close(resizer, &busy.error), 0);
    CHECK_EQ(engine_node_close(busy.spare, &busy.error), 0);
    CHECK(works(busy.requests, Op::write));
}

}  // namespace
