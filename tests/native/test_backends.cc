// Both backends against one list of expectations: operations, the offload pool, descriptors, wake-ups,
// statistics.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
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
using aio::FdHandler;
using aio::IoKind;
using aio::IoOp;

namespace {

void reads_and_writes(uint32_t backend, const char* folder) {
    Home home(backend);
    TempFile file(folder);
    REQUIRE(file.fd >= 0);
    std::vector<char> data(65536), back(65536);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i * 7 + i / 251);
    CHECK_EQ(transfer(*home.context, IoKind::write, file.fd, data.data(), data.size(), 4096), 65536);
    CHECK_EQ(transfer(*home.context, IoKind::read, file.fd, back.data(), back.size(), 4096), 65536);
    CHECK(data == back);
    CHECK_EQ(transfer(*home.context, IoKind::read, file.fd, back.data(), back.size(), 4096 + 65536 - 100),
             100);
    CHECK_EQ(transfer(*home.context, IoKind::read, file.fd, back.data(), back.size(), 1 << 20), 0);
    CHECK_EQ(transfer(*home.context, IoKind::read, -1, back.data(), 1, 0), -EBADF);
    CHECK_EQ(transfer(*home.context, IoKind::write, file.fd, data.data(), 10, 0, RWF_DSYNC), 10);
    auto stats = home.stats();
    CHECK_EQ(stats.submitted, 6);
    CHECK_EQ(stats.completed, 6);
    CHECK(stats.submit_batches >= 6);
}

void vectors(uint32_t backend) {
    Home home(backend);
    TempFile file;
    std::vector<char> data(1000), back(1000);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i);
    REQUIRE(pwrite(file.fd, data.data(), data.size(), 0) == 1000);
    iovec parts[] = {
        {back.data(), 1}, {back.data() + 1, 0}, {back.data() + 1, 499}, {back.data() + 500, 500}};
    Wait op;
    op.kind = IoKind::read;
    op.fd = file.fd;
    op.iov = parts;
    op.iov_count = 4;
    op.length = 1000;
    op.start(*home.context);
    CHECK_EQ(op.finish(), 1000);
    CHECK(data == back);
}

void sync_and_allocate(uint32_t backend) {
    Home home(backend);
    TempFile file;
    REQUIRE(ftruncate(file.fd, 1 << 20) == 0);
    Wait allocate;
    allocate.kind = IoKind::fallocate;
    allocate.fd = file.fd;
    allocate.offset = 65536;
    allocate.length = 65536;
    allocate.start(*home.context);
    CHECK_EQ(allocate.finish(), 0);
    struct stat status{};
    REQUIRE(fstat(file.fd, &status) == 0);
    CHECK(status.st_blocks >= 65536 / 512);
    Wait sync;
    sync.kind = IoKind::fdatasync;
    sync.fd = file.fd;
    sync.start(*home.context);
    CHECK_EQ(sync.finish(), 0);
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    Wait refused;
    refused.kind = IoKind::fdatasync;
    refused.fd = ends[0];
    refused.start(*home.context);
    CHECK_EQ(refused.finish(), -EINVAL);
    close(ends[0]);
    close(ends[1]);
}

// What is not in the page cache goes through a worker and comes back whole.
void cold_reads(uint32_t backend) {
    Home home(backend);
    TempFile file;
    std::vector<char> data(1 << 20);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i * 31 + i / 4096);
    REQUIRE(pwrite(file.fd, data.data(), data.size(), 0) == static_cast<ssize_t>(data.size()));
    REQUIRE(fsync(file.fd) == 0);
    REQUIRE(posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    constexpr unsigned count = 64;
    std::vector<Wait> ops(count);
    std::vector<char> back(count * 4096);
    std::vector<iovec> parts(count);
    for (unsigned i = 0; i < count; i++) {
        parts[i] = {back.data() + i * 4096, 4096};
        ops[i].kind = IoKind::read;
        ops[i].fd = file.fd;
        ops[i].iov = &parts[i];
        ops[i].iov_count = 1;
        ops[i].offset = i * 16384;
        ops[i].length = 4096;
        ops[i].context = home.context.get();
    }
    home.context->call_and_wait([&] {
        for (Wait& op : ops) home.context->backend().queue(&op);
    });
    for (unsigned i = 0; i < count; i++) {
        // A read without waiting may bring less than was asked; the caller goes on from there.
        int64_t got = ops[i].finish();
        CHECK(got > 0 && got <= 4096);
        CHECK(memcmp(back.data() + i * 4096, data.data() + i * 16384, static_cast<size_t>(got)) == 0);
    }
}

