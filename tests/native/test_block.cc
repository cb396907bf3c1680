// The request layer and its users: permissions and conflicts, bounds, read-only, alignment, what an error
// carries, and the operations that are emulated, over a driver of the test's own that writes down what it is
// asked.
#include "api/handles.hh"
#include "block/graph.hh"
#include "embedder.hh"

namespace {

using embedder::Engine;
using embedder::Error;
using embedder::io;
using engine::block::bit;
using engine::block::Channel;
using engine::block::Driver;
using engine::block::Node;
using engine::block::Op;
using engine::block::OpenArguments;
using engine::block::Request;

constexpr uint64_t disk_bytes = 64 << 20;

// --- a driver that can little, and remembers all

struct Seen {
    Op op;
    uint64_t offset;
    uint64_t length;
    uint8_t flags;
    uint64_t id;
    bool zeroes;  // a write of nothing else
};

// One at a time; filled on a context's thread while the test waits for its request.
struct Script {
    uint32_t native_ops = bit(Op::read) | bit(Op::write) | bit(Op::flush);
    uint8_t native_write_flags = 0;
    uint64_t max_transfer = UINT64_MAX;
    uint32_t request_alignment = 1;
    uint32_t memory_alignment = 1;
    int fail_at = -1;  // the number of the request that fails
    int fail_errno = EIO;
    bool fail_with_text = false;
    std::vector<Seen> seen;
};
Script script;

int scripted_open(Node& node, const OpenArguments&) {
    node.bytes.store_relaxed(disk_bytes);
    node.native_ops = script.native_ops;
    node.native_write_flags = script.native_write_flags;
    node.max_transfer = script.max_transfer;
    node.request_alignment = script.request_alignment;
    node.memory_alignment = script.memory_alignment;
    return 0;
}

void scripted_submit(Channel&, Request* request) {
    bool zeroes = request->op == Op::write;
    uint64_t length = 0;
    for (uint32_t i = 0; i < request->iov_count; i++) {
        const auto* bytes = static_cast<const unsigned char*>(request->iov[i].iov_base);
        for (size_t j = 0; j < request->iov[i].iov_len; j++) zeroes = zeroes && bytes[j] == 0;
        length += request->iov[i].iov_len;
    }
    if (request->op == Op::read || request->op == Op::write) CHECK_EQ(length, request->length);
    if (request->op == Op::read) CHECK_EQ(request->flags, 0);
    script.seen.push_back(
        {request->op, request->offset, request->length, request->flags, request->id, zeroes});
    bool fails = static_cast<int>(script.seen.size()) - 1 == script.fail_at;
    if (fails && script.fail_with_text) {
        fail_later(request, ENGINE_ERROR_OS, script.fail_errno, "the script says so");
    } else {
        finish_later(request, fails ? -script.fail_errno : 0);
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

// An engine with a scripted disk and a user of it.
struct Scripted {
    Engine engine;
    engine_context_t* context;
    engine_node_t* node = nullptr;
    engine_user_t* user = nullptr;
    Error error;

    explicit Scripted(Script with = {}, std::initializer_list<engine_option> options = {}) {
        script = std::move(with);
        context = engine.context("io0");
        Node* made = nullptr;
        engine::block::OptionBag bag;
        bag.set("node-name", "disk");
        for (const engine_option& option : options) bag.set(option.key, option.value);
        REQUIRE(open_node(*engine::api::unwrap(engine.get()), scripted, std::move(bag), &made, &error) == 0);
        node = engine::api::wrap(made);
        user = Engine::user(node, "test");
    }
    ~Scripted() {
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
        CHECK_EQ(stats.in_flight, 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
    int64_t run(uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags = 0) {
        static std::vector<char> buffer(4 << 20, 'x');
        return io(user, op, buffer.data(), offset, bytes, flags, &error, context);
    }
    const Seen& seen(size_t i) {
        REQUIRE(i < script.seen.size());
        return script.seen[i];
    }
};

TEST(a_write_of_zeroes_is_written_out) {
    Scripted disk;
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 4096, (5 << 20) + 777, ENGINE_MAY_UNMAP), 0);
    uint64_t at = 4096;
    for (const Seen& seen : script.seen) {
        CHECK(seen.op == Op::write && seen.zeroes && seen.flags == 0);
        CHECK_EQ(seen.offset, at);
        CHECK(seen.length <= 1 << 20);
        CHECK_EQ(seen.id, script.seen[0].id);  // children of one request
        CHECK(seen.id != 0);
        at += seen.length;
    }
    CHECK_EQ(at, 4096 + (5 << 20) + 777);
    CHECK_EQ(script.seen.size(), 6);
}

TEST(chunks_of_zeroes_keep_to_the_drivers_limit) {
    Script with;
    with.max_transfer = 8192;
    Scripted disk(std::move(with));
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 0, 20480), 0);
    REQUIRE(script.seen.size() == 3);
    CHECK_EQ(disk.seen(0).length, 8192);
    CHECK_EQ(disk.seen(2).length, 4096);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 0, 12288), 12288);
    CHECK_EQ(disk.seen(3).length, 8192);
    CHECK_EQ(disk.seen(4).offset, 8192);
    CHECK_EQ(disk.seen(4).length, 4096);
}

