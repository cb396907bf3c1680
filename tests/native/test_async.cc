// Completion queues: what arrays of requests give, by which descriptor, with which text; cancelling, waiting,
// closing and forking with requests in flight.
#include "async_queue.hh"

#include <algorithm>
#include <thread>

#include "api/handles.hh"
#include "base/alloc.hh"
#include "block/node.hh"

namespace {

using embedder::both_backends;
using embedder::Busy;
using embedder::Engine;
using embedder::Error;
using embedder::in_child;
using embedder::many_of;
using embedder::Queue;
using embedder::request_of;
using embedder::run_on;
using embedder::stats_of;
using embedder::TempFile;

engine_node_t* open_null(Engine& engine, const char* latency = "0") {
    return engine.open({{"driver", "null"},
                        {"node-name", "disk"},
                        {"size", "1M"},
                        {"latency-ns", latency},
                        {"read-zeroes", "on"}});
}

std::vector<engine_request> reads(char* buffer, uint64_t count, uint64_t first_token = 0,
                                  uint64_t bytes = 512) {
    std::vector<engine_request> requests;
    for (uint64_t i = 0; i < count; i++) {
        requests.push_back(
            request_of(ENGINE_OP_READ, first_token + i, buffer + i * bytes, i * bytes % (1 << 20), bytes));
    }
    return requests;
}

TEST(every_operation_completes_once) {
    for (uint32_t backend : both_backends) {
        TempFile file(1 << 20);
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_node_t* node =
            engine.open({{"driver", "file"}, {"filename", file.name()}, {"discard", "unmap"}});
        engine_user_t* user = Engine::user(node, "test");
        Queue queue(engine);
        std::vector<char> data(8192, 'w'), whole(4096), parts(4096);
        CHECK_EQ(queue.submit(user, context, {request_of(ENGINE_OP_WRITE, 1, data.data(), 4096, 8192)}), 0);
        REQUIRE(queue.wait_for(1));
        engine_iovec iov[] = {{parts.data(), 1000}, {parts.data() + 1000, 3096}};
        engine_request vector = request_of(ENGINE_OP_READ, 3, nullptr, 8192, 4096);
        vector.iov = iov;
        vector.iov_count = 2;
        engine_extent extents[4];
        engine_request status = request_of(ENGINE_OP_BLOCK_STATUS, 4, nullptr, 0, 65536);
        status.extents = extents;
        status.extent_capacity = 4;
        CHECK_EQ(queue.submit(user, context,
                              {request_of(ENGINE_OP_READ, 2, whole.data(), 4096, 4096), vector, status,
                               request_of(ENGINE_OP_FLUSH, 5, nullptr, 0, 0),
                               request_of(ENGINE_OP_DISCARD, 6, nullptr, 65536, 65536),
                               request_of(ENGINE_OP_WRITE_ZEROES, 7, nullptr, 131072, 65536)}),
                 0);
        REQUIRE(queue.wait_for(7));
        for (uint64_t token = 1; token <= 7; token++) CHECK_EQ(queue.completed[token].times, 1);
        CHECK_EQ(queue.completed[1].result, 8192);
        CHECK_EQ(queue.completed[2].result, 4096);
        CHECK_EQ(queue.completed[3].result, 4096);
        CHECK_EQ(queue.completed[4].result, 1);
        CHECK_EQ(extents[0].length, 65536);
        for (uint64_t token = 5; token <= 7; token++) CHECK_EQ(queue.completed[token].result, 0);
        CHECK(std::all_of(whole.begin(), whole.end(), [](char c) { return c == 'w'; }));
        CHECK(whole == parts);
        CHECK_EQ(engine_user_close(user, nullptr), 0);
    }
}

TEST(a_batch_is_one_message_and_one_notification) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    std::vector<char> buffer(64 * 512);
    CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 1)), 0);  // makes the channel
    REQUIRE(queue.wait_for(1));
    uint64_t messages = stats_of(context).messages;
    uint64_t notifications = queue.stats().notifications;
    CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 64, 1)), 0);
    REQUIRE(queue.readable(40000));
    CHECK_EQ(queue.drain(100), 64);
    CHECK_EQ(stats_of(context).messages - messages, 1);
    CHECK_EQ(queue.stats().notifications - notifications, 1);
    CHECK_EQ(queue.stats().batches, 2);
    CHECK_EQ(queue.stats().submitted, 65);
    CHECK_EQ(queue.stats().drained, 65);
    CHECK_EQ(queue.stats().in_flight, 0);
    engine_user_close(user, nullptr);
}

