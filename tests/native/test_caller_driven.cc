// Contexts that their caller drives: one descriptor in a foreign loop is enough for messages, timers, watched
// descriptors, files and queues; whose thread it is; blocking calls on that thread; closing; the watchdog.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <thread>

#include "aio/caller.hh"
#include "caller_driven.hh"

namespace {

using namespace caller;

using embedder::both_backends;
using embedder::eventually;
using embedder::stats_of;

TEST(the_descriptor_is_readable_until_the_first_run) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        CHECK(engine_context_fileno(context) >= 0);
        CHECK(readable(context));
        CHECK_EQ(run_once(context), 0);
        settle(context);
        CHECK_EQ(stats_of(context).messages, 0);
    }
}

TEST(bottom_halves_from_another_thread) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        Count count;
        Count early;
        CHECK_EQ(engine_schedule_oneshot(context, Count::run, &early), 0);  // before anybody drives it
        REQUIRE(poll_until(context, [&] { return early.runs == 1; }));
        settle(context);
        Beside sender(context, [&] {
            for (unsigned i = 0; i < 2000; i++) {
                CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
                // Now and then it finds the loop asleep.
                if (i % 100 == 0) CHECK(eventually([&] { return count.runs == i + 1; }));
            }
        });
        CHECK(poll_until(context, [&] { return sender.over() && count.runs == 2000; }));
        CHECK_EQ(stats_of(context).bottom_halves, 2001);
        CHECK(stats_of(context).wakeups >= 1);
    }
}

TEST(one_that_schedules_itself_keeps_the_descriptor_readable) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Again {
            engine_bh_t* bh = nullptr;
            unsigned runs = 0;
        } again;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        again.bh = engine_bh_new(
            context,
            [](void* opaque) {
                auto* self = static_cast<Again*>(opaque);
                if (++self->runs < 100) CHECK_EQ(engine_bh_schedule(self->bh), 0);
            },
            &again);
        run_once(context);
        CHECK_EQ(engine_bh_schedule(again.bh), 0);
        CHECK(poll_until(context, [&] { return again.runs == 100; }));
        engine_bh_delete(again.bh);
        settle(context);
    }
}

TEST(timers_fire_by_the_descriptor_alone) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        struct Late {
            uint64_t at_ns = 0;
        } late;
        Count count;
        engine_timer_t* timer = engine_timer_new(
            context, [](void* opaque, int) { static_cast<Late*>(opaque)->at_ns = engine_now_ns(); }, &late);
        engine_timer_t* far = engine_timer_new(context, Count::fired, &count);
        run_once(context);
        uint64_t deadline_ns = engine_now_ns() + 20'000'000;
        CHECK_EQ(engine_timer_arm(far, deadline_ns + 3600'000'000'000), 0);
        CHECK_EQ(engine_timer_arm(timer, deadline_ns), 0);
        CHECK(poll_until(context, [&] { return late.at_ns != 0; }));
        CHECK(late.at_ns >= deadline_ns);
        settle(context);  // the far one is no reason to be readable
        // Moved to now by another thread: the loop hears of it.
        Beside other(context, [&] { CHECK_EQ(engine_timer_arm(far, engine_now_ns()), 0); });
        CHECK(poll_until(context, [&] { return count.runs == 1 && other.over(); }));
        engine_timer_delete(timer);
        engine_timer_delete(far);
        settle(context);
    }
}