TEST(without_fallback_zeroes_are_refused) {
    Scripted disk;
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 0, 4096, ENGINE_NO_FALLBACK), -ENOTSUP);
    CHECK(script.seen.empty());
    CHECK_EQ(disk.error.errnum, ENOTSUP);
    CHECK_EQ(std::string_view(disk.error.node), "disk");
}

TEST(a_driver_that_turns_out_unable_is_helped) {
    for (bool text : {false, true}) {
        Script with;
        with.native_ops |= bit(Op::write_zeroes);
        with.fail_at = 0;
        with.fail_errno = ENOTSUP;
        with.fail_with_text = text;
        Scripted disk(std::move(with));
        CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 8192, 4096, ENGINE_FUA | ENGINE_MAY_UNMAP), 0);
        CHECK_EQ(disk.error.kind, ENGINE_ERROR_NONE);  // what was tried first is no error
        REQUIRE(script.seen.size() == 3);
        CHECK(disk.seen(0).op == Op::write_zeroes && disk.seen(0).flags == ENGINE_MAY_UNMAP);
        CHECK(disk.seen(1).op == Op::write && disk.seen(1).zeroes && disk.seen(1).offset == 8192);
        CHECK(disk.seen(2).op == Op::flush);
    }
}

TEST(fua_is_a_write_and_a_flush) {
    Scripted disk;
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 4096, 512, ENGINE_FUA), 512);
    REQUIRE(script.seen.size() == 2);
    CHECK(disk.seen(0).op == Op::write && disk.seen(0).flags == 0 && disk.seen(0).offset == 4096);
    CHECK(disk.seen(1).op == Op::flush);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 4096, 512), 512);
    CHECK_EQ(script.seen.size(), 3);
}

TEST(a_driver_that_knows_fua_gets_it) {
    Script with;
    with.native_write_flags = ENGINE_FUA;
    Scripted disk(std::move(with));
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 0, 512, ENGINE_FUA), 512);
    REQUIRE(script.seen.size() == 1);
    CHECK_EQ(disk.seen(0).flags, ENGINE_FUA);
}

TEST(a_part_that_fails_fails_the_whole) {
    for (bool text : {false, true}) {
        for (int fail_at = 0; fail_at < 4;
             fail_at++) {  // the third part of the zeroes, at the latest the flush
            Script with;
            with.max_transfer = 4096;
            with.fail_at = fail_at;
            with.fail_errno = ENOSPC;
            with.fail_with_text = text;
            Scripted disk(std::move(with));
            CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 0, 12288, ENGINE_FUA), -ENOSPC);
            CHECK_EQ(script.seen.size(), fail_at + 1);  // nothing is tried after a failure
            CHECK_EQ(disk.error.errnum, ENOSPC);
            CHECK_EQ(std::string_view(disk.error.node), "disk");
            CHECK(disk.error.request_id == disk.seen(0).id);
            if (text) CHECK(disk.error.says("the script says so"));
        }
        for (int fail_at = 0; fail_at < 2; fail_at++) {
            Script with;
            with.fail_at = fail_at;
            with.fail_with_text = text;
            Scripted disk(std::move(with));
            CHECK_EQ(disk.run(ENGINE_OP_WRITE, 0, 4096, ENGINE_FUA), -EIO);
            CHECK_EQ(script.seen.size(), fail_at + 1);
            // The next request knows nothing of it.
            CHECK_EQ(disk.run(ENGINE_OP_WRITE, 0, 4096, ENGINE_FUA), 4096);
        }
    }
}

