// What tests of the backends share: a context with one backend, an operation that a foreign thread waits for,
// a file without a name.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "aio/context.hh"
#include "aio/signal.hh"
#include "base/error.hh"
#include "check.hh"

namespace engine {

struct Home {
    std::unique_ptr<aio::AioContext> context;

    explicit Home(uint32_t backend, int64_t poll_max_ns = 0) {
        aio::ContextConfig config;
        config.name = "io";
        config.backend = backend;
        config.poll_max_ns = poll_max_ns;
        engine_error error{};
        error.size = sizeof error;
        if (aio::AioContext::create(std::move(config), &context, &error) != 0) {
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
struct Wait : aio::IoOp {
    aio::Signal over;
    int64_t outcome = INT64_MIN;
    bool on_home = false;
    aio::AioContext* context = nullptr;

    Wait() {
        done = [](aio::IoOp* op, int64_t answer) {
            auto* self = static_cast<Wait*>(op);
            self->outcome = answer;
            self->on_home = self->context->on_home();
            self->over.set();
        };
    }
    void start(aio::AioContext& on) {
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

inline int64_t transfer(aio::AioContext& context, aio::IoKind kind, int fd, void* base, size_t length,
                        uint64_t offset, int flags = 0) {
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

// Each call returns only when all of them have begun: they need as many threads.
struct Meeting {
    std::atomic<unsigned> present{0};
    unsigned expected;
};
struct Meeter : Wait {
    Meeting* meeting = nullptr;
    Meeter() {
        kind = aio::IoKind::call;
        call = [](aio::IoOp* op) -> int64_t {
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

struct Watch : aio::FdHandler {
    std::atomic<unsigned> calls{0};
    std::atomic<bool> gone{false};
    aio::AioContext* context = nullptr;
    bool consume = true;
    bool remove_in_callback = false;

    Watch(aio::AioContext& on, int watched, uint32_t wanted) : context(&on) {
        fd = watched;
        events = wanted;
        ready = [](aio::FdHandler* handler, uint32_t got) {
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
        released = [](aio::FdHandler* handler) { static_cast<Watch*>(handler)->gone = true; };
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

}  // namespace engine
