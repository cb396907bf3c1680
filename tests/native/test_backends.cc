// Both backends against one list of expectations: operations, the offload pool, descriptors, wake-ups,
// statistics.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "aio/context.hh"
#include "aio/offload.hh"
#include "base/clock.hh"
#include "base/error.hh"
#include "check.hh"

using namespace engine;
using aio::AioContext;
using aio::FdHandler;
using aio::IoKind;
using aio::IoOp;

namespace {

struct Home {
    std::unique_ptr<AioContext> context;

    explicit Home(uint32_t backend, int64_t poll_max_ns = 0) {
        aio::ContextConfig config;
        config.name = "io";
        config.backend = backend;
        config.poll_max_ns = poll_max_ns;
        engine_error error{};
        error.size = sizeof error;
        if (AioContext::create(std::move(config), &context, &error) != 0) {
            fprintf(stderr, "%s\n", error.message);
            throw check::Failure();
        }
    }
    ~Home() {
        if (context != nullptr) context->stop();
    }
    engine_context_stats stats() const {
        engine_context_stats stats{};
        context->read_stats(&stats);
        return stats;
    }
};

// An operation whose result a foreign thread can wait for.
struct Wait : IoOp {
    aio::Signal over;
    int64_t outcome = INT64_MIN;
    bool on_home = false;
    AioContext* context = nullptr;

    Wait() {
        done = [](IoOp* op, int64_t answer) {
            auto* self = static_cast<Wait*>(op);
            self->outcome = answer;
            self->on_home = self->context->on_home();
            self->over.set();
        };
    }
    void start(AioContext& on) {
        context = &on;
        on.call_and_wait([&] {
            on.backend().queue(this);
            CHECK_EQ(outcome, INT64_MIN);  // never from inside queue()
        });
    }
    int64_t finish() {
        over.wait();
        CHECK(on_home);
        return outcome;
    }
};

class TempFile {
  public:
    explicit TempFile(const char* folder = "/tmp") : path_(std::string(folder) + "/engine-test-XXXXXX") {
        fd = mkostemp(path_.data(), O_CLOEXEC);
        if (fd >= 0) unlink(path_.c_str());
    }
    ~TempFile() {
        if (fd >= 0) close(fd);
    }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    int fd;

  private:
    std::string path_;
};

int64_t transfer(AioContext& context, IoKind kind, int fd, void* base, size_t length, uint64_t offset,
                 int flags = 0) {
    Wait op;
    iovec part{base, length};
    op.kind = kind;
    op.fd = fd;
    op.iov = &part;
    op.iov_count = 1;
    op.offset = offset;
    op.length = length;
    op.flags = flags;
    op.start(context);
    return op.finish();
}

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

// Each call returns only when all of them have begun: they need as many threads.
struct Meeting {
    std::atomic<unsigned> present{0};
    unsigned expected;
};
struct Meeter : Wait {
    Meeting* meeting = nullptr;
    Meeter() {
        kind = IoKind::call;
        call = [](IoOp* op) -> int64_t {
            Meeting& all = *static_cast<Meeter*>(op)->meeting;
            all.present++;
            for (int i = 0; i < 5000; i++) {
                if (all.present == all.expected) return 42;
                usleep(1000);
            }
            return -ETIMEDOUT;
        };
    }
};

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

struct Watch : FdHandler {
    std::atomic<unsigned> calls{0};
    std::atomic<bool> gone{false};
    AioContext* context = nullptr;
    bool consume = true;
    bool remove_in_callback = false;

    Watch(AioContext& on, int watched, uint32_t wanted) : context(&on) {
        fd = watched;
        events = wanted;
        ready = [](FdHandler* handler, uint32_t got) {
            auto* self = static_cast<Watch*>(handler);
            CHECK(self->context->on_home());
            CHECK(!self->gone);
            CHECK((got & self->events) != 0);
            self->calls++;
            uint64_t value;
            if (self->consume)
                CHECK_EQ(read(self->fd, &value, sizeof value), static_cast<ssize_t>(sizeof value));
            if (self->remove_in_callback) {
                self->context->backend().remove_fd(self);
                CHECK(!self->gone);  // not while its callback is on the stack
            }
        };
        released = [](FdHandler* handler) { static_cast<Watch*>(handler)->gone = true; };
    }
    int add() {
        int added = 0;
        context->call_and_wait([&] { added = context->backend().add_fd(this); });
        return added;
    }
    void remove() {
        context->call_and_wait([&] { context->backend().remove_fd(this); });
        CHECK(check_soon([&] { return gone.load(); }));
    }
    template <class F>
    static bool check_soon(F&& f) {
        for (int i = 0; i < 5000; i++) {
            if (f()) return true;
            usleep(1000);
        }
        return false;
    }
    bool called(unsigned at_least) {
        return check_soon([&] { return calls >= at_least; });
    }
};

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
    CHECK_EQ(read(slots[7]), 4096);
    CHECK(memcmp(data, back, sizeof data) == 0);
    CHECK_EQ(read(-1), -EBADF);
    home.context->call_and_wait([&] { backend.unregister_file(7); });
    CHECK_EQ(read(7), -EBADF);
    home.context->call_and_wait([&] { backend.unregister_file(-1); });
    CHECK_EQ(read(6), 4096);
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
