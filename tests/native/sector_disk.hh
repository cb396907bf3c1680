// What the tests of the request layer share: a RAM disk that is particular about offsets, lengths and
// buffers, complains of every request that does not suit it, and completes nothing inside submit(), so that
// what is under way at the same time overlaps. For one test program: nothing here is inline.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "api/handles.hh"
#include "block/graph.hh"
#include "block/track.hh"
#include "embedder.hh"

namespace sector_disk {

using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::io;
using namespace engine::block;
namespace aio = engine::aio;
namespace api = engine::api;
namespace base = engine::base;

struct Demands {
    uint32_t request_alignment = 512;
    uint32_t memory_alignment = 512;
    uint64_t max_transfer = UINT64_MAX;
    uint32_t native_ops = ops_of_data;
    uint8_t native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    uint64_t bytes = 64 << 10;
};
Demands demands;  // of the next disk that is opened

// Bytes as single atomics: whole-block writes of two contexts may overlap where a test wants them to.
struct Disk {
    explicit Disk(size_t bytes) : data(bytes) {}
    std::vector<std::atomic<unsigned char>> data;
    std::atomic<uint64_t> requests{0};
    std::atomic<uint64_t> reads{0};
    std::atomic<bool> holding{false};  // writes are kept
    base::Queue<aio::Message> held;    // of one context
};
struct DiskState {
    Disk* disk;
};

int disk_open(Node& node, const OpenArguments&) {
    node.request_alignment = demands.request_alignment;
    node.memory_alignment = demands.memory_alignment;
    node.max_transfer = demands.max_transfer;
    node.native_ops = demands.native_ops;
    node.native_write_flags = demands.native_write_flags;
    node.bytes.store_relaxed(demands.bytes);
    node.state<DiskState>().disk = new Disk(demands.bytes);
    return 0;
}
void disk_close(Node& node) {
    delete node.state<DiskState>().disk;
}

void check_demands(const Node& node, const Request& request) {
    bool data = request.op == Op::read || request.op == Op::write;
    if (request.op == Op::flush || request.op == Op::block_status) return;
    CHECK_EQ((request.offset | request.length) % node.request_alignment, 0);
    CHECK(request.offset + request.length <= node.bytes.load_relaxed());
    if (!data) return;
    CHECK(request.length <= node.max_transfer && request.length != 0);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < request.iov_count; i++) {
        auto address = reinterpret_cast<uintptr_t>(request.iov[i].iov_base);
        CHECK_EQ(address % node.memory_alignment, 0);
        sum += request.iov[i].iov_len;
    }
    CHECK_EQ(sum, request.length);
}

void disk_do(Request* request) {
    Disk& disk = *request->channel->node->state<DiskState>().disk;
    REQUIRE(request->offset + request->length <= disk.data.size());
    std::atomic<unsigned char>* at = disk.data.data() + request->offset;
    bool writes = request->op == Op::write;
    for (uint32_t i = 0; i < request->iov_count; i++) {
        auto* part = static_cast<unsigned char*>(request->iov[i].iov_base);
        for (size_t left = request->iov[i].iov_len; left != 0; left--, part++, at++) {
            if (writes) {
                at->store(*part, std::memory_order_relaxed);
            } else {
                *part = at->load(std::memory_order_relaxed);
            }
        }
    }
    if (request->op == Op::discard || request->op == Op::write_zeroes) {
        for (size_t i = 0; i < request->length; i++) at[i].store(0, std::memory_order_relaxed);
    }
    finish(request, 0);
}

void disk_submit(Channel& channel, Request* request) {
    check_demands(*channel.node, *request);
    Disk& disk = *channel.node->state<DiskState>().disk;
    disk.requests++;
    if (request->op == Op::read) disk.reads++;
    request->run = [](aio::Message* message) { disk_do(static_cast<Request*>(message)); };
    if (request->op == Op::write && disk.holding.load()) {
        disk.held.push(request);
    } else {
        channel.context->ready(request);
    }
}

const Driver disk_driver{
    .name = "sectors",
    .layer = "protocol",
    .text = "for tests",
    .options = {},
    .children = {},
    .state_size = sizeof(DiskState),
    .channel_state_size = 0,
    .open = disk_open,
    .close = disk_close,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = disk_submit,
};

struct Bench {
    Engine engine;
    Node* node = nullptr;
    engine_user_t* user = nullptr;
    Error error;

    explicit Bench(Demands with = {}, std::initializer_list<engine_option> options = {}) {
        demands = with;
        OptionBag bag;
        std::vector<engine_option> all{{"node-name", "disk"}};
        all.insert(all.end(), options.begin(), options.end());
        REQUIRE(bag.fill(all.data(), all.size(), &error) == 0);
        REQUIRE(open_node(*api::unwrap(engine.get()), disk_driver, std::move(bag), &node, &error) == 0);
        user = Engine::user(api::wrap(node), "test");
    }
    ~Bench() { CHECK_EQ(engine_user_close(user, &error), 0); }

    Disk& disk() { return *node->state<DiskState>().disk; }
    unsigned char byte(size_t at) { return disk().data[at].load(); }
    Limits& limits() { return api::unwrap(engine.get())->limits; }
    bool tracked() { return node->control->tracking->active(); }
    void let_go(engine_context_t* context) {
        disk().holding = false;
        embedder::run_on(context, [&] {
            while (aio::Message* message = disk().held.pop()) disk_do(static_cast<Request*>(message));
        });
    }
    Port* port(engine_context_t* context) {
        Port* port = nullptr;
        REQUIRE(open_port(api::unwrap(user), api::unwrap(context), &port, &error) == 0);
        return port;
    }
};

// Requests that are submitted one right after the other in one turn of a context.
struct Together {
    struct One : Request {
        Together* all = nullptr;
        std::vector<char> buffer;
    };
    std::vector<std::unique_ptr<One>> requests;
    std::atomic<size_t> left{0};

    One& add(Op op, uint64_t offset, uint64_t length, char fill = 0, uint8_t flags = 0) {
        requests.push_back(std::make_unique<One>());
        One& one = *requests.back();
        one.all = this;
        one.op = op;
        one.offset = offset;
        one.length = length;
        one.flags = flags;
        if (op == Op::read || op == Op::write) {
            one.buffer.assign(length, fill);
            one.set_buffer(one.buffer.data(), length);
        }
        one.complete = [](Request* request) { static_cast<One*>(request)->all->left--; };
        return one;
    }
    void submit(engine_context_t* context, Port* port) {
        left += requests.size();
        embedder::run_on(context, [&] {
            for (auto& one : requests) engine::block::submit(*port, one.get());
        });
    }
    void wait() {
        CHECK(eventually([this] { return left.load() == 0; }));
    }
    void run(engine_context_t* context, Port* port) {
        submit(context, port);
        wait();
        for (auto& one : requests) CHECK_EQ(one->result, 0);
    }
};

}  // namespace sector_disk
