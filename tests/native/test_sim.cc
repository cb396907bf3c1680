// The simulator: one seed is one history, in virtual time; other seeds are other histories; faults reach the
// caller. All on one thread.
#include <set>

#include "aio/bottom_half.hh"
#include "sim_engine.hh"

namespace {

using embedder::Error;
using engine::aio::AioContext;
using engine::aio::IoKind;
using engine::aio::IoOp;
using engine::aio::Signal;
using engine::aio::Simulator;

engine_workload_t* start_load(sim::Engine& engine, size_t context, engine_user_t* user, uint32_t flags,
                              uint64_t rate_iops = 0) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 8;
    config.count = 300;
    config.flush_every = 16;
    config.seed = 5;  // of the offsets: what differs between histories is the schedule alone
    config.rate_iops = rate_iops;
    config.flags = flags;
    config.user = user;
    config.context = engine.context_handle(context);
    engine_workload_t* made = nullptr;
    Error error;
    int result = engine_workload_create(engine.handle(), &config, &made, &error);
    if (result == 0) result = engine_workload_start(made, &error);
    check::report(result == 0, __FILE__, __LINE__, std::string("workload: ") + error.message);
    if (result != 0) throw check::Failure();
    return made;
}

engine_workload_result result_of(engine_workload_t* load) {
    engine_workload_result result{};
    result.size = sizeof result;
    CHECK_EQ(engine_workload_get_result(load, &result), 0);
    return result;
}

// Two contexts that schedule each other's bottom half.
struct Player {
    Simulator* simulator = nullptr;
    engine_bh_t* other = nullptr;
    unsigned hits = 0;
    static void hit(void* opaque) {
        auto* self = static_cast<Player*>(opaque);
        self->simulator->trace(++self->hits);
        if (self->hits < 100) CHECK_EQ(engine_bh_schedule(self->other), 0);
    }
};

struct History {
    uint64_t hash = 0;
    uint64_t end_ns = 0;
    uint64_t latency_ns = 0;  // all requests together
    bool operator==(const History&) const = default;
};

History live(uint64_t seed) {
    sim::Engine engine(seed);
    Simulator& simulator = engine.simulator;
    engine_user_t* slow =
        embedder::Engine::user(engine.open({{"driver", "null"}, {"latency-ns", "70us"}}), "slow");
    engine_user_t* disk =
        embedder::Engine::user(engine.open_disk(simulator.files().add(1 << 20), 1 << 20), "disk");
    Player players[2];
    engine_bh_t* halves[2];
    for (size_t i = 0; i < 2; i++)
        halves[i] = engine_bh_new(engine.context_handle(1 + i), Player::hit, &players[i]);
    for (size_t i = 0; i < 2; i++) players[i].simulator = &simulator, players[i].other = halves[1 - i];
    CHECK_EQ(engine_bh_schedule(halves[0]), 0);
    engine_workload_t* loads[] = {
        start_load(engine, 1, disk, ENGINE_WORKLOAD_VERIFY),
        start_load(engine, 2, disk, ENGINE_WORKLOAD_VERIFY),
        start_load(engine, 2, slow, 0, 20000),
    };
    History history;
    for (engine_workload_t* load : loads) {
        CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
        engine_workload_result result = result_of(load);
        CHECK_EQ(result.errors, 0);
        CHECK_EQ(result.verify_errors, 0);
        CHECK_EQ(result.requests[0] + result.requests[1] + result.flushes, 300);
        for (const engine_histogram& way : result.latency_ns) history.latency_ns += way.sum;
        CHECK_EQ(engine_workload_close(load), 0);
    }
    CHECK(simulator.run_until([&] { return players[0].hits == 100; }));
    CHECK(!simulator.run_until([] { return false; }));  // it comes to an end
    for (engine_bh_t* half : halves) engine_bh_delete(half);
    Error error;
    CHECK_EQ(engine_user_close(slow, &error), 0);
    CHECK_EQ(engine_user_close(disk, &error), 0);
    history.hash = simulator.trace_hash();
    history.end_ns = simulator.now_ns();
    return history;
}

TEST(one_seed_is_one_history) {
    std::set<uint64_t> hashes;
    for (uint64_t seed = 0; seed < 20; seed++) {
        History history = live(seed);
        CHECK(history == live(seed));
        hashes.insert(history.hash);
        CHECK(history.latency_ns > 0);
    }
    CHECK_EQ(hashes.size(), 20);
}

