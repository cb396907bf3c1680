// What is refused, with its text: blocking calls on a context's own thread, use after fork(), io_uring behind
// a seccomp filter. And the global locking mode: everything works, and its counters move.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::in_child;
using embedder::run_on;
using embedder::stats_of;

void count_run(void* opaque) {
    static_cast<std::atomic<int>*>(opaque)->fetch_add(1);
}

engine_workload_t* make_workload(engine_t* engine, engine_user_t* user, engine_context_t* context,
                                 uint64_t count) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 8;
    config.count = count;
    config.user = user;
    config.context = context;
    engine_workload_t* workload = nullptr;
    Error error;
    int result = engine_workload_create(engine, &config, &workload, &error);
    check::report(result == 0, __FILE__, __LINE__, error.message);
    if (result != 0) throw check::Failure();
    return workload;
}

TEST(blocking_calls_on_a_contexts_own_thread_are_refused) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_context_t* other = engine.context("io1");
    engine_node_t* node = engine.open({{"driver", "null"}, {"node-name", "disk"}});
    engine_user_t* user = Engine::user(node, "test");
    engine_workload_t* workload = make_workload(engine, user, context, 100);
    const char* const text =
        "would block context io0, on whose own thread it was called: call it from another thread";
    auto on_home = [&] {
        auto refused = [&](int64_t result, const Error& error, const char* what) {
            CHECK_EQ(result, -EDEADLK);
            CHECK_EQ(error.errnum, EDEADLK);
            check::report(error.says(text) && strncmp(error.message, what, strlen(what)) == 0, __FILE__,
                          __LINE__, std::string("message: ") + error.message);
        };
        Error error;
        char buffer[512];
        refused(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error), error, "read");
        refused(embedder::io(user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error, other), error, "flush");
        engine_extent extent;
        refused(engine_user_block_status(user, other, 0, 512, &extent, 1, &error), error, "block-status");
        refused(engine_context_close(context, &error), error, "close context");
        refused(engine_context_close(other, &error), error, "close context");
        const engine_option options[] = {{"driver", "null"}};
        engine_node_t* another = nullptr;
        refused(engine_node_open(engine, options, 1, &another, &error), error, "open");
        refused(engine_node_close(node, &error), error, "close");
        engine_user_t* second = nullptr;
        refused(engine_user_create(node, "second", 1, 15, &second, &error), error, "attach");
        refused(engine_user_close(user, &error), error, "detach");
        engine_context_t* third = nullptr;
        engine_context_config config = Engine::context_config("io2");
        refused(engine_context_create(engine, &config, &third, &error), error, "create context");
        refused(engine_close(engine, &error), error, "close engine");
        refused(engine_workload_start(workload, &error), error, "start workload");
        CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), -EDEADLK);
        CHECK_EQ(engine_workload_close(workload), -EDEADLK);
    };
    run_on(context, on_home);
    // None of that has done any harm.
    Error error;
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
    CHECK_EQ(engine_workload_close(workload), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
    CHECK_EQ(engine_context_close(context, &error), 0);
}

// All kinds of handles, made by the parent.
struct Handles {
    Engine engine;
    engine_context_t* context;
    engine_node_t* node;
    engine_user_t* user;
    engine_workload_t* fresh;
    engine_workload_t* busy;
    engine_bh_t* bh;
    engine_timer_t* timer;
    engine_fd_handler_t* handler = nullptr;
    std::atomic<int> runs{0};
    int ends[2];

