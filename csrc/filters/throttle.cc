// The throttle filter: holds requests back until the limits of its group allow them. A channel's queues are
// its context's; the group is shared by nodes on any context and has no lock on the request path.
#include "filters/throttle.hh"

#include <cstring>
#include <string>

#include "base/error.hh"
#include "block/graph.hh"
#include "block/registry.hh"
#include "filters/filter.hh"
#include "filters/throttle_group.hh"

namespace engine::filters {

using block::bit;
using block::Channel;
using block::Node;
using block::Op;
using block::OptionBag;
using block::OptionDef;
using block::Options;
using block::OptionType;
using block::Request;

namespace {

using Group = std::shared_ptr<ThrottleGroup>;

// Requests that wait wake up as often, at least, to see whether the limits have changed.
constexpr uint64_t look_again_ns = 100'000'000;

struct ThrottleState {
    Group group;
    std::string key;  // in the engine's table; empty: of this node alone. closing can take no memory
};

// Requests of one direction that may not go yet, in order. Only the first has a reservation: so the channels
// of a group take turns however many requests wait in each, and new limits bind those that wait, too.
struct Lane {
    base::Queue<aio::Message> waiting;
    uint64_t due_ns = 0;
    uint32_t generation = 0;  // of the limits that due_ns comes from
};

struct ThrottleChannel : aio::Timer {
    Lane lanes[2];
    Channel* channel = nullptr;
    ThrottleGroup* group = nullptr;
    bool hurrying = false;  // nothing waits
};

Direction direction_of(const Request& request) noexcept {
    return request.op == Op::read ? reading : writing;
}

// The reservation of a lane's first request.
void reserve(ThrottleGroup& group, Lane& lane, Direction direction, uint64_t now_ns) noexcept {
    const auto* first = static_cast<const Request*>(lane.waiting.front());
    lane.generation = group.generation();
    lane.due_ns = group.reserve(direction, first->length, now_ns);
}

void wake_at(ThrottleChannel& own, uint64_t deadline_ns) noexcept;

// Lets go what may go by now, in a hurry all of it. What goes is counted in any case.
void release(ThrottleChannel& own) noexcept {
    aio::AioContext& context = *own.channel->context;
    uint64_t now_ns = context.now_ns();
    uint64_t next_ns = UINT64_MAX;
    for (Direction direction : {reading, writing}) {
        Lane& lane = own.lanes[direction];
        while (!lane.waiting.empty()) {
            if (lane.generation != own.group->generation()) reserve(*own.group, lane, direction, now_ns);
            if (lane.due_ns > now_ns && !own.hurrying) break;
            auto* request = static_cast<Request*>(lane.waiting.pop());
            if (!lane.waiting.empty()) reserve(*own.group, lane, direction, now_ns);
            mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
            pass(*own.channel, request);
        }
        if (!lane.waiting.empty() && lane.due_ns < next_ns) next_ns = lane.due_ns;
    }
    if (next_ns == UINT64_MAX) {
        context.disarm(&own);
    } else {
        wake_at(own, next_ns < now_ns + look_again_ns ? next_ns : now_ns + look_again_ns);
    }
}

void wake_at(ThrottleChannel& own, uint64_t deadline_ns) noexcept {
    if (own.channel->context->arm(&own, deadline_ns) == 0) return;
    // Without a timer what waits would wait for ever: better too early than never.
    bool before = own.hurrying;
    own.hurrying = true;
    release(own);
    own.hurrying = before;
}

// It may not go yet, or others wait before it.
[[gnu::noinline]] void wait(ThrottleChannel& own, Lane& lane, Request* request, uint64_t due_ns) noexcept {
    bool first = lane.waiting.empty();
    mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_HELD);
    lane.waiting.push(request);
    if (!first) return;
    lane.due_ns = due_ns;
    lane.generation = own.group->generation();
    uint64_t latest_ns = own.channel->context->now_ns() + look_again_ns;
    uint64_t wake_ns = due_ns < latest_ns ? due_ns : latest_ns;
    if (!own.armed() || own.deadline_ns > wake_ns) wake_at(own, wake_ns);
}

void throttle_submit(Channel& channel, Request* request) {
    constexpr uint32_t throttled = bit(Op::read) | bit(Op::write) | bit(Op::discard) | bit(Op::write_zeroes);
    auto& own = channel.state<ThrottleChannel>();
    Direction direction = direction_of(*request);
    if ((bit(request->op) & throttled) == 0) {
        pass(channel, request);
        return;
    }
    Lane& lane = own.lanes[direction];
    if (ENGINE_UNLIKELY(!lane.waiting.empty())) {
        wait(own, lane, request, 0);
        return;
    }
    if (own.group->limited(direction)) {
        uint64_t now_ns = channel.context->now_ns();
        uint64_t due_ns = own.group->reserve(direction, request->length, now_ns);
        if (ENGINE_UNLIKELY(due_ns > now_ns) && !own.hurrying) {
            wait(own, lane, request, due_ns);
            return;
        }
    }
    pass(channel, request);
}

int throttle_open_channel(Channel& channel) {
    auto* own = new (channel.state_memory.get()) ThrottleChannel;
    own->channel = &channel;
    own->group = channel.node->state<ThrottleState>().group.get();
    own->fire = [](aio::Timer* timer) { release(*static_cast<ThrottleChannel*>(timer)); };
    int result = channel.context->timers().reserve(own);
    if (result != 0) own->~ThrottleChannel();
    return result;
}

void throttle_close_channel(Channel& channel) {
    auto& own = channel.state<ThrottleChannel>();
    ENGINE_CHECK(own.lanes[reading].waiting.empty() && own.lanes[writing].waiting.empty());
    ENGINE_CHECK(!own.armed());
    channel.context->timers().unreserve(&own);
    own.~ThrottleChannel();
}

void throttle_hurry(Channel& channel, bool on) {
    auto& own = channel.state<ThrottleChannel>();
    own.hurrying = on;
    release(own);
}

void throttle_cancel(Channel& channel, Request* request) {
    auto& own = channel.state<ThrottleChannel>();
    Direction direction = direction_of(*request);
    Lane& lane = own.lanes[direction];
    bool first = lane.waiting.front() == request;
    if (!lane.waiting.remove(request)) return;
    mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
    fail_cancelled(request, "it waited for its turn");
    if (first && !lane.waiting.empty()) reserve(*own.group, lane, direction, channel.context->now_ns());
    release(own);
}

// --- limits and groups, control plane

constexpr const char* rate_values = "0..1000000000000000";
constexpr const char* length_values = "1..4294967295";

// The three options of each limit stand together, in the order of Limits::Which.
const OptionDef throttle_options[] = {
    {"limits.bps-total", OptionType::size, "0", rate_values, "bytes a second, read and written; 0: no limit"},
    {"limits.bps-total-max", OptionType::size, "0", rate_values, "bytes a second in a burst; 0: no bursts"},
    {"limits.bps-total-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.bps-read", OptionType::size, "0", rate_values, "bytes read a second; 0: no limit"},
    {"limits.bps-read-max", OptionType::size, "0", rate_values, "bytes read a second in a burst"},
    {"limits.bps-read-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.bps-write", OptionType::size, "0", rate_values, "bytes written a second; 0: no limit"},
    {"limits.bps-write-max", OptionType::size, "0", rate_values, "bytes written a second in a burst"},
    {"limits.bps-write-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.iops-total", OptionType::integer, "0", rate_values, "requests a second; 0: no limit"},
    {"limits.iops-total-max", OptionType::integer, "0", rate_values, "requests a second in a burst"},
    {"limits.iops-total-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.iops-read", OptionType::integer, "0", rate_values, "reads a second; 0: no limit"},
    {"limits.iops-read-max", OptionType::integer, "0", rate_values, "reads a second in a burst"},
    {"limits.iops-read-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.iops-write", OptionType::integer, "0", rate_values, "writes a second; 0: no limit"},
    {"limits.iops-write-max", OptionType::integer, "0", rate_values, "writes a second in a burst"},
    {"limits.iops-write-max-length", OptionType::integer, "1", length_values, "seconds that a burst lasts"},
    {"limits.iops-size", OptionType::size, "0", "0..8E",
     "bytes; a larger request counts as so many requests; 0: as one"},
    {"throttle-group", OptionType::string, nullptr, nullptr,
     "name of the group whose limits this node shares; default: limits of its own"},
};
constexpr unsigned options_a_limit = 3;

int refuse_limit(engine_error* error, const char* key, const char* format, const char* other) {
    std::string text = "throttle: option '" + std::string(key) + "': " + format;
    if (size_t at = text.find('@'); at != std::string::npos) text.replace(at, 1, other);
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = key}, "%s",
                      text.c_str());
}

