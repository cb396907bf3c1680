// One buffer over many offsets: contents, depth, failures, cancelling; by the call that waits and through a
// queue.
#include <algorithm>
#include <numeric>

#include "api/handles.hh"
#include "async_queue.hh"
#include "block/graph.hh"

namespace {

using embedder::both_backends;
using embedder::Busy;
using embedder::Engine;
using embedder::Error;
using embedder::many_of;
using embedder::Queue;
using embedder::run_on;
using embedder::TempFile;
using engine::block::bit;
using engine::block::Channel;
using engine::block::Driver;
using engine::block::Node;
using engine::block::Op;
using engine::block::OpenArguments;
using engine::block::Request;

constexpr uint64_t block_bytes = 512;

// --- a driver that says how many requests it had at once, and fails where it is told

struct Script {
    uint64_t most_in_flight = 0;
    std::vector<uint64_t> fail_offsets;
    unsigned seen = 0;
};
Script script;

int scripted_open(Node& node, const OpenArguments&) {
    node.bytes.store_relaxed(1 << 20);
    node.native_ops = bit(Op::read) | bit(Op::write);
    node.native_write_flags = ENGINE_FUA;
    return 0;
}

void scripted_submit(Channel& channel, Request* request) {
    script.seen++;
    script.most_in_flight = std::max(script.most_in_flight, channel.in_flight.get());
    bool fails = std::find(script.fail_offsets.begin(), script.fail_offsets.end(), request->offset) !=
                 script.fail_offsets.end();
    if (fails) {
        engine::block::fail_later(request, ENGINE_ERROR_OS, EIO, "scripted failure at %lu", request->offset);
    } else {
        engine::block::finish_later(request, 0);
    }
}

const Driver scripted{
    .name = "scripted",
    .layer = "protocol",
    .text = "of the test",
    .options = {},
    .children = {},
    .state_size = 0,
    .channel_state_size = 0,
    .open = scripted_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = scripted_submit,
};

engine_user_t* open_scripted(Engine& engine, Script what = {}) {
    script = std::move(what);
    engine::block::OptionBag bag;
    bag.set("node-name", "disk");
    Node* node = nullptr;
    Error error;
    REQUIRE(engine::block::open_node(*engine::api::unwrap(engine.get()), scripted, std::move(bag), &node,
                                     &error) == 0);
    return Engine::user(engine::api::wrap(node), "test");
}

std::vector<uint64_t> offsets_of(uint64_t count) {
    std::vector<uint64_t> offsets(count);
    // In no order: 7 and 2048 have no common factor, so that no two are alike.
    for (uint64_t i = 0; i < count; i++) offsets[i] = i * 7 % 2048 * block_bytes;
    return offsets;
}

TEST(parts_go_where_they_belong) {
    for (uint32_t backend : both_backends) {
        TempFile file(1 << 20);
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_user_t* user =
            Engine::user(engine.open({{"driver", "file"}, {"filename", file.name()}}), "test");
        std::vector<uint64_t> offsets = offsets_of(2048);
        std::vector<int64_t> results;
        std::vector<uint64_t> data(2048 * block_bytes / 8);
        for (size_t i = 0; i < data.size(); i++) data[i] = offsets[i / 64] + i % 64;
        engine_many many = many_of(ENGINE_OP_WRITE, data.data(), offsets, block_bytes, results);
        Error error;
        CHECK_EQ(engine_user_many(user, context, &many, &error), 2048);
        CHECK(
            std::all_of(results.begin(), results.end(), [](int64_t r) { return r == int64_t{block_bytes}; }));
        std::vector<uint64_t> whole(data.size());
        REQUIRE(pread(file.fd(), whole.data(), 1 << 20, 0) == 1 << 20);
        bool good = true;
        for (size_t i = 0; i < whole.size(); i++) good = good && whole[i] == i / 64 * block_bytes + i % 64;
        CHECK(good);
        std::vector<uint64_t> back(data.size());
        for (uint32_t depth : {1u, 3u, 64u, 1024u}) {
            std::fill(back.begin(), back.end(), 0);
            many = many_of(ENGINE_OP_READ, back.data(), offsets, block_bytes, results, depth);
            CHECK_EQ(engine_user_many(user, context, &many, &error), 2048);
            CHECK(back == data);
        }
        engine_user_close(user, nullptr);
    }
}

TEST(no_more_are_in_flight_than_asked) {
    Engine engine;
    engine_user_t* user = open_scripted(engine);
    std::vector<char> buffer(2048 * block_bytes);
    std::vector<uint64_t> offsets = offsets_of(2048);
    std::vector<int64_t> results;
    struct {
        uint32_t asked, most;
    } depths[] = {{1, 1}, {7, 7}, {0, 64}, {1024, 1024}};
    for (auto [asked, most] : depths) {
        script = {};
        engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results, asked);
        CHECK_EQ(engine_user_many(user, nullptr, &many, nullptr), 2048);
        CHECK_EQ(script.most_in_flight, most);
        CHECK_EQ(script.seen, 2048);
    }
    script = {};
    offsets.resize(5);
    engine_many few = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results);
    CHECK_EQ(engine_user_many(user, nullptr, &few, nullptr), 5);
    CHECK_EQ(script.most_in_flight, 5);
    offsets.clear();
    engine_many none = many_of(ENGINE_OP_READ, nullptr, offsets, block_bytes, results);
    CHECK_EQ(engine_user_many(user, nullptr, &none, nullptr), 0);
    CHECK_EQ(script.seen, 5);
    engine_user_close(user, nullptr);
}