    explicit Handles(uint32_t backend) {
        context = engine.context("io0", backend);
        node = engine.open({{"driver", "null"}, {"node-name", "disk"}});
        user = Engine::user(node, "test");
        fresh = make_workload(engine, user, context, 100);
        busy = make_workload(engine, user, context, 1'000'000'000);
        bh = engine_bh_new(context, count_run, &runs);
        timer = engine_timer_new(context, [](void*, int) {}, nullptr);
        REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
        CHECK_EQ(watch(&handler), 0);
        Error error;
        CHECK_EQ(engine_workload_start(busy, &error), 0);
    }
    ~Handles() {
        Error error;
        CHECK_EQ(engine_workload_close(busy), 0);
        CHECK_EQ(engine_workload_close(fresh), 0);
        engine_fd_handler_delete(handler);
        engine_bh_delete(bh);
        engine_timer_delete(timer);
        CHECK_EQ(engine_user_close(user, &error), 0);
        close(ends[0]);
        close(ends[1]);
    }
    int watch(engine_fd_handler_t** out) {
        Error error;
        return engine_fd_handler_new(context, ends[0], count_run, nullptr, nullptr, &runs, out, &error);
    }
};

// What has an error object tells why.
void explained_refusals(Handles& of) {
    auto closed = [](int64_t result, const Error& e) {
        CHECK_EQ(result, -EBADF);
        CHECK_EQ(e.kind, ENGINE_ERROR_CLOSED);
        CHECK(e.says("cannot be used after fork(): make a new one in the child"));
    };
    Error e;
    char buffer[512];
    closed(embedder::io(of.user, ENGINE_OP_READ, buffer, 0, 512, 0, &e, of.context), e);
    engine_extent extent;
    closed(engine_user_block_status(of.user, of.context, 0, 512, &extent, 1, &e), e);
    engine_node_t* another = nullptr;
    const engine_option options[] = {{"driver", "null"}};
    closed(engine_node_open(of.engine, options, 1, &another, &e), e);
    closed(engine_node_close(of.node, &e), e);
    engine_user_t* second = nullptr;
    closed(engine_user_create(of.node, "second", 1, 15, &second, &e), e);
    closed(engine_user_close(of.user, &e), e);
    engine_context_t* third = nullptr;
    engine_context_config config = Engine::context_config("io2");
    closed(engine_context_create(of.engine, &config, &third, &e), e);
    closed(engine_context_close(of.context, &e), e);
    closed(engine_workload_start(of.fresh, &e), e);
    closed(engine_close(of.engine, &e), e);
    engine_context_info info{};
    info.size = sizeof info;
    closed(engine_context_get_info(of.context, &info, &e), e);
}

void silent_refusals(Handles& of) {
    CHECK(engine_context_find(of.engine, "io0") == nullptr);
    CHECK(engine_node_find(of.engine, "disk") == nullptr);
    CHECK_EQ(engine_lock_count(of.engine), 0);
    CHECK_EQ(engine_workload_stop(of.busy), -EBADF);
    CHECK_EQ(engine_workload_wait(of.busy, UINT64_MAX), -EBADF);
    CHECK_EQ(engine_workload_close(of.busy), -EBADF);
    CHECK_EQ(engine_bh_schedule(of.bh), -ESHUTDOWN);
    CHECK_EQ(engine_schedule_oneshot(of.context, count_run, &of.runs), -ESHUTDOWN);
    CHECK_EQ(engine_timer_arm(of.timer, 0), -ESHUTDOWN);
    engine_fd_handler_t* handler = nullptr;
    CHECK_EQ(of.watch(&handler), -ESHUTDOWN);
    engine_fd_handler_delete(of.handler);
    engine_bh_delete(of.bh);
    engine_timer_delete(of.timer);
}

// In the child there are no context threads: whoever waited for one would wait for ever.
TEST(after_fork_everything_answers_closed) {
    for (uint32_t backend : both_backends) {
        Handles handles(backend);
        int status = in_child([&] {
            check::failures = 0;
            explained_refusals(handles);
            silent_refusals(handles);
            return check::failures == 0 ? 0 : 1;
        });
        CHECK_EQ(status, 0);
        CHECK_EQ(handles.runs.load(), 0);
        // The parent has noticed nothing.
        CHECK_EQ(engine_bh_schedule(handles.bh), 0);
        CHECK(eventually([&] { return handles.runs.load() == 1; }));
    }
}

#ifndef EMBEDDER_TSAN  // which cannot start threads in a child of a process with threads
TEST(a_child_makes_an_engine_of_its_own) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    int status = in_child([&] {
        check::failures = 0;
        Engine own;
        std::atomic<int> runs{0};
        CHECK_EQ(engine_schedule_oneshot(own.context("io0"), count_run, &runs), 0);
        CHECK(eventually([&] { return runs.load() == 1; }));
        CHECK_EQ(engine_schedule_oneshot(context, count_run, &runs), -ESHUTDOWN);
        own.close();
        return check::failures == 0 ? 0 : 1;
    });
    CHECK_EQ(status, 0);
}
#endif

