// The file driver over both backends: flushes and FUA, discard and zeroes, block status, resize, locks; raw
// above it.
#include <errno.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "file_bench.hh"

using namespace file_bench;

namespace {

// --- flush, FUA

BOTH(flushes_of_many_share_the_work) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", MiB));
    std::vector<Submission> flushes(100);
    block::Port* port = nullptr;
    REQUIRE(block::open_port(bench.user(node), api::unwrap(bench.context), &port, bench.clean()) == 0);
    uint64_t before = bench.stats().submitted;
    api::unwrap(bench.context)->call_and_wait([&] {
        for (Submission& flush : flushes) {
            flush.op = block::Op::flush;
            flush.complete = [](block::Request* request) { static_cast<Submission*>(request)->over.set(); };
            block::submit(*port, &flush);
        }
    });
    for (Submission& flush : flushes) {
        flush.over.wait();
        CHECK_EQ(flush.result, 0);
    }
    CHECK_EQ(bench.stats().submitted - before, 2);  // the first, and one for all that came while it ran
}

BOTH(flushes_from_two_contexts) {
    Folder folder;
    Bench bench(backend);
    engine_context_t* other = bench.add_context("other");
    engine_node_t* node = bench.file(folder.make("a.img", MiB));
    std::vector<std::thread> threads;
    std::atomic<unsigned> good{0};
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&, i] {
            engine_error error{};
            error.size = sizeof error;
            engine_user_t* user = api::wrap(bench.user(node));
            char byte = static_cast<char>(i);
            for (uint64_t n = 0; n < 50; n++) {
                engine_iovec part{&byte, 1};
                engine_context_t* on = i % 2 == 0 ? bench.context : other;
                if (engine_user_io(user, on, ENGINE_OP_WRITE, &part, 1, n * 4096, 1, 0, &error) == 1 &&
                    engine_user_io(user, on, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, 0, &error) == 0) {
                    good++;
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(good.load(), 200u);
    engine_node_stats stats{};
    stats.size = sizeof stats;
    REQUIRE(engine_node_get_stats(node, nullptr, &stats) == 0);
    CHECK_EQ(stats.op[ENGINE_OP_FLUSH].requests, 200u);
    CHECK_EQ(stats.in_flight, 0u);
}

// FUA is one operation for the kernel, not a write and a flush.
BOTH(fua_is_native) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", MiB));
    auto data = pattern(4096, 10);
    uint64_t before = bench.stats().submitted;
    CHECK_EQ(bench.write(node, data.data(), 0, 4096, ENGINE_FUA), 4096);
    CHECK_EQ(bench.stats().submitted - before, 1);
    CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 0, 4096, ENGINE_FUA), 0);
    std::vector<char> back(4096, 'x');
    CHECK_EQ(bench.read(node, back.data(), 0, 4096), 4096);
    CHECK(all_zero(back.data(), 4096));
}

// The kernel reports a lost write once. A descriptor swapped for one that cannot be synced stands for a
// device that failed.
BOTH(a_failed_flush_is_remembered) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* node = bench.file(path);
    char byte = 1;
    CHECK_EQ(bench.write(node, &byte, 0, 1), 1);  // now the context knows the file
    int opened = -1;
    for (int fd = 3; fd < 256 && opened < 0; fd++) {
        char link[64], target[512] = {};
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (readlink(link, target, sizeof target - 1) > 0 && path == target) opened = fd;
    }
    REQUIRE(opened >= 0);
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    int kept = fcntl(opened, F_DUPFD_CLOEXEC, 0);
    REQUIRE(dup3(ends[0], opened, O_CLOEXEC) == opened);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), -EINVAL);
    REQUIRE(dup3(kept, opened, O_CLOEXEC) == opened);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), -EINVAL);
    CHECK(bench.says("an earlier flush"));
    CHECK(bench.says("open it again"));
    close(kept);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQ(bench.write(node, &byte, 0, 1), 1);  // writes go on
    bench.close_node(node);
    node = bench.file(path);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
}

// --- discard, zeroes, block status