TEST(all_parts_are_tried_and_the_first_failure_is_told) {
    for (bool queued : {false, true}) {
        Engine engine;
        engine_user_t* user = open_scripted(engine, {.fail_offsets = {1024, 3072}});
        std::vector<char> buffer(8 * block_bytes);
        std::vector<uint64_t> offsets{0, 512, 1024, 1536, 1 << 20, 3072, 2048, UINT64_MAX};
        std::vector<int64_t> results;
        engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results, 1);
        Error error;
        if (queued) {
            Queue queue(engine);
            CHECK_EQ(engine_submit_many(queue, user, nullptr, &many, 5, &error), 0);
            REQUIRE(queue.wait_for(1));
            CHECK_EQ(queue.completed[5].result, 4);
            CHECK_EQ(queue.completed[5].text, "scripted failure at 1024");
        } else {
            CHECK_EQ(engine_user_many(user, nullptr, &many, &error), 4);
            CHECK(error.says("scripted failure at 1024"));
            CHECK_EQ(error.offset, 1024);
            CHECK_EQ(error.size, sizeof(engine_error));
        }
        CHECK((results == std::vector<int64_t>{512, 512, -EIO, 512, -EINVAL, -EIO, 512, -EINVAL}));
        CHECK_EQ(engine_user_close(user, nullptr), 0);
    }
}

TEST(it_stops_at_the_first_failure_where_that_is_asked) {
    Engine engine;
    engine_user_t* user = open_scripted(engine, {.fail_offsets = {1024}});
    std::vector<char> buffer(8 * block_bytes);
    std::vector<uint64_t> offsets{0, 512, 1024, 1536, 2048, 2560, 3072, 3584};
    std::vector<int64_t> results;
    engine_many many = many_of(ENGINE_OP_WRITE, buffer.data(), offsets, block_bytes, results, 1);
    many.stop_at_failure = 1;
    Error error;
    CHECK_EQ(engine_user_many(user, nullptr, &many, &error), -EIO);
    CHECK(error.says("scripted failure at 1024"));
    const int64_t c = -ECANCELED;
    CHECK((results == std::vector<int64_t>{512, 512, -EIO, c, c, c, c, c}));
    CHECK_EQ(script.seen, 3);
    engine_user_close(user, nullptr);
}

TEST(one_that_is_cancelled_says_how_far_it_came) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(
        engine.open({{"driver", "null"}, {"node-name", "disk"}, {"size", "1M"}, {"latency-ns", "10ms"}}),
        "test");
    Queue queue(engine);
    std::vector<char> buffer(2000 * block_bytes);
    std::vector<uint64_t> offsets = offsets_of(2000);
    std::vector<int64_t> results;
    engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results, 4);
    Error error;
    CHECK_EQ(engine_submit_many(queue, user, context, &many, 9, &error), 0);
    run_on(context, [] {});
    CHECK_EQ(engine_cancel(queue, 9), 1);
    REQUIRE(queue.wait_for(1));
    CHECK_EQ(queue.completed[9].times, 1);
    CHECK_EQ(queue.completed[9].result, -ECANCELED);
    CHECK(queue.completed[9].text.find("node disk: cancelled after ") == 0);
    // What was begun has its result, the rest was never begun.
    auto end = std::find(results.begin(), results.end(), -ECANCELED);
    auto done = end - results.begin();
    CHECK(done >= 4 && done < 2000);
    CHECK(std::all_of(results.begin(), end, [](int64_t r) { return r == int64_t{block_bytes}; }));
    CHECK(std::all_of(end, results.end(), [](int64_t r) { return r == -ECANCELED; }));
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(engine_node_find(engine, "disk"), nullptr, &stats), 0);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, done);
    CHECK_EQ(stats.in_flight, 0);
    engine_user_close(user, nullptr);
}

