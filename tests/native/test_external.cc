// The external driver: requests served by the program, in batches, by several threads; what happens when it
// is not there, stops, takes too long or answers nonsense.
#include <poll.h>

#include <algorithm>

#include "external_bench.hh"

using namespace external_bench;

namespace {

TEST(a_disk_in_memory) {
    for (const char* timeout : {"60s", "0"}) {
        Served disk("read,write,flush,block-status", timeout);
        Ram ram(disk.node);
        char out[3000], in[3000];
        for (size_t i = 0; i < sizeof out; i++) out[i] = static_cast<char>(i * 7);
        CHECK_EQ(io(disk.user, ENGINE_OP_WRITE, out, 12345, sizeof out, 0, &disk.error), 3000);
        engine_iovec parts[] = {{in, 1000}, {in + 1000, 2000}};
        CHECK_EQ(engine_user_io(disk.user, nullptr, ENGINE_OP_READ, parts, 2, 12345, 3000, 0, &disk.error),
                 3000);
        CHECK(memcmp(in, out, sizeof in) == 0);
        CHECK_EQ(io(disk.user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &disk.error), 0);
        CHECK_EQ(ram.flushes.load(), 1);
        CHECK_EQ(io(disk.user, ENGINE_OP_WRITE, out, 0, 512, ENGINE_FUA, &disk.error), 512);
        CHECK_EQ(ram.flushes.load(), 2);  // it was not said to know FUA
        CHECK_EQ(io(disk.user, ENGINE_OP_WRITE_ZEROES, nullptr, 12345, 3000, 0, &disk.error), 0);
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, in, 12345, 3000, 0, &disk.error), 3000);
        CHECK(std::all_of(in, in + sizeof in, [](char byte) { return byte == 0; }));
        engine_extent extents[4];
        CHECK_EQ(engine_user_block_status(disk.user, nullptr, 4096, 1000, extents, 4, &disk.error), 2);
        CHECK(extents[0].offset == 4096 && extents[0].length == 500 &&
              extents[1].flags == ENGINE_EXTENT_ZERO);
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, in, disk_bytes, 1, 0, &disk.error), -EINVAL);
        CHECK_EQ(io(disk.user, ENGINE_OP_RESIZE, nullptr, 4096, 0, 0, &disk.error), -ENOTSUP);
        engine_external_stats stats = stats_of(ram.external);
        CHECK_EQ(stats.completed, stats.requests);
        CHECK_EQ(stats.queued + stats.taken + stats.given_up + stats.timed_out + stats.late, 0);
    }
}

TEST(all_that_is_completed_together_comes_back_by_one_message) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    engine_workload_config config{};
    config.size = sizeof config;
    config.read_percent = 100;
    config.block_size = 4096;
    config.iodepth = 64;
    config.count = 64;
    config.pattern = ENGINE_RANDOM;
    config.user = disk.user;
    engine_workload_t* workload = nullptr;
    REQUIRE(engine_workload_create(disk.engine, &config, &workload, &disk.error) == 0);
    REQUIRE(engine_workload_start(workload, &disk.error) == 0);
    REQUIRE(eventually([&] { return stats_of(external).queued == 64; }));
    engine_external_request requests[64];
    CHECK_EQ(engine_external_take(external, requests, 10, 0), 10);
    CHECK_EQ(engine_external_take(external, requests + 10, 64, for_ever), 54);
    CHECK_EQ(engine_external_take(external, requests, 0, 0), 0);
    engine_external_completion done[64] = {};
    for (int i = 0; i < 64; i++) done[i].id = requests[i].id;
    CHECK_EQ(engine_external_complete(external, done, 64), 64);
    CHECK_EQ(engine_workload_wait(workload, for_ever), 0);
    CHECK_EQ(stats_of(external).messages, 1);
    CHECK_EQ(engine_workload_close(workload), 0);
    CHECK_EQ(engine_external_close(external), 0);
}

// Two contexts, two threads that serve, patterns checked.
TEST(verified_from_two_contexts) {
    Served disk;
    Ram ram(disk.node, 2, 8);
    engine_workload_t* workloads[2] = {};
    for (int i = 0; i < 2; i++) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.read_percent = 50;
        config.block_size = 4096;
        config.iodepth = 32;
        config.count = 3000;
        config.flush_every = 7;
        config.pattern = ENGINE_RANDOM;
        config.flags = ENGINE_WORKLOAD_VERIFY;
        config.offset = static_cast<uint64_t>(i) * disk_bytes / 2;
        config.length = disk_bytes / 2;
        config.user = disk.user;
        config.context = disk.engine.context(i == 0 ? "io0" : "io1");
        REQUIRE(engine_workload_create(disk.engine, &config, &workloads[i], &disk.error) == 0);
        REQUIRE(engine_workload_start(workloads[i], &disk.error) == 0);
    }
    for (engine_workload_t* workload : workloads) {
        CHECK_EQ(engine_workload_wait(workload, for_ever), 0);
        static engine_workload_result result;
        result.size = sizeof result;
        CHECK_EQ(engine_workload_get_result(workload, &result), 0);
        CHECK_EQ(result.errors + result.verify_errors, 0);
        CHECK_EQ(result.requests[0] + result.requests[1] + result.flushes, 3000);
        CHECK_EQ(engine_workload_close(workload), 0);
    }
}

