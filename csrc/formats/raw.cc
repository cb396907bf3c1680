// The raw format: the disk is the child, or a window of it. Its state is constant; a channel's is its
// context's.
#include <cstddef>
#include <limits>
#include <new>

#include "base/error.hh"
#include "block/registry.hh"
#include "block/request_pool.hh"

namespace engine::block {

namespace {

struct RawState {
    uint64_t offset;  // of the disk in the child, bytes
    bool fixed;       // option `size` was given: the disk cannot be resized
};

struct RawRequest : Request {
    Request* parent = nullptr;
};

struct RawChannel {
    RequestPool<RawRequest> pool;
};

int refuse(const OpenArguments& arguments, const char* field, const char* what, uint64_t value,
           uint64_t limit) {
    return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = field},
                      "raw: %s of %lu bytes %s %lu bytes", field, value, what, limit);
}

int raw_open(Node& node, const OpenArguments& arguments) {
    auto& state = node.state<RawState>();
    const Options& options = arguments.options;
    Node& child = *node.control->children[0].node;
    uint64_t child_bytes = child.bytes.load_relaxed();
    state.offset = options.number("offset");
    state.fixed = options.has("size");
    if (state.offset % child.request_alignment != 0) {
        return refuse(arguments, "offset", "is not a multiple of the alignment below,", state.offset,
                      child.request_alignment);
    }
    if (state.offset > child_bytes) {
        return refuse(arguments, "offset", "is past the end of what is below, which has", state.offset,
                      child_bytes);
    }
    uint64_t bytes = child_bytes - state.offset;
    if (state.fixed) {
        uint64_t wanted = options.number("size");
        if (wanted > bytes) {
            return refuse(arguments, "size", "is more than there is below from the given offset on,", wanted,
                          bytes);
        }
        if (wanted % child.request_alignment != 0) {
            return refuse(arguments, "size", "is not a multiple of the alignment below,", wanted,
                          child.request_alignment);
        }
        bytes = wanted;
    }
    node.bytes.store_relaxed(bytes);
    node.request_alignment = child.request_alignment;
    node.memory_alignment = child.memory_alignment;
    node.max_transfer = child.max_transfer;
    node.native_ops = child.native_ops;
    node.native_write_flags = child.native_write_flags;
    node.holes = child.holes;
    return 0;
}

int raw_open_channel(Channel& channel) {
    new (channel.state_memory.get()) RawChannel;
    return 0;
}

void raw_close_channel(Channel& channel) {
    channel.state<RawChannel>().~RawChannel();
}

// What is more than a number to pass up.
[[gnu::noinline]] void translate(Channel& channel, const Request& child) noexcept {
    const auto& state = channel.node->state<RawState>();
    if (child.op == Op::resize) {
        channel.node->bytes.store_relaxed(child.offset - state.offset);
        return;
    }
    for (int64_t i = 0; i < child.result; i++) child.extents[i].offset -= state.offset;
}

void raw_done(Request* request) {
    auto* child = static_cast<RawRequest*>(request);
    Request* parent = child->parent;
    Channel& channel = *parent->channel;
    int64_t result = child->result;
    if (ENGINE_UNLIKELY((bit(child->op) & (bit(Op::resize) | bit(Op::block_status))) != 0) && result >= 0) {
        translate(channel, *child);
    }
    channel.state<RawChannel>().pool.put(child);
    finish(parent, result);
}

// Fails the request later, or finds nothing wrong.
bool refuse_resize(const RawState& state, Request* request) noexcept {
    if (state.fixed) {
        fail_later(request, ENGINE_ERROR_UNSUPPORTED, ENOTSUP,
                   "node %s: option 'size' fixes the size of this disk: leave it out to resize",
                   request->channel->node->control->name.c_str());
    } else if (request->offset > std::numeric_limits<uint64_t>::max() - state.offset) {
        fail_later(request, ENGINE_ERROR_LIMIT, EFBIG, "node %s: %lu bytes are more than a file can have",
                   request->channel->node->control->name.c_str(), request->offset);
    } else {
        return false;
    }
    return true;
}

void raw_submit(Channel& channel, Request* request) {
    const auto& state = channel.node->state<RawState>();
    auto& own = channel.state<RawChannel>();
    if (request->op == Op::resize && refuse_resize(state, request)) return;
    RawRequest* child = own.pool.get();
    if (ENGINE_UNLIKELY(child == nullptr)) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    child->parent = request;
    child->complete = raw_done;
    child->offset = request->offset + state.offset;
    child->length = request->length;
    child->iov = request->iov;
    child->iov_count = request->iov_count;
    child->op = request->op;
    child->flags = request->flags;
    child->id = request->id;
    child->trace = request->trace;
    child->error = request->error;
    child->extents = request->extents;
    child->extent_capacity = request->extent_capacity;
    submit_child(*channel.children[0], child);
}

const OptionDef options[] = {
    {"offset", OptionType::size, "0", "0..8E", "where the disk starts in what is below, bytes"},
    {"size", OptionType::size, nullptr, "0..8E",
     "size of the disk, bytes; default: all that is below from offset on"},
};

const ChildDef children[] = {{"file", true}};

}  // namespace

const Driver raw_driver{
    .name = "raw",
    .layer = "format",
    .text = "the disk as it is, or a window of it",
    .options = options,
    .children = children,
    .state_size = sizeof(RawState),
    .channel_state_size = sizeof(RawChannel),
    .open = raw_open,
    .close = nullptr,
    .open_channel = raw_open_channel,
    .close_channel = raw_close_channel,
    .submit = raw_submit,
};

}  // namespace engine::block
