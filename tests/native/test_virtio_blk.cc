// virtio-blk through the C interface: every request type, write cache, read-only disks, attaching and letting
// go. The test's thread is the driver; each queue is served by a context of its own.
#include <thread>

#include "virtio_disk.hh"

using namespace rig;
using block::Op;

namespace {

constexpr uint64_t disk_bytes = 1 << 20;

struct Case {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node;
    engine_error error{};

    explicit Case(std::vector<engine_option> options = {{"driver", "null"}, {"size", "1M"}})
        : node(engine.open(std::move(options))) {}
    int io(engine_queue_t* queue, uint32_t op, void* data, uint64_t offset, uint64_t bytes,
           uint32_t flags = 0) {
        error = {};
        return engine_queue_io(queue, op, data, offset, bytes, flags, &error);
    }
};

std::vector<uint8_t> pattern(size_t bytes, uint64_t seed) {
    guest::Random random(seed);
    std::vector<uint8_t> out(bytes);
    for (uint8_t& byte : out) byte = static_cast<uint8_t>(random.next() >> 32);
    return out;
}

// What came down, as "write+fua 512@1024".
std::string text_of(const std::vector<Recorder::Seen>& seen) {
    std::string text;
    for (const auto& one : seen) {
        if (!text.empty()) text += ", ";
        text += op_name(one.op);
        if ((one.flags & ENGINE_FUA) != 0) text += "+fua";
        if ((one.flags & ENGINE_MAY_UNMAP) != 0) text += "+unmap";
        if (one.op != Op::flush) text += " " + std::to_string(one.length) + "@" + std::to_string(one.offset);
    }
    return text;
}

TEST(every_request_reaches_the_node) {
    Case c;
    Recorder recorder(c.node);
    Disk disk(c.node, {c.io0, c.io1});
    auto data = pattern(8192, 1);
    for (uint32_t q = 0; q < 2; q++) {
        engine_queue_t* queue = disk.queue(q);
        CHECK_EQ(c.io(queue, ENGINE_OP_WRITE, data.data(), 1024, 8192), 0);
        CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), disk_bytes - 512, 512), 0);
        CHECK_EQ(c.io(queue, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
        CHECK_EQ(c.io(queue, ENGINE_OP_DISCARD, nullptr, 4096, 4096), 0);
        CHECK_EQ(c.io(queue, ENGINE_OP_WRITE_ZEROES, nullptr, 0, disk_bytes), 0);
        CHECK_EQ(c.io(queue, ENGINE_OP_WRITE_ZEROES, nullptr, 512, 1024, ENGINE_MAY_UNMAP), 0);
        // A discard that the node ignores (discard=ignore) does not reach the driver.
        CHECK_EQ(
            text_of(recorder.take()),
            "write 8192@1024, read 512@1048064, flush, write-zeroes 1048576@0, write-zeroes+unmap 1024@512");
        char id[20];
        memset(id, 'x', sizeof id);
        CHECK_EQ(engine_queue_get_id(queue, id, &c.error), 0);
        CHECK(memcmp(id, "serial-0001\0\0\0\0\0\0\0\0\0", 20) == 0);
        engine_queue_stats stats = disk.stats(q);
        CHECK_EQ(stats.requests, 7u);
        CHECK_EQ(stats.completed, 7u);
        CHECK_EQ(stats.in_flight, 0u);
        CHECK_EQ(stats.broken, 0u);
        CHECK_EQ(stats.op[ENGINE_OP_WRITE].bytes, 8192u);
        CHECK_EQ(stats.op[ENGINE_OP_READ].bytes, 512u);
        CHECK_EQ(stats.op[ENGINE_OP_WRITE_ZEROES].requests, 2u);
        CHECK(stats.kicks >= 1 && stats.calls >= 1);
        // On the context of that queue, and no other.
        engine_node_stats below = node_stats(c.node, q == 0 ? c.io0 : c.io1);
        CHECK_EQ(below.op[ENGINE_OP_WRITE].requests, 1u);
        CHECK_EQ(below.op[ENGINE_OP_FLUSH].requests, 1u);
    }
    CHECK(disk.queue(2) == nullptr);
}