TEST(a_watched_descriptor_is_served_by_select) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        int ends[2];
        REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
        struct Reader : Count {
            int fd;
        } reader;
        reader.fd = ends[0];
        run_once(context);  // this thread is the context's, and may block for it
        engine_fd_handler_t* handler = nullptr;
        Error error;
        CHECK_EQ(engine_fd_handler_new(
                     context, ends[0],
                     [](void* opaque) {
                         auto* self = static_cast<Reader*>(opaque);
                         char byte;
                         if (read(self->fd, &byte, 1) == 1) self->runs.fetch_add(1);
                     },
                     nullptr, nullptr, &reader, &handler, &error),
                 0);
        settle(context);
        for (unsigned i = 1; i <= 50; i++) {
            CHECK_EQ(write(ends[1], "xx", 2), 2);  // one more than a callback takes
            while (reader.runs != 2 * i) {
                fd_set set;
                FD_ZERO(&set);
                FD_SET(engine_context_fileno(context), &set);
                timeval limit{40, 0};
                REQUIRE(select(engine_context_fileno(context) + 1, &set, nullptr, nullptr, &limit) == 1);
                run_once(context);
            }
        }
        settle(context);
        engine_fd_handler_delete(handler);
        CHECK_EQ(write(ends[1], "x", 1), 1);
        settle(context);
        CHECK_EQ(reader.runs.load(), 100);
        close(ends[0]);
        close(ends[1]);
    }
}

TEST(files_are_read_and_written_for_another_thread) {
    for (uint32_t backend : both_backends) {
        for (uint32_t locking : {ENGINE_LOCKING_PER_NODE, ENGINE_LOCKING_GLOBAL}) {
            embedder::TempFile file(65536);
            Engine engine(locking);
            engine_context_t* context = caller_driven(engine, "io0", backend);
            engine_user_t* user =
                Engine::user(engine.open({{"driver", "raw"}, {"filename", file.name()}}), "test");
            {
                Beside other(context, [&] { write_and_read(user, context); });
                CHECK(poll_until(context, [&] { return other.over(); }));
            }
            CHECK(stats_of(context).completed >= 16);
            Error error;
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
    }
}

// The thread that drives may take signals; the workers that it starts for files must not.
TEST(workers_take_no_signals) {
    embedder::TempFile file(65536);
    Engine engine;
    engine_context_t* context = caller_driven(engine, "io0", ENGINE_BACKEND_THREADS);
    run_once(context);
    engine_user_t* user = Engine::user(engine.open({{"driver", "raw"}, {"filename", file.name()}}), "test");
    write_and_read(user, context);
    unsigned workers = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream status(task.path() / "status");
        std::string line, name;
        while (std::getline(status, line)) {
            if (line.starts_with("Name:")) name = line.substr(6);
            if (!line.starts_with("SigBlk:") || name != "offload") continue;
            workers++;
            uint64_t blocked = strtoull(line.c_str() + 8, nullptr, 16);
            for (int signal = 1; signal <= SIGRTMAX; signal++) {
                bool may_be = signal != SIGKILL && signal != SIGSTOP && (signal < 32 || signal >= SIGRTMIN);
                if (may_be) CHECK_EQ(blocked >> (signal - 1) & 1, 1);
            }
        }
    }
    CHECK(workers > 0);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
}

// It would wait for itself, if it did not go on driving.
TEST(a_blocking_call_on_the_driving_thread_drives) {
    for (uint32_t backend : both_backends) {
        embedder::TempFile file(65536);
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        engine_context_t* second = caller_driven(engine, "io1", backend);
        engine_context_t* own = engine.context("own", backend);
        run_once(context);
        run_once(second);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "raw"}, {"filename", file.name()}}), "test");
        for (engine_context_t* where : {context, second, own}) write_and_read(user, where);
        // What it waits for on another thread may need the contexts of this one.
        Count count;
        engine_bh_t* bh = engine_bh_new(second, Count::run, &count);
        struct Kick {
            engine_bh_t* bh;
            Count* count;
        } kick{bh, &count};
        REQUIRE(engine_schedule_oneshot(
                    own,
                    [](void* opaque) {
                        auto* self = static_cast<Kick*>(opaque);
                        CHECK_EQ(engine_bh_schedule(self->bh), 0);
                        CHECK(eventually([self] { return self->count->runs == 1; }));
                    },
                    &kick) == 0);
        write_and_read(user, own);
        CHECK_EQ(count.runs.load(), 1);
        engine_bh_delete(bh);
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

