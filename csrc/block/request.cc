// The request layer: what is done once, for every driver. Home thread of the request's context.
#include "block/request.hh"

#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "base/error.hh"
#include "block/emulate.hh"
#include "block/node.hh"

namespace engine::block {

const char* op_name(Op op) noexcept {
    switch (op) {
        case Op::read:
            return "read";
        case Op::write:
            return "write";
        case Op::flush:
            return "flush";
        case Op::discard:
            return "discard";
        case Op::write_zeroes:
            return "write-zeroes";
        case Op::resize:
            return "resize";
        case Op::block_status:
            return "block-status";
        case Op::copy_range:
            return "copy-range";
    }
    return "?";
}

Request* Request::of(aio::IoOp* op) noexcept {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winvalid-offsetof"
    return reinterpret_cast<Request*>(reinterpret_cast<std::byte*>(op) - offsetof(Request, io));
#pragma GCC diagnostic pop
}

// A copy that was refused is made by reads and writes instead: neither a request nor an error.
[[gnu::noinline]] void count_failure(OpCounters& counters, const Request& request) noexcept {
    if (request.op == Op::copy_range && request.result == -ENOTSUP) {
        counters.requests.subtract(1);
    } else {
        counters.errors.increment();
    }
}

bool locate(Channel& channel, uint64_t offset, uint64_t length, Location* out) noexcept {
    Location at{&channel, offset};
    for (;;) {
        const Node& node = *at.channel->node;
        uint64_t bytes = node.bytes.load_relaxed();
        if (length > bytes || at.offset > bytes - length || node.driver->locate == nullptr) return false;
        Location below = node.driver->locate(*at.channel, at.offset);
        if (below.channel == at.channel) break;
        at = below;
    }
    *out = at;
    return true;
}

Location trace_down(Channel& channel, uint64_t offset) noexcept {
    Location at{&channel, offset};
    for (;;) {
        const Driver& driver = *at.channel->node->driver;
        Location below = at;
        if (driver.filter) {
            below.channel = at.channel->children[0];
        } else if (driver.locate != nullptr) {
            below = driver.locate(*at.channel, at.offset);
        }
        if (below.channel == at.channel) return at;
        at = below;
    }
}

void finish_later(Request* request, int64_t result) noexcept {
    request->result = result;
    request->run = [](aio::Message* message) {
        auto* self = static_cast<Request*>(message);
        finish(self, self->result);
    };
    request->channel->context->ready(request);
}

namespace {

void tell(Request* request, engine_error_kind kind, int errnum, const char* format, va_list args) noexcept {
    if (request->error == nullptr) return;
    char text[sizeof request->error->message];
    vsnprintf(text, sizeof text, format, args);
    base::fail(request->error, kind, errnum,
               {.node = request->channel->node->control->name.c_str(),
                .operation = op_name(request->op),
                .offset = request->offset,
                .request_id = request->id},
               "%s", text);
}

}  // namespace

void fail_later(Request* request, engine_error_kind kind, int errnum, const char* format, ...) noexcept {
    va_list args;
    va_start(args, format);
    tell(request, kind, errnum, format, args);
    va_end(args);
    finish_later(request, -errnum);
}

namespace {

// What needs no second look: in bounds, aligned, and the driver does it itself.
bool plain(const Node& node, const Request& request) noexcept {
    uint64_t bytes = node.bytes.load_relaxed();
    return request.length <= bytes && request.offset <= bytes - request.length &&
           ((request.offset | request.length) & (node.request_alignment - 1)) == 0 &&
           (request.flags & ~node.native_write_flags) == 0 && node.memory_alignment == 1 &&
           request.length <= node.max_transfer;
}

// Fails the request later and says so, or finds nothing wrong.
bool refused(const Node& node, Request* request) noexcept {
    uint64_t bytes = node.bytes.load_relaxed();
    if (request->op == Op::flush) return false;
    if (request->op == Op::resize) {
        if (node.driver->rounds_size || (request->offset & (node.request_alignment - 1)) == 0) return false;
        fail_later(request, ENGINE_ERROR_INVALID, EINVAL,
                   "node %s: a size of %lu bytes is not a multiple of its alignment, %u bytes",
                   node.control->name.c_str(), request->offset, node.request_alignment);
        return true;
    }
    if (request->length <= bytes && request->offset <= bytes - request->length) return false;
    fail_later(request, ENGINE_ERROR_INVALID, EINVAL,
               "node %s: %s of %lu bytes at offset %lu ends past the end of the disk (%lu bytes)",
               node.control->name.c_str(), op_name(request->op), request->length, request->offset, bytes);
    return true;
}

bool writes(Op op) noexcept {
    return (bit(op) & ~(bit(Op::read) | bit(Op::flush) | bit(Op::block_status))) != 0;
}

[[gnu::noinline]] void submit_slow(Channel& channel, Request* request) noexcept {
    const Node& node = *channel.node;
    if (refused(node, request)) return;
    if (node.read_only && writes(request->op)) {
        fail_later(request, ENGINE_ERROR_REFUSED, EROFS, "node %s is read-only: %s refused",
                   node.control->name.c_str(), op_name(request->op));
        return;
    }
    bool nothing = (request->op == Op::flush && node.no_flush) ||
                   (request->op == Op::discard && node.ignore_discard) ||
                   (request->length == 0 && request->op != Op::flush && request->op != Op::resize);
    if (nothing) {
        finish_later(request, 0);
    } else if ((node.native_ops & bit(request->op)) != 0 || request->op == Op::write_zeroes) {
        if (suits_driver(channel, *request)) {
            node.driver->submit(channel, request);
        } else if (request->op == Op::copy_range) {
            finish_later(request, -ENOTSUP);  // who copies reads and writes instead
        } else {
            emulate(channel, request);
        }
    } else if (request->op == Op::discard) {
        finish_later(request, 0);  // advice that this driver has no use for
    } else {
        fail_later(request, ENGINE_ERROR_UNSUPPORTED, ENOTSUP, "node %s: driver %s cannot %s",
                   node.control->name.c_str(), node.driver->name, op_name(request->op));
    }
}

}  // namespace

void finish_traced(Request* request, int64_t result) noexcept {
    add_mark(*request, ENGINE_MARK_LEFT, 0);
    finish_unmarked(request, result);
}

namespace {

inline void submit_entered(Channel& channel, Request* request) noexcept {
    const Node& node = *channel.node;
    bool data = (channel.plain_ops & bit(request->op)) != 0;
    if (ENGINE_LIKELY(data && request->length != 0 && plain(node, *request))) {
        node.driver->submit(channel, request);
    } else {
        submit_slow(channel, request);
    }
}

inline void submit_unmarked(Channel& channel, Request* request) noexcept {
    ENGINE_ASSERT(channel.context->on_home());
    enter_unmarked(channel, request);
    submit_entered(channel, request);
}

[[gnu::cold, gnu::noinline]] void submit_traced(Channel& channel, Request* request) noexcept {
    ENGINE_ASSERT(channel.context->on_home());
    enter(channel, request);
    submit_entered(channel, request);
}

// A front end has handed it over.
[[gnu::cold, gnu::noinline]] void submit_traced_at(Port& port, Request* request) noexcept {
    Trace& trace = *request->trace;
    trace.request_id = request->id;
    trace.add(*port.context, nullptr, ENGINE_MARK_POPPED, 0, port.context->now_ns());
    if ((port.allowed_ops & bit(request->op)) == 0) {
        port.hold_or_refuse(request);
    } else {
        submit_traced(*port.channel, request);
    }
}

}  // namespace

// What is traced goes ways of its own, by tail calls: so others pay for a look at the pointer and no more.
void submit_child(Channel& channel, Request* request) noexcept {
    if (ENGINE_UNLIKELY(request->trace != nullptr)) {
        submit_traced(channel, request);
    } else {
        submit_unmarked(channel, request);
    }
}

void submit(Port& port, Request* request) noexcept {
    request->id = port.context->next_request_id();
    if (ENGINE_UNLIKELY(request->trace != nullptr)) {
        submit_traced_at(port, request);
    } else if (ENGINE_UNLIKELY((port.allowed_ops & bit(request->op)) == 0)) {
        port.hold_or_refuse(request);
    } else {
        submit_unmarked(*port.channel, request);
    }
}

void Port::park() noexcept {
    ENGINE_ASSERT(context->on_home());
    if (parks_++ != 0) return;
    allowed_ops = 0;
    parked_at_ns_ = context->now_ns();
}

void Port::unpark() noexcept {
    ENGINE_ASSERT(context->on_home());
    ENGINE_CHECK(parks_ != 0);
    if (--parks_ != 0 && !ENGINE_SEEDED_BUG(unpark_counts_nothing)) return;
    uint64_t paused_ns = context->now_ns() - parked_at_ns_;
    pauses.increment();
    pause_ns_total.add(paused_ns);
    if (paused_ns > pause_ns_max.get()) pause_ns_max.set(paused_ns);
    allowed_ops = ops_;
    // They have their ids, and come before any that is submitted later.
    while (aio::Message* message = waiting_.pop()) {
        auto* request = static_cast<Request*>(message);
        trace_parked(*request, ENGINE_MARK_WAITED);
        submit_child(*channel, request);
    }
}

void Port::hold_or_refuse(Request* request) noexcept {
    if (parked() && (ops_ & bit(request->op)) != 0) {
        waiting_.push(request);
        trace_parked(*request, ENGINE_MARK_WAIT);
        return;
    }
    refuse(request, ENGINE_ERROR_REFUSED, EPERM, "user %s holds no permission to %s on node %s",
           user->name.c_str(), op_name(request->op), channel->node->control->name.c_str());
}

void Port::refuse(Request* request, engine_error_kind kind, int errnum, const char* format, ...) noexcept {
    request->channel = channel;
    OpCounters& counters = channel->op[static_cast<unsigned>(request->op)];
    counters.requests.increment();
    counters.errors.increment();
    va_list args;
    va_start(args, format);
    tell(request, kind, errnum, format, args);
    va_end(args);
    request->result = -errnum;
    request->run = [](aio::Message* message) {
        auto* self = static_cast<Request*>(message);
        self->complete(self);
    };
    context->ready(request);
}

bool Port::withdraw(Request* request) noexcept {
    if (!waiting_.remove(request)) return false;
    trace_parked(*request, ENGINE_MARK_WAITED);
    return true;
}

// In no node yet: the one that it will enter may be another then.
void Port::trace_parked(const Request& request, uint8_t kind) const noexcept {
    if (ENGINE_LIKELY(request.trace == nullptr)) return;
    request.trace->add(*context, nullptr, kind, ENGINE_WAIT_CHANGE, context->now_ns());
}

void cancel(Port& port, Request* request) noexcept {
    if (port.withdraw(request)) {
        port.refuse(
            request, ENGINE_ERROR_OS, ECANCELED,
            "node %s: %s of %lu bytes at offset %lu was cancelled while a change of the graph held it back",
            port.channel->node->control->name.c_str(), op_name(request->op), request->length,
            request->offset);
        return;
    }
    cancel_child(request);
}

void cancel_child(Request* request) noexcept {
    Channel& channel = *request->channel;
    if (channel.node->driver->cancel != nullptr) channel.node->driver->cancel(channel, request);
}

}  // namespace engine::block