// Its name is free for others, and leads nowhere, before the driver begins to close it.
TEST(a_node_that_is_being_closed_is_not_found) {
    static std::atomic<int> found{-1};
    static engine::Instance* instance = nullptr;
    Driver closing = scripted;
    closing.close = [](Node&) { found = engine::block::find_node(*instance, "disk") != nullptr; };
    script = {};
    Engine engine;
    instance = engine::api::unwrap(engine.get());
    engine::block::OptionBag bag;
    bag.set("node-name", "disk");
    Node* node = nullptr;
    Error error;
    REQUIRE(open_node(*instance, closing, std::move(bag), &node, &error) == 0);
    CHECK(engine::block::find_node(*instance, "disk") == node);
    CHECK_EQ(engine_node_close(engine::api::wrap(node), &error), 0);
    CHECK_EQ(found.load(), 0);
}

// It lies behind the node, on pages of the node's own.
TEST(a_drivers_state_may_take_pages) {
    struct Large {
        unsigned char bytes[10000];
    };
    Driver large = scripted;
    large.state_size = sizeof(Large);
    large.open = [](Node& node, const OpenArguments& arguments) {
        CHECK(node.mapped_bytes >= Node::state_offset + sizeof(Large));
        unsigned sum = 0;
        for (unsigned char& byte : node.state<Large>().bytes) sum += std::exchange(byte, 1);
        CHECK_EQ(sum, 0);
        return scripted_open(node, arguments);
    };
    script = {};
    Engine engine;
    engine::block::OptionBag bag;
    bag.set("node-name", "disk");
    Node* node = nullptr;
    Error error;
    REQUIRE(open_node(*engine::api::unwrap(engine.get()), large, std::move(bag), &node, &error) == 0);
    CHECK_EQ(engine_node_close(engine::api::wrap(node), &error), 0);
}

TEST(what_a_driver_cannot_is_said) {
    Script with;
    with.native_ops = bit(Op::read) | bit(Op::write);
    Scripted disk(std::move(with));
    CHECK_EQ(disk.run(ENGINE_OP_FLUSH, 0, 0), -ENOTSUP);
    CHECK_EQ(disk.error.kind, ENGINE_ERROR_UNSUPPORTED);
    CHECK(disk.error.says("node disk: driver scripted cannot flush"));
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 4096, 0), -ENOTSUP);
    engine_extent extent;
    CHECK_EQ(engine_user_block_status(disk.user, disk.context, 0, 4096, &extent, 1, &disk.error), -ENOTSUP);
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 4096), 0);  // advice
    CHECK(script.seen.empty());
}

// What of it arrives; that the outcome is right is shown by test_alignment.cc.
TEST(what_does_not_suit_the_driver_goes_through_a_buffer_that_does) {
    Script with;
    with.request_alignment = 512;
    with.memory_alignment = 512;
    Scripted disk(std::move(with));
    alignas(512) char buffer[1024] = {'x'};
    auto check = [&](uint32_t op, char* at, uint64_t offset, uint64_t bytes,
                     std::initializer_list<Op> expected) {
        script.seen.clear();
        CHECK(io(disk.user, op, at, offset, bytes, 0, &disk.error, disk.context) >= 0);
        REQUIRE(script.seen.size() == expected.size());
        for (size_t i = 0; i < expected.size(); i++) {
            CHECK(disk.seen(i).op == expected.begin()[i]);
            CHECK_EQ(disk.seen(i).id, disk.seen(0).id);
            CHECK_EQ((disk.seen(i).offset | disk.seen(i).length) % 512, 0);
        }
    };
    check(ENGINE_OP_READ, buffer, 512, 512, {Op::read});
    check(ENGINE_OP_READ, buffer, 100, 512, {Op::read});
    CHECK_EQ(disk.seen(0).length, 1024);
    check(ENGINE_OP_READ, buffer + 8, 512, 512, {Op::read});
    check(ENGINE_OP_WRITE, buffer + 8, 512, 512, {Op::write});  // nothing to keep
    check(ENGINE_OP_WRITE, buffer, 512, 100, {Op::read, Op::write});
    check(ENGINE_OP_WRITE, buffer, 100, 512, {Op::read, Op::read, Op::write});
    check(ENGINE_OP_WRITE, buffer, 512 + 100, 1024 - 100, {Op::read, Op::write});
    check(ENGINE_OP_WRITE_ZEROES, buffer, 512, 100, {Op::read, Op::write});
    check(ENGINE_OP_WRITE_ZEROES, buffer, 512, 1024, {Op::write});
    engine_iovec parts[] = {{buffer, 100}, {buffer + 512, 412}};
    script.seen.clear();
    CHECK_EQ(engine_user_io(disk.user, disk.context, ENGINE_OP_READ, parts, 2, 0, 512, 0, &disk.error), 512);
    CHECK_EQ(script.seen.size(), 1);
}