TEST(one_that_is_cancelled_before_it_began_does_nothing) {
    Engine engine;
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = open_scripted(engine);
    Queue queue(engine);
    std::vector<char> buffer(4 * block_bytes);
    std::vector<uint64_t> offsets = offsets_of(4);
    std::vector<int64_t> results;
    engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results);
    CHECK_EQ(engine_submit_many(queue, user, context, &many, 1, nullptr), 0);
    REQUIRE(queue.wait_for(1));
    script = {};
    {
        Busy busy(context);
        CHECK_EQ(engine_submit_many(queue, user, context, &many, 2, nullptr), 0);
        CHECK_EQ(engine_cancel(queue, 2), 1);
    }
    REQUIRE(queue.wait_for(2));
    CHECK_EQ(queue.completed[2].result, -ECANCELED);
    CHECK_EQ(script.seen, 0);
    CHECK(std::all_of(results.begin(), results.end(), [](int64_t r) { return r == -ECANCELED; }));
    engine_user_close(user, nullptr);
}

TEST(wrong_arguments) {
    Engine engine;
    engine_user_t* user = open_scripted(engine);
    Queue queue(engine);
    std::vector<char> buffer(2 * block_bytes);
    std::vector<uint64_t> offsets{0, 512};
    std::vector<int64_t> results;
    auto refused = [&](const char* field, auto&& change) {
        engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results);
        change(many);
        Error error;
        Error again;
        CHECK_EQ(engine_user_many(user, nullptr, &many, &error), -EINVAL);
        CHECK_EQ(engine_submit_many(queue, user, nullptr, &many, 1, &again), -EINVAL);
        CHECK_EQ(error.field, field);
        CHECK_EQ(again.message, error.message);
    };
    refused("size", [](engine_many& m) { m.size = 0; });
    refused("size", [](engine_many& m) { m.size = 4096; });
    refused("op", [](engine_many& m) { m.op = ENGINE_OP_FLUSH; });
    refused("flags", [](engine_many& m) { m.flags = ENGINE_MAY_UNMAP; });
    refused("iodepth", [](engine_many& m) { m.iodepth = 1025; });
    refused("count", [](engine_many& m) { m.count = UINT64_MAX / 256; });
    refused("count", [](engine_many& m) { m.count = UINT64_MAX, m.length = 0; });
    refused("offsets", [](engine_many& m) { m.offsets = nullptr; });
    refused("offsets", [](engine_many& m) { m.results = nullptr; });
    refused("buffer", [](engine_many& m) { m.buffer = nullptr; });
    CHECK_EQ(script.seen, 0);
    CHECK_EQ(queue.stats().submitted, 0);
    Engine other;
    Error error;
    engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results);
    CHECK_EQ(engine_user_many(user, other.context("io0"), &many, &error), -EINVAL);
    CHECK(error.says("different engines"));
    CHECK_EQ(engine_user_close(user, nullptr), 0);
}

// A queue keeps the window of its last vector: one that needs fewer, more, or another user works as the first
// did.
TEST(a_window_is_used_again) {
    Engine engine;
    engine_user_t* first = open_scripted(engine);
    engine_user_t* second = Engine::user(engine.open({{"driver", "null"}, {"size", "1M"}}), "second");
    Queue queue(engine);
    std::vector<char> buffer(2048 * block_bytes);
    std::vector<int64_t> results;
    uint64_t token = 0;
    for (uint64_t count : {10u, 0u, 3u, 1000u, 64u, 1u}) {
        for (engine_user_t* user : {first, second}) {
            std::vector<uint64_t> offsets = offsets_of(count);
            engine_many many = many_of(ENGINE_OP_READ, buffer.data(), offsets, block_bytes, results, 256);
            CHECK_EQ(engine_submit_many(queue, user, nullptr, &many, ++token, nullptr), 0);
            REQUIRE(queue.wait_for(token));
            CHECK_EQ(queue.completed[token].result, count);
        }
    }
    engine_user_close(first, nullptr);
    engine_user_close(second, nullptr);
}

}  // namespace
