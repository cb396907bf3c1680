// What the tests of verify share: a disk that can be made to corrupt, refuse or lie, and a verify node of
// which it is the one child, and a plain RAM disk the other. In virtual time; one thread.
#pragma once

#include <algorithm>
#include <functional>

#include "filter_load.hh"
#include "held_requests.hh"

namespace verify_bench {

using embedder::Error;
using embedder::io;
using engine::block::bit;
using engine::block::Channel;
using engine::block::Node;
using engine::block::Op;
using engine::block::Request;
using held::ms;
using held::Probe;
using held::Requests;

constexpr uint64_t disk_bytes = 1 << 20;
constexpr uint32_t all_ops = engine::block::ops_of_data & ~bit(Op::resize);

struct Platter {
    std::vector<char> data = std::vector<char>(disk_bytes, 0);
    uint32_t native_ops = all_ops;
    uint8_t write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    std::function<void(Request&)> before = [](Request&) {};  // may change a write, or its answer
    int64_t answer = 0;                                      // less than 0: nothing is done
    bool says_zero = false;                                  // block status, of all
    uint8_t flags = 0;                                       // of the latest change
    unsigned count[engine::block::op_count] = {};

    unsigned counted(Op op) const { return count[static_cast<unsigned>(op)]; }
};
inline Platter platter;  // of the test that runs

inline int platter_open(Node& node, const engine::block::OpenArguments&) {
    node.native_ops = platter.native_ops;
    node.native_write_flags = platter.write_flags;
    node.holes = true;
    node.bytes.store_relaxed(platter.data.size());
    return 0;
}

inline int64_t platter_do(Request& request) {
    char* at = platter.data.data() + request.offset;
    if (request.op == Op::resize) platter.data.resize(request.offset);
    if (request.op == Op::resize) request.channel->node->bytes.store_relaxed(request.offset);
    if (request.op == Op::write_zeroes || request.op == Op::discard) memset(at, 0, request.length);
    if (request.op == Op::block_status) {
        bool zero = platter.says_zero;
        request.extents[0] = {request.offset, request.length,
                              static_cast<uint32_t>(zero ? ENGINE_EXTENT_ZERO : ENGINE_EXTENT_DATA), 0};
        return 1;
    }
    for (uint32_t i = 0; i < request.iov_count; i++) {
        const iovec& part = request.iov[i];
        if (request.op == Op::read) memcpy(part.iov_base, at, part.iov_len);
        if (request.op == Op::write) memcpy(at, part.iov_base, part.iov_len);
        at += part.iov_len;
    }
    return 0;
}

inline void platter_submit(Channel& channel, Request* request) {
    platter.count[static_cast<unsigned>(request->op)]++;
    if (request->op == Op::write || request->op == Op::write_zeroes) platter.flags = request->flags;
    request->run = [](engine::aio::Message* message) {
        auto* self = static_cast<Request*>(message);
        platter.answer = 0;
        platter.before(*self);
        finish(self, platter.answer < 0 ? platter.answer : platter_do(*self));
    };
    channel.context->ready(request);
}

inline const engine::block::Driver platter_driver{
    .name = "platter",
    .layer = "protocol",
    .text = "for tests",
    .options = {},
    .children = {},
    .state_size = 0,
    .channel_state_size = 0,
    .open = platter_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = platter_submit,
};

enum class Side : uint8_t { file, reference };

// Where the platter is, under a `delay` or nothing; the other child is memory.
struct Pair {
    sim::Engine engine;
    engine_node_t* node = nullptr;
    engine_user_t* user = nullptr;
    Error error;

    explicit Pair(Side side = Side::file, Platter with = {}, uint64_t seed = 1) : engine(seed) {
        platter = std::move(with);
        engine::block::OptionBag bag;
        bag.set("node-name", "odd");
        engine.open_with(platter_driver, std::move(bag));
        engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "ram"}});
        bool file = side == Side::file;
        node = engine.open({{"driver", "verify"},
                            {"node-name", "both"},
                            {"file", file ? "odd" : "ram"},
                            {"reference", file ? "ram" : "odd"}});
        user = embedder::Engine::user(node, "test");
    }
    ~Pair() {
        CHECK_EQ(engine_user_close(user, &error), 0);
        platter = {};
    }
    int64_t run(uint32_t op, void* data, uint64_t offset, uint64_t bytes, uint32_t flags = 0) {
        error = {};
        return io(user, op, data, offset, bytes, flags, &error);
    }
    int64_t fill(char with, uint64_t offset, uint64_t bytes) {
        std::vector<char> data(bytes, with);
        return run(ENGINE_OP_WRITE, data.data(), offset, bytes);
    }
    int64_t read(uint64_t offset, uint64_t bytes) {
        std::vector<char> data(bytes, 'x');
        return run(ENGINE_OP_READ, data.data(), offset, bytes);
    }
    bool says(const char* text) const {
        return check::report(error.says(text), __FILE__, __LINE__, std::string("says: ") + error.message);
    }
};

}  // namespace verify_bench