// Buffers more aligned than blocks: what is to stay is read in one piece, since only its beginning suits.
TEST(edges_of_small_blocks_are_read_in_one_piece) {
    Script with;
    with.request_alignment = 512;
    with.memory_alignment = 4096;
    Scripted disk(std::move(with));
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 100, 2000), 2000);
    REQUIRE(script.seen.size() == 2);
    CHECK(disk.seen(0).op == Op::read);
    CHECK(disk.seen(1).op == Op::write);
    for (const Seen& seen : script.seen) {
        CHECK_EQ(seen.offset, 0);
        CHECK_EQ(seen.length, 2560);
    }
}

TEST(writes_of_zeroes_are_found_out) {
    Script with;
    with.native_ops |= bit(Op::write_zeroes) | bit(Op::discard);
    with.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP;
    const struct {
        const char* detect;
        const char* discard;
        Op seen;
        uint8_t flags;
    } cases[] = {{"off", "unmap", Op::write, 0},
                 {"on", "ignore", Op::write_zeroes, 0},
                 {"unmap", "unmap", Op::write_zeroes, ENGINE_MAY_UNMAP}};
    for (const auto& one : cases) {
        Scripted disk(with, {{"detect-zeroes", one.detect}, {"discard", one.discard}});
        std::vector<char> buffer(8192);
        auto write = [&](uint32_t flags) {
            return io(disk.user, ENGINE_OP_WRITE, buffer.data(), 4096, 8192, flags, &disk.error,
                      disk.context);
        };
        CHECK_EQ(write(0), 8192);
        REQUIRE(script.seen.size() == 1);
        CHECK(disk.seen(0).op == one.seen && disk.seen(0).flags == one.flags && disk.seen(0).length == 8192);
        buffer[8191] = 'x';
        CHECK_EQ(write(0), 8192);
        CHECK(disk.seen(1).op == Op::write);
        buffer[8191] = 0;
        CHECK_EQ(write(ENGINE_FUA), 8192);
        CHECK_EQ(script.seen.size(), one.seen == Op::write ? 3 : 4);
        if (one.seen != Op::write) CHECK(disk.seen(3).op == Op::flush);
    }
    Engine engine;
    Error error;
    engine_node_t* node = nullptr;
    CHECK_EQ(engine.open({{"driver", "null"}, {"detect-zeroes", "unmap"}}, &node, &error), -EINVAL);
    CHECK_EQ(std::string_view(error.field), "detect-zeroes");
    CHECK(error.says("set discard=unmap too, or detect-zeroes=on"));
}

TEST(the_callers_vector_is_checked) {
    Scripted disk;
    char buffer[1024];
    engine_iovec parts[] = {{buffer, 512}, {buffer, SIZE_MAX}};
    CHECK_EQ(engine_user_io(disk.user, disk.context, ENGINE_OP_READ, parts, 2, 0, 511, 0, &disk.error),
             -EINVAL);
    CHECK_EQ(std::string_view(disk.error.field), "iov");
    CHECK_EQ(engine_user_io(disk.user, disk.context, ENGINE_OP_READ, parts, 1, 0, 1024, 0, &disk.error),
             -EINVAL);
    CHECK_EQ(engine_user_io(disk.user, disk.context, 6, parts, 1, 0, 512, 0, &disk.error), -EINVAL);
    CHECK_EQ(engine_user_io(disk.user, disk.context, ENGINE_OP_READ, parts, 1, 0, 512, 8, &disk.error),
             -EINVAL);
    CHECK(script.seen.empty());
}

