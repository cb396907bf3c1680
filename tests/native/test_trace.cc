// Traces: which marks requests leave, in virtual time with exact durations; through files on both backends
// and through virtqueues to another context; and how many are kept. Judged by marks and counts.
#include <algorithm>
#include <memory>
#include <vector>

#include "embedder.hh"
#include "file_bench.hh"
#include "sim_engine.hh"

namespace {

using embedder::both_backends;
using embedder::Error;
using Traces = std::vector<engine_trace>;

struct Drawn {
    Traces traces;
    uint32_t every = 0;
};

engine_workload_config reads(uint64_t count, uint32_t every) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 100;
    config.block_size = 4096;
    config.iodepth = 4;
    config.count = count;
    config.seed = 11;
    config.trace_every = every;
    return config;
}

Drawn run(engine_t* engine, const engine_workload_config& config) {
    engine_workload_t* workload = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine, &config, &workload, &error) == 0);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
    Drawn drawn;
    uint64_t count = 0;
    CHECK_EQ(engine_workload_get_traces(workload, nullptr, 0, &count, &drawn.every), 0);
    drawn.traces.resize(count);
    CHECK_EQ(engine_workload_get_traces(workload, drawn.traces.data(), count, &count, &drawn.every), 0);
    CHECK_EQ(engine_workload_close(workload), 0);
    for (engine_trace& trace : drawn.traces) {  // in order of time, and else as they were made
        for (unsigned i = 1; i < trace.mark_count; i++) {
            for (unsigned at = i; at != 0 && trace.marks[at].at_ns < trace.marks[at - 1].at_ns; at--) {
                std::swap(trace.marks[at], trace.marks[at - 1]);
            }
        }
    }
    return drawn;
}

const engine_trace_mark* find(const engine_trace& trace, unsigned kind, unsigned detail = 0,
                              uint32_t node = 0) {
    for (unsigned i = 0; i < trace.mark_count; i++) {
        const engine_trace_mark& mark = trace.marks[i];
        if (mark.kind == kind && mark.detail == detail && (node == 0 || mark.node == node)) return &mark;
    }
    return nullptr;
}

uint64_t at(const engine_trace& trace, unsigned kind, unsigned detail = 0, uint32_t node = 0) {
    const engine_trace_mark* mark = find(trace, kind, detail, node);
    check::report(mark != nullptr, __FILE__, __LINE__, "a mark is missing");
    if (mark == nullptr) throw check::Failure();
    return mark->at_ns;
}

uint32_t id_of(engine_node_t* node) {
    return static_cast<uint32_t>(embedder::info_of(node).id);
}

uint16_t id_of(engine_context_t* context) {
    engine_context_info info{};
    info.size = sizeof info;
    CHECK_EQ(engine_context_get_info(context, &info, nullptr), 0);
    return static_cast<uint16_t>(info.id);
}

void close(engine_user_t* user) {
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(waits_are_as_long_as_they_were) {
    sim::Engine engine(3);
    engine_node_t* below =
        engine.open({{"driver", "null"}, {"node-name", "disk"}, {"latency-ns", "100us"}, {"size", "1M"}});
    engine_node_t* node = engine.open({{"driver", "delay"}, {"read", "70us"}, {"file", "disk"}});
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine_workload_config config = reads(200, 1);
    config.user = user;
    config.context = engine.context_handle(1);
    Drawn drawn = run(engine.handle(), config);
    CHECK_EQ(drawn.every, 1);
    CHECK_EQ(drawn.traces.size(), 200);
    const uint16_t context = id_of(engine.context_handle(1));
    for (const engine_trace& trace : drawn.traces) {
        CHECK_EQ(trace.mark_count, 9);
        CHECK_EQ(trace.marks_lost, 0);
        CHECK_EQ(trace.op, ENGINE_OP_READ);
        CHECK_EQ(trace.length, 4096);
        CHECK_EQ(trace.front_context, context);
        for (unsigned i = 0; i < trace.mark_count; i++) CHECK_EQ(trace.marks[i].context, context);
        const uint64_t held = at(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_HELD, id_of(node));
        CHECK(at(trace, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD, id_of(node)) - held >= 70'000);
        const uint64_t device = at(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_DEVICE, id_of(below));
        CHECK(at(trace, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE, id_of(below)) - device >= 100'000);
        CHECK(at(trace, ENGINE_MARK_ENTERED, 0, id_of(below)) >= held + 70'000);
        CHECK(at(trace, ENGINE_MARK_LEFT, 0, id_of(node)) >= device + 100'000);
        CHECK(trace.start_ns <= at(trace, ENGINE_MARK_POPPED));
        CHECK(trace.end_ns >= at(trace, ENGINE_MARK_LEFT, 0, id_of(node)));
    }
    close(user);
}

TEST(a_change_of_the_graph_is_a_wait) {
    sim::Engine engine(5);
    engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "1ms"}, {"size", "1M"}});
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine_workload_config config = reads(0, 1);
    config.runtime_ns = 20'000'000;
    config.rate_iops = 10000;  // so that some come while the graph is at rest
    config.iodepth = 64;
    config.user = user;
    config.context = engine.context_handle(1);
    engine_workload_t* workload = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine.handle(), &config, &workload, &error) == 0);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    const engine_option options[] = {{"driver", "passthrough"}};
    engine_node_t* filter = nullptr;
    CHECK_EQ(engine_node_insert_filter(node, options, 1, 0, &filter, &error), 0);
    CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
    uint64_t count = 0;
    uint32_t every = 0;
    Traces traces(4096);
    CHECK_EQ(engine_workload_get_traces(workload, traces.data(), traces.size(), &count, &every), 0);
    traces.resize(std::min<uint64_t>(count, traces.size()));
    unsigned waited = 0;
    for (const engine_trace& trace : traces) {
        const engine_trace_mark* held = find(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_CHANGE);
        if (held == nullptr) continue;
        waited++;
        CHECK_EQ(held->node, 0);  // in none, before and after
        CHECK_EQ(find(trace, ENGINE_MARK_WAITED, ENGINE_WAIT_CHANGE)->node, 0);
        CHECK(at(trace, ENGINE_MARK_WAITED, ENGINE_WAIT_CHANGE) >=
              at(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_CHANGE));
        CHECK(find(trace, ENGINE_MARK_ENTERED, 0, id_of(filter)) != nullptr);
    }
    CHECK(waited != 0);
    CHECK_EQ(engine_workload_close(workload), 0);
    close(user);
}