TEST(a_file_holds_what_was_written) {
    TemporaryFile file(disk_bytes);
    Case c({{"driver", "raw"},
            {"discard", "unmap"},
            {"file.driver", "file"},
            {"file.filename", file.path.c_str()}});
    Disk disk(c.node, {c.io0, c.io1});
    auto written = pattern(65536, 2), found = std::vector<uint8_t>(65536);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, written.data(), 512 * 7, 65536), 0);
    CHECK_EQ(c.io(disk.queue(1), ENGINE_OP_READ, found.data(), 512 * 7, 65536),
             0);  // the other queue sees it
    CHECK(written == found);
    CHECK_EQ(pread(file.fd, found.data(), 65536, 512 * 7), 65536);
    CHECK(written == found);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(c.io(disk.queue(1), ENGINE_OP_WRITE_ZEROES, nullptr, 512 * 8, 1024), 0);
    memset(written.data() + 512, 0, 1024);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_DISCARD, nullptr, 16384, 16384), 0);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, found.data(), 512 * 7, 65536), 0);
    memset(written.data() + (16384 - 512 * 7), 0, 16384);
    CHECK(written == found);
}

TEST(without_a_write_cache_every_write_is_durable) {
    Case c;
    Recorder recorder(c.node);
    std::vector<uint8_t> data(512);
    for (uint32_t cached : {0u, 1u}) {
        engine_disk_config config = Disk::defaults();
        config.write_cache = cached;
        Disk disk(c.node, {c.io0}, config);
        CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, data.data(), 0, 512), 0);
        CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512), 0);
        CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE_ZEROES, nullptr, 0, 512), 0);
        CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
        CHECK_EQ(text_of(recorder.take()),
                 cached != 0 ? "write 512@0, read 512@0, write-zeroes 512@0, flush"
                             : "write+fua 512@0, read 512@0, write-zeroes 512@0, flush, flush");
    }
}

TEST(a_driver_without_fua_gets_a_flush) {
    Case c;
    Recorder recorder(c.node);
    reinterpret_cast<block::Node*>(c.node)->native_write_flags &= static_cast<uint8_t>(~ENGINE_FUA);
    engine_disk_config config = Disk::defaults();
    config.write_cache = 0;
    Disk disk(c.node, {c.io0}, config);
    std::vector<uint8_t> data(512);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, data.data(), 0, 512), 0);
    CHECK_EQ(text_of(recorder.take()), "write 512@0, flush");
    CHECK_EQ(node_stats(c.node).op[ENGINE_OP_FLUSH].requests, 1u);
}

// A virtio write has no such flag; what the caller asked for must not be lost on the way.
TEST(flags_of_a_call_are_honoured_or_refused) {
    Case c;
    Recorder recorder(c.node);
    Disk disk(c.node, {c.io0});
    std::vector<uint8_t> data(512);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, data.data(), 0, 512, ENGINE_FUA), 0);
    CHECK_EQ(text_of(recorder.take()), "write 512@0, flush");
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE_ZEROES, nullptr, 0, 512, ENGINE_NO_FALLBACK), -ENOTSUP);
    CHECK_EQ(c.error.kind, uint32_t{ENGINE_ERROR_UNSUPPORTED});
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512, 64), -EINVAL);
    CHECK_EQ(c.error.field, "flags");
    CHECK_EQ(text_of(recorder.take()), "");
}

TEST(a_read_only_disk_refuses_changes) {
    Case c;
    Recorder recorder(c.node);
    engine_disk_config config = Disk::defaults();
    config.read_only = 1;
    Disk disk(c.node, {c.io0}, config);
    std::vector<uint8_t> data(512);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, data.data(), 0, 512), -EIO);
    CHECK(mentions(c.error, "IOERR"));
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_DISCARD, nullptr, 0, 512), -EIO);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE_ZEROES, nullptr, 0, 512), -EIO);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512), 0);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(text_of(recorder.take()), "read 512@0, flush");
}