// --- the offload pool

void calls_run_side_by_side(uint32_t backend) {
    Home home(backend);
    constexpr unsigned count = aio::OffloadPool::threads_max;
    for (int round = 0; round < 3; round++) {
        Meeting meeting{.expected = count};
        std::vector<Meeter> ops(count);
        home.context->call_and_wait([&] {
            for (Meeter& op : ops) {
                op.meeting = &meeting;
                op.context = home.context.get();
                home.context->backend().queue(&op);
            }
        });
        for (Meeter& op : ops) CHECK_EQ(op.finish(), 42);
    }
    CHECK_EQ(home.stats().offloaded, 3 * count);
    CHECK_EQ(home.stats().completed, 3 * count);
}

void more_calls_than_threads(uint32_t backend) {
    Home home(backend);
    std::vector<Wait> ops(500);
    home.context->call_and_wait([&] {
        for (size_t i = 0; i < ops.size(); i++) {
            ops[i].kind = IoKind::call;
            ops[i].offset = i;
            ops[i].context = home.context.get();
            ops[i].call = [](IoOp* op) -> int64_t {
                usleep(100);
                return static_cast<int64_t>(op->offset);
            };
            home.context->backend().queue(&ops[i]);
        }
    });
    for (size_t i = 0; i < ops.size(); i++) CHECK_EQ(ops[i].finish(), i);
}

// --- descriptors

void post(int fd) {
    uint64_t one = 1;
    CHECK_EQ(write(fd, &one, sizeof one), static_cast<ssize_t>(sizeof one));
}

void descriptors(uint32_t backend) {
    Home home(backend);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Watch watch(*home.context, fd, POLLIN);
    REQUIRE(watch.add() == 0);
    usleep(2000);
    CHECK_EQ(watch.calls.load(), 0u);
    for (unsigned i = 1; i <= 10; i++) {
        post(fd);
        CHECK(watch.called(i));
    }
    watch.remove();
    post(fd);
    usleep(2000);
    CHECK_EQ(watch.calls.load(), 10u);
    CHECK_EQ(home.stats().fd_events, 10);
    close(fd);
}

void descriptors_are_level_triggered(uint32_t backend) {
    Home home(backend);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Watch watch(*home.context, fd, POLLIN);
    watch.consume = false;
    REQUIRE(watch.add() == 0);
    post(fd);
    CHECK(watch.called(3));  // nobody reads: it stays ready
    watch.remove();
    close(fd);
}

void removal_in_a_callback(uint32_t backend) {
    Home home(backend);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Watch watch(*home.context, fd, POLLIN);
    watch.remove_in_callback = true;
    REQUIRE(watch.add() == 0);
    post(fd);
    CHECK(Watch::check_soon([&] { return watch.gone.load(); }));
    CHECK_EQ(watch.calls.load(), 1u);
    close(fd);
}

void two_handlers_of_one_descriptor(uint32_t backend) {
    Home home(backend);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Watch one(*home.context, fd, POLLIN), two(*home.context, fd, POLLIN);
    one.consume = two.consume = false;
    REQUIRE(one.add() == 0);
    REQUIRE(two.add() == 0);
    post(fd);
    CHECK(one.called(1));
    CHECK(two.called(1));
    one.remove();
    unsigned before = two.calls;
    CHECK(two.called(before + 1));
    two.remove();
    close(fd);
}