TEST(the_descriptor_is_readable_while_something_is_left) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    std::vector<char> buffer(10 * 512);
    CHECK(!queue.readable());
    CHECK_EQ(queue.drain(), 0);
    CHECK(!queue.readable());
    for (uint64_t round = 0; round < 20; round++) {
        CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 10, round * 10)), 0);
        REQUIRE(queue.readable(40000));
        CHECK_EQ(queue.drain(0), 0);
        CHECK(queue.readable());
        CHECK_EQ(queue.drain(3), 3);
        CHECK(queue.readable());
        CHECK_EQ(queue.drain(7), 7);  // exactly what was left
        CHECK(!queue.readable());
    }
    CHECK_EQ(queue.completed.size(), 200);
    engine_user_close(user, nullptr);
}

TEST(each_failure_keeps_its_own_text) {
    Engine engine;
    engine_node_t* node = open_null(engine);
    engine_user_t* user = Engine::user(node, "reader", ENGINE_PERM_CONSISTENT_READ);
    Queue queue(engine);
    char buffer[512];
    uint64_t end = 1 << 20;
    CHECK_EQ(queue.submit(user, nullptr,
                          {request_of(ENGINE_OP_READ, 1, buffer, end, 512),
                           request_of(ENGINE_OP_READ, 2, buffer, 0, 512),
                           request_of(ENGINE_OP_READ, 3, buffer, end + 512, 512),
                           request_of(ENGINE_OP_WRITE, 4, buffer, 0, 512)}),
             0);
    REQUIRE(queue.readable(40000));
    engine_completion out[8];
    REQUIRE(engine_cq_drain(queue, out, 8) == 4);
    for (const engine_completion& completion : {out[0], out[1], out[2], out[3]}) {
        if (completion.token == 2) {
            CHECK_EQ(completion.result, 512);
            CHECK(completion.error == nullptr);
            continue;
        }
        REQUIRE(completion.error != nullptr);
        CHECK_EQ(completion.result, completion.token == 4 ? -EPERM : -EINVAL);
        CHECK_EQ(completion.error->errnum, -completion.result);
        CHECK_EQ(completion.error->node, "disk");
        const char* text = completion.token == 1   ? "at offset 1048576 ends past the end"
                           : completion.token == 3 ? "at offset 1049088 ends past the end"
                                                   : "user reader holds no permission to write";
        CHECK(strstr(completion.error->message, text) != nullptr);
    }
    CHECK_EQ(engine_cq_drain(queue, out, 8), 0);
    engine_user_close(user, nullptr);
}

// One that succeeds by its second way shows nothing of the first, and one that fails has its own text: a
// place in the pool that failed before is used again.
TEST(a_failure_leaves_nothing_behind_in_the_pool) {
    Engine engine;
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    char buffer[512];
    for (uint64_t round = 0; round < 50; round++) {
        CHECK_EQ(queue.submit(user, nullptr, {request_of(ENGINE_OP_READ, 2 * round, buffer, 1 << 20, 512)}),
                 0);
        REQUIRE(queue.wait_for(2 * round + 1));
        CHECK_EQ(queue.submit(user, nullptr, {request_of(ENGINE_OP_READ, 2 * round + 1, buffer, 0, 512)}), 0);
        REQUIRE(queue.wait_for(2 * round + 2));
        CHECK_EQ(queue.completed[2 * round].result, -EINVAL);
        CHECK_EQ(queue.completed[2 * round + 1].result, 512);
        CHECK_EQ(queue.completed[2 * round + 1].text, "");
    }
    engine_user_close(user, nullptr);
}