TEST(the_kernel_has_it_between_two_marks) {
    for (uint32_t backend : both_backends) {
        file_bench::Folder folder;
        std::string file = folder.make("disk", 1 << 20);
        embedder::Engine engine;
        engine_context_t* context = engine.context("io", backend);
        engine_node_t* node = engine.open({{"driver", "file"}, {"filename", file.c_str()}});
        engine_user_t* user = embedder::Engine::user(node, "load");
        engine_workload_config config = reads(300, 3);
        config.read_percent = 50;
        config.flush_every = 5;
        config.user = user;
        config.context = context;
        Drawn drawn = run(engine, config);
        CHECK(drawn.traces.size() > 40 && drawn.traces.size() < 250);
        unsigned ops[ENGINE_OP_COUNT] = {};
        for (const engine_trace& trace : drawn.traces) {
            ops[trace.op]++;
            // One flush at a time: those that come meanwhile share the next.
            if (find(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_DEVICE) != nullptr) continue;
            CHECK(at(trace, ENGINE_MARK_QUEUED) <= at(trace, ENGINE_MARK_SUBMITTED));
            CHECK(at(trace, ENGINE_MARK_SUBMITTED) <= at(trace, ENGINE_MARK_REAPED));
            CHECK(at(trace, ENGINE_MARK_ENTERED) <= at(trace, ENGINE_MARK_QUEUED));
            CHECK(at(trace, ENGINE_MARK_REAPED) <= at(trace, ENGINE_MARK_LEFT));
            CHECK(trace.end_ns >= at(trace, ENGINE_MARK_LEFT));
        }
        CHECK(ops[ENGINE_OP_READ] != 0 && ops[ENGINE_OP_WRITE] != 0 && ops[ENGINE_OP_FLUSH] != 0);
        close(user);
    }
}

TEST(a_trace_goes_with_its_chain_to_another_context) {
    embedder::Engine engine;
    engine_context_t* front = engine.context("front");
    engine_context_t* back = engine.context("back");
    engine_node_t* node = engine.open({{"driver", "null"}});
    engine_disk_config disk_config{};
    disk_config.size = sizeof disk_config;
    disk_config.queue_count = 1;
    disk_config.queue_size = 16;
    disk_config.indirect = 1;
    disk_config.contexts = &back;
    engine_disk_t* disk = nullptr;
    Error error;
    REQUIRE(engine_disk_create(node, &disk_config, &disk, &error) == 0);
    engine_workload_config config = reads(5000, 7);
    config.iodepth = 16;
    config.read_percent = 50;
    config.flush_every = 3;
    config.queue = engine_disk_get_queue(disk, 0);
    config.context = front;
    for (unsigned round = 0; round < 2; round++) {
        Drawn drawn = run(engine, config);
        CHECK(drawn.traces.size() > 300);
        for (const engine_trace& trace : drawn.traces) {
            CHECK_EQ(trace.front_context, id_of(front));
            for (unsigned i = 0; i < trace.mark_count; i++) CHECK_EQ(trace.marks[i].context, id_of(back));
            CHECK_EQ(trace.mark_count, 4);  // popped, entered, left, completed
            CHECK(at(trace, ENGINE_MARK_POPPED) >= trace.start_ns);
            CHECK(at(trace, ENGINE_MARK_LEFT) <= at(trace, ENGINE_MARK_COMPLETED));
            CHECK(at(trace, ENGINE_MARK_COMPLETED) <= trace.end_ns);
        }
    }
    config.trace_every = 0;  // the next driver of the queue traces nothing
    CHECK_EQ(run(engine, config).traces.size(), 0);
    CHECK_EQ(engine_disk_close(disk, &error), 0);
}

