// The node's side of the external driver: home thread of each channel's context, but for open and close.
#include "protocols/external.hh"

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>

#include "base/clock.hh"
#include "base/error.hh"
#include "base/log.hh"
#include "block/registry.hh"

namespace engine::block {

namespace {

constexpr size_t data_align_min = 64;
constexpr size_t kept_memory_max = 1 << 20;  // bytes that a slot holds on to between requests

int invalid(const OpenArguments& arguments, const char* field, const char* text, const std::string& value) {
    return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = field},
                      "external: %s = %s: %s", field, value.c_str(), text);
}

// "read,write-zeroes": the bits, or nothing for what is no operation.
bool parse_ops(std::string_view list, uint32_t* bits) {
    *bits = 0;
    while (!list.empty()) {
        std::string_view name = list.substr(0, list.find(','));
        list.remove_prefix(std::min(list.size(), name.size() + 1));
        unsigned op = 0;
        while (op < op_count && name != op_name(static_cast<Op>(op))) op++;
        if (op == op_count || (ops_of_data & 1u << op) == 0) return false;
        *bits |= 1u << op;
    }
    return true;
}

int read_alignment(const OpenArguments& arguments, const char* key, uint32_t* out) {
    if (!arguments.options.has(key)) return 0;
    uint64_t value = arguments.options.number(key);
    if (value == 0 || (value & (value - 1)) != 0 || value > alignment_max) {
        return invalid(arguments, key, "a power of two, at most 1 MiB, is needed",
                       arguments.options.text(key));
    }
    *out = static_cast<uint32_t>(value);
    return 0;
}

// What the program serves, and what goes on to the child.
int set_operations(Node& node, const OpenArguments& arguments, const Node* child) {
    auto& state = node.state<ExternalState>();
    const Options& options = arguments.options;
    constexpr const char* known =
        "a list of read, write, flush, discard, write-zeroes, resize, block-status is needed";
    uint32_t forwarded = 0;
    if (!parse_ops(options.text("ops"), &state.served))
        return invalid(arguments, "ops", known, options.text("ops"));
    if (!parse_ops(options.text("forward"), &forwarded)) {
        return invalid(arguments, "forward", known, options.text("forward"));
    }
    forwarded &= child == nullptr ? 0 : child->native_ops & ~state.served;
    node.native_ops = state.served | forwarded;
    if ((state.served & bit(Op::write)) != 0) {
        node.native_write_flags = options.boolean("fua") ? ENGINE_FUA : 0;
    } else if ((forwarded & bit(Op::write)) != 0) {
        node.native_write_flags = child->native_write_flags;
    }
    bool served_status = (state.served & bit(Op::block_status)) != 0;
    node.holes =
        served_status ? options.boolean("holes") : (forwarded & bit(Op::block_status)) != 0 && child->holes;
    return 0;
}

int external_open(Node& node, const OpenArguments& arguments) {
    auto& state = node.state<ExternalState>();
    const Options& options = arguments.options;
    const Node* child = node.control->children.empty() ? nullptr : node.control->children[0].node;
    int result = set_operations(node, arguments, child);
    if (result == 0) {
        result = read_alignment(arguments, "request-alignment", &node.request_alignment);
    }
    if (result == 0) result = read_alignment(arguments, "memory-alignment", &node.memory_alignment);
    if (result != 0) return result;
    if (child != nullptr) {
        node.best_request_alignment = child->best_request_alignment;
        node.best_memory_alignment = child->best_memory_alignment;
    }
    if (!options.has("size") && child == nullptr) {
        return invalid(arguments, "size", "needed where there is no node below", "(none)");
    }
    uint64_t bytes =
        child == nullptr || options.has("size") ? options.number("size") : child->bytes.load_relaxed();
    if (bytes % node.request_alignment != 0) {
        return invalid(arguments, "size", "not a multiple of the alignment", std::to_string(bytes));
    }
    node.bytes.store_relaxed(bytes);
    if (options.has("max-transfer")) node.max_transfer = options.number("max-transfer");
    if (node.max_transfer < node.request_alignment) {
        return invalid(arguments, "max-transfer", "less than the alignment", options.text("max-transfer"));
    }
    state.timeout_ns = options.number("timeout");
    state.data_align = std::max<size_t>(node.memory_alignment, data_align_min);
    state.external = External::make(node);
    if (state.external == nullptr) {
        return base::fail(arguments.error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"},
                          "external: out of memory");
    }
    return 0;
}