TEST(a_writable_disk_needs_a_writable_node) {
    Case c({{"driver", "null"}, {"node-name", "frozen"}, {"read-only", "on"}});
    engine_disk_config config = Disk::defaults();
    config.queue_count = 1;
    config.contexts = &c.io0;
    engine_disk_t* disk = nullptr;
    CHECK_EQ(engine_disk_create(c.node, &config, &disk, &c.error), -EROFS);
    CHECK(mentions(c.error, "frozen") && mentions(c.error, "vda"));
    config.read_only = 1;
    CHECK_EQ(engine_disk_create(c.node, &config, &disk, &c.error), 0);
    CHECK_EQ(engine_disk_close(disk, &c.error), 0);
}

TEST(calls_out_of_range_or_out_of_step) {
    Case c;
    Disk disk(c.node, {c.io0});
    engine_queue_t* queue = disk.queue(0);
    std::vector<uint8_t> data(1024);
    CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), disk_bytes, 512), -EIO);
    CHECK_EQ(c.io(queue, ENGINE_OP_WRITE, data.data(), disk_bytes - 512, 1024), -EIO);
    CHECK_EQ(c.io(queue, ENGINE_OP_WRITE, data.data(), UINT64_MAX - 511, 512), -EIO);
    CHECK_EQ(c.io(queue, ENGINE_OP_DISCARD, nullptr, disk_bytes, 512), -EIO);
    CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), 100, 512), -EINVAL);
    CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), 0, 100), -EINVAL);
    CHECK(mentions(c.error, "512"));
    CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), 0, 0), 0);
    CHECK_EQ(c.io(queue, ENGINE_OP_RESIZE, nullptr, 0, 0), -EINVAL);
    CHECK_EQ(c.io(queue, 99, nullptr, 0, 0), -EINVAL);
    // A transfer needs memory; without it the ring would point past the driver's arena.
    for (uint32_t op : {ENGINE_OP_READ, ENGINE_OP_WRITE}) {
        CHECK_EQ(c.io(queue, op, nullptr, 0, 65536), -EINVAL);
        CHECK_EQ(c.error.field, "data");
    }
    CHECK_EQ(disk.stats(0).broken, 0u);
    CHECK_EQ(c.io(queue, ENGINE_OP_READ, data.data(), 0, 512), 0);
}

TEST(failures_below_become_a_status) {
    Case c;
    Recorder recorder(c.node);
    Disk disk(c.node, {c.io0});
    std::vector<uint8_t> data(512);
    recorder.fail_with = -ENOSPC;
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_WRITE, data.data(), 0, 512), -EIO);
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), -EIO);
    recorder.fail_with = -ENOTSUP;
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), -ENOTSUP);
    CHECK_EQ(c.error.kind, uint32_t{ENGINE_ERROR_UNSUPPORTED});
    recorder.fail_with = 0;
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(disk.stats(0).op[ENGINE_OP_WRITE].errors, 1u);
    CHECK_EQ(disk.stats(0).op[ENGINE_OP_FLUSH].errors, 2u);
}

TEST(one_driver_at_a_time) {
    Case c;
    Disk disk(c.node, {c.io0, c.io1});
    std::vector<uint8_t> data(512);
    {
        HandDriver first(disk.core(0));
        CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512), -EBUSY);
        CHECK(mentions(c.error, "queue 0") && mentions(c.error, "vda") && mentions(c.error, "another"));
        CHECK_EQ(c.io(disk.queue(1), ENGINE_OP_READ, data.data(), 0, 512), 0);
        // Neither the disk nor the context goes away under a driver.
        CHECK_EQ(engine_disk_close(disk.handle, &c.error), -EBUSY);
        CHECK(mentions(c.error, "vda"));
        CHECK_EQ(engine_context_close(c.io0, &c.error), -EBUSY);
        CHECK_EQ(first.request(virtio::blk_in, 0, {{HandDriver::data, 512, true}}), int{virtio::blk_ok});
    }
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512), 0);
    CHECK_EQ(engine_context_close(c.io0, &c.error), -EBUSY);  // the queue itself
    disk.close();
    CHECK_EQ(engine_context_close(c.io0, &c.error), 0);
}