TEST(nothing_is_allocated_once_it_is_warm) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    std::vector<char> buffer(64 * 512);
    std::vector<engine_request> requests = reads(buffer.data(), 64);
    std::vector<uint64_t> offsets(64, 0);
    std::vector<int64_t> results;
    engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, 512, results, 16);
    std::vector<engine_completion> out(128);
    auto submit = [&] {
        return engine_submit(queue, user, context, requests.data(), 64, nullptr) == 0 &&
               engine_submit_many(queue, user, context, &many, 1000, nullptr) == 0;
    };
    auto finish = [&] {
        int64_t left = 65;
        while (left > 0 && queue.readable(40000)) left -= engine_cq_drain(queue, out.data(), out.size());
        return left == 0;
    };
    REQUIRE(submit() && finish());
    {
        Busy busy(context);  // until both are there: no round has more at once than this one
        REQUIRE(submit());
    }
    REQUIRE(finish());
    std::atomic<int> allocations{0};
    engine_set_allocation_hook(
        [](size_t, void* opaque) {
            static_cast<std::atomic<int>*>(opaque)->fetch_add(1);
            return 0;
        },
        &allocations);
    bool good = true;
    for (int i = 0; i < 100; i++) good = good && submit() && finish();
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK(good);
    CHECK_EQ(allocations.load(), 0);
    engine_user_close(user, nullptr);
}

TEST(more_requests_than_the_budget_of_a_turn) {
    for (uint32_t backend : both_backends) {
        TempFile file(1 << 20);
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "file"}, {"filename", file.name()}}), "test", 1);
        Queue queue(engine);
        std::vector<char> buffer(5000 * 512);
        CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 5000)), 0);
        REQUIRE(queue.wait_for(5000, 1000));
        for (uint64_t i = 0; i < 5000; i++)
            CHECK(queue.completed[i].times == 1 && queue.completed[i].result == 512);
        CHECK(std::all_of(buffer.begin(), buffer.end(), [](char c) { return c == 'd'; }));
        engine_user_close(user, nullptr);
    }
}

TEST(wrong_arguments_are_refused_and_nothing_is_begun) {
    Engine engine;
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    char buffer[512];
    auto refused = [&](const char* text, const char* field, auto&& change, size_t count = 2) {
        engine_request requests[2] = {request_of(ENGINE_OP_READ, 1, buffer, 0, 512),
                                      request_of(ENGINE_OP_READ, 2, buffer, 0, 512)};
        change(requests);
        Error error;
        CHECK_EQ(engine_submit(queue, user, nullptr, requests, count, &error), -EINVAL);
        check::report(error.says(text), __FILE__, __LINE__, std::string("message: ") + error.message);
        CHECK_EQ(error.field, field);
    };
    using Two = engine_request[2];
    engine_iovec part{buffer, 512};
    refused("unknown operation 8", "op", [](Two& r) { r[1].op = ENGINE_OP_COUNT; });
    refused("unknown flags 0x80", "flags", [](Two& r) { r[1].flags = 0x80; });
    refused("set `size` to sizeof", "size", [](Two& r) { r[0].size = 4; });
    refused("set `size` to sizeof", "size", [](Two& r) { r[0].size = 4096; });
    refused("not that of the first (1)", "size", [](Two& r) { r[1].size -= 8; });
    refused("exclude each other", "iov", [&](Two& r) {
        r[1].iov = &part;
        r[1].iov_count = 1;
    });
    refused("0 buffers hold 0 bytes, 512 were asked for", "iov", [](Two& r) { r[1].buffer = nullptr; });
    refused("missing, in", "iov", [](Two& r) {
        r[1].buffer = nullptr;
        r[1].iov_count = 1;
    });
    refused("missing, in", "extents", [](Two& r) {
        r[1].op = ENGINE_OP_BLOCK_STATUS;
        r[1].extent_capacity = 1;
    });
    refused("at most 1048576", "count", [](Two&) {}, (1 << 20) + 1);
    CHECK_EQ(engine_submit(queue, user, nullptr, nullptr, 0, nullptr), 0);
    Error error;
    engine_request resize = request_of(ENGINE_OP_RESIZE, 1, nullptr, 4096, 0);
    CHECK_EQ(engine_submit(queue, user, nullptr, &resize, 1, &error), -ENOTSUP);
    CHECK(error.says("a resize waits until nothing is inside the node"));
    engine_request copy = request_of(ENGINE_OP_COPY_RANGE, 1, nullptr, 0, 512);
    CHECK_EQ(engine_submit(queue, user, nullptr, &copy, 1, &error), -ENOTSUP);
    CHECK(error.says("a copy has two users"));
    Engine other;
    Queue foreign(other);
    engine_request request = request_of(ENGINE_OP_READ, 1, buffer, 0, 512);
    CHECK_EQ(engine_submit(foreign, user, nullptr, &request, 1, &error), -EINVAL);
    CHECK(error.says("different engines"));
    CHECK_EQ(queue.stats().submitted, 0);
    CHECK_EQ(queue.drain(), 0);
    CHECK_EQ(engine_user_close(user, nullptr), 0);
}