// --- bounds, permissions, read-only: on null as on anything else

void check_error(const Error& error, uint32_t kind, int errnum, const char* operation, uint64_t offset) {
    CHECK_EQ(error.kind, kind);
    CHECK_EQ(error.errnum, errnum);
    CHECK_EQ(std::string_view(error.node), "disk");
    CHECK_EQ(std::string_view(error.operation), operation);
    CHECK_EQ(error.offset, offset);
    // A resize is refused before there is a request.
    CHECK_EQ(error.request_id != 0, std::string_view(operation) != "resize");
}

TEST(bounds_bite_on_null) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}, {"size", "1M"}, {"node-name", "disk"}});
    engine_user_t* user = Engine::user(node, "test");
    char buffer[4096];
    Error error;
    const struct {
        uint64_t offset, bytes;
    } outside[] = {
        {1 << 20, 1}, {(1 << 20) - 511, 512}, {UINT64_MAX, 1}, {UINT64_MAX - 511, 512}, {(1 << 20) + 1, 0}};
    uint64_t last_id = 0;
    for (const auto& range : outside) {
        CHECK_EQ(io(user, ENGINE_OP_READ, buffer, range.offset, range.bytes, 0, &error), -EINVAL);
        check_error(error, ENGINE_ERROR_INVALID, EINVAL, "read", range.offset);
        CHECK(error.says("ends past the end of the disk (1048576 bytes)"));
        CHECK(error.request_id > last_id);
        last_id = error.request_id;
        CHECK_EQ(io(user, ENGINE_OP_WRITE, buffer, range.offset, range.bytes, 0, &error), -EINVAL);
        check_error(error, ENGINE_ERROR_INVALID, EINVAL, "write", range.offset);
    }
    CHECK_EQ(io(user, ENGINE_OP_DISCARD, nullptr, 0, (1 << 20) + 1, 0, &error), -EINVAL);
    CHECK_EQ(io(user, ENGINE_OP_WRITE_ZEROES, nullptr, 4096, UINT64_MAX - 4095, 0, &error), -EINVAL);
    check_error(error, ENGINE_ERROR_INVALID, EINVAL, "write-zeroes", 4096);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, (1 << 20) - 512, 512, 0, &error), 512);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 1 << 20, 0, 0, &error), 0);
    CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, 2 << 20, 0, 0, &error), 0);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 1 << 20, 512, 0, &error), 512);
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    CHECK_EQ(stats.op[ENGINE_OP_READ].errors, 5);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, 8);
    CHECK_EQ(stats.op[ENGINE_OP_READ].bytes, 1024);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(permissions_bite_on_null) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}, {"node-name", "disk"}});
    char buffer[512];
    Error error;
    const struct {
        uint32_t permissions;
        bool reads, writes, resizes;
    } cases[] = {{0, false, false, false},
                 {ENGINE_PERM_CONSISTENT_READ, true, false, false},
                 {ENGINE_PERM_WRITE, false, true, false},
                 {ENGINE_PERM_RESIZE, false, false, true},
                 {ENGINE_PERM_ALL, true, true, true}};
    for (const auto& one : cases) {
        engine_user_t* user = Engine::user(node, "guest", one.permissions);
        auto check = [&](uint32_t op, uint64_t bytes, bool allowed, const char* name) {
            int64_t result = io(user, op, buffer, 4096, bytes, 0, &error);
            CHECK_EQ(result >= 0, allowed);
            if (allowed) return;
            CHECK_EQ(result, -EPERM);
            check_error(error, ENGINE_ERROR_REFUSED, EPERM, name, 4096);
            CHECK(error.says(
                (std::string("user guest holds no permission to ") + name + " on node disk").c_str()));
        };
        check(ENGINE_OP_READ, 512, one.reads, "read");
        check(ENGINE_OP_WRITE, 512, one.writes, "write");
        check(ENGINE_OP_DISCARD, 512, one.writes, "discard");
        check(ENGINE_OP_WRITE_ZEROES, 512, one.writes, "write-zeroes");
        check(ENGINE_OP_RESIZE, 0, one.resizes, "resize");
        check(ENGINE_OP_RESIZE, 0, one.resizes, "resize");
        check(ENGINE_OP_FLUSH, 0, true, "flush");
        if (one.resizes) CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, 1 << 30, 0, 0, &error), 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(a_read_only_node_takes_no_writer) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}, {"node-name", "disk"}, {"read-only", "on"}});
    engine_user_t* user = nullptr;
    Error error;
    CHECK_EQ(
        engine_user_create(node, "guest", ENGINE_PERM_WRITE | ENGINE_PERM_CONSISTENT_READ, 15, &user, &error),
        -EROFS);
    CHECK_EQ(error.kind, ENGINE_ERROR_REFUSED);
    CHECK(error.says("node disk is read-only: user 'guest' cannot have write"));
    CHECK(user == nullptr);
    user = Engine::user(node, "guest", ENGINE_PERM_CONSISTENT_READ);
    char buffer[512];
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error), 512);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(a_conflict_names_both_users) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}, {"node-name", "disk"}});
    constexpr uint32_t read = ENGINE_PERM_CONSISTENT_READ, write = ENGINE_PERM_WRITE;
    engine_user_t* first = Engine::user(node, "first", read | write, read);
    engine_user_t* second = nullptr;
    Error error;
    CHECK_EQ(engine_user_create(node, "second", read | write, 15, &second, &error), -EBUSY);
    CHECK_EQ(error.kind, ENGINE_ERROR_CONFLICT);
    CHECK_EQ(std::string_view(error.node), "disk");
    CHECK(error.says("user 'second' cannot use node disk: it conflicts with user 'first' over: write ("));
    CHECK_EQ(engine_user_create(node, "second", read, read, &second, &error), -EBUSY);
    CHECK(
        error.says("conflicts with user 'first' over: write (held by the second, not shared by the first)"));
    CHECK_EQ(engine_user_create(node, "second", 16, 15, &second, &error), -EINVAL);
    CHECK(second == nullptr);
    second = Engine::user(node, "second", read, read | write);
    CHECK_EQ(engine_node_close(node, &error), -EBUSY);
    CHECK_EQ(error.kind, ENGINE_ERROR_CONFLICT);
    CHECK(error.says("node disk is in use by 'first', 'second': close them first"));
    CHECK_EQ(engine_close(engine, &error), -EBUSY);
    CHECK(error.says("'first', 'second'"));
    CHECK_EQ(engine_user_close(first, &error), 0);
    first = Engine::user(node, "third", read | write);
    CHECK_EQ(engine_user_close(first, &error), 0);
    CHECK_EQ(engine_user_close(second, &error), 0);
    CHECK_EQ(engine_node_close(node, &error), 0);
}