TEST(a_workload_keeps_its_queue) {
    Case c;
    Disk disk(c.node, {c.io0});
    engine_workload_config config{};
    config.size = sizeof config;
    config.block_size = 4096;
    config.iodepth = 4;
    config.count = 1;
    config.queue = disk.queue(0);
    engine_workload_t* workload = nullptr;
    require(engine_workload_create(c.engine.handle, &config, &workload, &c.error) == 0, "workload", c.error);
    engine_workload_t* second = nullptr;
    CHECK_EQ(engine_workload_create(c.engine.handle, &config, &second, &c.error), -EBUSY);
    CHECK_EQ(engine_disk_close(disk.handle, &c.error), -EBUSY);
    CHECK_EQ(engine_workload_close(workload), 0);
    config.iodepth = 65;  // more than the queue has descriptors
    CHECK_EQ(engine_workload_create(c.engine.handle, &config, &second, &c.error), -EINVAL);
    CHECK(mentions(c.error, "64 descriptors"));
}

TEST(bad_configurations) {
    Case c;
    Engine other;
    engine_context_t* foreign = other.context("elsewhere");
    struct {
        const char* field;
        void (*spoil)(engine_disk_config*);
    } cases[] = {
        {"queue_count", [](engine_disk_config* config) { config->queue_count = 0; }},
        {"queue_count", [](engine_disk_config* config) { config->queue_count = 5000; }},
        {"queue_size", [](engine_disk_config* config) { config->queue_size = 48; }},
        {"queue_size", [](engine_disk_config* config) { config->queue_size = 65536; }},
        {"contexts", [](engine_disk_config* config) { config->contexts = nullptr; }},
        {"serial", [](engine_disk_config* config) { config->serial = "123456789012345678901"; }},
        {"size", [](engine_disk_config* config) { config->size = sizeof *config + 8; }},
    };
    engine_disk_t* disk = nullptr;
    for (const auto& one : cases) {
        engine_disk_config config = Disk::defaults();
        config.queue_count = 1;
        config.contexts = &c.io0;
        one.spoil(&config);
        CHECK(engine_disk_create(c.node, &config, &disk, &c.error) < 0);
        CHECK_EQ(c.error.field, one.field);
    }
    for (engine_context_t* wrong : {static_cast<engine_context_t*>(nullptr), foreign}) {
        engine_context_t* contexts[] = {c.io0, wrong};
        engine_disk_config config = Disk::defaults();
        config.queue_count = 2;
        config.contexts = contexts;
        CHECK_EQ(engine_disk_create(c.node, &config, &disk, &c.error), -EINVAL);
        CHECK_EQ(c.error.field, "contexts");
        CHECK(mentions(c.error, "queue 1"));
    }
    CHECK_EQ(engine_context_close(c.io0, &c.error), 0);  // nothing was left on it
}

// Every allocation of a step fails once. The thread that runs the hook is the one that allocates.
struct FailAt {
    explicit FailAt(int n) : left(n) {
        engine_set_allocation_hook(
            [](size_t, void* self) { return static_cast<FailAt*>(self)->left-- == 0 ? 1 : 0; }, this);
    }
    ~FailAt() { engine_set_allocation_hook(nullptr, nullptr); }
    bool fired() const { return left < 0; }
    int left;
};

