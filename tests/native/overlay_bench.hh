// What the tests of the overlay share: a data node that can hold requests back, be full, and spoils what it
// is given back; and an overlay over a patterned disk. For one test program: nothing here is inline.
#pragma once

#include <algorithm>

#include "api/handles.hh"
#include "block/graph_tasks.hh"
#include "embedder.hh"
#include "overlay_lanes.hh"

namespace overlay_bench {

using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::info_of;
using embedder::io;
using namespace engine::block;
namespace aio = engine::aio;
namespace api = engine::api;
namespace base = engine::base;

// --- the data node

struct Shelf {
    explicit Shelf(uint64_t size) : bytes(size, std::byte{0xdd}) {}
    std::vector<std::byte> bytes;
    std::atomic<bool> holding{false};  // keeps reads and writes until they are released
    std::atomic<bool> holding_discards{false};
    std::atomic<unsigned> held{0};
    std::atomic<bool> full{false};  // writes fail
};
Shelf* next_shelf = nullptr;

struct ShelfState {
    Shelf* shelf;
};
struct ShelfChannel {
    base::Queue<aio::Message> held;
};

int shelf_open(Node& node, const OpenArguments&) {
    node.state<ShelfState>().shelf = next_shelf;
    node.bytes.store_relaxed(next_shelf->bytes.size());
    node.native_ops = ops_of_data;
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    node.ignore_discard = false;
    return 0;
}
int shelf_open_channel(Channel& channel) {
    new (channel.state_memory.get()) ShelfChannel;
    return 0;
}
void shelf_close_channel(Channel& channel) {
    CHECK(channel.state<ShelfChannel>().held.empty());
    channel.state<ShelfChannel>().~ShelfChannel();
}
// Who reads what another one is writing gets a mixture, as on any disk: single bytes, for the thread
// sanitizer.
void copy_bytes(void* to, const void* from, size_t bytes) {
    auto* into = static_cast<unsigned char*>(to);
    const auto* out_of = static_cast<const unsigned char*>(from);
    for (size_t i = 0; i < bytes; i++) {
        __atomic_store_n(into + i, __atomic_load_n(out_of + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    }
}
void shelf_do(Channel& channel, Request* request) {
    Shelf& shelf = *channel.node->state<ShelfState>().shelf;
    std::byte* at = shelf.bytes.data() + request->offset;
    if (request->op == Op::write && shelf.full) {
        fail_later(request, ENGINE_ERROR_OS, ENOSPC, "node %s: the shelf is full",
                   channel.node->control->name.c_str());
        return;
    }
    if (request->op == Op::discard) memset(at, 0xee, request->length);  // nobody reads it any more
    for (uint32_t i = 0; i < request->iov_count; i++) {
        const iovec& part = request->iov[i];
        if (request->op == Op::read) copy_bytes(part.iov_base, at, part.iov_len);
        if (request->op == Op::write) copy_bytes(at, part.iov_base, part.iov_len);
        at += part.iov_len;
    }
    finish_later(request, 0);
}
void shelf_submit(Channel& channel, Request* request) {
    Shelf& shelf = *channel.node->state<ShelfState>().shelf;
    bool data = request->op == Op::read || request->op == Op::write;
    bool hold = data ? shelf.holding.load() : request->op == Op::discard && shelf.holding_discards;
    if (!hold) {
        shelf_do(channel, request);
        return;
    }
    channel.state<ShelfChannel>().held.push(request);
    shelf.held++;
}

const Driver shelf_driver{
    .name = "shelf",
    .layer = "protocol",
    .text = "for tests",
    .options = {},
    .children = {},
    .state_size = sizeof(ShelfState),
    .channel_state_size = sizeof(ShelfChannel),
    .open = shelf_open,
    .close = nullptr,
    .open_channel = shelf_open_channel,
    .close_channel = shelf_close_channel,
    .submit = shelf_submit,
};

// --- helpers

using overlay_lanes::pattern;

engine_node_stats stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}
engine_node_t* child_of(engine_node_t* node, uint32_t index) {
    char role[16];
    engine_node_t* child = engine_node_get_child(node, index, role, sizeof role);
    REQUIRE(child != nullptr);
    CHECK_EQ(std::string_view(role), index == 0 ? "backing" : "file");
    return child;
}

// An engine with a patterned RAM disk `base` in it.
struct Base {
    Engine engine;
    engine_node_t* below;
    Error error;

    explicit Base(const char* size)
        : below(engine.open({{"driver", "memory"}, {"node-name", "base"}, {"size", size}})) {
        engine_user_t* user = Engine::user(below, "filler");
        std::vector<char> data(info_of(below).bytes);
        for (uint64_t at = 0; at < data.size(); at++) data[at] = pattern(at);
        CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), 0, data.size(), 0, &error), data.size());
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
};

