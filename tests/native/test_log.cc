// The log: levels and texts as they reach a hook and the queue, what is dropped, waking, forks; and that rare
// events of the core arrive there.
#include <thread>

#include "api/handles.hh"
#include "base/log.hh"
#include "embedder.hh"
#include "protocols/file.hh"

namespace {

using embedder::Engine;
using embedder::Error;
using engine::base::log;

// The queue, open for as long as the test.
struct Queue {
    Queue() { engine_log_open(); }
    ~Queue() { engine_log_close(); }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    bool take(uint64_t timeout_ns = 0) {
        record = {};
        record.size = sizeof record;
        return engine_log_take(&record, timeout_ns) == 1;
    }
    // What comes next says so.
    bool says(uint32_t level, const char* text) {
        return take() && record.level == level && strstr(record.message, text) != nullptr;
    }
    engine_log_record record{};
};

TEST(records_go_to_queue_and_hook) {
    log(ENGINE_LOG_ERROR, "nobody listens");
    Queue queue;
    static std::vector<std::string> heard;
    heard.clear();
    engine_set_log_hook(
        [](const engine_log_record* record, void* opaque) {
            static_cast<std::vector<std::string>*>(opaque)->push_back(record->message);
        },
        &heard);
    log(ENGINE_LOG_INFO, "node %s:\n%d lines", "a", 2);
    engine_set_log_hook(nullptr, nullptr);
    log(ENGINE_LOG_WARNING, "%s", std::string(2000, 'x').c_str());
    REQUIRE(heard.size() == 1);
    CHECK_EQ(heard[0], "node a: 2 lines");
    CHECK(queue.says(ENGINE_LOG_INFO, "node a: 2 lines"));
    CHECK(queue.record.time_ns > uint64_t{1600000000} * 1000000000);
    CHECK(queue.says(ENGINE_LOG_WARNING, "xxx"));
    CHECK_EQ(strlen(queue.record.message), sizeof queue.record.message - 1);
    CHECK(!queue.take());
}

TEST(a_full_queue_says_how_much_it_dropped) {
    Queue queue;
    for (int i = 0; i < ENGINE_LOG_QUEUE + 5; i++) log(ENGINE_LOG_INFO, "number %d.", i);
    for (int i = 0; i < ENGINE_LOG_QUEUE; i++) {
        CHECK(queue.says(ENGINE_LOG_INFO, ("number " + std::to_string(i) + ".").c_str()));
    }
    CHECK(queue.says(ENGINE_LOG_WARNING, "5 log records were dropped"));
    CHECK(!queue.take());
}

TEST(a_smaller_record_is_filled_as_far_as_it_goes) {
    Queue queue;
    log(ENGINE_LOG_ERROR, "hello");
    engine_log_record record{};
    record.size = 18;
    CHECK_EQ(engine_log_take(&record, 0), 1);
    CHECK_EQ(record.size, 18);
    CHECK_EQ(std::string_view(record.message), "he");
}

TEST(a_wait_ends_by_a_record_a_wake_or_in_time) {
    Queue queue;
    CHECK(!queue.take(1000000));
    std::thread speaking([] { log(ENGINE_LOG_INFO, "late"); });
    CHECK(queue.take(UINT64_MAX));
    speaking.join();
    std::thread waking([] { engine_log_wake(); });
    CHECK(!queue.take(UINT64_MAX));
    waking.join();
    engine_log_wake();
    log(ENGINE_LOG_INFO, "first what is there");
    CHECK(queue.take(UINT64_MAX));
    CHECK(!queue.take(UINT64_MAX));
}

TEST(the_last_close_empties_it) {
    {
        Queue queue;
        {
            Queue other;
            log(ENGINE_LOG_INFO, "kept");
        }
        CHECK(queue.says(ENGINE_LOG_INFO, "kept"));
        log(ENGINE_LOG_INFO, "dropped");
    }
    Queue queue;
    CHECK(!queue.take());
}

#if !defined(EMBEDDER_TSAN)
TEST(a_fork_in_the_midst_of_it) {
    Queue queue;
    std::atomic<bool> stop{false};
    std::thread speaking([&] {
        while (!stop) log(ENGINE_LOG_INFO, "again and again");
    });
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(embedder::in_child([&] {
                     if (queue.take()) return 1;  // what waits is the parent's
                     log(ENGINE_LOG_INFO, "child");
                     return queue.says(ENGINE_LOG_INFO, "child") ? 0 : 2;
                 }),
                 0);
    }
    stop = true;
    speaking.join();
}
#endif

TEST(a_failed_flush_is_told_once) {
    Queue queue;
    Engine engine;
    embedder::TempFile file(65536);
    engine_node_t* node = engine.open({{"driver", "file"}, {"node-name", "disk"}, {"filename", file.name()}});
    while (queue.take()) {
    }
    engine::block::note_flush_failure(*engine::api::unwrap(node), EIO);
    engine::block::note_flush_failure(*engine::api::unwrap(node), ENOSPC);
    CHECK(queue.says(ENGINE_LOG_ERROR, "node disk: a flush of file 'native-test-"));
    CHECK(strstr(queue.record.message, "(Input/output error)") != nullptr);
    CHECK(!queue.take());
}

TEST(a_program_that_leaves_work_undone_is_named) {
    Queue queue;
    Engine engine;
    Error error;
    char buffer[512];
    for (const char* timeout : {"10ms", "60s"}) {
        engine_node_t* node = engine.open(
            {{"driver", "external"}, {"node-name", timeout}, {"size", "1M"}, {"timeout", timeout}});
        engine_user_t* user = Engine::user(node, "test");
        engine_external_t* external = nullptr;
        REQUIRE(engine_external_attach(node, "slow", &external, &error) == 0);
        while (queue.take()) {
        }
        bool short_time = strcmp(timeout, "10ms") == 0;
        std::thread asking([&] {
            Error own;
            CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &own),
                     short_time ? -ETIMEDOUT : -ENXIO);
        });
        if (!short_time) {
            engine_external_request request;
            REQUIRE(engine_external_take(external, &request, 1, UINT64_MAX) == 1);
            CHECK_EQ(engine_external_close(external), 0);
        }
        asking.join();
        if (short_time) {
            CHECK(queue.says(ENGINE_LOG_WARNING,
                             "node 10ms: read timed out: slow: it did not take the request"));
            CHECK_EQ(engine_external_close(external), 0);
        } else {
            CHECK(queue.says(ENGINE_LOG_WARNING,
                             "node 60s: slow stopped serving it with 1 requests to be done"));
        }
        CHECK(!queue.take());
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

}  // namespace