TEST(memory_that_is_short_is_an_error) {
    Case c;
    engine_disk_config config = Disk::defaults();
    config.queue_count = 1;
    config.contexts = &c.io0;
    bool fired = true;
    for (int n = 0; fired; n++) {
        engine_disk_t* disk = nullptr;
        int result;
        {
            FailAt fail(n);
            result = engine_disk_create(c.node, &config, &disk, &c.error);
            fired = fail.fired();
        }
        CHECK_EQ(result, fired ? -ENOMEM : 0);
        if (result == 0) CHECK_EQ(engine_disk_close(disk, &c.error), 0);
    }
    Disk disk(c.node, {c.io0}, config);
    std::vector<uint8_t> data(512);
    fired = true;
    for (int n = 0; fired; n++) {
        FailAt fail(n);
        int result = c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512);
        fired = fail.fired();
        CHECK_EQ(result, fired ? -ENOMEM : 0);
    }
}

// A driver that could not attach has nothing to let go of.
TEST(a_failed_attach_leaves_the_other_driver_alone) {
    Case c;
    Disk disk(c.node, {c.io0});
    HandDriver driver(disk.core(0));
    std::vector<uint8_t> data(512);
    for (int n = 0; n < 4; n++) {
        FailAt fail(n);
        CHECK(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512) < 0);
    }
    CHECK_EQ(driver.request(virtio::blk_in, 0, {{HandDriver::data, 512, true}}), int{virtio::blk_ok});
    CHECK_EQ(c.io(disk.queue(0), ENGINE_OP_READ, data.data(), 0, 512), -EBUSY);
}

TEST(blocking_calls_are_refused_on_a_context) {
    Case c;
    Disk disk(c.node, {c.io0});
    struct Call {
        Disk* disk;
        engine_error error{};
        int results[3] = {};
        std::atomic<bool> done{false};
    } call{&disk};
    auto run = [](void* opaque) {
        auto* self = static_cast<Call*>(opaque);
        self->results[0] =
            engine_queue_io(self->disk->queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &self->error);
        self->results[1] = engine_disk_close(self->disk->handle, nullptr);
        self->results[2] = engine_queue_get_id(self->disk->queue(0), nullptr, nullptr);
        self->done.store(true);
    };
    CHECK_EQ(engine_schedule_oneshot(c.io0, run, &call), 0);
    while (!call.done.load()) usleep(100);
    for (int result : call.results) CHECK_EQ(result, -EDEADLK);
    CHECK(mentions(call.error, "io0"));
}

TEST(a_child_of_a_fork_is_refused) {
    Case c;
    Disk disk(c.node, {c.io0});
    {
        HandDriver breaker(disk.core(0));
        CHECK_EQ(breaker.request({{HandDriver::header, 16}}), HandDriver::broken);
    }
    pid_t child = fork();
    if (child == 0) {
        alarm(10);  // a call that hangs ends by SIGALRM
        engine_error error{};
        engine_queue_stats stats{};
        stats.size = sizeof stats;
        bool good = engine_queue_io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error) == -EBADF &&
                    error.kind == ENGINE_ERROR_CLOSED && engine_disk_close(disk.handle, &error) == -EBADF &&
                    engine_queue_get_stats(disk.queue(0), &stats) == -EBADF;
        _exit(good ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(calls_from_many_threads_share_a_disk) {
    Case c;
    Disk disk(c.node, {c.io0, c.io1});
    std::atomic<unsigned> done{0}, busy{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            std::vector<uint8_t> data(4096);
            for (unsigned i = 0; i < 100; i++) {
                engine_error error{};
                int result = engine_queue_io(disk.queue(t % 2), i % 2 != 0 ? ENGINE_OP_READ : ENGINE_OP_WRITE,
                                             data.data(), 4096 * i, 4096, 0, &error);
                (result == 0 ? done : busy).fetch_add(1);
                if (result != 0 && !CHECK_EQ(result, -EBUSY)) return;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(done + busy, 400u);
    CHECK(done > 0);
    CHECK_EQ(disk.stats(0).completed + disk.stats(1).completed, done.load());
}

}  // namespace