int read_limits(const Options& given, Limits* limits, engine_error* error) {
    for (unsigned which = 0; which < Limits::count; which++) {
        const OptionDef* keys = &throttle_options[size_t{which} * options_a_limit];
        Limit& limit = limits->limit[which];
        limit = {given.number(keys[0].key), given.number(keys[1].key), given.number(keys[2].key)};
        if (limit.burst != 0 && limit.average == 0)
            return refuse_limit(error, keys[1].key, "a burst is above an average: give '@' as well",
                                keys[0].key);
        if (limit.burst != 0 && limit.burst < limit.average)
            return refuse_limit(error, keys[1].key, "a burst must not be slower than '@'", keys[0].key);
        if (given.given(keys[2].key) && limit.burst == 0)
            return refuse_limit(error, keys[2].key, "there is no burst to last: give '@' as well",
                                keys[1].key);
        if (which % 3 != 0 && limit.average != 0 && limits->limit[which - which % 3].average != 0) {
            return refuse_limit(error, keys[0].key,
                                "'@' limits that already: give the total, or reads and writes",
                                throttle_options[size_t{which - which % 3} * options_a_limit].key);
        }
    }
    limits->iops_size = given.number("limits.iops-size");
    bool iops = false;
    for (unsigned which = Limits::iops_total; which < Limits::count; which++)
        iops = iops || limits->limit[which].average != 0;
    if (limits->iops_size != 0 && !iops)
        return refuse_limit(error, "limits.iops-size", "it counts requests, and no limit does: give '@'",
                            "limits.iops-total");
    return 0;
}