// From here on the kernel refuses io_uring_setup to this process.
bool forbid_io_uring(int errnum) {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(errnum)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program{sizeof filter / sizeof filter[0], filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

[[maybe_unused]] int without_io_uring(int errnum) {
    check::failures = 0;
    if (!forbid_io_uring(errnum)) return 2;
    engine_log_open();
    Engine engine;  // main falls back as well
    engine_context_info info{};
    info.size = sizeof info;
    Error error;
    engine_context_t* context = engine.context("io0");
    CHECK_EQ(engine_context_get_info(context, &info, &error), 0);
    CHECK_EQ(info.backend, ENGINE_BACKEND_THREADS);
    CHECK(strncmp(info.backend_reason, "threads, because io_uring is refused here (", 43) == 0);
    CHECK(strstr(info.backend_reason, errnum == EPERM ? "Operation not permitted" : "not implemented") !=
          nullptr);
    CHECK(strstr(info.backend_reason, "seccomp") != nullptr);
    std::atomic<int> runs{0};
    CHECK_EQ(engine_schedule_oneshot(context, count_run, &runs), 0);
    CHECK(eventually([&] { return runs.load() == 1; }));

    engine_log_record record{};
    record.size = sizeof record;
    for (const char* name : {"main", "io0"}) {  // and say so
        CHECK_EQ(engine_log_take(&record, 0), 1);
        CHECK_EQ(record.level, ENGINE_LOG_INFO);
        CHECK_EQ(std::string(record.message),
                 std::string("context ") + name + ": backend " + info.backend_reason);
    }
    CHECK_EQ(engine_log_take(&record, 0), 0);
    engine_log_close();

    engine_context_config config = Engine::context_config("io1", ENGINE_BACKEND_IO_URING);
    engine_context_t* wanted = nullptr;
    CHECK_EQ(engine_context_create(engine, &config, &wanted, &error), -errnum);
    CHECK_EQ(error.kind, ENGINE_ERROR_UNSUPPORTED);
    CHECK(error.says("use the threads backend"));
    char features[160];
    CHECK_EQ(engine_probe_backend(ENGINE_BACKEND_IO_URING, features, sizeof features, &error), -errnum);
    CHECK_EQ(engine_probe_backend(ENGINE_BACKEND_THREADS, features, sizeof features, &error), 0);
    engine.close();
    return check::failures == 0 ? 0 : 1;
}

#ifndef EMBEDDER_TSAN
TEST(refused_io_uring_falls_back_with_its_reason) {
    for (int errnum : {EPERM, ENOSYS}) CHECK_EQ(in_child([&] { return without_io_uring(errnum); }), 0);
}
#endif

TEST(the_reason_for_a_backend_is_told) {
    char features[160];
    Error error;
    CHECK_EQ(engine_probe_backend(ENGINE_BACKEND_IO_URING, features, sizeof features, &error), 0);
    CHECK(strncmp(features, "io_uring: ", 10) == 0);
    CHECK_EQ(engine_probe_backend(ENGINE_BACKEND_THREADS, features, sizeof features, &error), 0);
    CHECK_EQ(std::string_view(features), "threads, as asked");
}

// --- global mode

engine_lock_info lock_of(engine_t* engine, const char* owner) {
    engine_lock_info info{};
    for (uint32_t i = 0; i < engine_lock_count(engine); i++) {
        info.size = sizeof info;
        CHECK_EQ(engine_lock_get(engine, i, &info), 0);
        if (strcmp(info.owner, owner) == 0) return info;
    }
    check::report(false, __FILE__, __LINE__, std::string("no lock of ") + owner);
    return info;
}

TEST(global_mode_serves_and_counts) {
    for (bool profile : {false, true}) {
        Engine engine(ENGINE_LOCKING_GLOBAL, profile);
        engine_context_t* contexts[] = {engine.context("io0"), engine.context("io1")};
        engine_node_t* node = engine.open({{"driver", "null"}, {"node-name", "disk"}});
        engine_user_t* user = Engine::user(node, "test");
        engine_workload_t* workloads[2];
        Error error;
        for (unsigned i = 0; i < 2; i++) {
            workloads[i] = make_workload(engine, user, contexts[i], 50000);
            CHECK_EQ(engine_workload_start(workloads[i], &error), 0);
        }
        for (engine_workload_t* workload : workloads) {
            CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
            CHECK_EQ(engine_workload_close(workload), 0);
        }
        engine_lock_info lock = lock_of(engine, "engine");
        CHECK_EQ(std::string_view(lock.lock), "global");
        CHECK_EQ(lock.rank, 0);
        uint64_t shares = 0;
        for (engine_context_t* context : {contexts[0], contexts[1], engine_context_find(engine, "main")}) {
            engine_context_stats stats = stats_of(context);
            CHECK(stats.lock_acquisitions > 0);
            CHECK(stats.lock_acquisitions <= stats.turns + 1);
            CHECK(stats.lock_hold_ns != 0);  // with or without a profile
            shares += stats.lock_acquisitions;
        }
        CHECK(lock.acquisitions > 100);
        CHECK(shares >= lock.acquisitions);  // every acquisition is some context's
        CHECK(lock.contended <= lock_of(engine, "engine").acquisitions);
        CHECK_EQ(lock.hold_ns.count != 0, profile);
        CHECK_EQ(lock.wait_ns.count != 0, profile);
        engine_lock_info edges = lock_of(engine, "disk");
        CHECK_EQ(std::string_view(edges.lock), "edges");
        CHECK_EQ(edges.rank, 1);
        CHECK(edges.acquisitions > 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(handlers_of_two_contexts_exclude_each_other_in_global_mode) {
    Engine engine(ENGINE_LOCKING_GLOBAL);
    struct Shared {
        int inside = 0;  // not atomic: the engine's lock is all that guards it
        std::atomic<int> runs{0};
        bool overlap = false;
    } shared;
    engine_context_t* contexts[] = {engine.context("io0"), engine.context("io1", ENGINE_BACKEND_THREADS)};
    constexpr int count = 2000;
    for (int i = 0; i < count; i++) {
        REQUIRE(engine_schedule_oneshot(
                    contexts[i % 2],
                    [](void* opaque) {
                        auto* self = static_cast<Shared*>(opaque);
                        self->overlap |= self->inside++ != 0;
                        for (int spin = 0; spin < 100; spin++)
                            std::atomic_signal_fence(std::memory_order_seq_cst);
                        self->overlap |= --self->inside != 0;
                        self->runs.fetch_add(1);
                    },
                    &shared) == 0);
    }
    CHECK(eventually([&] { return shared.runs.load() == count; }));
    CHECK(!shared.overlap);
    Engine free;
    CHECK_EQ(engine_lock_count(free), 0);
    CHECK_EQ(stats_of(free.context("io0")).lock_acquisitions, 0);
}

}  // namespace
