// Contexts through the C interface: bottom halves, sleep and wake, adaptive polling by counts, placement, and
// what bad input answers. Callbacks run on context threads; what they share with the test is atomic.
#include <sched.h>
#include <sys/resource.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "aio/context.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::run_on;
using embedder::stats_of;

struct Count {
    std::atomic<unsigned> runs{0};
    std::atomic<bool> hold{false};
    engine_bh_t* bh = nullptr;
    static void run(void* opaque) {
        auto* self = static_cast<Count*>(opaque);
        self->runs.fetch_add(1);
        while (self->hold.load()) sched_yield();
    }
    bool reached(unsigned wanted) {
        return eventually([&] { return runs.load() >= wanted; });
    }
};

// Keeps a context busy in a callback until it is let go: what is scheduled meanwhile waits.
struct Blocker : Count {
    explicit Blocker(engine_context_t* context) {
        hold = true;
        REQUIRE(engine_schedule_oneshot(context, run, static_cast<Count*>(this)) == 0);
        REQUIRE(reached(1));
    }
    void release() { hold = false; }
};

TEST(schedules_of_a_waiting_bottom_half_are_one) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Count count;
        engine_bh_t* bh = engine_bh_new(context, Count::run, &count);
        Blocker blocker(context);
        for (int i = 0; i < 10; i++) CHECK_EQ(engine_bh_schedule(bh), 0);
        CHECK_EQ(count.runs.load(), 0);
        blocker.release();
        REQUIRE(count.reached(1));
        run_on(context, [] {});
        CHECK_EQ(count.runs.load(), 1);
        CHECK_EQ(engine_bh_schedule(bh), 0);
        REQUIRE(count.reached(2));
        engine_bh_delete(bh);
    }
}

TEST(a_cancelled_schedule_does_not_run_and_a_later_one_does) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    Count count;
    engine_bh_t* bh = engine_bh_new(context, Count::run, &count);
    Blocker blocker(context);
    CHECK_EQ(engine_bh_schedule(bh), 0);
    engine_bh_cancel(bh);
    blocker.release();
    run_on(context, [] {});
    CHECK_EQ(count.runs.load(), 0);
    Blocker second(context);
    CHECK_EQ(engine_bh_schedule(bh), 0);
    engine_bh_cancel(bh);
    CHECK_EQ(engine_bh_schedule(bh), 0);
    second.release();
    REQUIRE(count.reached(1));
    run_on(context, [] {});
    CHECK_EQ(count.runs.load(), 1);
    engine_bh_delete(bh);
}

TEST(a_bottom_half_is_deleted_from_anywhere) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_context_t* other = engine.context("io1");
    Count count;
    // Scheduled and then deleted by a foreign thread: it does not run.
    Blocker blocker(context);
    engine_bh_t* bh = engine_bh_new(context, Count::run, &count);
    CHECK_EQ(engine_bh_schedule(bh), 0);
    engine_bh_delete(bh);
    blocker.release();
    run_on(context, [] {});
    CHECK_EQ(count.runs.load(), 0);
    // By its own thread, and by that of another context.
    for (engine_context_t* where : {context, other}) {
        bh = engine_bh_new(context, Count::run, &count);
        run_on(where, [bh] { engine_bh_delete(bh); });
    }
    // Inside its own callback, scheduled anew there.
    Count own;
    own.bh = engine_bh_new(
        context,
        [](void* opaque) {
            auto* self = static_cast<Count*>(opaque);
            CHECK_EQ(engine_bh_schedule(self->bh), 0);
            engine_bh_delete(self->bh);
            self->runs.fetch_add(1);
        },
        &own);
    CHECK_EQ(engine_bh_schedule(own.bh), 0);
    REQUIRE(own.reached(1));
    run_on(context, [] {});
    CHECK_EQ(own.runs.load(), 1);
    CHECK_EQ(count.runs.load(), 0);
}

