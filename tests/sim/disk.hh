// The lab's protocol: the shipped file driver's request path over a file of the simulated storage. What goes
// to the kernel there by a call of its own (size, block status, copies) goes to the storage here.
#pragma once

#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/registry.hh"
#include "protocols/file.hh"
#include "storage.hh"

namespace lab {

using engine::block::bit;
using engine::block::Channel;
using engine::block::Node;
using engine::block::Op;
using engine::block::Request;

inline thread_local Storage* storage = nullptr;  // of the seed that runs

namespace disk {

constexpr uint64_t granule = 512;  // block status is told in these

// First, as the file driver's functions expect.
struct State {
    engine::block::FileState file;
};

inline int open(Node& node, const engine::block::OpenArguments& arguments) {
    auto& state = node.state<State>();
    state.file.fd = static_cast<int>(arguments.options.number("fd"));
    state.file.direct = arguments.options.boolean("direct");
    state.file.block_size = 512;
    state.file.shared = new engine::block::FileShared;
    node.request_alignment = static_cast<uint32_t>(arguments.options.number("alignment"));
    node.memory_alignment = state.file.direct ? node.request_alignment : 1;
    if (uint64_t most = arguments.options.number("max-transfer"); most != 0) node.max_transfer = most;
    node.bytes.store_relaxed(storage->bytes(state.file.fd).size());
    node.native_ops = static_cast<uint32_t>(arguments.options.number("ops"));
    node.native_write_flags = arguments.options.boolean("fua")
                                  ? ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK
                                  : ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    node.holes = true;
    return 0;
}

inline void close(Node& node) {
    delete node.state<State>().file.shared;
}

inline int64_t resize(engine::aio::IoOp* op) {
    Request& request = *Request::of(op);
    if (!storage->powered()) return -EIO;
    storage->resize(request.channel->node->state<State>().file.fd, request.offset);
    return 0;
}

inline int64_t status(engine::aio::IoOp* op) {
    Request& request = *Request::of(op);
    if (!storage->powered()) return -EIO;
    const std::vector<std::byte>& bytes = storage->bytes(request.channel->node->state<State>().file.fd);
    uint32_t count = 0;
    uint64_t end = request.offset + request.length;
    for (uint64_t at = request.offset; at < end;) {
        uint64_t next = std::min((at / granule + 1) * granule, end);
        bool zero =
            std::all_of(bytes.begin() + static_cast<long>(at), bytes.begin() + static_cast<long>(next),
                        [](std::byte byte) { return byte == std::byte{0}; });
        uint32_t flags = zero ? ENGINE_EXTENT_ZERO : ENGINE_EXTENT_DATA;
        if (count != 0 && request.extents[count - 1].flags == flags) {
            request.extents[count - 1].length += next - at;
        } else if (count == request.extent_capacity) {
            break;
        } else {
            request.extents[count++] = {at, next - at, flags, 0};
        }
        at = next;
    }
    return count;
}

inline int64_t copy(engine::aio::IoOp* op) {
    Request& request = *Request::of(op);
    if (!storage->powered()) return -EIO;
    int from = request.source.channel->node->state<State>().file.fd;
    std::vector<std::byte> data(
        storage->bytes(from).begin() + static_cast<long>(request.source.offset),
        storage->bytes(from).begin() + static_cast<long>(request.source.offset + request.length));
    storage->put_bytes(request.channel->node->state<State>().file.fd, request.offset, data);
    return 0;
}

// `call` does it when its time has come.
inline void later(Channel& channel, Request* request, int64_t (*call)(engine::aio::IoOp*)) {
    request->io.kind = engine::aio::IoKind::call;
    request->io.call = call;
    request->io.done = [](engine::aio::IoOp* op, int64_t result) {
        Request* done = Request::of(op);
        if (result >= 0 && done->op == Op::resize) done->channel->node->bytes.store_relaxed(done->offset);
        engine::block::finish(done, result);
    };
    channel.context->backend().queue(&request->io);
}

inline void submit(Channel& channel, Request* request) {
    switch (request->op) {
        case Op::resize:
            return later(channel, request, resize);
        case Op::block_status:
            return later(channel, request, status);
        case Op::copy_range:
            return later(channel, request, copy);
        default:
            return engine::block::file_submit(channel, request);
    }
}

inline engine::block::Location locate(Channel& channel, uint64_t offset) {
    return {&channel, offset};
}

inline int open_channel(Channel& channel) {
    channel.state<engine::block::FileChannel>().slot = -1;
    return 0;
}

using engine::block::OptionType;
inline const engine::block::OptionDef options[] = {
    {"fd", OptionType::integer, "0", "0..4294967295", "a file of the storage"},
    {"alignment", OptionType::integer, "1", "1..65536", "of requests, bytes"},
    {"direct", OptionType::boolean, "off", nullptr, "buffers are aligned as well"},
    {"max-transfer", OptionType::size, "0", "0..1G", "bytes of a request; 0: no limit"},
    {"ops", OptionType::integer, "255", "0..255", "bits of engine_op that it does itself"},
    {"fua", OptionType::boolean, "on", nullptr, "writes can be durable by themselves"},
};

inline const engine::block::Driver driver{
    .name = "lab-disk",
    .layer = "protocol",
    .text = "a file of the simulated storage",
    .options = options,
    .children = {},
    .state_size = sizeof(State),
    .channel_state_size = sizeof(engine::block::FileChannel),
    .open = open,
    .close = close,
    .open_channel = open_channel,
    .close_channel = nullptr,
    .submit = submit,
    .locate = locate,
};

}  // namespace disk

}  // namespace lab