TEST(parts_share_the_trace_of_their_request) {
    sim::Engine engine(9);
    engine.open({{"driver", "null"}, {"node-name", "below"}, {"size", "1M"}});
    engine.open({{"driver", "memory"}, {"node-name", "data"}, {"size", "4M"}});
    engine_node_t* node =
        engine.open({{"driver", "overlay"}, {"file", "data"}, {"backing", "below"}, {"cluster-size", "64k"}});
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine_workload_config config = reads(400, 1);
    config.read_percent = 50;
    config.user = user;
    config.context = engine.context_handle(1);
    Drawn drawn = run(engine.handle(), config);
    unsigned locked = 0;
    for (const engine_trace& trace : drawn.traces) {
        unsigned open = 0;
        for (unsigned i = 0; i < trace.mark_count; i++) {
            if (trace.marks[i].kind == ENGINE_MARK_ENTERED) open++;
            if (trace.marks[i].kind == ENGINE_MARK_LEFT) open--;
        }
        CHECK_EQ(open, 0);
        CHECK(find(trace, ENGINE_MARK_ENTERED, 0, id_of(node)) != nullptr);
        if (find(trace, ENGINE_MARK_WAIT, ENGINE_WAIT_LOCK, id_of(node)) == nullptr) continue;
        locked++;
        CHECK(find(trace, ENGINE_MARK_WAITED, ENGINE_WAIT_LOCK, id_of(node)) != nullptr);
    }
    CHECK(locked != 0);  // writes of something new
    close(user);
}

TEST(a_bounded_number_is_kept_evenly) {
    sim::Engine engine(13, 1);
    engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "1us"}});
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine_workload_config config = reads(40000, 1);
    config.user = user;
    config.context = engine.context_handle(1);
    Drawn drawn = run(engine.handle(), config);
    CHECK(drawn.traces.size() <= 4096);
    CHECK(drawn.traces.size() > 1024);
    CHECK(drawn.every >= 8 && drawn.every <= 32);
    uint64_t first = UINT64_MAX, last = 0;
    for (const engine_trace& trace : drawn.traces) {
        first = std::min(first, trace.start_ns);
        last = std::max(last, trace.end_ns);
    }
    // A quarter of them in each quarter of the time, give or take a third.
    uint64_t quarters[4] = {};
    for (const engine_trace& trace : drawn.traces) {
        quarters[std::min<uint64_t>((trace.start_ns - first) * 4 / (last - first), 3)]++;
    }
    for (uint64_t own : quarters) CHECK(own * 6 > drawn.traces.size() && own * 3 < drawn.traces.size());
    close(user);
}

TEST(one_that_is_running_keeps_its_traces_to_itself) {
    embedder::Engine engine;
    engine_context_t* context = engine.context("io");
    engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "1ms"}});
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine_workload_config config = reads(0, 1);
    config.runtime_ns = 60'000'000'000;
    config.user = user;
    config.context = context;
    engine_workload_t* workload = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine, &config, &workload, &error) == 0);
    uint64_t count = 7;
    uint32_t every = 7;
    CHECK_EQ(engine_workload_get_traces(workload, nullptr, 0, &count, &every), 0);
    CHECK_EQ(count, 0);
    CHECK_EQ(every, 1);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    CHECK_EQ(engine_workload_get_traces(workload, nullptr, 0, &count, &every), -EBUSY);
    CHECK_EQ(engine_workload_close(workload), 0);
    close(user);
}

TEST(marks_beyond_the_room_are_counted) {
    embedder::Engine engine;
    engine_context_t* context = engine.context("io");
    engine_node_t* top = engine.open({{"driver", "null"}, {"node-name", "f0"}});
    const char* names[] = {"f0",  "f1",  "f2",  "f3",  "f4",  "f5",  "f6",  "f7",  "f8",  "f9",  "f10",
                           "f11", "f12", "f13", "f14", "f15", "f16", "f17", "f18", "f19", "f20", "f21",
                           "f22", "f23", "f24", "f25", "f26", "f27", "f28", "f29", "f30", "f31", "f32"};
    for (unsigned i = 1; i <= 32; i++) {
        top = engine.open({{"driver", "passthrough"}, {"node-name", names[i]}, {"file", names[i - 1]}});
    }
    engine_user_t* user = embedder::Engine::user(top, "load");
    engine_workload_config config = reads(10, 1);
    config.user = user;
    config.context = context;
    for (const engine_trace& trace : run(engine, config).traces) {
        CHECK_EQ(trace.mark_count, 64);
        CHECK_EQ(trace.marks_lost, 1 + 2 * 33 - 64);
    }
    close(user);
}

}  // namespace
