// Descriptors that are watched: level-triggered, on both backends, and removed at the worst moments.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "api/handles.hh"
#include "base/clock.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::run_on;
using embedder::stats_of;

struct Watched {
    int ends[2] = {-1, -1};
    engine_fd_handler_t* handler = nullptr;
    Watched* victim = nullptr;  // deleted by the next callback
    unsigned leave = 0;         // bytes that the callback leaves in the pipe the first times
    std::atomic<unsigned> calls{0};
    std::atomic<unsigned> bytes{0};
    std::atomic<bool> work{false};  // for the poll callback
    std::atomic<unsigned> looks{0};

    Watched() { REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0); }
    ~Watched() {
        close(ends[0]);
        close(ends[1]);
    }
    static void on_read(void* opaque) {
        auto* self = static_cast<Watched*>(opaque);
        self->calls.fetch_add(1);
        if (self->victim != nullptr) {
            engine_fd_handler_t* gone = std::exchange(self->victim->handler, nullptr);
            self->victim = nullptr;
            engine_fd_handler_delete(gone);
        }
        self->work = false;
        char byte;
        if (read(self->ends[0], &byte, 1) == 1) self->bytes.fetch_add(1);
    }
    static int look(void* opaque) {
        auto* self = static_cast<Watched*>(opaque);
        self->looks.fetch_add(1);
        return self->work.load() ? 1 : 0;
    }
    void watch(engine_context_t* context, engine_poll_fn* poll = nullptr) {
        Error error;
        REQUIRE(engine_fd_handler_new(context, ends[0], on_read, nullptr, poll, this, &handler, &error) == 0);
    }
    void put(const char* text) { CHECK_EQ(write(ends[1], text, strlen(text)), strlen(text)); }
};

TEST(descriptors_are_level_triggered) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Watched watched;
        watched.watch(context);
        run_on(context, [] {});
        CHECK_EQ(watched.calls.load(), 0);
        watched.put("abcde");  // one byte a callback: it must be called as long as there is more
        REQUIRE(eventually([&] { return watched.bytes.load() == 5; }));
        CHECK(watched.calls.load() >= 5);
        watched.put("f");
        REQUIRE(eventually([&] { return watched.bytes.load() == 6; }));
        CHECK(stats_of(context).fd_events >= 6);
        engine_fd_handler_delete(watched.handler);
        unsigned calls = watched.calls.load();
        watched.put("g");
        for (int i = 0; i < 20; i++) run_on(context, [] {});
        CHECK_EQ(watched.calls.load(), calls);
    }
}

// It never has nothing to do, and completes nothing either.
TEST(a_context_that_is_never_idle_looks_at_its_descriptors) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Endless {
            engine_bh_t* bh = nullptr;
            std::atomic<bool> over{false};
            static void run(void* opaque) {
                auto* self = static_cast<Endless*>(opaque);
                if (!self->over.load()) CHECK_EQ(engine_bh_schedule(self->bh), 0);
            }
        } endless;
        engine_context_t* context = engine.context("io0", backend);
        endless.bh = engine_bh_new(context, Endless::run, &endless);
        Watched watched;
        watched.watch(context);
        CHECK_EQ(engine_bh_schedule(endless.bh), 0);
        watched.put("a");
        CHECK(eventually([&] { return watched.bytes.load() == 1; }));
        endless.over = true;
        run_on(context, [] {});
        engine_fd_handler_delete(watched.handler);
        engine_bh_delete(endless.bh);
    }
}

TEST(two_handlers_watch_one_descriptor) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Watched watched;
        watched.watch(context);
        engine_fd_handler_t* first = watched.handler;
        watched.watch(context);
        watched.put("ab");
        REQUIRE(eventually([&] { return watched.bytes.load() == 2; }));
        engine_fd_handler_delete(first);
        watched.put("c");
        REQUIRE(eventually([&] { return watched.bytes.load() == 3; }));
        engine_fd_handler_delete(watched.handler);
    }
}