uint64_t allocated(const std::string& path) {
    struct stat status{};
    CHECK_EQ(stat(path.c_str(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512;
}

BOTH(discard_frees_space) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    auto data = pattern(MiB, 11);
    engine_node_t* node = bench.file(path);
    CHECK_EQ(bench.write(node, data.data(), 0, MiB), MiB);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(bench.io(node, ENGINE_OP_DISCARD, nullptr, 0, 524288), 0);  // discard=ignore, the default
    CHECK(allocated(path) >= MiB);
    bench.close_node(node);
    node = bench.file(path, {{"discard", "unmap"}});
    CHECK_EQ(bench.io(node, ENGINE_OP_DISCARD, nullptr, 0, 524288), 0);
    CHECK(allocated(path) <= 524288 + 65536);
    std::vector<char> back(4096, 'x');
    CHECK_EQ(bench.read(node, back.data(), 4096, 4096), 4096);
    CHECK(all_zero(back.data(), 4096));
    CHECK_EQ(bench.info(node).bytes, MiB);
}

BOTH(zeroes_read_as_zeroes) {
    for (uint32_t flags :
         {0u, uint32_t{ENGINE_MAY_UNMAP}, uint32_t{ENGINE_FUA}, uint32_t{ENGINE_MAY_UNMAP | ENGINE_FUA}}) {
        Folder folder;
        Bench bench(backend);
        std::string path = folder.make("a.img", MiB);
        engine_node_t* node = bench.file(path);
        auto data = pattern(MiB, 12);
        CHECK_EQ(bench.write(node, data.data(), 0, MiB), MiB);
        CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 1000, 300001, flags), 0);
        std::vector<char> back(MiB);
        CHECK_EQ(bench.read(node, back.data(), 0, MiB), MiB);
        CHECK(memcmp(back.data(), data.data(), 1000) == 0);
        CHECK(all_zero(back.data() + 1000, 300001));
        CHECK(memcmp(back.data() + 301001, data.data() + 301001, MiB - 301001) == 0);
        if (flags == ENGINE_MAY_UNMAP) CHECK(allocated(path) < MiB - 262144 + 65536);
    }
}

// tmpfs knows holes but not zero ranges: the driver remembers, and zeroes are written.
BOTH(zeroes_where_the_file_system_cannot) {
    std::string path = "/dev/shm/engine-test-zeroes";
    unlink(path.c_str());
    int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    auto data = pattern(MiB, 13);
    REQUIRE(pwrite(fd, data.data(), MiB, 0) == static_cast<ssize_t>(MiB));
    bool can = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0;
    close(fd);
    {
        Bench bench(backend);
        engine_node_t* node = bench.file(path);
        if (!can) {
            CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 4096, 4096, ENGINE_NO_FALLBACK),
                     -ENOTSUP);
            CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 4096, 4096, ENGINE_NO_FALLBACK),
                     -ENOTSUP);
        }
        CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 100000, 200000), 0);
        std::vector<char> back(200000);
        CHECK_EQ(bench.read(node, back.data(), 100000, 200000), 200000);
        CHECK(all_zero(back.data(), back.size()));
        CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 0, 524288, ENGINE_MAY_UNMAP), 0);
        CHECK(allocated(path) <= MiB - 524288);
    }
    unlink(path.c_str());
}

BOTH(block_status_of_a_known_layout) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", MiB));
    CHECK_EQ(bench.info(node).holes, 1u);
    check_extents(bench.extents(node, 0, MiB), {{0, MiB, ZERO, 0}});
    auto data = pattern(65536, 14);
    CHECK_EQ(bench.write(node, data.data(), 131072, 65536), 65536);
    CHECK_EQ(bench.write(node, data.data(), MiB - 65536, 65536), 65536);
    uint64_t last = MiB - 65536;
    check_extents(bench.extents(node, 0, MiB), {{0, 131072, ZERO, 0},
                                                {131072, 65536, DATA, 0},
                                                {196608, last - 196608, ZERO, 0},
                                                {last, 65536, DATA, 0}});
    check_extents(bench.extents(node, 0, MiB, 2), {{0, 131072, ZERO, 0}, {131072, 65536, DATA, 0}});
    check_extents(bench.extents(node, 140000, 1000), {{140000, 1000, DATA, 0}});
    check_extents(bench.extents(node, 1000, 130073), {{1000, 130072, ZERO, 0}, {131072, 1, DATA, 0}});
    check_extents(bench.extents(node, 0, 0), {});
    check_extents(bench.extents(node, 0, MiB, 0), {});
}

// --- resize

BOTH(resize) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* node = bench.file(path);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 3 * MiB + 1, 0), 0);
    CHECK_EQ(bench.info(node).bytes, 3 * MiB + 1);
    auto data = pattern(4096, 15);
    CHECK_EQ(bench.write(node, data.data(), 3 * MiB - 4095, 4096), 4096);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 5000, 0), 0);
    CHECK_EQ(bench.info(node).bytes, 5000u);
    struct stat status{};
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK_EQ(status.st_size, 5000);
    CHECK_EQ(bench.read(node, data.data(), 4096, 4096), -EINVAL);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, UINT64_MAX, 0), -EFBIG);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, uint64_t{1} << 62, 0), -EFBIG);
    CHECK_EQ(bench.info(node).bytes, 5000u);
}

BOTH(resize_under_reads) {
    Folder folder;
    Bench bench(backend);
    engine_context_t* other = bench.add_context("other");
    engine_node_t* node = bench.file(folder.make("a.img", MiB));
    std::atomic<bool> stop{false};
    std::atomic<unsigned> reads{0};
    std::thread reader([&] {
        engine_error error{};
        error.size = sizeof error;
        std::vector<char> buffer(4096);
        while (!stop) {
            engine_iovec part{buffer.data(), buffer.size()};
            int64_t result = engine_user_io(api::wrap(bench.user(node)), other, ENGINE_OP_READ, &part, 1,
                                            MiB - 8192, 4096, 0, &error);
            CHECK(result == 4096 || (result == -EINVAL && strstr(error.message, "past the end") != nullptr));
            if (result == 4096) CHECK(all_zero(buffer.data(), buffer.size()));
            reads++;
        }
    });
    while (reads == 0) usleep(100);
    for (int i = 0; i < 200 || reads <= 10; i++) {
        CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, i % 2 == 0 ? 4096 : 2 * MiB, 0), 0);
    }
    stop = true;
    reader.join();
}

