// Threads that drive contexts and end: who drives them then, who waits for them, and the watchdog.
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "aio/caller.hh"
#include "aio/signal.hh"
#include "api/handles.hh"
#include "caller_driven.hh"

namespace {

using namespace caller;
using embedder::both_backends;
using embedder::eventually;

// It may be set on a thread whose last system call was interrupted.
TEST(a_signal_is_written_once_whatever_errno_was) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    REQUIRE(fd >= 0);
    engine::aio::Signal signal;
    CHECK(signal.announce(fd));
    errno = EINTR;
    signal.set();
    uint64_t value = 0;
    CHECK_EQ(read(fd, &value, sizeof value), sizeof value);
    CHECK_EQ(value, 1);
    CHECK(signal.is_set());
    CHECK(!signal.withdraw(fd));
    close(fd);
}

// At once: the kernel may know a thread for a while that was joined.
TEST(a_joined_thread_drives_nothing_any_more) {
    Engine engine;
    engine_context_t* context = caller_driven(engine, "io0", ENGINE_BACKEND_THREADS);
    for (int i = 0; i < 400; i++) {
        int result = 0;
        Error error;
        std::thread([&] { result = engine_context_run_once(context, 0, &error); }).join();
        REQUIRE(result >= 0);
    }
}

// Whoever waits for it drives it.
TEST(a_call_waits_for_a_context_whose_thread_ends) {
    for (uint32_t backend : both_backends) {
        embedder::TempFile file(65536);
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "raw"}, {"filename", file.name()}}), "test");
        std::atomic<int> step{0};
        std::thread driver([&] {
            run_once(context);
            write_and_read(user, context);
            step.store(1);
            while (step.load() != 2) sched_yield();
        });
        while (step.load() != 1) sched_yield();
        std::thread caller([&] {
            step.store(2);
            write_and_read(user, context);
        });
        driver.join();
        caller.join();
        run_once(context);
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

// Handlers that it let go of in its last turn: what the kernel has not answered by then goes with the old
// ring.
TEST(the_last_turn_of_a_thread_lets_handlers_go) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        struct Handlers {
            struct Kept : engine::aio::FdHandler {
                unsigned times_released = 0;
            };
            engine::aio::AioContext* context;
            Kept handlers[3] = {};
            int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
            static void add(void* opaque) {
                auto* self = static_cast<Handlers*>(opaque);
                for (Kept& handler : self->handlers) {
                    handler.fd = self->fd;
                    handler.events = POLLIN;
                    handler.ready = [](engine::aio::FdHandler*, uint32_t) { CHECK(false); };
                    handler.released = [](engine::aio::FdHandler* gone) {
                        static_cast<Kept*>(gone)->times_released++;
                    };
                    CHECK_EQ(self->context->backend().add_fd(&handler), 0);
                }
            }
            static void remove(void* opaque) {
                auto* self = static_cast<Handlers*>(opaque);
                for (Kept& handler : self->handlers) self->context->backend().remove_fd(&handler);
            }
        } all{engine::api::unwrap(context)};
        std::thread([&] {
            run_once(context);
            for (auto* what : {Handlers::add, Handlers::remove}) {
                CHECK_EQ(engine_schedule_oneshot(context, what, &all), 0);
                run_once(context);
            }
        }).join();
        settle(context);
        for (const auto& handler : all.handlers) CHECK_EQ(handler.times_released, 1);
        close(all.fd);
    }
}