std::string key_of(const std::string& name) {
    return "throttle-group " + name;
}

// The first key of `given` that is about limits; null: none.
const char* limit_key(const Options& given) {
    for (const OptionDef& def : throttle_options) {
        if (strncmp(def.key, "limits.", 7) == 0 && given.given(def.key)) return def.key;
    }
    return nullptr;
}

Group make_group(Instance& engine, const Limits& limits) {
    uint64_t now_ns = engine.main()->now_ns();  // the clock of its contexts
    Group group = std::make_shared<ThrottleGroup>(now_ns);
    group->set(limits, now_ns);
    return group;
}

// Joins the group of that name, or makes it.
int join(Instance& engine, const std::string& name, const Options& given, const Limits& limits, Group* out,
         engine_error* error) {
    std::lock_guard guard(engine.control);
    std::weak_ptr<void>& place = engine.shared_by_name[key_of(name)];
    Group group = std::static_pointer_cast<ThrottleGroup>(place.lock());
    if (group == nullptr) {
        group = make_group(engine, limits);
        place = group;
    } else if (const char* key = limit_key(given); key != nullptr && limits != group->limits()) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EEXIST, {.operation = "open", .field = key},
                          "throttle: option '%s': group '%s' has other limits already: leave them out here, "
                          "or change the group's with engine_throttle_set",
                          key, name.c_str());
    }
    *out = std::move(group);
    return 0;
}

int throttle_open(Node& node, const block::OpenArguments& arguments) {
    const Options& given = arguments.options;
    Limits limits;
    int result = read_limits(given, &limits, arguments.error);
    if (result != 0) return result;
    Group group;
    const std::string& name = given.text("throttle-group");
    if (given.given("throttle-group") && name.empty())
        return refuse_limit(arguments.error, "throttle-group", "a name is needed", "");
    std::string key = name.empty() ? "" : key_of(name);
    if (name.empty()) {
        group = make_group(*node.control->engine, limits);
    } else {
        result = join(*node.control->engine, name, given, limits, &group, arguments.error);
        if (result != 0) return result;
    }
    open_above_child(node, arguments);
    node.native_ops &= block::ops_of_data;  // what is copied counts as what is read and written
    new (&node.state<ThrottleState>()) ThrottleState{std::move(group), std::move(key)};
    return 0;
}

void throttle_close(Node& node) {
    auto& state = node.state<ThrottleState>();
    {
        std::lock_guard guard(node.control->engine->control);
        state.group.reset();
        auto& shared = node.control->engine->shared_by_name;
        auto found = state.key.empty() ? shared.end() : shared.find(state.key);
        if (found != shared.end() && found->second.expired()) shared.erase(found);
    }
    state.~ThrottleState();
}

const block::ChildDef throttle_children[] = {{"file", true}};

}  // namespace

int set_throttle(Node& node, OptionBag bag, engine_error* error) {
    base::Where where{.node = node.control->name.c_str(), .operation = "throttle"};
    if (node.driver != &block::throttle_driver) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "node %s has driver %s: only a throttle node has limits", where.node,
                          node.driver->name);
    }
    for (const auto& [key, value] : bag.all()) {
        if (key.starts_with("limits.")) continue;
        where.field = key.c_str();
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "option '%s' cannot be changed here: only limits can", key.c_str());
    }
    bag.set("driver", node.driver->name);
    Options given;
    Limits limits;
    int result = given.parse(bag, node.driver->name, throttle_options, error);
    if (result == 0) result = read_limits(given, &limits, error);
    if (result == 0) {
        node.state<ThrottleState>().group->set(limits, node.control->engine->main()->now_ns());
    }
    return result;
}

}  // namespace engine::filters

namespace engine::block {

const Driver throttle_driver{
    .name = "throttle",
    .layer = "filter",
    .text = "holds requests back to so many bytes or requests a second",
    .options = filters::throttle_options,
    .children = filters::throttle_children,
    .state_size = sizeof(filters::ThrottleState),
    .channel_state_size = sizeof(filters::ThrottleChannel),
    .open = filters::throttle_open,
    .close = filters::throttle_close,
    .open_channel = filters::throttle_open_channel,
    .close_channel = filters::throttle_close_channel,
    .submit = filters::throttle_submit,
    .filter = true,
    .hurry = filters::throttle_hurry,
    .cancel = filters::throttle_cancel,
};

}  // namespace engine::block