TEST(without_a_program_requests_fail) {
    Served disk;
    char buffer[512];
    auto fails = [&] {
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer, 0, 512, 0, &disk.error), -ENXIO);
        CHECK(disk.error.says("node disk: no program serves it: attach one"));
    };
    fails();
    {
        Ram ram(disk.node);
    }
    fails();
    Ram again(disk.node);
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer, 0, 512, 0, &disk.error), 512);
}

TEST(one_program_a_node) {
    Served disk;
    engine_external_t* first = attach(disk.node, "first");
    engine_external_t* second = nullptr;
    CHECK_EQ(engine_external_attach(disk.node, "second", &second, &disk.error), -EBUSY);
    CHECK(disk.error.says("node disk is served by 'first' already"));
    engine_node_t* null = disk.engine.open({{"driver", "null"}, {"node-name", "other"}});
    CHECK_EQ(engine_external_attach(null, "second", &second, &disk.error), -EINVAL);
    CHECK(disk.error.says("node other has driver null"));
    CHECK(second == nullptr);
    CHECK_EQ(engine_external_close(first), 0);
}

TEST(an_error_tells_what_the_program_says) {
    Served disk;
    engine_external_t* external = attach(disk.node, "net");
    char buffer[512];
    const struct {
        int64_t answer;
        const char* message;
        int64_t result;
        const char* text;
    } cases[] = {
        {-ENOSPC, "the bucket is full", -ENOSPC,
         "node disk: read of 512 bytes at offset 4096 failed: net: the bucket is full"},
        {-ENOTSUP, nullptr, -ENOTSUP, "net: Operation not supported"},
        {-5000, nullptr, -EIO, "net: Input/output error"},
        {INT64_MIN, "gone", -EIO, "net: gone"},
    };
    for (const auto& one : cases) {
        Asking asking(disk.user, ENGINE_OP_READ, buffer, 4096, 512);
        CHECK_EQ(complete_one(external, take_one(external).id, one.answer, one.message), 1);
        CHECK_EQ(asking.result(), one.result);
        CHECK(asking.error.says(one.text));
        CHECK_EQ(asking.error.offset, 4096);
        CHECK_EQ(asking.error.kind, one.result == -ENOTSUP ? ENGINE_ERROR_UNSUPPORTED : ENGINE_ERROR_OS);
    }
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(what_makes_no_sense_is_refused) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    const struct {
        int64_t count;
        engine_extent extents[2];
    } wrong[] = {
        {0, {}},
        {3, {{4096, 512, 1, 0}, {4608, 512, 1, 0}}},
        {1, {{0, 512, 1, 0}, {}}},
        {1, {{4096, 0, 1, 0}, {}}},
        {1, {{4096, 2048, 1, 0}, {}}},
        {1, {{4096, UINT64_MAX, 1, 0}, {}}},
        {1, {{4096, 512, 8, 0}, {}}},
        {2, {{4096, 512, 1, 0}, {4600, 512, 1, 0}}},
    };
    engine_extent extents[2];
    for (const auto& one : wrong) {
        int64_t result = 0;
        Error error;
        std::thread asking(
            [&] { result = engine_user_block_status(disk.user, nullptr, 4096, 1024, extents, 2, &error); });
        engine_external_request request = take_one(external);
        CHECK_EQ(request.extent_capacity, 2);
        memcpy(request.extents, one.extents, sizeof one.extents);
        CHECK_EQ(complete_one(external, request.id, one.count), 1);
        asking.join();
        CHECK_EQ(result, -EIO);
        CHECK(error.says("its extents do not follow each other"));
    }
    char buffer[512];
    Asking asking(disk.user, ENGINE_OP_READ, buffer, 0, 512);
    uint64_t id = take_one(external).id;
    for (uint64_t nobody : {uint64_t{0}, id + 1, id + (1 << 20), UINT64_MAX})
        CHECK_EQ(complete_one(external, nobody, 0), 0);
    CHECK_EQ(complete_one(external, id, 0), 1);
    CHECK_EQ(asking.result(), 512);
    CHECK_EQ(complete_one(external, id, 0), 0);  // once
    CHECK_EQ(engine_external_forward(external, &id, 1), -ENOTSUP);
    CHECK_EQ(stats_of(external).late, 5);
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(time_runs_out) {
    Served disk("read,write", "50ms");
    engine_external_t* external = attach(disk.node, "slow");
    std::vector<char> buffer(4096, 'x');
    // Nobody takes it.
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer.data(), 0, 4096, 0, &disk.error), -ETIMEDOUT);
    CHECK(disk.error.says("slow: it did not take the request within 50 ms"));
    engine_external_request request{};
    CHECK_EQ(engine_external_take(external, &request, 1, 0), 0);
    // It is taken, and its memory is the program's until that is done with it.
    request = let_expire(external, disk.user, ENGINE_OP_READ, buffer.data(), 4096,
                         "slow: it took the request and did not complete it within 50 ms");
    CHECK_EQ(stats_of(external).given_up, 1);
    memset(request.iov[0].base, 'y', 4096);
    CHECK(std::all_of(buffer.begin(), buffer.end(), [](char byte) { return byte == 'x'; }));
    CHECK_EQ(complete_one(external, request.id, 0), 0);
    CHECK_EQ(stats_of(external).given_up, 0);
    CHECK_EQ(stats_of(external).late, 1);
    CHECK(stats_of(external).timed_out >= 2);
    // The next one that is in time knows nothing of it.
    for (bool in_time = false; !in_time;) {
        Asking asking(disk.user, ENGINE_OP_READ, buffer.data(), 0, 4096);
        if (take_in_time(external, asking, &request)) {
            memset(request.iov[0].base, 'z', 4096);
            in_time = complete_one(external, request.id, 0) == 1;
        }
        CHECK_EQ(asking.result(), in_time ? 4096 : -ETIMEDOUT);
    }
    CHECK(std::all_of(buffer.begin(), buffer.end(), [](char byte) { return byte == 'z'; }));
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(given_up_requests_go_with_the_program) {
    Served disk("read,write", "10ms");
    engine_external_t* external = attach(disk.node);
    char buffer[512] = {};
    engine_external_request request =
        let_expire(external, disk.user, ENGINE_OP_WRITE, buffer, 512, "did not complete it within 10 ms");
    static_cast<char*>(request.iov[0].base)[511] = 'x';  // still its own
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(what_is_outstanding_fails_when_the_program_goes) {
    for (const char* timeout : {"60s", "0"}) {
        Served disk("read,write", timeout);
        engine_external_t* external = attach(disk.node, "brief");
        char buffer[2][512];
        Asking first(disk.user, ENGINE_OP_READ, buffer[0], 0, 512);
        take_one(external);
        Asking second(disk.user, ENGINE_OP_READ, buffer[1], 512, 512, 0, disk.engine.context("io0"));
        REQUIRE(eventually([&] { return stats_of(external).queued == 1; }));
        CHECK_EQ(engine_external_close(external), 0);
        for (Asking* asking : {&first, &second}) {
            CHECK_EQ(asking->result(), -ENXIO);
            CHECK(asking->error.says("brief: it stopped serving this node before it was done"));
        }
    }
}

TEST(stopping_lets_what_is_taken_end) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    char buffer[512];
    Asking first(disk.user, ENGINE_OP_READ, buffer, 0, 512);
    uint64_t id = take_one(external).id;
    Asking second(disk.user, ENGINE_OP_READ, buffer, 0, 512);
    REQUIRE(eventually([&] { return stats_of(external).queued == 1; }));
    CHECK_EQ(engine_external_stop(external), 0);
    CHECK_EQ(second.result(), -ENXIO);
    engine_external_request request;
    CHECK_EQ(engine_external_take(external, &request, 1, for_ever), -ESHUTDOWN);
    CHECK_EQ(complete_one(external, id, 0), 1);
    CHECK_EQ(first.result(), 512);
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(takers_wake_up) {
    for (bool by_node : {false, true}) {
        Engine engine;
        engine_node_t* node = engine.open({{"driver", "external"}, {"size", "1M"}});
        engine_external_t* external = attach(node);
        engine_external_request request;
        CHECK_EQ(engine_external_take(external, &request, 1, 1000000), 0);
        std::atomic<int> woken{0};
        std::vector<std::thread> takers;
        for (int i = 0; i < 3; i++) {
            takers.emplace_back([&] {
                engine_external_request mine;
                CHECK_EQ(engine_external_take(external, &mine, 1, for_ever), -ESHUTDOWN);
                woken++;
            });
        }
        Error error;
        if (by_node) {
            CHECK_EQ(engine_node_close(node, &error), 0);
        } else {
            CHECK_EQ(engine_external_stop(external), 0);
        }
        for (std::thread& taker : takers) taker.join();
        CHECK_EQ(woken.load(), 3);
        if (by_node) engine.close();  // the handle outlives the engine
        CHECK(engine_external_get_child(external) == nullptr);
        CHECK_EQ(engine_external_take(external, &request, 1, for_ever), -ESHUTDOWN);
        CHECK_EQ(engine_external_close(external), 0);
    }
}

// Takers with short time-outs and requests race: none is lost, none is served twice.
TEST(takers_that_run_out_of_time) {
    Served disk("read");
    engine_external_t* external = attach(disk.node);
    std::vector<std::thread> takers;
    for (int i = 0; i < 3; i++) {
        takers.emplace_back([&] {
            engine_external_request request;
            for (uint64_t turn = 0;; turn++) {
                int64_t count = engine_external_take(external, &request, 1, turn % 3 * 20000);
                if (count == -ESHUTDOWN) return;
                if (count == 1) CHECK_EQ(complete_one(external, request.id, 0), 1);
            }
        });
    }
    char buffer[512];
    for (int i = 0; i < 500; i++)
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer, 0, 512, 0, &disk.error), 512);
    CHECK_EQ(engine_external_stop(external), 0);
    for (std::thread& taker : takers) taker.join();
    CHECK_EQ(stats_of(external).requests, 500);
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(a_descriptor_tells) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    int fd = engine_external_get_fd(external);
    REQUIRE(fd >= 0);
    CHECK_EQ(engine_external_get_fd(external), fd);
    auto readable = [&](int wait_ms) {
        pollfd entry{fd, POLLIN, 0};
        return poll(&entry, 1, wait_ms) == 1;
    };
    char buffer[512];
    CHECK(!readable(0));
    for (int i = 0; i < 3; i++) {
        Asking asking(disk.user, ENGINE_OP_READ, buffer, 0, 512);
        CHECK(readable(40000));
        uint64_t id = take_one(external).id;
        CHECK(!readable(0));
        CHECK_EQ(complete_one(external, id, 0), 1);
        CHECK_EQ(asking.result(), 512);
    }
    CHECK_EQ(engine_external_stop(external), 0);
    CHECK(readable(0));
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(memory_can_be_kept) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    char buffer[512] = "hello";
    char* kept = nullptr;
    for (uint32_t flags : {uint32_t{ENGINE_EXTERNAL_KEEP}, uint32_t{0}}) {
        Asking asking(disk.user, ENGINE_OP_WRITE, buffer, 0, 512);
        engine_external_request request = take_one(external);
        CHECK(request.iov[0].base != kept);
        if (flags != 0) kept = static_cast<char*>(request.iov[0].base);
        CHECK_EQ(complete_one(external, request.id, 0, nullptr, flags), 1);
        CHECK_EQ(asking.result(), 512);
        strcpy(buffer, "other");
    }
    CHECK_EQ(engine_external_close(external), 0);
    CHECK_EQ(std::string_view(kept), "hello");
    engine_external_release(kept);
}