TEST(a_bottom_half_schedules_itself_and_others) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        struct Ring : Count {
            engine_bh_t* to = nullptr;
            static void step(void* opaque) {
                auto* self = static_cast<Ring*>(opaque);
                if (self->runs.fetch_add(1) + 1 < 1000) CHECK_EQ(engine_bh_schedule(self->to), 0);
            }
        };
        std::array<engine_context_t*, 2> contexts{engine.context("io0", backend),
                                                  engine.context("io1", backend)};
        // 0 to itself; 1 and 2 to each other, on two contexts.
        std::array<Ring, 3> ring;
        std::array<engine_bh_t*, 3> bh;
        for (unsigned i = 0; i < 3; i++) bh[i] = engine_bh_new(contexts[i % 2], Ring::step, &ring[i]);
        ring[0].to = bh[0];
        ring[1].to = bh[2];
        ring[2].to = bh[1];
        CHECK_EQ(engine_bh_schedule(bh[0]), 0);
        CHECK_EQ(engine_bh_schedule(bh[1]), 0);
        CHECK(ring[0].reached(1000));
        CHECK(ring[2].reached(999));
        run_on(contexts[0], [] {});
        run_on(contexts[1], [] {});
        CHECK_EQ(ring[0].runs.load(), 1000);
        CHECK(ring[1].runs.load() + ring[2].runs.load() >= 1998);
        for (engine_bh_t* one : bh) engine_bh_delete(one);
    }
}

TEST(after_close_everything_is_refused_and_nothing_runs) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Count count;
        engine_bh_t* bh = engine_bh_new(context, Count::run, &count);
        engine_timer_t* timer =
            engine_timer_new(context, [](void* opaque, int) { Count::run(opaque); }, &count);
        Error error;
        CHECK_EQ(engine_context_close(context, &error), 0);
        CHECK_EQ(engine_bh_schedule(bh), -ESHUTDOWN);
        CHECK_EQ(engine_bh_schedule(bh), -ESHUTDOWN);
        CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), -ESHUTDOWN);
        CHECK_EQ(engine_timer_arm(timer, 0), -ESHUTDOWN);
        CHECK_EQ(engine_timer_cancel(timer), -ESHUTDOWN);
        engine_fd_handler_t* handler = nullptr;
        CHECK_EQ(engine_fd_handler_new(context, 0, Count::run, nullptr, nullptr, &count, &handler, &error),
                 -ESHUTDOWN);
        CHECK_EQ(engine_context_close(context, &error), -ESHUTDOWN);
        CHECK_EQ(error.kind, ENGINE_ERROR_CLOSED);
        CHECK(error.says("io0 is closed already"));
        CHECK(engine_context_find(engine, "io0") == nullptr);
        engine_bh_delete(bh);
        engine_timer_delete(timer);
        CHECK_EQ(count.runs.load(), 0);
        engine.context("io0", backend);  // the name is free again
    }
}

TEST(what_was_accepted_before_close_runs) {
    for (int round = 0; round < 50; round++) {
        Engine engine;
        engine_context_t* context = engine.context("io0");
        std::vector<Count> counts(100);
        for (Count& count : counts) CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
        Error error;
        CHECK_EQ(engine_context_close(context, &error), 0);
        for (Count& count : counts) CHECK_EQ(count.runs.load(), 1);
    }
}

TEST(a_sleeping_context_is_woken) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        Count count;
        for (unsigned i = 1; i <= 100; i++) {
            REQUIRE(eventually([&] { return stats_of(context).sleeps > stats_of(context).wakeups; }));
            CHECK_EQ(engine_schedule_oneshot(context, Count::run, &count), 0);
            REQUIRE(count.reached(i));
        }
        CHECK(stats_of(context).sleeps >= 1);
        CHECK(stats_of(context).sleep_ns > 0);
        CHECK_EQ(stats_of(context).bottom_halves, 100);
        CHECK_EQ(stats_of(context).messages, 100);
    }
}

