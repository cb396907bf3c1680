// The load generator through virtqueues: no wake-up is lost between two contexts that sleep, contents are
// verified with two contexts at work on one node, figures add up. Each generator and each queue runs on a
// context's thread.
#include "virtio_disk.hh"

using namespace rig;

namespace {

constexpr uint64_t wait_ns = 50'000'000'000;  // past that a request is lost

struct Workload {
    Workload(Engine& engine, const engine_workload_config& given) {
        engine_workload_config config = given;
        config.size = sizeof config;
        engine_error error{};
        require(engine_workload_create(engine.handle, &config, &handle, &error) == 0, "workload", error);
    }
    Workload(const Workload&) = delete;
    ~Workload() { CHECK_EQ(engine_workload_close(handle), 0); }
    void start() { CHECK_EQ(engine_workload_start(handle, nullptr), 0); }
    bool wait() { return CHECK_EQ(engine_workload_wait(handle, wait_ns), 0); }
    engine_workload_result result() {
        engine_workload_result out{};
        out.size = sizeof out;
        CHECK_EQ(engine_workload_get_result(handle, &out), 0);
        return out;
    }
    engine_workload_t* handle = nullptr;
};

engine_workload_config load(engine_queue_t* queue, engine_context_t* on, uint32_t depth, uint64_t count) {
    engine_workload_config config{};
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = depth;
    config.count = count;
    config.seed = 7;
    config.queue = queue;
    config.context = on;
    return config;
}

enum class Place { apart, anywhere };  // each context on a CPU of its own, or where the kernel likes

// Both sides sleep whenever they have nothing to do, so that each request depends on a kick and a call.
void kick_and_call(uint32_t polled, uint32_t depth, uint64_t count, Place place,
                   uint32_t locking = ENGINE_LOCKING_PER_NODE) {
    Engine engine(locking);
    std::pair<int32_t, int32_t> cpus = place == Place::apart ? two_cpus() : std::pair{-1, -1};
    engine_context_t* device = engine.context("device", cpus.first);
    engine_context_t* driver = engine.context("driver", cpus.second);
    engine_node_t* node = engine.open({{"driver", "null"}, {"size", "64M"}});
    for (uint32_t event_index : {0u, 1u}) {
        for (uint32_t indirect : {0u, 1u}) {
            engine_disk_config config = Disk::defaults();
            config.queue_size = indirect != 0 ? depth : 128;  // one descriptor a request, or three
            config.event_index = event_index;
            config.indirect = indirect;
            config.polled = polled;
            Disk disk(node, {device}, config);
            {
                Workload workload(engine, load(disk.queue(0), driver, depth, count));
                workload.start();
                if (!workload.wait()) {
                    engine_queue_stats stats = disk.stats(0);
                    printf(
                        "lost: event index %u, indirect %u, polled %u, depth %u: %lu taken, %lu kicks, %lu "
                        "calls\n",
                        event_index, indirect, polled, depth, stats.requests, stats.kicks, stats.calls);
                    _exit(1);  // closing would wait for it for ever
                }
                engine_workload_result result = workload.result();
                CHECK_EQ(result.requests[0] + result.requests[1], count);
                CHECK_EQ(result.errors, 0u);
            }
            engine_queue_stats stats = disk.stats(0);
            CHECK_EQ(stats.requests, count);
            CHECK_EQ(stats.completed, count);
            CHECK(stats.kicks <= count && stats.calls <= count);
            // With event index the driver kicks once in 2^16 chains for nothing: the device's wish comes
            // round.
            if (polled != 0) CHECK(stats.kicks <= (event_index != 0 ? count >> 16 : 0));
        }
    }
}

// For each of the four settings: in all 10^5.
constexpr uint64_t requests = 25'000;
// A polling queue never sleeps: where others want its CPU, each wake-up of the driver may wait for the
// scheduler's next slice. Its half of the protocol, the call, is the same as above.
constexpr uint64_t polled_batches = 800;

TEST(no_wake_up_is_lost_kicked_at_depth_1) {
    kick_and_call(0, 1, requests, Place::anywhere);
}
TEST(no_wake_up_is_lost_kicked_at_depth_32) {
    kick_and_call(0, 32, 4 * requests, Place::anywhere);
}
TEST(no_wake_up_is_lost_on_two_cpus_at_depth_1) {
    kick_and_call(0, 1, requests / 5, Place::apart);
}
TEST(no_wake_up_is_lost_on_two_cpus_at_depth_32) {
    kick_and_call(0, 32, 4 * requests, Place::apart);
}
TEST(no_wake_up_is_lost_polled_at_depth_1) {
    kick_and_call(1, 1, polled_batches, Place::apart);
}
TEST(no_wake_up_is_lost_polled_at_depth_32) {
    kick_and_call(1, 32, 32 * polled_batches, Place::apart);
}
TEST(no_wake_up_is_lost_in_global_mode) {
    kick_and_call(0, 4, requests / 4, Place::anywhere, ENGINE_LOCKING_GLOBAL);
}

// On the queue's own context nobody sleeps and nobody needs to be told.
TEST(on_one_context_there_is_nothing_to_notify) {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_node_t* node = engine.open({{"driver", "null"}});
    Disk disk(node, {io0});
    {
        Workload workload(engine, load(disk.queue(0), nullptr, 16, requests));
        workload.start();
        workload.wait();
        CHECK_EQ(workload.result().errors, 0u);
    }
    CHECK_EQ(disk.stats(0).completed, requests);
    CHECK(disk.stats(0).kicks <= 2 && disk.stats(0).calls <= 2);
}

struct FileCase {
    TemporaryFile file{4 << 20};
    Engine engine;
    engine_context_t* contexts[2] = {engine.context("io0"), engine.context("io1")};
    engine_node_t* node =
        engine.open({{"driver", "raw"}, {"file.driver", "file"}, {"file.filename", file.path.c_str()}});
};

TEST(two_contexts_verify_one_file) {
    FileCase c;
    for (uint32_t polled : {0u, 1u}) {
        engine_disk_config config = Disk::defaults();
        config.polled = polled;
        Disk disk(c.node, {c.contexts[0], c.contexts[1]}, config);
        for (unsigned swapped : {0u, 1u}) {  // each generator beside its queue, or on the other context
            engine_workload_config first =
                load(disk.queue(0), c.contexts[swapped], 16, sanitized ? 3000 : 20000);
            first.flags = ENGINE_WORKLOAD_VERIFY;
            first.flush_every = 100;
            engine_workload_config second = first;
            second.queue = disk.queue(1);
            second.context = c.contexts[1 - swapped];
            Workload a(c.engine, first), b(c.engine, second);
            a.start();
            b.start();
            a.wait();
            b.wait();
            for (Workload* workload : {&a, &b}) {
                engine_workload_result result = workload->result();
                CHECK_EQ(result.errors, 0u);
                CHECK_EQ(result.verify_errors, 0u);
                CHECK(result.flushes > 0);
                CHECK_EQ(result.requests[0] + result.requests[1] + result.flushes, first.count);
            }
        }
    }
}

// Verification that finds nothing proves nothing unless it can find something: two writers that disagree.
TEST(verification_notices_a_stranger) {
    FileCase c;
    Disk disk(c.node, {c.contexts[0], c.contexts[1]});
    engine_workload_config first = load(disk.queue(0), nullptr, 8, 4000);
    first.flags = ENGINE_WORKLOAD_VERIFY;
    engine_workload_config second = first;
    second.queue = disk.queue(1);
    second.seed = 8;
    uint64_t noticed = 0;
    for (int round = 0; round < 50 && noticed == 0; round++) {  // one may be over before the other begins
        Workload a(c.engine, first), b(c.engine, second);
        a.start();
        b.start();
        a.wait();
        b.wait();
        noticed = a.result().verify_errors + b.result().verify_errors;
        CHECK_EQ(a.result().errors + b.result().errors, 0u);
    }
    CHECK(noticed > 0);
}

TEST(figures_are_sound_while_requests_run) {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node = engine.open({{"driver", "null"}});
    Disk disk(node, {io0, io1, io0, io1});
    {
        std::vector<std::unique_ptr<Workload>> workloads;
        for (uint32_t i = 0; i < 4; i++) {
            workloads.push_back(std::make_unique<Workload>(
                engine, load(disk.queue(i), i % 2 != 0 ? io0 : io1, 16, UINT64_MAX)));
            workloads.back()->start();
        }
        uint64_t last = 0;
        const double end = check::seconds() + 0.5;
        for (int i = 0; check::seconds() < end; i++) {
            engine_queue_stats stats = disk.stats(static_cast<uint32_t>(i) % 4);
            CHECK(stats.in_flight <= 64);  // what the queue holds
            CHECK(stats.requests >= stats.completed);
            if (i % 4 != 0) continue;
            CHECK(stats.completed >= last);
            last = stats.completed;
        }
    }  // closing stops them
    for (uint32_t i = 0; i < 4; i++) {
        engine_queue_stats stats = disk.stats(i);
        CHECK(stats.completed > 0);
        CHECK_EQ(stats.completed, stats.requests);
        CHECK_EQ(stats.in_flight, 0u);
    }
}

// Drivers come and go with requests in flight; the disk goes last.
TEST(attaching_and_letting_go_in_mid_run) {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "100us"}});
    for (int round = 0; round < 10; round++) {
        Disk disk(node, {io0, io1});
        for (int driver = 0; driver < 5; driver++) {
            Workload a(engine, load(disk.queue(0), io1, 32, 1'000'000));
            Workload b(engine, load(disk.queue(1), driver % 2 != 0 ? io1 : nullptr, 8, 1'000'000));
            a.start();
            b.start();
            usleep(static_cast<useconds_t>(200 * driver));
            if (driver % 2 != 0) CHECK_EQ(engine_workload_stop(a.handle), 0);
        }
        CHECK_EQ(disk.stats(0).in_flight, 0u);
        CHECK_EQ(disk.stats(1).in_flight, 0u);
        CHECK_EQ(engine_queue_io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, nullptr), 0);
    }
    CHECK_EQ(engine_context_close(io0, nullptr), 0);
}

TEST(a_workload_on_a_read_only_disk_counts_its_errors) {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_node_t* node = engine.open({{"driver", "null"}});
    engine_disk_config config = Disk::defaults();
    config.read_only = 1;
    Disk disk(node, {io0}, config);
    Workload workload(engine, load(disk.queue(0), nullptr, 8, 1000));
    workload.start();
    workload.wait();
    engine_workload_result result = workload.result();
    CHECK(result.errors > 0 && result.requests[1] == 0);
    CHECK_EQ(result.errors + result.requests[0], 1000u);
    CHECK_EQ(result.error_errnum, EIO);
}

}  // namespace