// An embedder that was built when the struct ended before its reserved fields.
TEST(an_older_callers_smaller_struct_is_read) {
    Engine engine;
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    constexpr size_t old_size = offsetof(engine_request, reserved);
    char buffer[1024];
    alignas(8) char array[2 * old_size];
    for (uint64_t i = 0; i < 2; i++) {
        engine_request request = request_of(ENGINE_OP_READ, i, buffer + i * 512, 0, 512);
        request.size = old_size;
        memcpy(array + i * old_size, &request, old_size);
    }
    CHECK_EQ(engine_submit(queue, user, nullptr, reinterpret_cast<engine_request*>(array), 2, nullptr), 0);
    REQUIRE(queue.wait_for(2));
    CHECK_EQ(queue.completed[0].result, 512);
    CHECK_EQ(queue.completed[1].result, 512);
    engine_user_close(user, nullptr);
}

TEST(what_was_not_begun_is_cancelled) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_user_t* user = Engine::user(open_null(engine), "test");
        Queue queue(engine);
        std::vector<char> buffer(4 * 512);
        CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 1, 100)), 0);
        REQUIRE(queue.wait_for(1));
        Busy busy(context);
        CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 4)), 0);
        CHECK_EQ(engine_cancel(queue, 1), 1);
        CHECK_EQ(engine_cancel(queue, 3), 1);
        CHECK_EQ(engine_cancel(queue, 3), 1);  // it is still there
        CHECK_EQ(engine_cancel(queue, 77), 0);
        CHECK_EQ(queue.drain(), 0);
        busy.let_go();
        REQUIRE(queue.wait_for(5));
        for (uint64_t token = 0; token < 4; token++) {
            CHECK_EQ(queue.completed[token].times, 1);
            CHECK_EQ(queue.completed[token].result, token % 2 == 0 ? 512 : -ECANCELED);
        }
        CHECK(queue.completed[3].text.find("node disk: read of 512 bytes at offset 1536 was cancelled") == 0);
        CHECK_EQ(engine_cancel(queue, 3), 0);
        CHECK_EQ(queue.stats().cancels, 3);
        engine_user_close(user, nullptr);
    }
}

// With the driver, which only lets it wait: a minute each, were they not cancelled.
TEST(what_a_driver_holds_back_is_cancelled) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine, "60s"), "test");
    Queue queue(engine);
    char buffer[3 * 512];
    CHECK_EQ(queue.submit(user, context, reads(buffer, 3, 7)), 0);
    run_on(context, [] {});  // by now they are with the driver
    for (uint64_t token : {8, 7, 9}) {
        CHECK_EQ(engine_cancel(queue, token), 1);
        REQUIRE(queue.wait_for(queue.completed.size() + 1));
        CHECK_EQ(queue.completed[token].times, 1);
        CHECK_EQ(queue.completed[token].result, -ECANCELED);
        CHECK(queue.completed[token].text.find("was cancelled") != std::string::npos);
    }
    engine_user_close(user, nullptr);
}

TEST(what_waits_for_its_turn_is_cancelled) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node = engine.open(
        {{"driver", "throttle"}, {"node-name", "slow"}, {"limits.iops-total", "1"}, {"file.driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    Queue queue(engine);
    std::vector<char> buffer(50 * 512);
    CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 50)), 0);
    run_on(context, [] {});
    for (uint64_t token = 50; token-- != 0;) engine_cancel(queue, token);
    REQUIRE(queue.wait_for(50));
    unsigned cancelled = 0;
    for (auto& [token, one] : queue.completed) {
        CHECK_EQ(one.times, 1);
        CHECK(one.result == 512 || one.result == -ECANCELED);
        if (one.result == -ECANCELED) cancelled++;
    }
    CHECK(cancelled >= 45);  // at one a second
    engine_user_close(user, nullptr);
}