TEST(on_a_contexts_thread_take_does_not_wait) {
    Served disk;
    engine_external_t* external = attach(disk.node);
    embedder::run_on(disk.engine.context("io0"), [&] {
        engine_external_request request;
        CHECK_EQ(engine_external_take(external, &request, 1, 1), -EDEADLK);
        CHECK_EQ(engine_external_take(external, &request, 1, 0), 0);
    });
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(without_memory_requests_fail) {
    Served disk;
    Ram ram(disk.node);
    char buffer[512];
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer, 0, 512, 0, &disk.error), 512);
    engine_set_allocation_hook([](size_t bytes, void*) { return bytes > 100000 ? 1 : 0; }, nullptr);
    std::vector<char> large(200000);
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, large.data(), 0, large.size(), 0, &disk.error), -ENOMEM);
    CHECK(disk.error.says("node disk: no memory for a request"));
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, buffer, 0, 512, 0, &disk.error), 512);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, large.data(), 0, large.size(), 0, &disk.error), 200000);
}

TEST(after_warm_up_nothing_is_allocated) {
    Served disk("read");
    engine_external_t* external = attach(disk.node);
    static std::atomic<int> allocations;
    char buffer[512];
    for (int i = 0; i < 40; i++) {
        if (i == 35) {
            allocations = 0;
            engine_set_allocation_hook([](size_t, void*) { return allocations++, 0; }, nullptr);
        }
        Asking asking(disk.user, ENGINE_OP_READ, buffer, 0, 512);
        CHECK_EQ(complete_one(external, take_one(external).id, 0), 1);
        CHECK_EQ(asking.result(), 512);
    }
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(allocations.load(), 0);
    CHECK_EQ(engine_external_close(external), 0);
}

}  // namespace