engine_workload_t* make_load(Engine& engine, engine_context_t* context, engine_user_t* user,
                             engine_queue_t* queue) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 8;
    config.count = 500;
    config.pattern = ENGINE_RANDOM;
    config.user = user;
    config.queue = queue;
    config.context = context;
    config.seed = 7;
    engine_workload_t* made = nullptr;
    Error error;
    int result = engine_workload_create(engine, &config, &made, &error);
    check::report(result == 0, __FILE__, __LINE__, std::string("engine_workload_create: ") + error.message);
    if (result != 0) throw check::Failure();
    return made;
}

// A null node that takes its time, over the node and through a queue: timers and pollers of the context.
TEST(loads_run_by_the_descriptor_alone) {
    for (uint32_t backend : both_backends) {
        for (bool over_queue : {false, true}) {
            Engine engine;
            engine_context_t* context = caller_driven(engine, "io0", backend);
            run_once(context);
            engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "50us"}});
            Error error;
            engine_user_t* user = nullptr;
            engine_disk_t* disk = nullptr;
            if (over_queue) {
                engine_disk_config config{};
                config.size = sizeof config;
                config.name = "disk";
                config.queue_count = 1;
                config.queue_size = 64;
                config.event_index = 1;
                config.contexts = &context;
                REQUIRE(engine_disk_create(node, &config, &disk, &error) == 0);
            } else {
                user = Engine::user(node, "test");
            }
            engine_workload_t* load =
                make_load(engine, context, user, over_queue ? engine_disk_get_queue(disk, 0) : nullptr);
            CHECK_EQ(engine_workload_start(load, &error), 0);
            engine_workload_result result{};
            result.size = sizeof result;
            CHECK(poll_until(context, [&] {
                CHECK_EQ(engine_workload_get_result(load, &result), 0);
                return result.running == 0;
            }));
            CHECK_EQ(result.requests[0] + result.requests[1], 500);
            CHECK_EQ(result.errors, 0);
            CHECK_EQ(engine_workload_wait(load, 0), 0);
            CHECK_EQ(engine_workload_close(load), 0);
            if (disk != nullptr) CHECK_EQ(engine_disk_close(disk, &error), 0);
            if (user != nullptr) CHECK_EQ(engine_user_close(user, &error), 0);
            settle(context);
        }
    }
}

TEST(a_load_is_waited_for_on_the_driving_thread) {
    Engine engine;
    engine_context_t* context = caller_driven(engine, "io0", ENGINE_BACKEND_AUTO);
    run_once(context);
    engine_user_t* user = Engine::user(engine.open({{"driver", "null"}, {"latency-ns", "1ms"}}), "test");
    engine_workload_t* load = make_load(engine, context, user, nullptr);
    Error error;
    CHECK_EQ(engine_workload_start(load, &error), 0);
    CHECK_EQ(engine_workload_wait(load, 1), -ETIMEDOUT);  // 500 requests of 1 ms, 8 at a time
    CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
    CHECK_EQ(engine_workload_close(load), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(run_once_says_whether_something_ran_and_a_wake_ends_it) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        CHECK_EQ(run_once(context), 0);
        CHECK_EQ(run_once(context, 1000000), 0);
        Count count;
        CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
        CHECK_EQ(run_once(context, -1), 1);
        CHECK_EQ(count.runs.load(), 1);
        settle(context);
        CHECK_EQ(engine_context_wake(context), 0);  // comes first: it is not lost
        CHECK_EQ(run_once(context, -1), 0);
        Beside other(context, [] {});  // wakes at its end
        do {
            CHECK_EQ(run_once(context, -1), 0);
        } while (!other.over());
    }
}