TEST(a_format_keeps_writers_off_what_is_below_it) {
    Engine engine;
    engine_node_t* top = engine.open({{"driver", "raw"}, {"node-name", "top"}, {"file.driver", "null"}});
    char role[16];
    engine_node_t* below = engine_node_get_child(top, 0, role, sizeof role);
    engine_user_t* user = nullptr;
    Error error;
    CHECK_EQ(engine_user_create(below, "guest", ENGINE_PERM_WRITE, 15, &user, &error), -EBUSY);
    CHECK(error.says("user 'guest' cannot use node #block0: it conflicts with user 'node top' over: write"));
    user = Engine::user(below, "guest", ENGINE_PERM_CONSISTENT_READ, 15);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(a_child_request_keeps_the_id_and_tells_its_own_node) {
    Engine engine;
    engine_node_t* node =
        engine.open({{"driver", "raw"}, {"node-name", "top"}, {"size", "8k"}, {"file.driver", "null"}});
    engine_user_t* user = Engine::user(node, "test");
    char buffer[512];
    Error error;
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 8192, 512, 0, &error), -EINVAL);
    CHECK_EQ(std::string_view(error.node), "top");
    engine_node_stats stats{};
    stats.size = sizeof stats;
    char role[16];
    CHECK_EQ(engine_node_get_stats(engine_node_get_child(node, 0, role, sizeof role), nullptr, &stats), 0);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, 0);  // refused at the entry
    CHECK_EQ(engine_user_close(user, &error), 0);
}

}  // namespace