TEST(a_descriptor_tells_when_it_can_be_written) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        struct Writer {
            std::atomic<unsigned> calls{0};
            engine_fd_handler_t* handler = nullptr;
            int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        } writer;
        Error error;
        run_on(context, [&] {
            CHECK_EQ(engine_fd_handler_new(
                         context, writer.fd, nullptr,
                         [](void* opaque) {
                             auto* self = static_cast<Writer*>(opaque);
                             engine_fd_handler_delete(self->handler);  // inside its own callback
                             self->calls.fetch_add(1);
                         },
                         nullptr, &writer, &writer.handler, &error),
                     0);
        });
        REQUIRE(eventually([&] { return writer.calls.load() == 1; }));
        for (int i = 0; i < 20; i++) run_on(context, [] {});
        CHECK_EQ(writer.calls.load(), 1);
        close(writer.fd);
    }
}

// One callback for each direction: what can be written and not read is told to the one that writes.
TEST(each_direction_has_its_own_callback) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        struct Both {
            std::atomic<unsigned> reads{0}, writes{0};
            int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        } both;
        engine_fd_handler_t* handler = nullptr;
        Error error;
        REQUIRE(engine_fd_handler_new(
                    context, both.fd,
                    [](void* opaque) {
                        auto* self = static_cast<Both*>(opaque);
                        uint64_t value = 0;
                        if (read(self->fd, &value, sizeof value) == sizeof value) self->reads.fetch_add(1);
                        CHECK_EQ(value, 1);
                    },
                    [](void* opaque) { static_cast<Both*>(opaque)->writes.fetch_add(1); }, nullptr, &both,
                    &handler, &error) == 0);
        REQUIRE(eventually([&] { return both.writes.load() >= 3; }));
        CHECK_EQ(both.reads.load(), 0);
        uint64_t one = 1;
        CHECK_EQ(write(both.fd, &one, sizeof one), sizeof one);
        REQUIRE(eventually([&] { return both.reads.load() == 1; }));
        engine_fd_handler_delete(handler);
        run_on(context, [] {});
        close(both.fd);
    }
}

TEST(a_callback_deletes_itself_or_another) {
    for (uint32_t backend : both_backends) {
        for (bool poll : {false, true}) {
            for (unsigned who = 0; who < 3; who++) {
                Engine engine;
                engine_context_t* context = engine.context("io0", backend, 100000);
                Watched watched[3];
                for (Watched& one : watched) one.watch(context, poll ? Watched::look : nullptr);
                run_on(context,
                       [&] { watched[1].victim = &watched[who]; });  // the one before, itself, the one after
                if (!poll) watched[1].put("x");
                watched[1].work = poll;  // found by the turn that the next message brings
                run_on(context, [] {});
                REQUIRE(eventually([&] { return watched[1].calls.load() >= 1; }));
                for (int i = 0; i < 20; i++) run_on(context, [] {});
                unsigned calls = watched[who].calls.load();
                watched[who].work = true;
                for (int i = 0; i < 20; i++) run_on(context, [] {});
                CHECK_EQ(watched[who].calls.load(), calls);
                for (Watched& one : watched) {
                    if (one.handler == nullptr) continue;
                    unsigned before = one.calls.load();
                    one.put("y");
                    REQUIRE(eventually([&] { return one.calls.load() > before; }));
                    engine_fd_handler_delete(one.handler);
                }
            }
        }
    }
}

TEST(a_poll_callback_is_asked_while_the_context_polls) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend, 1000000000);
        Watched watched;
        watched.watch(context, Watched::look);
        watched.work = true;
        engine_bh_t* kick = engine_bh_new(context, [](void*) {}, nullptr);
        CHECK_EQ(engine_bh_schedule(kick), 0);
        REQUIRE(eventually([&] { return watched.calls.load() >= 1; }));
        // Without any event of the descriptor: the callback's word is enough.
        REQUIRE(eventually([&] {
            run_on(context, [] {});
            return stats_of(context).poll_successes > 10;
        }));
        for (unsigned i = 0; i < 10; i++) {
            unsigned calls = watched.calls.load();
            watched.work = true;
            // More than one: a context that was kept off its CPU may have stopped polling, and starts anew.
            // It polls when it has nothing else to do.
            REQUIRE(eventually([&] {
                CHECK_EQ(engine_bh_schedule(kick), 0);
                usleep(100);
                return watched.calls.load() > calls;
            }));
        }
        CHECK(watched.looks.load() > 10);
        CHECK_EQ(watched.bytes.load(), 0);
        engine_fd_handler_delete(watched.handler);
        engine_bh_delete(kick);
    }
}