TEST(what_a_change_of_the_graph_holds_back_is_cancelled) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node = open_null(engine, "60s");
    engine_user_t* user = Engine::user(node, "test");
    Queue queue(engine);
    char buffer[2 * 512];
    CHECK_EQ(queue.submit(user, context, reads(buffer, 1, 1)), 0);
    run_on(context, [] {});
    std::thread change([node] {  // waits for the one that is inside
        Error error;
        engine_option options[] = {{"driver", "passthrough"}, {"node-name", "filter"}};
        engine_node_t* filter = nullptr;
        CHECK_EQ(engine_node_insert_filter(node, options, 2, 0, &filter, &error), 0);
        CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
    });
    auto* native = engine::api::unwrap(user);
    CHECK(embedder::eventually([&] {
        bool parked = false;
        run_on(context,
               [&] { native->for_each_port([&](auto& port) { parked = parked || port.parked(); }); });
        return parked;
    }));
    CHECK_EQ(queue.submit(user, context, reads(buffer + 512, 1, 2)), 0);
    run_on(context, [] {});
    CHECK_EQ(engine_cancel(queue, 2), 1);
    REQUIRE(queue.wait_for(1));
    CHECK_EQ(queue.completed[2].result, -ECANCELED);
    CHECK(queue.completed[2].text.find("while a change of the graph held it back") != std::string::npos);
    CHECK_EQ(engine_cancel(queue, 1), 1);
    REQUIRE(queue.wait_for(2));
    CHECK_EQ(queue.completed[1].result, -ECANCELED);
    change.join();
    engine_user_close(user, nullptr);
}

TEST(users_and_contexts_are_held_until_it_is_over) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_node_t* node = open_null(engine, "200ms");
    engine_user_t* user = Engine::user(node, "backup");
    engine_user_t* other = Engine::user(node, "other");
    Queue queue(engine);
    std::vector<char> buffer(4 * 512);
    CHECK_EQ(queue.submit(user, context, reads(buffer.data(), 4)), 0);
    Error error;
    CHECK_EQ(engine_user_close(user, &error), -EBUSY);
    CHECK(error.says("user 'backup' of node disk is in use"));
    CHECK_EQ(engine_context_close(context, &error), -EBUSY);
    CHECK(error.says("context io0 serves 1 queues, workloads or calls"));
    CHECK_EQ(engine_close(engine, &error), -EBUSY);
    CHECK(error.says("1 completion queues are open"));
    CHECK_EQ(engine_cq_wait(queue, user, context, 1000, &error), -ETIMEDOUT);
    CHECK(error.says("still in flight"));
    CHECK_EQ(engine_cq_wait(queue, other, nullptr, 1000, &error), 0);
    CHECK_EQ(engine_cq_wait(queue, nullptr, engine_context_find(engine, "main"), 1000, &error), 0);
    CHECK_EQ(engine_cq_wait(queue, user, nullptr, UINT64_MAX, &error), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);  // not drained, but over
    CHECK_EQ(engine_user_close(other, &error), 0);
    CHECK_EQ(engine_context_close(context, &error), 0);
    CHECK_EQ(queue.drain(), 4);
    for (uint64_t token = 0; token < 4; token++) CHECK_EQ(queue.completed[token].result, 512);
}

TEST(what_was_waited_for_can_be_drained) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend, 20000);
        engine_user_t* user = Engine::user(open_null(engine), "test");
        Queue queue(engine);
        char buffer[512];
        for (uint64_t round = 0; round < 20000; round++) {
            REQUIRE(queue.submit(user, context, reads(buffer, 1, round)) == 0);
            REQUIRE(engine_cq_wait(queue, nullptr, nullptr, UINT64_MAX, nullptr) == 0);
            REQUIRE(queue.drain(2) == 1);
        }
        engine_user_close(user, nullptr);
    }
}