// A context with more to do than it can still sees its descriptors.
void descriptors_of_a_busy_context(uint32_t backend) {
    Home home(backend);
    TempFile file;
    REQUIRE(ftruncate(file.fd, 1 << 20) == 0);
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Watch watch(*home.context, fd, POLLIN);
    REQUIRE(watch.add() == 0);
    struct Loop : IoOp {
        AioContext* context;
        std::atomic<bool> stop{false};
        aio::Signal over;
        std::vector<char> buffer = std::vector<char>(4096);
        iovec part{buffer.data(), 4096};
    } loop;
    loop.context = home.context.get();
    loop.kind = IoKind::read;
    loop.fd = file.fd;
    loop.iov = &loop.part;
    loop.iov_count = 1;
    loop.length = 4096;
    loop.done = [](IoOp* op, int64_t) {
        auto* self = static_cast<Loop*>(op);
        if (self->stop) {
            self->over.set();
        } else {
            self->context->backend().queue(op);
        }
    };
    home.context->call_and_wait([&] { home.context->backend().queue(&loop); });
    post(fd);
    CHECK(watch.called(1));
    loop.stop = true;
    loop.over.wait();
    watch.remove();
    close(fd);
}

// --- time and wake-ups

void short_waits(uint32_t backend) {
    Home home(backend);
    struct Alarm : aio::Timer {
        aio::Signal over;
        uint64_t at_ns = 0;
    } alarm;
    alarm.fire = [](aio::Timer* timer) {
        static_cast<Alarm*>(timer)->at_ns = base::now_ns();
        static_cast<Alarm*>(timer)->over.set();
    };
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; i < 20; i++) {
        Alarm one;
        one.fire = alarm.fire;
        uint64_t start_ns = base::now_ns();
        home.context->call_and_wait([&] { CHECK_EQ(home.context->arm(&one, start_ns + 300000), 0); });
        one.over.wait();
        CHECK(one.at_ns >= start_ns + 300000);
        if (one.at_ns - start_ns < best_ns) best_ns = one.at_ns - start_ns;
    }
    CHECK(best_ns < 900000);  // nanoseconds, not milliseconds rounded up
}

void wakes_once_for_each_message(uint32_t backend) {
    Home home(backend);
    std::atomic<unsigned> ran{0};
    for (unsigned i = 1; i <= 1000; i++) {
        REQUIRE(home.context->call_and_wait([&] { ran++; }) == 0);
        REQUIRE(ran == i);
    }
    CHECK(home.stats().wakeups <= 1001);
}

}  // namespace

#define BOTH(name)                     \
    TEST(uring_##name) {               \
        name(ENGINE_BACKEND_IO_URING); \
    }                                  \
    TEST(threads_##name) {             \
        name(ENGINE_BACKEND_THREADS);  \
    }

TEST(uring_reads_and_writes) {
    reads_and_writes(ENGINE_BACKEND_IO_URING, "/tmp");
}
TEST(threads_reads_and_writes) {
    reads_and_writes(ENGINE_BACKEND_THREADS, "/tmp");
}
TEST(uring_reads_and_writes_tmpfs) {
    reads_and_writes(ENGINE_BACKEND_IO_URING, "/dev/shm");
}
TEST(threads_reads_and_writes_tmpfs) {
    reads_and_writes(ENGINE_BACKEND_THREADS, "/dev/shm");
}
BOTH(vectors)
BOTH(sync_and_allocate)
BOTH(cold_reads)
BOTH(calls_run_side_by_side)
BOTH(more_calls_than_threads)
BOTH(descriptors)
BOTH(descriptors_are_level_triggered)
BOTH(removal_in_a_callback)
BOTH(two_handlers_of_one_descriptor)
BOTH(descriptors_of_a_busy_context)
BOTH(short_waits)
BOTH(wakes_once_for_each_message)
