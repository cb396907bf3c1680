// What is peculiar to each backend: registered files and batches of io_uring, the threads of `threads`.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "aio/context.hh"
#include "aio/offload.hh"
#include "backend_bench.hh"
#include "base/clock.hh"
#include "base/error.hh"
#include "check.hh"

using namespace engine;
using aio::AioContext;
using aio::IoKind;
using aio::IoOp;

// --- what is peculiar to io_uring

// The slot leads to the file, whatever has become of the descriptor.
TEST(uring_registered_files) {
    Home home(ENGINE_BACKEND_IO_URING);
    auto& backend = home.context->backend();
    TempFile file;
    char data[4096], back[4096];
    memset(data, 'r', sizeof data);
    REQUIRE(pwrite(file.fd, data, sizeof data, 0) == 4096);
    std::vector<int16_t> slots;
    home.context->call_and_wait([&] {
        for (unsigned i = 0; i < 65; i++) slots.push_back(backend.register_file(file.fd));
    });
    CHECK_EQ(slots[0], 0);
    CHECK_EQ(slots[63], 63);
    CHECK_EQ(slots[64], -1);
    auto read = [&](int16_t slot) {
        Wait op;
        iovec part{back, sizeof back};
        op.kind = IoKind::read;
        op.iov = &part;
        op.iov_count = 1;
        op.length = sizeof back;
        op.file_slot = slot;
        op.start(*home.context);
        return op.finish();
    };
    close(std::exchange(file.fd, -1));
    for (int16_t slot : {slots[0], slots[7]}) CHECK_EQ(read(slot), 4096);
    CHECK(memcmp(data, back, sizeof data) == 0);
    CHECK_EQ(read(-1), -EBADF);
    home.context->call_and_wait([&] { backend.unregister_file(7); });
    CHECK_EQ(read(7), -EBADF);
    home.context->call_and_wait([&] { backend.unregister_file(-1); });
    CHECK_EQ(read(6), 4096);
    // Any slot that is given back is given out again, the first one too.
    TempFile other;
    REQUIRE(pwrite(other.fd, data, sizeof data, 0) == 4096);
    for (int16_t slot : {slots[7], slots[0]}) {
        home.context->call_and_wait([&] {
            backend.unregister_file(slot);
            CHECK_EQ(backend.register_file(other.fd), slot);
        });
    }
}

// A disk is given a few requests at a time, so that it starts on them while the rest are prepared; the page
// cache takes all of a turn in one call.
TEST(uring_direct_requests_go_in_small_batches) {
    Home home(ENGINE_BACKEND_IO_URING);
    TempFile file;
    char data[4096] = {};
    REQUIRE(pwrite(file.fd, data, sizeof data, 0) == 4096);
    auto batches_of_32_reads = [&](bool direct) {
        Wait ops[32];
        iovec part{data, sizeof data};
        uint64_t before = home.stats().submit_batches;
        home.context->call_and_wait([&] {
            for (auto& op : ops) {
                op.context = home.context.get();
                op.kind = IoKind::read;
                op.fd = file.fd;
                op.iov = &part;
                op.iov_count = 1;
                op.length = sizeof data;
                op.direct = direct;
                home.context->backend().queue(&op);
            }
        });
        for (auto& op : ops) CHECK_EQ(op.finish(), 4096);
        return home.stats().submit_batches - before;
    };
    CHECK(batches_of_32_reads(false) <= 2);  // the turn's, and that which arms the wake-up anew
    uint64_t direct = batches_of_32_reads(true);
    CHECK(direct >= 8);
    CHECK(direct <= 10);
}

// --- what is peculiar to the threads backend

// From the page cache a read costs one system call and no thread.
TEST(threads_page_cache_reads_stay_on_the_home_thread) {
    Home home(ENGINE_BACKEND_THREADS);
    TempFile file;
    std::vector<char> data(65536, 'x');
    REQUIRE(pwrite(file.fd, data.data(), data.size(), 0) == 65536);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(transfer(*home.context, IoKind::read, file.fd, data.data(), 4096, 0), 4096);
    auto stats = home.stats();
    CHECK_EQ(stats.offloaded, 0);
    CHECK_EQ(stats.completed, 100);
    CHECK(stats.system_calls >= 100);
}