TEST(closing_a_queue_waits_for_what_is_in_flight) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* contexts[] = {engine.context("io0", backend), engine.context("io1", backend)};
        engine_user_t* user = Engine::user(open_null(engine, "30ms"), "test");
        std::vector<char> buffer(8 * 512, 'x');
        std::vector<uint64_t> offsets(2, 0);
        std::vector<int64_t> results;
        std::vector<char> more(1024);
        {
            Queue queue(engine);
            CHECK_EQ(queue.submit(user, contexts[0], reads(buffer.data(), 4)), 0);
            CHECK_EQ(queue.submit(user, contexts[1], reads(buffer.data() + 4 * 512, 4)), 0);
            engine_many many = many_of(ENGINE_OP_READ, more.data(), offsets, 512, results, 1);
            CHECK_EQ(engine_submit_many(queue, user, contexts[0], &many, 1, nullptr), 0);
        }  // nobody drains
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
        CHECK(std::all_of(buffer.begin(), buffer.end(), [](char c) { return c == 0; }));
    }
}

TEST(a_closed_context_takes_nothing) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    char buffer[512];
    CHECK_EQ(queue.submit(user, context, reads(buffer, 1)), 0);
    REQUIRE(queue.wait_for(1));
    CHECK_EQ(engine_context_close(context, nullptr), 0);
    engine_request request = request_of(ENGINE_OP_READ, 1, buffer, 0, 512);
    Error error;
    CHECK_EQ(engine_submit(queue, user, context, &request, 1, &error), -ESHUTDOWN);
    CHECK(error.says("context io0 is closed"));
    CHECK_EQ(engine_user_close(user, &error), 0);  // the refusal holds nothing
}

TEST(on_a_contexts_own_thread) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine), "test");
    Queue queue(engine);
    char buffer[1024];
    engine_request request = request_of(ENGINE_OP_READ, 2, buffer, 0, 512);
    std::vector<uint64_t> offsets(2, 0);
    std::vector<int64_t> results;
    engine_many many = many_of(ENGINE_OP_READ, buffer, offsets, 512, results);
    run_on(context, [&] {
        Error error;
        CHECK_EQ(engine_submit(queue, user, context, &request, 1, &error),
                 -EDEADLK);  // the channel is to be made
        CHECK_EQ(engine_cq_close(queue, &error), -EDEADLK);
        CHECK(error.says("close completion queue would block context io0"));
        CHECK_EQ(engine_cq_wait(queue, nullptr, nullptr, 0, &error), -EDEADLK);
        CHECK_EQ(engine_user_many(user, context, &many, &error), -EDEADLK);
    });
    CHECK_EQ(queue.submit(user, context, reads(buffer, 1, 1)), 0);
    REQUIRE(queue.wait_for(1));
    run_on(context, [&] { CHECK_EQ(engine_submit(queue, user, context, &request, 1, nullptr), 0); });
    REQUIRE(queue.wait_for(2));
    CHECK_EQ(queue.completed[2].result, 512);
    engine_user_close(user, nullptr);
}

#ifndef EMBEDDER_TSAN
TEST(a_child_of_fork_gets_errors) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(open_null(engine, "50ms"), "test");
    Queue queue(engine);
    char buffer[512];
    CHECK_EQ(queue.submit(user, context, reads(buffer, 1)), 0);
    int status = in_child([&] {
        engine_request request = request_of(ENGINE_OP_READ, 2, buffer, 0, 512);
        std::vector<uint64_t> offsets(1, 0);
        std::vector<int64_t> results;
        engine_many many = many_of(ENGINE_OP_READ, buffer, offsets, 512, results);
        engine_completion out[1];
        engine_cq_stats stats{};
        stats.size = sizeof stats;
        engine_cq_t* another = nullptr;
        Error error;
        int64_t answers[] = {
            engine_submit(queue, user, context, &request, 1, &error),
            engine_submit_many(queue, user, context, &many, 1, &error),
            engine_user_many(user, context, &many, &error),
            engine_cq_drain(queue, out, 1),
            engine_cancel(queue, 0),
            engine_cq_wait(queue, nullptr, nullptr, UINT64_MAX, &error),
            engine_cq_get_stats(queue, &stats),
            engine_cq_create(engine, &another, &error),
            engine_cq_close(queue, &error),
        };
        int number = 0;
        for (int64_t answer : answers) {
            number++;
            if (answer != -EBADF) return number;
        }
        return error.says("cannot be used after fork()") ? 0 : 100;
    });
    CHECK_EQ(status, 0);
    REQUIRE(queue.wait_for(1));  // and the parent has its completion
    CHECK_EQ(queue.completed[0].result, 512);
    engine_user_close(user, nullptr);
}
#endif

}  // namespace
