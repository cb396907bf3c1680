// Replay of a recording: what is done, in which order and when (in virtual time), over nodes and queues, by
// one generator or several that share the list; what is refused. A driver notes what reaches it.
#include <cstring>

#include "sim_engine.hh"

namespace {

using embedder::Error;
using engine::block::Op;
using Result = std::unique_ptr<engine_workload_result>;
constexpr uint64_t us = 1000, ms = 1000 * us, second = 1000 * ms;
constexpr uint64_t turn_ns = 100 * us;  // what the simulator's turns may take until a due timer is looked at
constexpr uint64_t disk_bytes = 1 << 20;

// --- a driver that notes what it gets

struct Seen {
    Op op;
    uint64_t offset, length, at_ns;
    const void* buffer;
};
std::vector<Seen> seen;  // of one thread: the simulator's, or that of the only context
int64_t fails_at = -1;   // the number of the request that fails
uint64_t takes_ns = 0;   // 0: at once
struct Slow : engine::aio::Timer {
    engine::block::Request* request;
};

int open_recorder(engine::block::Node& node, const engine::block::OpenArguments&) {
    node.bytes.store_relaxed(disk_bytes);
    node.native_ops = engine::block::ops_of_data;
    return 0;
}
void submit_to_recorder(engine::block::Channel& channel, engine::block::Request* request) {
    bool data = request->op == Op::read || request->op == Op::write;
    seen.push_back({request->op, request->offset, request->length, channel.context->now_ns(),
                    data ? request->iov[0].iov_base : nullptr});
    if (data) {
        CHECK_EQ(request->iov_count, 1);
        CHECK_EQ(request->iov[0].iov_len, request->length);
        memset(request->iov[0].iov_base, 0xa5, request->length);  // a sanitizer sees one that is too short
    }
    int64_t result = static_cast<int64_t>(seen.size()) - 1 == fails_at ? -EIO : 0;
    if (takes_ns == 0) {
        engine::block::finish_later(request, result);
        return;
    }
    auto* slow = new Slow;
    slow->request = request;
    slow->fire = [](engine::aio::Timer* timer) {
        auto* self = static_cast<Slow*>(timer);
        engine::block::Request* done = self->request;
        engine::block::Channel* at = done->channel;
        at->context->timers().unreserve(self);
        delete self;
        engine::block::finish(done, 0);
    };
    REQUIRE(channel.context->timers().reserve(slow) == 0);
    channel.context->timers().arm_reserved(slow, channel.context->now_ns() + takes_ns);
}
const engine::block::Driver recorder{
    .name = "recorder",
    .layer = "protocol",
    .text = "notes what it gets",
    .options = {},
    .children = {},
    .state_size = 0,
    .channel_state_size = 0,
    .open = open_recorder,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = submit_to_recorder,
};

engine_node_t* opened(sim::Engine& engine) {
    engine::block::OptionBag bag;
    bag.set("discard", "unmap");
    return engine.open_with(recorder, std::move(bag));
}

struct Bench {
    sim::Engine engine;
    engine_node_t* node;
    engine_user_t* user;
    explicit Bench(uint64_t seed)
        : engine(seed), node(opened(engine)), user(embedder::Engine::user(node, "load")) {
        seen.clear();
        fails_at = -1;
        takes_ns = 0;
    }
    ~Bench() {
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
    engine_workload_config config(const std::vector<engine_replay_op>& ops, uint64_t speed_ppm = 1000000) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.iodepth = 16;
        config.user = user;
        config.context = engine.context_handle(1);
        config.ops = ops.data();
        config.op_count = ops.size();
        config.replay_speed_ppm = speed_ppm;
        return config;
    }
};

class Load {
  public:
    Load(engine_t* engine, const engine_workload_config& config) {
        Error error;
        int result = engine_workload_create(engine, &config, &workload_, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        if (result != 0) throw check::Failure();
    }
    ~Load() { CHECK_EQ(engine_workload_close(workload_), 0); }
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;
    void start() { CHECK_EQ(engine_workload_start(workload_, nullptr), 0); }
    Result wait() {
        CHECK_EQ(engine_workload_wait(workload_, 100 * second), 0);
        auto made = std::make_unique<engine_workload_result>();
        made->size = sizeof *made;
        CHECK_EQ(engine_workload_get_result(workload_, made.get()), 0);
        return made;
    }
    Result run() {
        start();
        return wait();
    }
    void go_on(uint64_t ns) { CHECK_EQ(engine_workload_wait(workload_, ns), -ETIMEDOUT); }
    void stop() { CHECK_EQ(engine_workload_stop(workload_), 0); }

  private:
    engine_workload_t* workload_ = nullptr;
};

const std::vector<engine_replay_op> mixed = {
    {0, 4096, 8192, ENGINE_OP_READ},
    {1500 * us, 0, 512, ENGINE_OP_WRITE},
    {1500 * us, 65536, 65536, ENGINE_OP_WRITE},
    {40 * ms, 0, 0, ENGINE_OP_FLUSH},
    {40 * ms + 1, 512, 131072, ENGINE_OP_DISCARD},
    {2 * second, disk_bytes - 512, 512, ENGINE_OP_READ},
};

void check_order(const std::vector<engine_replay_op>& ops, size_t first = 0, size_t stride = 1) {
    size_t index = first;
    for (const Seen& one : seen) {
        REQUIRE(index < ops.size());
        const engine_replay_op& op = ops[index];
        CHECK_EQ(static_cast<uint32_t>(one.op), op.op);
        CHECK_EQ(one.offset, op.offset);
        CHECK_EQ(one.length, op.length);
        index += stride;
    }
    CHECK(index >= ops.size());
}

// --- when

TEST(operations_start_when_they_are_due) {
    for (uint64_t seed = 1; seed <= 20; seed++) {
        for (uint64_t speed : {1000000u, 2000000u, 500000u, 333333u}) {
            Bench bench(seed);
            Result result = Load(bench.engine.handle(), bench.config(mixed, speed)).run();
            check_order(mixed);
            for (size_t i = 0; i < seen.size(); i++) {
                uint64_t due = result->started_ns + mixed[i].time_ns * 1000000 / speed;
                CHECK(seen[i].at_ns >= due);
                CHECK(seen[i].at_ns < due + turn_ns);
            }
            CHECK_EQ(result->open_loop, 1);
            CHECK_EQ(result->late, 0);
        }
    }
}

TEST(latency_counts_from_the_recorded_time) {
    Bench bench(3);
    takes_ns = 10 * ms;
    std::vector<engine_replay_op> ops;
    for (uint64_t i = 0; i < 50; i++) ops.push_back({i * ms, i * 4096, 4096, ENGINE_OP_READ});
    engine_workload_config config = bench.config(ops);
    config.iodepth = 1;  // so number k, due after k ms, is done after (k + 1) * 10 ms
    Result result = Load(bench.engine.handle(), config).run();
    CHECK_EQ(result->late, 49);
    uint64_t least = 0;
    for (uint64_t k = 0; k < 50; k++) least += (k + 1) * 10 * ms - k * ms;
    CHECK(result->latency_ns[0].sum >= least);
    CHECK(result->latency_ns[0].sum < least + 50 * 50 * turn_ns);
}

TEST(as_fast_as_depth_allows) {
    Bench bench(4);
    takes_ns = ms;
    std::vector<engine_replay_op> ops;
    for (uint64_t i = 0; i < 100; i++) ops.push_back({i * second, i * 512, 512, ENGINE_OP_WRITE});
    engine_workload_config config = bench.config(ops, 0);
    config.iodepth = 10;
    Result result = Load(bench.engine.handle(), config).run();
    check_order(ops);
    CHECK_EQ(result->open_loop, 0);
    CHECK_EQ(result->depth[3], 93);  // at depth 8 or more: all but the first seven
    CHECK(result->ended_ns - result->started_ns >= 10 * ms);
    CHECK(result->ended_ns - result->started_ns < 20 * ms);
}

TEST(times_that_go_back_start_at_once) {
    Bench bench(5);
    const std::vector<engine_replay_op> ops = {{5 * ms, 0, 512, ENGINE_OP_READ},
                                               {1 * ms, 512, 512, ENGINE_OP_READ},
                                               {6 * ms, 1024, 512, ENGINE_OP_READ}};
    Result result = Load(bench.engine.handle(), bench.config(ops)).run();
    check_order(ops);
    CHECK(seen[1].at_ns - seen[0].at_ns < turn_ns);
    CHECK(result->latency_ns[0].max < ms);  // it was due with the one before it
    CHECK(seen[2].at_ns >= result->started_ns + 6 * ms);
}

// --- what

TEST(each_kind_is_counted) {
    Bench bench(6);
    Result result = Load(bench.engine.handle(), bench.config(mixed)).run();
    CHECK_EQ(result->requests[0], 2);
    CHECK_EQ(result->requests[1], 2);
    CHECK_EQ(result->flushes, 1);
    CHECK_EQ(result->discards, 1);
    CHECK_EQ(result->bytes[0], 8192 + 512);
    CHECK_EQ(result->bytes[1], 512 + 65536);
    CHECK_EQ(result->discard_bytes, 131072);
    CHECK_EQ(result->latency_ns[0].count, 2);
    CHECK_EQ(result->latency_ns[1].count, 2);
    CHECK_EQ(result->flush_latency_ns.count, 1);
    CHECK_EQ(result->discard_latency_ns.count, 1);
    CHECK_EQ(result->errors, 0);
}

TEST(generators_share_a_list) {
    Bench bench(7);
    std::vector<engine_replay_op> ops;
    for (uint64_t i = 0; i < 101; i++) ops.push_back({i * ms, i * 512, 512, ENGINE_OP_READ});
    uint64_t done = 0;
    for (uint64_t first = 0; first < 4; first++) {
        engine_workload_config config = bench.config(ops);
        config.op_first = first;
        config.op_stride = 4;
        seen.clear();
        Result result = Load(bench.engine.handle(), config).run();
        check_order(ops, first, 4);
        for (size_t i = 0; i < seen.size(); i++)
            CHECK(seen[i].at_ns >= result->started_ns + (first + 4 * i) * ms);
        done += result->requests[0];
    }
    CHECK_EQ(done, 101);
}

TEST(a_count_a_runtime_or_a_stop_ends_it_early) {
    Bench bench(8);
    engine_workload_config config = bench.config(mixed);
    config.count = 3;
    CHECK_EQ(Load(bench.engine.handle(), config).run()->requests[1], 2);
    CHECK_EQ(seen.size(), 3);
    config.count = 100;  // more than there are
    seen.clear();
    Load(bench.engine.handle(), config).run();
    CHECK_EQ(seen.size(), mixed.size());
    config.runtime_ns = 50 * ms;
    seen.clear();
    Result result = Load(bench.engine.handle(), config).run();
    CHECK_EQ(seen.size(), 5);
    CHECK(result->ended_ns - result->started_ns >= 50 * ms);
}

// Neither a second stop nor the end of its time makes less of what waited at the first.
TEST(what_waits_for_a_stalled_disk_at_a_stop_is_counted) {
    Bench bench(14);
    takes_ns = second;
    std::vector<engine_replay_op> ops;
    for (uint64_t i = 0; i < 100; i++) ops.push_back({i * ms, i * 512, 512, ENGINE_OP_READ});
    engine_workload_config config = bench.config(ops);
    config.iodepth = 2;
    config.runtime_ns = 60 * ms;
    Load load(bench.engine.handle(), config);
    load.start();
    load.go_on(30 * ms);
    load.stop();
    load.go_on(5 * ms);
    load.stop();
    Result result = load.wait();
    CHECK_EQ(seen.size(), 2);
    CHECK_EQ(result->requests[0], 2);
    CHECK(result->unissued >= 28 && result->unissued <= 30);
    CHECK_EQ(result->latency_ns[0].count, 2 + result->unissued);
    CHECK(result->latency_ns[0].min >= 900 * ms);
}

TEST(a_failure_is_counted_and_the_rest_goes_on) {
    Bench bench(9);
    fails_at = 1;
    Result result = Load(bench.engine.handle(), bench.config(mixed)).run();
    CHECK_EQ(result->errors, 1);
    CHECK_EQ(result->error_errnum, EIO);
    CHECK_EQ(result->bytes[1], 65536);
    CHECK_EQ(seen.size(), mixed.size());
}

TEST(what_lies_beyond_wraps_around) {
    Bench bench(10);
    const std::vector<engine_replay_op> ops = {{0, disk_bytes + 4096, 4096, ENGINE_OP_READ},
                                               {0, 7 * disk_bytes - 512, 4096, ENGINE_OP_READ},
                                               {0, (uint64_t{1} << 62) + 1024, disk_bytes, ENGINE_OP_WRITE},
                                               {0, disk_bytes - 512, 512, ENGINE_OP_READ}};
    engine_workload_config config = bench.config(ops, 0);
    config.flags = ENGINE_WORKLOAD_WRAP;
    Load(bench.engine.handle(), config).run();
    const uint64_t offsets[] = {4096, disk_bytes - 4096, 0, disk_bytes - 512};
    REQUIRE(seen.size() == 4);
    for (size_t i = 0; i < 4; i++) CHECK_EQ(seen[i].offset, offsets[i]);
    // Onto a part of the node.
    config.offset = 8192;
    config.length = 65536;
    config.op_count = 2;
    seen.clear();
    Load(bench.engine.handle(), config).run();
    REQUIRE(seen.size() == 2);
    CHECK_EQ(seen[0].offset, 8192 + 4096);
    CHECK_EQ(seen[1].offset, 8192 + 65536 - 4096);
}

// --- what is refused

void refused(Bench& bench, const engine_workload_config& config, const char* text) {
    Error error;
    engine_workload_t* out = nullptr;
    int result = engine_workload_create(bench.engine.handle(), &config, &out, &error);
    check::report(result < 0 && strstr(error.message, text) != nullptr, __FILE__, __LINE__,
                  std::string(error.message) + " / " + text);
    if (out != nullptr) engine_workload_close(out);
}

TEST(operations_are_checked) {
    Bench bench(11);
    const struct {
        engine_replay_op op;
        const char* text;
    } cases[] = {
        {{0, disk_bytes, 512, ENGINE_OP_READ},
         "operation 0 of the replay (kind 0, offset 1048576, length 512) lies"},
        {{0, disk_bytes - 511, 512, ENGINE_OP_WRITE}, "lies beyond the end"},
        {{0, UINT64_MAX, 512, ENGINE_OP_WRITE}, "lies beyond the end"},
        {{0, UINT64_MAX - 100, UINT32_MAX, ENGINE_OP_DISCARD}, "longer than the range"},
        {{0, 0, 2 * disk_bytes, ENGINE_OP_READ}, "longer than the range"},
        {{0, 0, (1u << 30) + 1, ENGINE_OP_READ}, "longer than 1 GiB"},
        {{0, 0, 0, ENGINE_OP_READ}, "has no length"},
        {{0, 0, 512, ENGINE_OP_WRITE_ZEROES}, "is no read, write, flush or discard"},
        {{0, 0, 512, UINT32_MAX}, "is no read, write, flush or discard"},
        {{UINT64_MAX, 0, 512, ENGINE_OP_READ}, "10^9 seconds"},
    };
    for (const auto& one : cases) {
        const std::vector<engine_replay_op> ops = {one.op};
        refused(bench, bench.config(ops), one.text);
    }
    // The last of many is found, and one that is another generator's is not looked for.
    std::vector<engine_replay_op> ops(1000, {0, 0, 512, ENGINE_OP_READ});
    ops[999].offset = disk_bytes;
    refused(bench, bench.config(ops), "operation 999");
    engine_workload_config config = bench.config(ops);
    config.op_stride = 2;
    CHECK_EQ(Load(bench.engine.handle(), config).run()->requests[0], 500);
    // Slowed down, it would take too long.
    ops = {{500000000 * second, 0, 512, ENGINE_OP_READ}};
    refused(bench, bench.config(ops, 400000), "10^9 seconds");
}

TEST(configurations_are_checked) {
    Bench bench(12);
    const std::vector<engine_replay_op> ops = {{0, 0, 131072, ENGINE_OP_READ}};
    auto with = [&](auto change, const char* text) {
        engine_workload_config config = bench.config(ops);
        change(config);
        refused(bench, config, text);
    };
    with([](auto& c) { c.op_count = 0; }, "op_count");
    with([](auto& c) { c.op_first = 1; }, "op_first");
    with([](auto& c) { c.replay_speed_ppm = 1000000001; }, "replay_speed_ppm");
    with([](auto& c) { c.rate_iops = 1; }, "rate_iops");
    with([](auto& c) { c.flush_every = 1; }, "flush_every");
    with([](auto& c) { c.flags = ENGINE_WORKLOAD_VERIFY; }, "flags");
    with([](auto& c) { c.iodepth = 0; }, "iodepth");
    with([](auto& c) { c.iodepth = 65536; }, "more than the 4 GiB");
    with([](auto& c) { c.offset = disk_bytes + 1; }, "does not fit");
    with([](auto& c) { c.offset = UINT64_MAX; }, "does not fit");
    with([](auto& c) { c.length = disk_bytes + 1; }, "does not fit");
    with([](auto& c) { c.offset = disk_bytes - 512; }, "longer than the range");
}

// --- through a queue

TEST(a_queue_gets_the_same) {
    embedder::Engine engine;
    engine_node_t* node = engine.open({{"driver", "memory"}, {"size", "1M"}, {"discard", "unmap"}});
    engine_context_t* contexts[] = {engine.context("io0"), engine.context("io1")};
    engine_disk_config disk_config{};
    disk_config.size = sizeof disk_config;
    disk_config.queue_count = 2;
    disk_config.write_cache = disk_config.event_index = disk_config.indirect = 1;
    disk_config.name = "vda";
    disk_config.contexts = contexts;
    Error error;
    engine_disk_t* disk = nullptr;
    REQUIRE(engine_disk_create(node, &disk_config, &disk, &error) == 0);
    engine_workload_config config{};
    config.size = sizeof config;
    config.iodepth = 8;
    config.ops = mixed.data();
    config.op_count = mixed.size();
    config.op_stride = 2;
    {
        config.queue = engine_disk_get_queue(disk, 0);
        Load even(engine, config);
        config.queue = engine_disk_get_queue(disk, 1);
        config.op_first = 1;
        Load odd(engine, config);
        even.start();
        odd.start();
        Result evens = even.wait(), odds = odd.wait();
        CHECK_EQ(evens->requests[0] + odds->requests[0], 2);
        CHECK_EQ(evens->requests[1] + odds->requests[1], 2);
        CHECK_EQ(evens->bytes[0] + odds->bytes[0], 8192 + 512);
        CHECK_EQ(evens->bytes[1] + odds->bytes[1], 512 + 65536);
        CHECK_EQ(evens->flushes + odds->flushes, 1);
        CHECK_EQ(evens->discards + odds->discards, 1);
        CHECK_EQ(evens->errors + odds->errors, 0);
    }
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    CHECK_EQ(stats.op[ENGINE_OP_READ].bytes, 8192 + 512);
    CHECK_EQ(stats.op[ENGINE_OP_WRITE].bytes, 512 + 65536);
    CHECK_EQ(stats.op[ENGINE_OP_DISCARD].bytes, 131072);
    // Sectors only.
    const engine_replay_op ragged[] = {{0, 512, 511, ENGINE_OP_READ}};
    config.ops = ragged;
    config.op_count = 1;
    config.op_first = 0;
    engine_workload_t* out = nullptr;
    CHECK(engine_workload_create(engine, &config, &out, &error) < 0);
    CHECK(strstr(error.message, "whole sectors") != nullptr);
    CHECK_EQ(engine_disk_close(disk, &error), 0);
}

}  // namespace