TEST(time_is_virtual) {
    sim::Engine engine(1);
    engine_user_t* user =
        embedder::Engine::user(engine.open({{"driver", "null"}, {"latency-ns", "60s"}}), "test");
    char buffer[512];
    Error error;
    uint64_t before_ns = engine.simulator.now_ns();
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, engine.context_handle(1)),
                 512);
    }
    uint64_t minutes_ns = engine.simulator.now_ns() - before_ns;
    CHECK(minutes_ns >= 6000'000'000'000 && minutes_ns < 6001'000'000'000);
    // A workload's own times are on that clock as well.
    engine_workload_t* load = start_load(engine, 2, user, 0);
    CHECK_EQ(engine_workload_wait(load, 3600'000'000), -ETIMEDOUT);
    CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
    engine_workload_result result = result_of(load);
    CHECK(result.latency_ns[0].min >= 60'000'000'000);
    CHECK(result.ended_ns - result.started_ns >= 300 / 8 * 60'000'000'000);
    CHECK_EQ(engine_workload_close(load), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(timers_fire_in_virtual_time) {
    sim::Engine engine(3);
    struct Fired {
        Simulator* simulator;
        uint64_t at_ns = 0;
        static void done(void* opaque, int fired) {
            auto* self = static_cast<Fired*>(opaque);
            if (fired != 0) self->at_ns = self->simulator->now_ns();
        }
    } soon{&engine.simulator}, late{&engine.simulator};
    engine_timer_t* soon_timer = engine_timer_new(engine.context_handle(1), Fired::done, &soon);
    engine_timer_t* late_timer = engine_timer_new(engine.context_handle(2), Fired::done, &late);
    uint64_t now_ns = engine.simulator.now_ns();
    CHECK_EQ(engine_timer_arm(late_timer, now_ns + 3600'000'000'000), 0);
    CHECK_EQ(engine_timer_arm(soon_timer, now_ns + 1000'000), 0);
    CHECK(!engine.simulator.run_until([] { return false; }));
    CHECK(soon.at_ns >= now_ns + 1000'000 && soon.at_ns < now_ns + 2000'000);
    CHECK(late.at_ns >= now_ns + 3600'000'000'000 && late.at_ns < now_ns + 3601'000'000'000);
    engine_timer_delete(soon_timer);
    engine_timer_delete(late_timer);
}

// What the seed decides comes out either way.
TEST(seeds_choose_between_contexts_and_between_completions) {
    std::set<std::vector<int>> turns;
    std::set<std::vector<int>> completions;
    for (uint64_t seed = 0; seed < 50; seed++) {
        sim::Engine engine(seed);
        struct Mark {
            std::vector<int>* order;
            int number;
            static void put(void* opaque) {
                auto* self = static_cast<Mark*>(opaque);
                self->order->push_back(self->number);
            }
        };
        std::vector<int> order;
        Mark marks[2] = {{&order, 0}, {&order, 1}};
        for (size_t i = 0; i < 2; i++) {
            CHECK_EQ(engine_schedule_oneshot(engine.context_handle(1 + i), Mark::put, &marks[i]), 0);
        }
        engine.simulator.run_until([&] { return order.size() == 2; });
        turns.insert(order);

        struct Op : IoOp {
            std::vector<int>* order;
            int number;
        } ops[3];
        std::vector<int> done_order;
        engine.simulator.files().latency_min_ns = engine.simulator.files().latency_max_ns = 1000;
        CHECK_EQ(engine.context(1).call_and_wait([&] {
            for (int i = 0; i < 3; i++) {
                Op& op = ops[i];
                op.order = &done_order;
                op.number = i;
                op.call = [](IoOp*) -> int64_t { return 42; };
                op.done = [](IoOp* done, int64_t result) {
                    auto* self = static_cast<Op*>(done);
                    CHECK_EQ(result, 42);
                    self->order->push_back(self->number);
                };
                engine.context(1).backend().queue(&op);
            }
        }),
                 0);
        CHECK(done_order.empty());  // never inside the call that submits
        engine.simulator.run_until([&] { return done_order.size() == 3; });
        completions.insert(done_order);
    }
    CHECK_EQ(turns.size(), 2);
    CHECK_EQ(completions.size(), 6);
}

TEST(an_injected_error_reaches_the_caller) {
    for (uint64_t k = 1; k <= 10; k++) {
        sim::Engine engine(k);
        int fd = engine.simulator.files().add(65536);
        engine_user_t* user = embedder::Engine::user(engine.open_disk(fd, 65536), "test");
        engine.simulator.fail_operation(k, EIO);
        char buffer[4096];
        memset(buffer, 'x', sizeof buffer);
        Error error;
        for (uint64_t i = 1; i <= 10; i++) {
            int64_t result = embedder::io(user, ENGINE_OP_WRITE, buffer, (i - 1) * 4096, 4096, 0, &error,
                                          engine.context_handle(1 + i % 2));
            CHECK_EQ(result, i == k ? -EIO : 4096);
            if (i == k) {
                CHECK_EQ(error.errnum, EIO);
                CHECK_EQ(error.offset, (k - 1) * 4096);
            }
            bool there = engine.simulator.files().bytes(fd)[(i - 1) * 4096] == std::byte{'x'};
            CHECK_EQ(there, i != k);  // it failed without effect
        }
        CHECK_EQ(engine.simulator.operations(), 10);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
    sim::Engine engine(1);
    engine_user_t* user =
        embedder::Engine::user(engine.open_disk(engine.simulator.files().add(1 << 20), 1 << 20), "test");
    engine.simulator.fail_operation(17, EIO);
    engine_workload_t* load = start_load(engine, 1, user, ENGINE_WORKLOAD_VERIFY);
    CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
    engine_workload_result result = result_of(load);
    CHECK_EQ(result.errors, 1);
    CHECK_EQ(result.error_errnum, EIO);
    CHECK_EQ(result.verify_errors, 0);
    CHECK_EQ(engine_workload_close(load), 0);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(a_handler_of_ones_own_serves_the_operations) {
    struct Slow final : engine::aio::SimHandler {
        unsigned served = 0;
        uint64_t latency_ns(const IoOp&, engine::base::Random&) override { return 1000'000'000; }
        int64_t perform(IoOp& op) override {
            served++;
            return op.kind == IoKind::fdatasync ? -ENOSPC : static_cast<int64_t>(op.length);
        }
    } slow;
    sim::Engine engine(1);
    engine.simulator.serve_with(slow);
    engine_user_t* user = embedder::Engine::user(engine.open_disk(0, 65536), "test");
    char buffer[512];
    Error error;
    uint64_t before_ns = engine.simulator.now_ns();
    CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE, buffer, 0, 512, 0, &error, engine.context_handle(1)), 512);
    CHECK_EQ(embedder::io(user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error, engine.context_handle(2)),
             -ENOSPC);
    CHECK_EQ(slow.served, 2);
    CHECK(engine.simulator.now_ns() - before_ns >= 2000'000'000);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(simulated_files_end_where_they_end) {
    sim::Engine engine(1);
    engine::aio::SimFiles& files = engine.simulator.files();
    int fd = files.add(1000);
    char bytes[600];
    memset(bytes, 'y', sizeof bytes);
    iovec parts[2] = {{bytes, 300}, {bytes + 300, 300}};
    IoOp op;
    op.iov = parts;
    op.iov_count = 2;
    op.length = 600;
    op.fd = fd;
    op.kind = IoKind::write;
    CHECK_EQ(files.perform(op), 600);
    op.offset = 500;
    CHECK_EQ(files.perform(op), -ENOSPC);
    op.kind = IoKind::read;
    CHECK_EQ(files.perform(op), 500);
    CHECK(bytes[99] == 'y');
    CHECK(bytes[100] == 0);
    op.offset = 1000;
    CHECK_EQ(files.perform(op), 0);
    op.kind = IoKind::fallocate;
    op.offset = 10;
    op.length = 20;
    op.flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    CHECK_EQ(files.perform(op), 0);
    CHECK(files.bytes(fd)[9] == std::byte{'y'} && files.bytes(fd)[10] == std::byte{0} &&
          files.bytes(fd)[29] == std::byte{0} && files.bytes(fd)[30] == std::byte{'y'});
    op.flags = 0;
    CHECK_EQ(files.perform(op), -EOPNOTSUPP);
    op.fd = 3;
    CHECK_EQ(files.perform(op), -EBADF);
}

TEST(what_the_simulation_refuses) {
    sim::Engine engine(1);
    Error error;
    engine_fd_handler_t* handler = nullptr;
    CHECK_EQ(engine_fd_handler_new(
                 engine.context_handle(1), 0, [](void*) {}, nullptr, nullptr, nullptr, &handler, &error),
             -ENOTSUP);
    CHECK_EQ(engine_context_run_once(engine.context_handle(1), 0, &error), -EINVAL);
    CHECK(error.says("the simulator drives it"));
    engine_context_info info{};
    info.size = sizeof info;
    CHECK_EQ(engine_context_get_info(engine.context_handle(1), &info, &error), 0);
    CHECK_EQ(info.backend, ENGINE_BACKEND_SIM);
    Signal never;
    CHECK(!never.wait_for(1000));
    CHECK_ABORTS("nothing is left to happen", never.wait());
}

}  // namespace