// Another thread takes its place: handlers, timers and files go on there, and the engine can be closed.
TEST(the_thread_that_drove_it_has_ended) {
    for (uint32_t backend : both_backends) {
        embedder::TempFile file(65536);
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "raw"}, {"filename", file.name()}}), "test");
        int ends[2];
        REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
        engine_fd_handler_t* handler = nullptr;
        Count count;
        Error error;
        std::thread([&] {
            run_once(context);
            write_and_read(user, context);
            CHECK_EQ(engine_fd_handler_new(context, ends[0], Count::run, nullptr, nullptr, &count, &handler,
                                           &error),
                     0);
        }).join();
        REQUIRE(handler != nullptr);
        run_once(context);
        write_and_read(user, context);
        CHECK_EQ(write(ends[1], "x", 1), 1);
        CHECK(poll_until(context, [&] { return count.runs >= 3; }));
        engine_fd_handler_delete(handler);
        settle(context);
        close(ends[0]);
        close(ends[1]);
        std::thread([&] {
            Error there;
            CHECK_EQ(engine_context_run_once(context, 0, &there), -EBUSY);  // this thread is alive
        }).join();
        CHECK_EQ(engine_user_close(user, &error), 0);
        engine_context_t* second = caller_driven(engine, "io1", backend);
        embedder::TempFile other(65536);
        user = Engine::user(engine.open({{"driver", "raw"}, {"filename", other.name()}}), "test");
        std::thread([&] {
            run_once(second);
            write_and_read(user, second);  // leaves channels, which closing the node must reach
        }).join();
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

class Captured {  // standard error, for as long as it lives
  public:
    Captured() {
        REQUIRE(pipe2(ends_, O_CLOEXEC | O_NONBLOCK) == 0);
        fflush(stderr);
        saved_ = dup(STDERR_FILENO);
        dup2(ends_[1], STDERR_FILENO);
    }
    ~Captured() {
        dup2(saved_, STDERR_FILENO);
        for (int fd : {saved_, ends_[0], ends_[1]}) close(fd);
    }
    bool says(const char* text) {
        char part[512];
        for (ssize_t n; (n = read(ends_[0], part, sizeof part)) > 0;) {
            text_.append(part, static_cast<size_t>(n));
        }
        return text_.find(text) != std::string::npos;
    }

  private:
    int ends_[2];
    int saved_;
    std::string text_;
};

// What the log says, for as long as it lives; standard error is for programs that keep no log.
class Logged {
  public:
    Logged() { engine_set_log_hook(hook, this); }
    ~Logged() { engine_set_log_hook(nullptr, nullptr); }
    bool says(const char* text) {
        std::lock_guard guard(mutex_);
        return text_.find(text) != std::string::npos;
    }

  private:
    static void hook(const engine_log_record* record, void* opaque) {
        auto* self = static_cast<Logged*>(opaque);
        std::lock_guard guard(self->mutex_);
        self->text_ += record->message;
    }
    std::mutex mutex_;
    std::string text_;
};

template <class Listener>
void leave_alone(uint64_t limit_ns) {
    for (bool driving : {false, true}) {  // the thread that waits drives another context, or none
        Engine engine;
        engine_context_t* left_alone = caller_driven(engine, "left-alone", ENGINE_BACKEND_AUTO);
        engine_context_t* other = caller_driven(engine, "other", ENGINE_BACKEND_AUTO);
        run_once(left_alone);
        settle(left_alone);
        engine_user_t* user = Engine::user(engine.open({{"driver", "null"}}), "test");
        engine::aio::stall_limit_ns.store_relaxed(limit_ns);
        std::atomic<bool> over{false};
        {
            Listener heard;
            std::thread waiter([&] {
                if (driving) run_once(other);
                char buffer[512];
                Error error;
                CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, left_alone), 512);
                over = true;
                engine_context_wake(left_alone);
            });
            CHECK(eventually([&] { return heard.says("context left-alone has left its messages alone"); }));
            CHECK(!heard.says("context other"));
            CHECK(poll_until(left_alone, [&] { return over.load(); }));
            waiter.join();
        }
        engine::aio::stall_limit_ns.store_relaxed(10'000'000'000);
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(a_context_that_is_left_alone_is_named) {
    leave_alone<Captured>(20'000'000);
    leave_alone<Captured>(200'000'000);  // more than a call sleeps at a time
    leave_alone<Logged>(20'000'000);
    leave_alone<Logged>(200'000'000);  // more than a call sleeps at a time
}

}  // namespace