TEST(who_may_drive) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        engine_context_t* own = engine.context("own", backend);
        Error error;
        CHECK_EQ(engine_context_run_once(own, 0, &error), -EINVAL);
        CHECK(error.says("context own was not made as caller-driven: it has a thread of its own"));
        CHECK_EQ(engine_context_fileno(own), -EINVAL);
        run_once(context);
        std::thread([&] {
            Error there;
            CHECK_EQ(engine_context_run_once(context, 0, &there), -EBUSY);
            CHECK_EQ(there.kind, ENGINE_ERROR_CONFLICT);
            CHECK(there.says("context io0 is driven by thread"));
        }).join();
        struct Inside {
            engine_context_t* context;
            bool ran = false;
        } inside{context};
        CHECK_EQ(engine_schedule_oneshot(
                     context,
                     [](void* opaque) {
                         auto* self = static_cast<Inside*>(opaque);
                         Error here;
                         CHECK_EQ(engine_context_run_once(self->context, 0, &here), -EDEADLK);
                         CHECK(here.says("from inside a callback of context io0"));
                         CHECK_EQ(engine_context_close(self->context, &here), -EDEADLK);
                         self->ran = true;
                     },
                     &inside),
                 0);
        CHECK_EQ(run_once(context), 1);
        CHECK(inside.ran);
        CHECK_EQ(engine_context_close(context, &error), 0);
        CHECK_EQ(engine_context_run_once(context, 0, &error), -ESHUTDOWN);
        CHECK(error.says("context io0 is closed"));
        CHECK_EQ(engine_context_fileno(context), -ESHUTDOWN);
        CHECK_EQ(engine_context_wake(context), 0);
        CHECK_EQ(engine_schedule_oneshot(context, Count::run, nullptr), -ESHUTDOWN);
    }
}

TEST(its_thread_is_not_the_engines_to_place) {
    Engine engine;
    engine_context_config config = Engine::context_config("io0");
    config.caller_driven = 1;
    int32_t cpu = 0;
    config.cpus = &cpu;
    config.cpu_count = 1;
    engine_context_t* context = nullptr;
    Error error;
    CHECK_EQ(engine_context_create(engine, &config, &context, &error), -EINVAL);
    CHECK_EQ(std::string_view(error.field), "cpus");
    CHECK(error.says("context io0 is driven by its caller"));
    config.cpu_count = 0;
    config.sched_policy = 1;
    CHECK_EQ(engine_context_create(engine, &config, &context, &error), -EINVAL);
    CHECK_EQ(std::string_view(error.field), "sched-policy");
    config.sched_policy = 0;
    config.caller_driven = 2;
    CHECK_EQ(engine_context_create(engine, &config, &context, &error), -EINVAL);
    config.caller_driven = 1;
    engine_context_info info{};
    info.size = sizeof info;
    context = engine.context(config);
    CHECK_EQ(engine_context_get_info(context, &info, &error), 0);
    CHECK_EQ(info.tid, 0);
    CHECK_EQ(info.numa_node, -1);
    run_once(context);
    CHECK_EQ(engine_context_get_info(context, &info, &error), 0);
    CHECK_EQ(info.tid, gettid());
}

TEST(closed_from_another_thread_while_it_is_driven) {
    for (uint32_t backend : both_backends) {
        for (int round = 0; round < 20; round++) {
            Engine engine;
            engine_context_t* context = caller_driven(engine, "io0", backend);
            Count count, timer_count;
            engine_timer_t* timer = engine_timer_new(
                context, [](void* opaque, int fired) { CHECK(fired == 0), Count::run(opaque); },
                &timer_count);
            CHECK_EQ(engine_timer_arm(timer, engine_now_ns() + 3600'000'000'000), 0);
            std::atomic<bool> driven{false};
            std::thread driver([&] {
                Error error;
                int result = 0;
                while ((result = engine_context_run_once(context, -1, &error)) >= 0) driven = true;
                CHECK_EQ(result, -ESHUTDOWN);
            });
            REQUIRE(eventually([&] { return driven.load(); }));
            for (int i = 0; i < 10; i++) CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
            Error error;
            CHECK_EQ(engine_context_close(context, &error), 0);
            driver.join();
            CHECK_EQ(count.runs.load(), 10);
            CHECK_EQ(timer_count.runs.load(), 1);
            engine_timer_delete(timer);
        }
    }
}

TEST(closed_without_ever_being_driven) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = caller_driven(engine, "io0", backend);
        Count count;
        CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
        Error error;
        CHECK_EQ(engine_context_close(context, &error), 0);
        CHECK_EQ(count.runs.load(), 1);
        caller_driven(engine, "io1", backend);  // this one goes with the engine
    }
}

}  // namespace
