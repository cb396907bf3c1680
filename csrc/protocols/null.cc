// The null driver: completes everything, stores nothing. The engine's own cost, and the template for a
// protocol. Its state is constant; a channel's is its context's alone.
#include "block/registry.hh"

#include <cstring>

namespace engine::block {

namespace {

struct NullState {
    uint64_t latency_ns;
    bool read_zeroes;
    uint32_t done_at_once;  // bit(Op): what ends with 0 and nothing more
};

// Requests that wait out their latency, oldest first: it is the same for all, so they fall due in order.
struct NullChannel {
    base::Queue<aio::Message> waiting;
    aio::Timer timer;
    Channel* channel;
};

int null_open(Node& node, const OpenArguments& arguments) {
    auto& state = node.state<NullState>();
    state.latency_ns = arguments.options.number("latency-ns");
    state.read_zeroes = arguments.options.boolean("read-zeroes");
    const uint32_t answered =
        bit(Op::resize) | bit(Op::block_status) | (state.read_zeroes ? bit(Op::read) : 0);
    state.done_at_once = state.latency_ns == 0 ? ~answered : 0;
    node.bytes.store_relaxed(arguments.options.number("size"));
    node.native_ops = ops_of_data;
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    return 0;
}

void fire(aio::Timer* timer) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winvalid-offsetof"
    auto* state =
        reinterpret_cast<NullChannel*>(reinterpret_cast<std::byte*>(timer) - offsetof(NullChannel, timer));
#pragma GCC diagnostic pop
    uint64_t now_ns = state->channel->context->now_ns();
    for (;;) {
        auto* request = static_cast<Request*>(state->waiting.front());
        if (request == nullptr) return;
        if (request->scratch[0] > now_ns) {
            state->channel->context->timers().arm_reserved(timer, request->scratch[0]);
            return;
        }
        state->waiting.pop();
        mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
        finish(request, request->result);
    }
}

int null_open_channel(Channel& channel) {
    auto* state = new (channel.state_memory.get()) NullChannel;
    state->channel = &channel;
    state->timer.fire = fire;
    return channel.context->timers().reserve(&state->timer);
}

void null_close_channel(Channel& channel) {
    auto& state = channel.state<NullChannel>();
    ENGINE_CHECK(state.waiting.empty() && !state.timer.armed());
    channel.context->timers().unreserve(&state.timer);
    state.~NullChannel();
}

// Answers what the driver has to say beyond "done".
[[gnu::noinline]] int64_t answer(Node& node, Request* request) noexcept {
    if (request->op == Op::read) {
        for (uint32_t i = 0; i < request->iov_count; i++)
            memset(request->iov[i].iov_base, 0, request->iov[i].iov_len);
        return 0;
    }
    if (request->op == Op::resize) {
        node.bytes.store_relaxed(request->offset);
        return 0;
    }
    if (request->extent_capacity == 0) return 0;
    request->extents[0] = {request->offset, request->length, ENGINE_EXTENT_DATA, 0};
    return 1;
}

// What has more to say than "done", or is to take its time.
[[gnu::noinline]] void submit_slow(Channel& channel, Request* request, const NullState& state) {
    int64_t result = 0;
    if ((request->op == Op::read && state.read_zeroes) || request->op == Op::resize ||
        request->op == Op::block_status) {
        result = answer(*channel.node, request);
    }
    if (state.latency_ns == 0) {
        finish_later(request, result);
        return;
    }
    auto& own = channel.state<NullChannel>();
    request->result = result;
    request->scratch[0] = channel.context->now_ns() + state.latency_ns;
    mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_DEVICE);
    own.waiting.push(request);
    if (!own.timer.armed()) channel.context->timers().arm_reserved(&own.timer, request->scratch[0]);
}

void null_submit(Channel& channel, Request* request) {
    const auto& state = channel.node->state<NullState>();
    if (ENGINE_LIKELY((state.done_at_once & bit(request->op)) != 0)) {
        finish_later(request, 0);
    } else {
        submit_slow(channel, request, state);
    }
}

void null_cancel(Channel& channel, Request* request) {
    auto& own = channel.state<NullChannel>();
    if (!own.waiting.remove(request)) return;
    mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
    fail_later(request, ENGINE_ERROR_OS, ECANCELED, "node %s: %s of %lu bytes at offset %lu was cancelled",
               channel.node->control->name.c_str(), op_name(request->op), request->length, request->offset);
    if (own.waiting.empty()) channel.context->timers().cancel(&own.timer);
}

const OptionDef null_options[] = {
    {"size", OptionType::size, "1G", "0..8E", "size of the disk, bytes"},
    {"latency-ns", OptionType::time, "0", "0..60000000000",
     "time that each request takes: 20us, or a number of ns"},
    {"read-zeroes", OptionType::boolean, "off", nullptr,
     "reads fill their buffers with zeroes; off: left as they are"},
};

}  // namespace

const Driver null_driver{
    .name = "null",
    .layer = "protocol",
    .text = "completes everything, stores nothing (also null-co)",
    .options = null_options,
    .children = {},
    .state_size = sizeof(NullState),
    .channel_state_size = sizeof(NullChannel),
    .open = null_open,
    .close = nullptr,
    .open_channel = null_open_channel,
    .close_channel = null_close_channel,
    .submit = null_submit,
    .cancel = null_cancel,
};

}  // namespace engine::block
