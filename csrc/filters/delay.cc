// The delay filter: each request waits before it goes on, as long as its operation asks for and a random time
// on top. What waits is its channel's, in virtual time as well; an operation without a delay has no timer.
#include <functional>

#include "base/error.hh"
#include "base/random.hh"
#include "block/registry.hh"
#include "filters/filter.hh"
#include "filters/waiting.hh"

namespace engine::filters {

using block::Channel;
using block::Node;
using block::Op;
using block::OptionDef;
using block::Options;
using block::OptionType;
using block::Request;

namespace {

struct DelayState {
    uint64_t delay_ns[block::op_count];
    uint64_t spread_ns;
    uint64_t seed;
};

struct DelayChannel {
    Waiting waiting;
    base::Random random{0};
};

void delay_submit(Channel& channel, Request* request) {
    const auto& state = channel.node->state<DelayState>();
    uint64_t delay_ns = state.delay_ns[static_cast<unsigned>(request->op)];
    if (delay_ns == 0) {
        pass(channel, request);
        return;
    }
    auto& own = channel.state<DelayChannel>();
    if (state.spread_ns != 0) delay_ns += own.random.between(0, state.spread_ns);
    own.waiting.add(request, delay_ns);
}

int delay_open_channel(Channel& channel) {
    auto* own = new (channel.state_memory.get()) DelayChannel;
    // By name: so a seed gives the same times whichever context comes first.
    uint64_t which = std::hash<std::string>()(channel.context->name());
    own->random = base::Random(base::mix(channel.node->state<DelayState>().seed ^ which));
    int result = own->waiting.open(channel);
    if (result != 0) own->~DelayChannel();
    return result;
}

void delay_close_channel(Channel& channel) {
    auto& own = channel.state<DelayChannel>();
    own.waiting.close();
    own.~DelayChannel();
}

void delay_hurry(Channel& channel, bool on) {
    channel.state<DelayChannel>().waiting.hurry(on);
}

void delay_cancel(Channel& channel, Request* request) {
    if (channel.state<DelayChannel>().waiting.remove(request)) fail_cancelled(request, "it waited to go on");
}

constexpr const char* hour = "0..3600000000000";  // ns

const OptionDef delay_options[] = {
    {"read", OptionType::time, "0", hour, "how long a read waits; 0: not at all"},
    {"write", OptionType::time, "0", hour, "how long a write waits"},
    {"flush", OptionType::time, "0", hour, "how long a flush waits"},
    {"other", OptionType::time, "0", hour, "how long discards, writes of zeroes and block status wait"},
    {"spread", OptionType::time, "0", hour,
     "what waits waits longer by a random time, from nothing to this, each as likely"},
    {"seed", OptionType::integer, "0", "0..18446744073709551615", "of the random times"},
};

int delay_open(Node& node, const block::OpenArguments& arguments) {
    const Options& given = arguments.options;
    auto& state = node.state<DelayState>();
    uint64_t any = 0;
    auto take = [&](const char* key, std::initializer_list<Op> ops) {
        for (Op op : ops) state.delay_ns[static_cast<unsigned>(op)] = given.number(key);
        any |= given.number(key);
    };
    take("read", {Op::read});
    take("write", {Op::write});
    take("flush", {Op::flush});
    take("other", {Op::discard, Op::write_zeroes, Op::block_status});
    state.spread_ns = given.number("spread");
    state.seed = given.number("seed");
    if (state.spread_ns != 0 && any == 0) {
        return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "open", .field = "spread"},
                          "delay: option 'spread': it makes delays longer, and there are none: give 'read', "
                          "'write', 'flush' or 'other' as well");
    }
    open_above_child(node, arguments);
    node.native_ops &= block::ops_of_data;  // a copy is read and written through here
    return 0;
}

const block::ChildDef delay_children[] = {{"file", true}};

}  // namespace

}  // namespace engine::filters

namespace engine::block {

const Driver delay_driver{
    .name = "delay",
    .layer = "filter",
    .text = "lets each request wait before it goes on",
    .options = filters::delay_options,
    .children = filters::delay_children,
    .state_size = sizeof(filters::DelayState),
    .channel_state_size = sizeof(filters::DelayChannel),
    .open = filters::delay_open,
    .close = nullptr,
    .open_channel = filters::delay_open_channel,
    .close_channel = filters::delay_close_channel,
    .submit = filters::delay_submit,
    .filter = true,
    .hurry = filters::delay_hurry,
    .cancel = filters::delay_cancel,
};

}  // namespace engine::block