void external_close(Node& node) {
    node.state<ExternalState>().external->node_closed();
}

External& external_of(const Channel& channel) noexcept {
    return *channel.node->state<ExternalState>().external;
}

// --- the end of a request

void put(ExternalSlot* slot) noexcept {
    slot->age.unlink();
    if (slot->memory != nullptr && (slot->kept || slot->memory->capacity() > kept_memory_max)) {
        slot->memory->release();
        slot->memory = nullptr;
    }
    slot->text.reset();
    slot->forward = slot->abandoned = slot->kept = false;
    slot->next = slot->own->free;
    slot->own->free = slot;
}

base::Where where_of(const Request& request) noexcept {
    return {.node = request.channel->node->control->name.c_str(),
            .operation = op_name(request.op),
            .offset = request.offset,
            .request_id = request.id};
}

// Returns -errnum. `why` follows what was asked of which node.
int64_t tell(Request& origin, int errnum, const char* program, const char* why) noexcept {
    engine_error_kind kind = errnum == ENOTSUP ? ENGINE_ERROR_UNSUPPORTED : ENGINE_ERROR_OS;
    return base::fail(origin.error, kind, errnum, where_of(origin),
                      "node %s: %s of %lu bytes at offset %lu failed: %s: %s",
                      origin.channel->node->control->name.c_str(), op_name(origin.op), origin.length,
                      origin.offset, program, why);
}

bool extents_make_sense(const Request& origin, int64_t count) noexcept {
    if (count <= 0 || static_cast<uint64_t>(count) > origin.extent_capacity) return false;
    uint64_t at = origin.offset;
    for (int64_t i = 0; i < count; i++) {
        const engine_extent& extent = origin.extents[i];
        constexpr uint32_t flags = ENGINE_EXTENT_DATA | ENGINE_EXTENT_ZERO | ENGINE_EXTENT_UNWRITTEN;
        if (extent.offset != at || extent.length == 0 || extent.length > origin.offset + origin.length - at ||
            (extent.flags & ~flags) != 0) {
            return false;
        }
        at += extent.length;
    }
    return true;
}

// What the program wrote goes to where it was asked for.
void copy_back(const ExternalSlot& slot) noexcept {
    const Request& origin = *slot.origin;
    if (origin.op == Op::block_status) {
        int64_t count = std::clamp<int64_t>(slot.answer, 0, origin.extent_capacity);
        memcpy(origin.extents, slot.extents, static_cast<size_t>(count) * sizeof *origin.extents);
        return;
    }
    const std::byte* from = static_cast<const std::byte*>(slot.single.iov_base);
    for (uint32_t i = 0; i < origin.iov_count; i++) {
        memcpy(origin.iov[i].iov_base, from, origin.iov[i].iov_len);
        from += origin.iov[i].iov_len;
    }
}

// The result of the request, checked: the program may be wrong.
int64_t judge(ExternalSlot& slot) noexcept {
    Request& origin = *slot.origin;
    External& external = external_of(*origin.channel);
    int64_t answer = slot.answer;
    if (slot.abandoned) {
        return tell(origin, ENXIO, external.program().text,
                    "it stopped serving this node before it was done");
    }
    if (answer < 0) {
        int errnum = answer < -4095 ? EIO : static_cast<int>(-answer);
        if (origin.error == nullptr) return -errnum;
        return tell(origin, errnum, external.program().text,
                    slot.text != nullptr ? slot.text.get() : strerrordesc_np(errnum));
    }
    bool answers_data = origin.op == Op::read || origin.op == Op::block_status;
    if (answers_data && slot.memory != nullptr) copy_back(slot);
    if (origin.op == Op::block_status) {
        if (extents_make_sense(origin, answer)) return answer;
        return tell(origin, EIO, external.program().text,
                    "its extents do not follow each other from the offset on, or leave the range");
    }
    if (origin.op == Op::resize) origin.channel->node->bytes.store_relaxed(origin.offset);
    return 0;
}

// --- passing on to the child

void passed_on(Request* request) {
    auto* slot = static_cast<ExternalSlot*>(request);
    Request* origin = slot->origin;
    int64_t result = slot->result;
    if (origin->op == Op::resize && result >= 0) origin->channel->node->bytes.store_relaxed(origin->offset);
    put(slot);
    finish(origin, result);
}