TEST(a_handler_outlives_its_context) {
    for (uint32_t backend : both_backends) {
        for (bool deleted_before : {false, true}) {
            for (bool poll : {false, true}) {
                Engine engine;
                engine_context_t* context = engine.context("io0", backend);
                Watched watched;
                watched.watch(context, poll ? Watched::look : nullptr);
                if (deleted_before) engine_fd_handler_delete(watched.handler);
                Error error;
                CHECK_EQ(engine_context_close(context, &error), 0);
                if (!deleted_before) engine_fd_handler_delete(watched.handler);
            }
        }
    }
}

// One that schedules itself runs once more when its context takes no messages: what it would add then is
// refused.
TEST(a_closing_context_watches_nothing_new) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Last {
            engine_context_t* context;
            engine_bh_t* bh = nullptr;
            int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
            int made = 0;
            int scheduled = 0;
            std::atomic<unsigned> runs{0};
            static void run(void* opaque) {
                auto* self = static_cast<Last*>(opaque);
                engine_fd_handler_t* handler = nullptr;
                Error error;
                self->made = engine_fd_handler_new(
                    self->context, self->fd, [](void*) {}, nullptr, nullptr, self, &handler, &error);
                if (self->made == 0) engine_fd_handler_delete(handler);
                self->scheduled = engine_bh_schedule(self->bh);
                self->runs.fetch_add(1);
            }
        } last{engine.context("io0", backend)};
        last.bh = engine_bh_new(last.context, Last::run, &last);
        CHECK_EQ(engine_bh_schedule(last.bh), 0);
        REQUIRE(eventually([&] { return last.runs >= 10; }));
        Error error;
        CHECK_EQ(engine_context_close(last.context, &error), 0);
        CHECK_EQ(last.scheduled, -ESHUTDOWN);  // it was the last run
        CHECK_EQ(last.made, -ESHUTDOWN);
        engine_bh_delete(last.bh);
        close(last.fd);
    }
}

// One that is let go there: the kernel has not answered when the backend goes.
TEST(a_closing_context_lets_a_handler_go) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Last : engine::aio::FdHandler {
            engine_context_t* context;
            engine_bh_t* bh = nullptr;
            std::atomic<unsigned> runs{0};
            unsigned times_released = 0;
            static void run(void* opaque) {
                auto* self = static_cast<Last*>(opaque);
                auto& watching = engine::api::unwrap(self->context)->backend();
                if (self->runs.fetch_add(1) == 0) CHECK_EQ(watching.add_fd(self), 0);
                if (engine_bh_schedule(self->bh) != 0) watching.remove_fd(self);
            }
        } last;
        last.context = engine.context("io0", backend);
        last.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        last.events = POLLIN;
        last.ready = [](engine::aio::FdHandler*, uint32_t) { CHECK(false); };
        last.released = [](engine::aio::FdHandler* gone) { static_cast<Last*>(gone)->times_released++; };
        last.bh = engine_bh_new(last.context, Last::run, &last);
        CHECK_EQ(engine_bh_schedule(last.bh), 0);
        REQUIRE(eventually([&] { return last.runs >= 10; }));
        Error error;
        CHECK_EQ(engine_context_close(last.context, &error), 0);
        CHECK_EQ(last.times_released, 1);
        engine_bh_delete(last.bh);
        close(last.fd);
    }
}

TEST(what_cannot_be_watched_is_refused) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Watched watched;
        engine_fd_handler_t* handler = nullptr;
        Error error;
        CHECK_EQ(engine_fd_handler_new(context, 987654, Watched::on_read, nullptr, nullptr, &watched,
                                       &handler, &error),
                 -EBADF);
        CHECK(error.says("context io0 cannot watch descriptor 987654"));
        CHECK_EQ(engine_fd_handler_new(context, 0, nullptr, nullptr, nullptr, &watched, &handler, &error),
                 -EINVAL);
        CHECK_EQ(engine_fd_handler_new(context, 0, nullptr, Watched::on_read, Watched::look, &watched,
                                       &handler, &error),
                 -EINVAL);
        CHECK(handler == nullptr);
        engine_context_t* other = engine.context("io1", backend);
        run_on(other, [&] {
            CHECK_EQ(engine_fd_handler_new(context, watched.ends[0], Watched::on_read, nullptr, nullptr,
                                           &watched, &handler, &error),
                     -EDEADLK);
        });
    }
}

}  // namespace
