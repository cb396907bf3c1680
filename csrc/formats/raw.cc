// The raw format: the disk is the child, or a window of it. Its state is constant; channels have none.
#include <limits>

#include "base/error.hh"
#include "block/forward.hh"
#include "block/registry.hh"

namespace engine::block {

namespace {

struct RawState {
    uint64_t offset;  // of the disk in the child, bytes
    bool fixed;       // option `size` was given: the disk cannot be resized
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
        bytes = wanted;
    }
    node.bytes.store_relaxed(bytes);
    take_limits(node, child);
    return 0;
}

// What is more than a number to pass up.
[[gnu::noinline]] void translate(const Channel& channel, const Request& request) noexcept {
    if (request.op == Op::resize) {
        channel.node->bytes.store_relaxed(request.offset);
        return;
    }
    uint64_t offset = channel.node->state<RawState>().offset;
    for (int64_t i = 0; i < request.result; i++) request.extents[i].offset -= offset;
}

void raw_done(Request* request) {
    const Channel& channel = take_back(request);
    if (ENGINE_UNLIKELY((bit(request->op) & (bit(Op::resize) | bit(Op::block_status))) != 0) &&
        request->result >= 0) {
        translate(channel, *request);
    }
    finish(request, request->result);
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
    if (request->op == Op::resize && refuse_resize(state, request)) return;
    forward(channel, 0, request, request->offset + state.offset, raw_done);
}

Location raw_locate(Channel& channel, uint64_t offset) {
    return {channel.children[0], offset + channel.node->state<RawState>().offset};
}

const OptionDef raw_options[] = {
    {"offset", OptionType::size, "0", "0..8E", "where the disk starts in what is below, bytes"},
    {"size", OptionType::size, nullptr, "0..8E",
     "size of the disk, bytes; default: all that is below from offset on"},
};

const ChildDef raw_children[] = {{"file", true}};

}  // namespace

const Driver raw_driver{
    .name = "raw",
    .layer = "format",
    .text = "the disk as it is, or a window of it",
    .options = raw_options,
    .children = raw_children,
    .state_size = sizeof(RawState),
    .channel_state_size = 0,
    .open = raw_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = raw_submit,
    .locate = raw_locate,
};

}  // namespace engine::block