// --- locks, within one process: open file descriptions are what counts

BOTH(one_writer) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* writer = bench.file(path);
    engine_node_t* second = nullptr;
    CHECK_EQ(bench.try_open({{"driver", "file"}, {"filename", path}}, &second), -EBUSY);
    CHECK_EQ(bench.error.kind, static_cast<uint32_t>(ENGINE_ERROR_CONFLICT));
    CHECK(bench.says("a.img"));
    CHECK(bench.says("\"write\""));
    CHECK(bench.says("read-only=on"));
    engine_node_t* reader = bench.file(path, {{"read-only", "on"}});
    engine_node_t* reckless = bench.file(path, {{"locking", "off"}});
    bench.close_node(reader);
    bench.close_node(reckless);
    bench.close_node(writer);
    writer = bench.file(path, {{"locking", "on"}});
    bench.close_node(writer);
}

// --- raw

BOTH(raw_is_the_file) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* node = bench.open({{"driver", "raw"}, {"filename", path}, {"discard", "unmap"}});
    CHECK_EQ(bench.info(node).bytes, MiB);
    CHECK_EQ(bench.info(node).child_count, 1u);
    CHECK_EQ(bench.info(node).holes, 1u);
    auto data = pattern(100000, 16);
    std::vector<char> back(100000);
    CHECK_EQ(bench.write(node, data.data(), 777, data.size(), ENGINE_FUA), data.size());
    CHECK_EQ(bench.read(node, back.data(), 777, back.size()), back.size());
    CHECK(data == back);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(bench.io(node, ENGINE_OP_DISCARD, nullptr, 0, 65536), 0);
    CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, 65536, 65536, ENGINE_MAY_UNMAP), 0);
    check_extents(bench.extents(node, 0, MiB), {{0, MiB, ZERO, 0}});
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 2 * MiB, 0), 0);
    CHECK_EQ(bench.info(node).bytes, 2 * MiB);
    engine_error error{};
    error.size = sizeof error;
    CHECK_EQ(bench.read(node, back.data(), 2 * MiB, 1), -EINVAL);
}

BOTH(raw_window) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    auto data = pattern(MiB, 17);
    int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    REQUIRE(pwrite(fd, data.data(), MiB, 0) == static_cast<ssize_t>(MiB));
    REQUIRE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 131072, 65536) == 0);
    Options options{{"driver", "raw"}, {"filename", path}, {"offset", "65536"}, {"size", "256k"}};
    engine_node_t* node = bench.open(options);
    CHECK_EQ(bench.info(node).bytes, 262144u);
    std::vector<char> back(4096);
    CHECK_EQ(bench.read(node, back.data(), 1000, 4096), 4096);
    CHECK(memcmp(back.data(), data.data() + 66536, 4096) == 0);
    CHECK_EQ(bench.write(node, data.data(), 262140, 4), 4);
    CHECK_EQ(bench.write(node, data.data(), 262141, 4), -EINVAL);
    CHECK_EQ(pread(fd, back.data(), 8, 65536 + 262140), 8);
    CHECK(memcmp(back.data(), data.data(), 4) == 0);
    CHECK(memcmp(back.data() + 4, data.data() + 65536 + 262144, 4) == 0);
    check_extents(bench.extents(node, 0, 262144),
                  {{0, 65536, DATA, 0}, {65536, 65536, ZERO, 0}, {131072, 131072, DATA, 0}});
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, MiB, 0), -ENOTSUP);
    bench.close_node(node);
    options.erase("size");
    node = bench.open(options);
    CHECK_EQ(bench.info(node).bytes, MiB - 65536);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, MiB, 0), 0);
    struct stat status{};
    REQUIRE(fstat(fd, &status) == 0);
    CHECK_EQ(static_cast<uint64_t>(status.st_size), MiB + 65536);
    bench.close_node(node);
    close(fd);
    options["size"] = "2M";
    CHECK_EQ(bench.try_open(options, &node), -EINVAL);
    CHECK_EQ(std::string(bench.error.field), "size");
    options = {{"driver", "raw"}, {"filename", path}, {"offset", "2M"}};
    CHECK_EQ(bench.try_open(options, &node), -EINVAL);
    CHECK_EQ(std::string(bench.error.field), "offset");
}

// Errors keep the name of the node that met them.
BOTH(raw_passes_errors_up) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* node = bench.open({{"driver", "raw"},
                                      {"file.driver", "file"},
                                      {"file.filename", path},
                                      {"file.node-name", "below"},
                                      {"node-name", "above"}});
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, uint64_t{1} << 62, 0), -EFBIG);
    CHECK_EQ(std::string(bench.error.node), "below");
    CHECK_EQ(bench.info(node).bytes, MiB);
}

}  // namespace