// tmpfs refuses reads without waiting: after the first answer nobody asks, and one thread serves them all.
TEST(threads_tmpfs_reads_share_a_thread) {
    Home home(ENGINE_BACKEND_THREADS);
    TempFile file("/dev/shm");
    REQUIRE(file.fd >= 0);
    std::vector<char> data(65536, 'x');
    REQUIRE(pwrite(file.fd, data.data(), data.size(), 0) == 65536);
    iovec probe{data.data(), 1};
    if (preadv2(file.fd, &probe, 1, 0, RWF_NOWAIT) >= 0) return;  // a kernel whose tmpfs can
    constexpr unsigned count = 64;
    for (int round = 0; round < 50; round++) {
        std::vector<Wait> ops(count);
        std::vector<iovec> parts(count);
        home.context->call_and_wait([&] {
            for (unsigned i = 0; i < count; i++) {
                parts[i] = {data.data() + i * 1024, 1024};
                ops[i].kind = IoKind::read;
                ops[i].fd = file.fd;
                ops[i].iov = &parts[i];
                ops[i].iov_count = 1;
                ops[i].length = 1024;
                ops[i].context = home.context.get();
                home.context->backend().queue(&ops[i]);
            }
        });
        for (Wait& op : ops) CHECK_EQ(op.finish(), 1024);
    }
    auto stats = home.stats();
    CHECK_EQ(stats.offloaded, 50 * count);
    CHECK(stats.system_calls < 50 * count / 2);
}

// A small write that sleeps after all (a full pipe) holds up the small ones behind it for a moment only.
TEST(threads_a_sleeper_does_not_hold_up_the_rest) {
    Home home(ENGINE_BACKEND_THREADS);
    TempFile file;
    char byte = 'x';
    for (int i = 0; i < 20; i++)
        transfer(*home.context, IoKind::write, file.fd, &byte, 1, 0);  // known as quick
    Meeting meeting{.expected = 8};
    std::vector<Meeter> ops(8);
    iovec part{&byte, 1};
    home.context->call_and_wait([&] {
        for (Meeter& op : ops) {
            op.meeting = &meeting;
            op.context = home.context.get();
            op.iov = &part;
            op.iov_count = 1;
            op.length = 1;
        }
    });
    // The same calls, but as the pool sees them small buffered writes.
    auto pool = std::make_unique<aio::OffloadPool>(home.context.get());
    home.context->call_and_wait([&] {
        CHECK_EQ(pool->open(), 0);
        for (Meeter& op : ops) {
            op.kind = IoKind::write;
            pool->run(&op);
        }
    });
    for (Meeter& op : ops) CHECK_EQ(op.finish(), 42);
    home.context->call_and_wait([&] { pool->stop(); });
}

TEST(threads_refuse_what_cannot_be_polled) {
    Home home(ENGINE_BACKEND_THREADS);
    TempFile file;
    Watch watch(*home.context, file.fd, POLLIN);
    CHECK_EQ(watch.add(), -EPERM);
}

// In a child process: where the limit of threads is reached there is an error, not a hang and not a silent
// wait on the loop.
TEST(threads_cannot_be_started) {
    fflush(nullptr);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        Home home(ENGINE_BACKEND_THREADS);
        TempFile file;
        char byte = 'x';
        rlimit before{};
        if (getrlimit(RLIMIT_NPROC, &before) != 0) _exit(2);
        rlimit limit{0, before.rlim_max};
        if (setrlimit(RLIMIT_NPROC, &limit) != 0) _exit(3);
        if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) _exit(3);  // root has no limit
        if (transfer(*home.context, IoKind::write, file.fd, &byte, 1, 0) != -ENOMEM) _exit(4);
        if (setrlimit(RLIMIT_NPROC, &before) != 0) _exit(5);
        if (transfer(*home.context, IoKind::write, file.fd, &byte, 1, 0) != 1) _exit(6);  // it recovers
        _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}
