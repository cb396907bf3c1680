// What the tests of changes to the graph share: a RAM disk that can hold requests back, a filter that counts
// what is asked of it, and loads that verify. For one test program: nothing here is inline.
#pragma once

#include <atomic>

#include "api/handles.hh"
#include "block/graph_tasks.hh"
#include "block/request_pool.hh"
#include "embedder.hh"

namespace graph_bench {

using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::info_of;
using embedder::io;
using namespace engine::block;
namespace aio = engine::aio;
namespace api = engine::api;
namespace base = engine::base;
using engine::coro::Task;

constexpr uint64_t disk_bytes = 4 << 20;
constexpr uint64_t second_ns = 1'000'000'000;

// --- a RAM disk; `holding` keeps what comes in until it is let go

struct Ram {
    std::vector<std::byte> bytes = std::vector<std::byte>(2 * disk_bytes);
    std::atomic<bool> holding{false};
    std::atomic<unsigned> held{0};
};
Ram* next_ram = nullptr;

struct RamState {
    Ram* ram;
};
struct RamChannel {
    base::Queue<aio::Message> held;
};

int ram_open(Node& node, const OpenArguments&) {
    node.state<RamState>().ram = next_ram;
    node.bytes.store_relaxed(disk_bytes);
    node.native_ops = ops_of_data;
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    return 0;
}
int ram_open_channel(Channel& channel) {
    new (channel.state_memory.get()) RamChannel;
    return 0;
}
void ram_close_channel(Channel& channel) {
    CHECK(channel.state<RamChannel>().held.empty());
    channel.state<RamChannel>().~RamChannel();
}
void ram_do(Channel& channel, Request* request) {
    Ram& ram = *channel.node->state<RamState>().ram;
    std::byte* at = ram.bytes.data() + request->offset;
    if (request->op == Op::resize) channel.node->bytes.store_relaxed(request->offset);
    for (uint32_t i = 0; i < request->iov_count; i++) {
        const iovec& part = request->iov[i];
        if (request->op == Op::read) memcpy(part.iov_base, at, part.iov_len);
        if (request->op == Op::write) memcpy(at, part.iov_base, part.iov_len);
        at += part.iov_len;
    }
    finish_later(request, 0);
}
void ram_submit(Channel& channel, Request* request) {
    Ram& ram = *channel.node->state<RamState>().ram;
    if (!ram.holding.load()) {
        ram_do(channel, request);
        return;
    }
    channel.state<RamChannel>().held.push(request);
    ram.held++;
}
// On a context's thread.
void ram_release(Channel& channel) {
    while (aio::Message* message = channel.state<RamChannel>().held.pop()) {
        ram_do(channel, static_cast<Request*>(message));
    }
}

const Driver ram_driver{
    .name = "ram",
    .layer = "protocol",
    .text = "for tests",
    .options = {},
    .children = {},
    .state_size = sizeof(RamState),
    .channel_state_size = sizeof(RamChannel),
    .open = ram_open,
    .close = nullptr,
    .open_channel = ram_open_channel,
    .close_channel = ram_close_channel,
    .submit = ram_submit,
};

// --- a filter with background work that counts what is asked of it

struct FilterCounts {
    std::atomic<unsigned> started{0}, stopped{0}, settled{0};
    std::atomic<int> settle_result{0};
    std::atomic<const aio::AioContext*> home{nullptr};
};
FilterCounts counts;

struct FilterRequest : Request {
    Request* parent = nullptr;
};
struct FilterChannel {
    RequestPool<FilterRequest> pool;
};
int filter_open(Node& node, const OpenArguments&) {
    const Node& child = *node.control->children[0].node;
    node.bytes.store_relaxed(child.bytes.load_relaxed());
    node.native_ops = child.native_ops;
    node.native_write_flags = child.native_write_flags;
    return 0;
}
int filter_open_channel(Channel& channel) {
    new (channel.state_memory.get()) FilterChannel;
    return 0;
}
void filter_close_channel(Channel& channel) {
    channel.state<FilterChannel>().~FilterChannel();
}
void filter_done(Request* request) {
    auto* child = static_cast<FilterRequest*>(request);
    Request* parent = child->parent;
    int64_t result = child->result;
    if (parent->op == Op::resize && result == 0) parent->channel->node->bytes.store_relaxed(child->offset);
    parent->channel->state<FilterChannel>().pool.put(child);
    finish(parent, result);
}
void filter_submit(Channel& channel, Request* request) {
    FilterRequest* child = channel.state<FilterChannel>().pool.get();
    child->parent = request;
    child->complete = filter_done;
    child->offset = request->offset;
    child->length = request->length;
    child->iov = request->iov;
    child->iov_count = request->iov_count;
    child->op = request->op;
    child->flags = request->flags;
    child->id = request->id;
    child->error = request->error;
    submit_child(*channel.children[0], child);
}
int filter_start(Channel& home) {
    counts.started++;
    counts.home = home.context;
    return 0;
}
Task<int> filter_stop(Channel& home) {
    CHECK(home.context->on_home());
    counts.stopped++;
    co_return 0;
}
Task<int> filter_settle(Channel& home) {
    CHECK(home.context->on_home());
    counts.settled++;
    int result = counts.settle_result.load();
    co_return result;
}

const ChildDef filter_children[] = {{"file", true}};
const Driver filter_driver{
    .name = "through",
    .layer = "filter",
    .text = "for tests",
    .options = {},
    .children = filter_children,
    .state_size = 1,
    .channel_state_size = sizeof(FilterChannel),
    .open = filter_open,
    .close = nullptr,
    .open_channel = filter_open_channel,
    .close_channel = filter_close_channel,
    .submit = filter_submit,
    .filter = true,
    .start_home = filter_start,
    .stop_home = filter_stop,
    .settle = filter_settle,
};

// --- helpers

OptionBag bag_of(std::initializer_list<engine_option> options) {
    OptionBag bag;
    Error error;
    REQUIRE(bag.fill(options.begin(), options.size(), &error) == 0);
    return bag;
}

engine_node_t* open_ram(Engine& engine, Ram& ram, const char* name) {
    Error error;
    Node* node = nullptr;
    next_ram = &ram;
    REQUIRE(open_node(*api::unwrap(engine.get()), ram_driver, bag_of({{"node-name", name}}), &node, &error) ==
            0);
    return api::wrap(node);
}

int insert(engine_node_t* below, const char* name, engine_node_t** out, engine_error* error,
           uint64_t timeout_ns = 20 * second_ns) {
    Node* filter = nullptr;
    int result = insert_filter(api::unwrap(below), filter_driver, bag_of({{"node-name", name}}), timeout_ns,
                               &filter, error);
    *out = filter == nullptr ? nullptr : api::wrap(filter);
    return result;
}

void close_user_and_node(engine_user_t* user, engine_node_t* node) {
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
    CHECK_EQ(engine_node_close(node, &error), 0);
}

engine_node_stats stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}

engine_workload_t* verified_load(Engine& engine, engine_user_t* user, engine_context_t* context,
                                 uint64_t offset, uint64_t seed) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 16;
    config.flags = ENGINE_WORKLOAD_VERIFY;
    config.runtime_ns = 3600 * second_ns;
    config.seed = seed;
    config.offset = offset;
    config.length = disk_bytes / 2;
    config.flush_every = 100;
    config.user = user;
    config.context = context;
    engine_workload_t* load = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine, &config, &load, &error) == 0);
    REQUIRE(engine_workload_start(load, &error) == 0);
    return load;
}

engine_workload_result end_load(engine_workload_t* load) {
    CHECK_EQ(engine_workload_stop(load), 0);
    CHECK_EQ(engine_workload_wait(load, 60 * second_ns), 0);
    engine_workload_result result{};
    result.size = sizeof result;
    CHECK_EQ(engine_workload_get_result(load, &result), 0);
    CHECK_EQ(engine_workload_close(load), 0);
    CHECK_EQ(result.errors, 0);
    CHECK_EQ(result.verify_errors, 0);
    return result;
}

}  // namespace graph_bench