// An overlay of the caller's options, and its user.
struct Disk : Base, overlay_lanes::View {
    Disk(const char* size, Engine::Options options) : Base(size) {
        node = engine.open(options);
        user = Engine::user(node, "test");
    }
    ~Disk() {
        CHECK_EQ(stats_of(node).in_flight, 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
        CHECK_EQ(engine_node_close(node, &error), 0);
    }

    int64_t run(uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags = 0) {
        return io(user, op, nullptr, offset, bytes, flags, &error);
    }
    int64_t write(uint64_t offset, uint64_t bytes, char with, uint32_t flags = 0) {
        std::vector<char> data(bytes, with);
        return io(user, ENGINE_OP_WRITE, data.data(), offset, bytes, flags, &error);
    }
    void fill(uint64_t offset, uint64_t bytes, char with) { CHECK_EQ(write(offset, bytes, with), bytes); }
    bool holds(uint64_t offset, uint64_t bytes, char with) {
        std::vector<char> data = read(offset, bytes);
        return std::all_of(data.begin(), data.end(), [&](char c) { return c == with; });
    }
    // What is below shines through.
    bool shines(uint64_t offset, uint64_t bytes) {
        std::vector<char> data = read(offset, bytes);
        for (uint64_t i = 0; i < bytes; i++) {
            if (data[i] != pattern(offset + i)) return false;
        }
        return true;
    }
    // "Z65536 D131072": what block status says of a range.
    std::string status(uint64_t offset, uint64_t bytes, uint32_t capacity = 32) {
        std::vector<engine_extent> extents(capacity);
        int64_t count =
            engine_user_block_status(user, nullptr, offset, bytes, extents.data(), capacity, &error);
        CHECK(count >= 0);
        std::string text;
        uint64_t at = offset;
        for (int64_t i = 0; i < count; i++) {
            const engine_extent& extent = extents[static_cast<size_t>(i)];
            CHECK_EQ(extent.offset, at);
            at += extent.length;
            text += (text.empty() ? "" : " ") + std::string(extent.flags == ENGINE_EXTENT_DATA ? "D" : "Z") +
                    std::to_string(extent.length);
        }
        return text;
    }
};

// An overlay whose data lies on a shelf.
struct ShelfDisk : Disk {
    Shelf& shelf;
    engine_node_t* data;

    ShelfDisk(const char* size, Shelf& on)
        : Disk(size, {{"driver", "memory"}, {"node-name", "unused"}, {"size", "0"}}), shelf(on) {
        close();
        next_shelf = &on;
        Node* opened = nullptr;
        OptionBag bag;
        bag.set("node-name", "shelf");
        REQUIRE(open_node(*api::unwrap(engine.get()), shelf_driver, bag, &opened, &error) == 0);
        data = api::wrap(opened);
        node = engine.open({{"driver", "overlay"},
                            {"node-name", "top"},
                            {"backing", "base"},
                            {"file", "shelf"},
                            {"cluster-size", "4k"}});
        user = Engine::user(node, "test");
    }
    void close() {
        CHECK_EQ(engine_user_close(user, &error), 0);
        CHECK_EQ(engine_node_close(node, &error), 0);
    }
    uint64_t given_back() { return stats_of(data).op[ENGINE_OP_DISCARD].requests; }
    // Lets go what the shelf holds on a context.
    void release(engine_context_t* context) {
        shelf.holding = shelf.holding_discards = false;
        Channel* channel = find_channel(api::unwrap(data), api::unwrap(context));
        REQUIRE(channel != nullptr);
        embedder::run_on(context, [channel] {
            while (aio::Message* message = channel->state<ShelfChannel>().held.pop()) {
                shelf_do(*channel, static_cast<Request*>(message));
            }
        });
    }
    // So much that the home's work had its chance.
    void let_time_pass() {
        for (unsigned i = 0; i < 50; i++) CHECK_EQ(run(ENGINE_OP_FLUSH, 0, 0), 0);
    }
};

// A request on a context, submitted while others go on.
struct Async : Request {
    std::vector<char> data;
    Port* port = nullptr;
    std::atomic<bool> over{false};

    Async(engine_user_t* user, engine_context_t* context, Op what, uint64_t at, uint64_t bytes, char with)
        : data(bytes, with) {
        Error told;
        REQUIRE(open_port(api::unwrap(user), api::unwrap(context), &port, &told) == 0);
        op = what;
        offset = at;
        length = bytes;
        if (what == Op::read || what == Op::write) set_buffer(data.data(), bytes);
        complete = [](Request* request) {
            static_cast<Async*>(request)->over.store(true, std::memory_order_release);
        };
        embedder::run_on(context, [this] { submit(*port, this); });
    }
    int64_t wait() {
        REQUIRE(eventually([this] { return over.load(std::memory_order_acquire); }));
        return result;
    }
};

}  // namespace overlay_bench