void pass_on(ExternalSlot* slot) noexcept {
    const Request& origin = *slot->origin;
    slot->age.unlink();  // what is below has its own ways to end
    slot->complete = passed_on;
    slot->iov = origin.iov;
    slot->iov_count = origin.iov_count;
    slot->trace = origin.trace;
    slot->error = origin.error;
    slot->extents = origin.extents;
    submit_child(*slot->own->channel->children[0], slot);
}

// --- to the program and back

void flush_unsent(ExternalChannel& own) noexcept {
    aio::Message* chain = own.unsent.take_all();
    if (chain == nullptr || external_of(*own.channel).offer(chain)) return;
    while (chain != nullptr) {
        auto* slot = static_cast<ExternalSlot*>(chain);
        chain = chain->next;
        Request* origin = slot->origin;
        put(slot);
        mark(*origin, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
        base::fail(origin->error, ENGINE_ERROR_OS, ENXIO, where_of(*origin),
                   "node %s: no program serves it: attach one (engine_external_attach) before using it",
                   own.channel->node->control->name.c_str());
        finish(origin, -ENXIO);
    }
}

void settle_answers(ExternalChannel& own) noexcept {
    aio::Message* chain = external_of(*own.channel).collect(own);
    while (chain != nullptr) {
        auto* slot = static_cast<ExternalSlot*>(chain);
        chain = chain->next;
        mark(*slot->origin, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
        if (slot->forward) {
            pass_on(slot);
            continue;
        }
        Request* origin = slot->origin;
        int64_t result = judge(*slot);
        put(slot);
        finish(origin, result);
    }
}

ExternalSlot* oldest(ExternalChannel& own) noexcept {
    return own.by_age.empty() ? nullptr : static_cast<ExternalSlot::Age*>(own.by_age.front())->slot;
}

void expire(aio::Timer* timer) {
    ExternalChannel& own = *static_cast<ExternalChannel::Due*>(timer)->own;
    External& external = external_of(*own.channel);
    flush_unsent(own);  // the program has not seen these: they are queued like any other from here on
    uint64_t now_ns = own.channel->context->now_ns();
    for (ExternalSlot* slot; (slot = oldest(own)) != nullptr && slot->deadline_ns <= now_ns;) {
        slot->age.unlink();
        Request* origin = slot->origin;
        SlotState was = external.give_up(*slot);
        if (was == SlotState::answered) continue;
        if (was == SlotState::queued) put(slot);
        char why[96];
        snprintf(why, sizeof why, "it %s within %lu ms",
                 was == SlotState::queued ? "did not take the request"
                                          : "took the request and did not complete it",
                 own.channel->node->state<ExternalState>().timeout_ns / 1000000);
        mark(*origin, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
        int64_t result = tell(*origin, ETIMEDOUT, external.program().text, why);
        base::log(ENGINE_LOG_WARNING, "node %s: %s timed out: %s: %s",
                  origin->channel->node->control->name.c_str(), op_name(origin->op), external.program().text,
                  why);
        finish(origin, result);
    }
    if (ExternalSlot* slot = oldest(own); slot != nullptr && !own.timer.armed()) {
        own.channel->context->timers().arm_reserved(&own.timer, slot->deadline_ns);
    }
}

// The copy that the program works on. False: no memory.
bool load_data(ExternalSlot* slot, const ExternalState& state) noexcept {
    const Request& origin = *slot->origin;
    bool data = origin.op == Op::read || origin.op == Op::write;
    size_t bytes = data ? origin.length : origin.extent_capacity * sizeof(engine_extent);
    if (slot->memory != nullptr && slot->memory->capacity() < bytes) {
        slot->memory->release();
        slot->memory = nullptr;
    }
    if (slot->memory == nullptr) slot->memory = ExternalMemory::make(bytes, state.data_align);
    if (slot->memory == nullptr) return false;
    std::byte* to = slot->memory->data();
    if (!data) {
        slot->extents = reinterpret_cast<engine_extent*>(to);
        return true;
    }
    slot->set_buffer(to, bytes);
    if (origin.op == Op::read) return true;
    for (uint32_t i = 0; i < origin.iov_count; i++) {
        memcpy(to, origin.iov[i].iov_base, origin.iov[i].iov_len);
        to += origin.iov[i].iov_len;
    }
    return true;
}

ExternalSlot* get(ExternalChannel& own, Request* origin) noexcept {
    if (own.free == nullptr) own.free = external_of(*own.channel).take_slots();
    ExternalSlot* slot = own.free;
    if (slot == nullptr) return nullptr;
    own.free = static_cast<ExternalSlot*>(slot->next);
    slot->own = &own;
    slot->origin = origin;
    slot->op = origin->op;
    slot->flags = origin->flags;
    slot->offset = origin->offset;
    slot->length = origin->length;
    slot->id = origin->id;
    slot->iov = origin->iov;
    slot->iov_count = origin->iov_count;
    slot->extents = origin->extents;
    slot->extent_capacity = origin->extent_capacity;
    return slot;
}

// Starts the clock of a request.
void watch(ExternalChannel& own, ExternalSlot* slot, uint64_t timeout_ns) noexcept {
    aio::AioContext& context = *own.channel->context;
    slot->deadline_ns = context.now_ns() + timeout_ns;
    if (!own.timer.armed()) context.timers().arm_reserved(&own.timer, slot->deadline_ns);
    own.by_age.push_back(&slot->age);
}

void external_submit(Channel& channel, Request* request) {
    auto& own = channel.state<ExternalChannel>();
    const auto& state = channel.node->state<ExternalState>();
    ExternalSlot* slot = get(own, request);
    bool to_program = (state.served & bit(request->op)) != 0;
    bool good = slot != nullptr;
    if (good && to_program && state.timeout_ns != 0) {
        bool data = (bit(request->op) & (bit(Op::read) | bit(Op::write) | bit(Op::block_status))) != 0;
        good = !data || load_data(slot, state);
        if (good) watch(own, slot, state.timeout_ns);
        if (!good) put(slot);
    }
    if (ENGINE_UNLIKELY(!good)) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    if (!to_program) {
        pass_on(slot);
        return;
    }
    mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_DEVICE);
    own.unsent.push(slot);
    if (own.flushing) return;
    own.flushing = true;
    channel.context->ready(&own.flush);
}

int external_open_channel(Channel& channel) {
    auto* own = new (channel.state_memory.get()) ExternalChannel;
    own->channel = &channel;
    own->flush.own = own->message.own = own->timer.own = own;
    own->flush.run = [](aio::Message* item) {
        ExternalChannel& self = *static_cast<ExternalChannel::Item*>(item)->own;
        self.flushing = false;
        flush_unsent(self);
    };
    own->message.run = [](aio::Message* item) {
        settle_answers(*static_cast<ExternalChannel::Item*>(item)->own);
    };
    own->timer.fire = expire;
    int result = channel.context->timers().reserve(&own->timer);
    if (result != 0) own->~ExternalChannel();
    return result;
}

void external_close_channel(Channel& channel) {
    auto& own = channel.state<ExternalChannel>();
    ENGINE_CHECK(own.unsent.empty() && own.by_age.empty() && !own.told && !own.flushing);
    channel.context->timers().cancel(&own.timer);
    channel.context->timers().unreserve(&own.timer);
    external_of(channel).return_slots(own.free);
    own.~ExternalChannel();
}

const OptionDef external_options[] = {
    {"size", OptionType::size, nullptr, "0..8E", "size of the disk, bytes; default: that of the node below"},
    {"ops", OptionType::string, "read,write,flush", nullptr,
     "operations that the program serves: read, write, flush, discard, write-zeroes, resize, block-status"},
    {"forward", OptionType::string, "flush,discard,resize", nullptr,
     "operations that go straight to the node below, unless the program serves them"},
    {"fua", OptionType::boolean, "off", nullptr,
     "the program honours FUA; off: a write and a flush stand for it"},
    {"holes", OptionType::boolean, "off", nullptr, "the program's block status tells data from holes"},
    {"request-alignment", OptionType::size, nullptr, "1..1M",
     "of offsets and lengths, bytes, a power of two"},
    {"memory-alignment", OptionType::size, nullptr, "1..1M", "of buffers, bytes, a power of two"},
    {"max-transfer", OptionType::size, nullptr, "1..8E", "bytes that a read or write has at most"},
    {"timeout", OptionType::time, "60s", "0..3600000000000",
     "how long the program may take for a request: 60s; 0: for ever, and it works on the submitter's own "
     "memory"},
};

const ChildDef external_children[] = {{"file", false}};

}  // namespace

const Driver external_driver{
    .name = "external",
    .layer = "protocol",
    .text = "served by the embedding program (engine_external_attach); with a file below, a filter",
    .options = external_options,
    .children = external_children,
    .state_size = sizeof(ExternalState),
    .channel_state_size = sizeof(ExternalChannel),
    .open = external_open,
    .close = external_close,
    .open_channel = external_open_channel,
    .close_channel = external_close_channel,
    .submit = external_submit,
};

}  // namespace engine::block