TEST(polling_follows_its_budget) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* never = engine.context("never", backend, 0);
        for (int i = 0; i < 100; i++) run_on(never, [] {});
        engine_context_stats stats = stats_of(never);
        CHECK_EQ(stats.poll_attempts, 0);
        CHECK_EQ(stats.poll_ns, 0);
        CHECK_EQ(stats.poll_current_ns, 0);
        CHECK(stats.sleeps > 0);

        // A budget that no pause of this test uses up: once it has grown, the context does not sleep any
        // more.
        engine_context_t* always = engine.context("always", backend, 1000000000);
        CHECK(eventually([&] {
            run_on(always, [] {});
            return stats_of(always).poll_successes >= 100;
        }));
        CHECK(stats_of(always).poll_current_ns >= 4000);
        CHECK(stats_of(always).poll_attempts >= stats_of(always).poll_successes);

        // Taken back: what it polls is no more than it may, at once.
        CHECK_EQ(engine_context_set_poll(always, 0), 0);
        run_on(always, [] {});
        REQUIRE(eventually([&] { return stats_of(always).sleeps > stats_of(always).wakeups; }));
        uint64_t attempts = stats_of(always).poll_attempts;
        for (int i = 0; i < 20; i++) run_on(always, [] {});
        CHECK_EQ(stats_of(always).poll_attempts, attempts);
        CHECK_EQ(stats_of(always).poll_current_ns, 0);
        CHECK_EQ(engine_context_set_poll(always, -2), -EINVAL);
        CHECK_EQ(engine_context_set_poll(always, 1000000001), -EINVAL);
    }
}

int an_allowed_cpu() {
    cpu_set_t set;
    CPU_ZERO(&set);
    REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--) {
        if (CPU_ISSET(static_cast<unsigned>(cpu), &set)) return cpu;
    }
    return 0;
}

engine_context_info info_of(engine_context_t* context) {
    engine_context_info info{};
    info.size = sizeof info;
    Error error;
    CHECK_EQ(engine_context_get_info(context, &info, &error), 0);
    return info;
}

TEST(effective_cpus_are_read_back) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        int32_t cpu = an_allowed_cpu();
        engine_context_config config = Engine::context_config("pinned", backend);
        config.cpus = &cpu;
        config.cpu_count = 1;
        engine_context_t* context = engine.context(config);
        int ran_on = -1;
        pid_t tid = 0;
        run_on(context, [&] {
            ran_on = sched_getcpu();
            tid = gettid();
        });
        engine_context_info info = info_of(context);
        uint64_t wanted[ENGINE_CPU_WORDS] = {};
        wanted[cpu / 64] = uint64_t{1} << (cpu % 64);
        CHECK(memcmp(info.cpus, wanted, sizeof wanted) == 0);
        CHECK_EQ(ran_on, cpu);
        CHECK_EQ(info.last_cpu, cpu);
        CHECK_EQ(info.tid, tid);
        CHECK_EQ(info.backend, backend);
        CHECK_EQ(std::string_view(info.name), "pinned");
        CHECK(info.backend_reason[0] != '\0');
        CHECK_EQ(info.poll_max_ns, 0);
        CHECK(info.voluntary_switches > 0);
        CHECK(info.numa_node >= -1);
    }
}

unsigned open_descriptors() {
    unsigned count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count += entry.exists();
    return count;
}

TEST(a_pinned_context_leaves_no_descriptor_behind) {
    Engine engine;
    int32_t cpu = an_allowed_cpu();
    unsigned before = open_descriptors();
    for (int i = 0; i < 3; i++) {
        engine_context_config config = Engine::context_config("pinned", ENGINE_BACKEND_THREADS);
        config.cpus = &cpu;
        config.cpu_count = 1;
        engine_context_t* context = engine.context(config);
        info_of(context);
        Error error;
        CHECK_EQ(engine_context_close(context, &error), 0);
    }
    CHECK_EQ(open_descriptors(), before);
}

// The kernel says what it makes of the counter: whether it goes on at one rate, and whether it keeps time by
// it.
TEST(the_clock_is_the_counter_where_the_kernel_trusts_it) {
    auto first_line_with = [](const char* path, const char* text) {
        std::ifstream file(path);
        for (std::string line; std::getline(file, line);) {
            if (line.find(text) != std::string::npos) return line;
        }
        return std::string();
    };
    std::string source =
        first_line_with("/sys/devices/system/clocksource/clocksource0/current_clocksource", "");
    bool steady = !first_line_with("/proc/cpuinfo", " nonstop_tsc ").empty();
    bool trusted = source == "tsc" || source == "kvm-clock";
    CHECK_EQ(std::string_view(engine_clock_name()), steady && trusted ? "tsc" : "clock_gettime");
}

// A sync goes to a worker, which stays for a while.
TEST(the_workers_of_io_uring_are_counted) {
    embedder::TempFile file(65536);
    Engine engine;
    engine_context_t* context = engine.context("io0", ENGINE_BACKEND_IO_URING);
    engine_user_t* user = Engine::user(engine.open({{"driver", "file"}, {"filename", file.name()}}), "test");
    char data[512] = {};
    Error error;
    engine_context_info info{};
    CHECK(eventually([&] {
        CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE, data, 0, sizeof data, 0, &error, context), 512);
        CHECK_EQ(embedder::io(user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error, context), 0);
        info = info_of(context);
        return info.worker_count > 0;
    }));
    uint64_t cpus = 0;
    for (uint64_t word : info.worker_cpus) cpus |= word;
    CHECK(cpus != 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(an_unpinned_context_may_run_where_the_process_may) {
    Engine engine;
    engine_context_info info = info_of(engine.context("io0", ENGINE_BACKEND_AUTO, -1));
    cpu_set_t set;
    CPU_ZERO(&set);
    REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
    CHECK(memcmp(info.cpus, &set, sizeof info.cpus) == 0);
    CHECK_EQ(info.poll_max_ns, 32768);
}

// Creates a context that must be refused, and says how.
Error refused(Engine& engine, const engine_context_config& config, int errnum) {
    engine_context_t* context = nullptr;
    Error error;
    CHECK_EQ(engine_context_create(engine, &config, &context, &error), -errnum);
    CHECK_EQ(error.errnum, errnum);
    CHECK(context == nullptr);
    CHECK(strchr(error.message, '\n') == nullptr);
    return error;
}

TEST(bad_configurations_answer_with_one_clear_line) {
    Engine engine;
    engine.context("io0");
    engine_context_config config = Engine::context_config("io0");
    Error error = refused(engine, config, EEXIST);
    CHECK_EQ(error.kind, ENGINE_ERROR_CONFLICT);
    CHECK_EQ(std::string_view(error.message), "there is a context 'io0' already");

    config.name = "io1";
    const int32_t missing[] = {an_allowed_cpu(), 1023};
    config.cpus = missing;
    config.cpu_count = 2;
    error = refused(engine, config, EINVAL);
    CHECK_EQ(std::string_view(error.field), "cpus");
    CHECK(error.says("context io1: cannot run on CPU 1023: not online"));

    for (int32_t wrong : {-1, 1024}) {
        config.cpus = &wrong;
        config.cpu_count = 1;
        CHECK(refused(engine, config, EINVAL).says("a CPU is a number from 0 to 1023"));
    }
    config = Engine::context_config("io1", 3);
    CHECK(refused(engine, config, EINVAL).says("unknown backend (3)"));
    config = Engine::context_config("io1", ENGINE_BACKEND_AUTO, -2);
    CHECK_EQ(std::string_view(refused(engine, config, EINVAL).field), "poll_max_ns");
    config = Engine::context_config("");
    CHECK_EQ(std::string_view(refused(engine, config, EINVAL).field), "name");
    config = Engine::context_config("a name of more than thirty-one bytes");
    CHECK_EQ(std::string_view(refused(engine, config, EINVAL).field), "name");
    config = Engine::context_config("io1");
    config.size = 0;
    CHECK_EQ(std::string_view(refused(engine, config, EINVAL).field), "size");
    config.size = sizeof config + 8;
    CHECK_EQ(refused(engine, config, EINVAL).kind, ENGINE_ERROR_UNSUPPORTED);
    config.size = sizeof config;
    config.sched_policy = 12345;
    CHECK_EQ(std::string_view(refused(engine, config, EINVAL).field), "sched-policy");
    // All of that has left nothing behind.
    engine.context("io1");
}

TEST(main_lives_until_the_engine_closes) {
    Engine engine;
    engine_context_t* main = engine_context_find(engine, "main");
    REQUIRE(main != nullptr);
    Error error;
    CHECK_EQ(engine_context_close(main, &error), -EBUSY);
    CHECK(error.says("context main lives until the engine closes"));
    run_on(main, [] {});
    CHECK(engine_context_find(engine, "none") == nullptr);
}

// Small rings hold few operations in flight, and still serve any number.
// A message to a context that always has something ready waits for some of it, not for a turn's whole budget.
TEST(a_busy_context_looks_at_its_inbox) {
    struct Rounds : engine::coro::ReadyItem {
        engine::aio::AioContext* context = nullptr;
        unsigned count = 0;
    } rounds;
    struct Late : engine::aio::Message {
        Rounds* rounds = nullptr;
        unsigned ran_at = 0;
    } late;
    Engine engine;
    auto* context = reinterpret_cast<engine::aio::AioContext*>(engine.context("io0"));
    rounds.context = context;
    rounds.run = [](engine::coro::ReadyItem* item) {
        auto* self = static_cast<Rounds*>(item);
        if (++self->count < 2000) self->context->ready(self);
    };
    late.rounds = &rounds;
    late.run = [](engine::aio::Message* message) {
        auto* self = static_cast<Late*>(message);
        self->ran_at = self->rounds->count;
    };
    run_on(reinterpret_cast<engine_context_t*>(context), [&] {
        context->ready(&rounds);
        CHECK_EQ(context->send(&late), 0);
    });
    CHECK(eventually([&] {
        bool over = false;
        context->call_and_wait([&] { over = rounds.count == 2000; });
        return over;
    }));
    CHECK(late.ran_at > 0);
    CHECK(late.ran_at <= 64);
}

TEST(the_smallest_rings_work) {
    for (uint32_t depth : {1u, 2u, 8u, 16u}) {
        Engine engine;
        embedder::TempFile file(65536);
        engine_context_config config = Engine::context_config("io0", ENGINE_BACKEND_IO_URING);
        config.queue_depth = depth;
        engine_context_t* context = engine.context(config);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "file"}, {"filename", file.name()}}), "test");
        char buffer[4096];
        Error error;
        for (unsigned i = 0; i < 16; i++) {
            CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, i * 4096, 4096, 0, &error, context), 4096);
        }
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(a_context_in_use_does_not_close_under_a_call) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node = engine.open({{"driver", "null"}, {"latency-ns", "300ms"}});
    engine_user_t* user = Engine::user(node, "test");
    std::thread caller([&] {
        char buffer[512];
        Error error;
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, context), 512);
    });
    CHECK(eventually([&] {
        engine_node_stats stats{};
        stats.size = sizeof stats;
        return engine_node_get_stats(node, context, &stats) == 0 && stats.in_flight == 1;
    }));
    Error error;
    int result = engine_context_close(context, &error);
    CHECK_EQ(result, -EBUSY);
    CHECK(error.says("context io0 serves 1 queues, workloads or calls"));
    caller.join();
    CHECK_EQ(engine_context_close(context, &error), 0);
    char buffer[512];
    CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error, context), -ESHUTDOWN);
    CHECK_EQ(error.kind, ENGINE_ERROR_CLOSED);
    CHECK(error.says("context io0 is closed"));
    CHECK_EQ(engine_user_close(user, &error), 0);
}

}  // namespace
