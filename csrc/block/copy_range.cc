// Copies within the graph. Home thread of the ports' context.
#include "block/copy_range.hh"

#include <algorithm>

#include "base/alloc.hh"
#include "base/error.hh"
#include "block/entry.hh"
#include "block/node.hh"
#include "coro/completion.hh"

namespace engine::block {

namespace {

using coro::Task;

constexpr uint64_t kernel_piece_bytes = 16 << 20;  // a change of the graph waits for one of them
constexpr uint64_t buffer_bytes = 1 << 20;
constexpr size_t buffer_alignment = 4096;

// One request of the copy's own.
struct Step : Request {
    coro::Completion<int64_t> done;

    Step(Port& port, Op operation, uint64_t at, uint64_t bytes, engine_error* told) noexcept
        : done(*port.context) {
        op = operation;
        offset = at;
        length = bytes;
        error = told;
        complete = [](Request* request) {
            auto* self = static_cast<Step*>(request);
            if (self->result < 0) describe_failure(self->error, *self, static_cast<int>(-self->result));
            self->done.complete(self->result);
        };
    }
};

bool allowed(const Port& port, Op op) noexcept {
    return (port.allowed_ops & bit(op)) != 0;  // none while it is parked
}

// The kernel's way, for one piece. -ENOTSUP: not now, and where `known` becomes false, never.
Task<int64_t> copy_in_kernel(const CopyRange& what, uint64_t done, uint64_t length, bool* known) {
    Location from, to;
    *known =
        locate(*what.source.channel, what.source_offset + done, length, &from) &&
        locate(*what.target.channel, what.target_offset + done, length, &to) &&
        from.channel->node->driver == to.channel->node->driver &&
        (what.target.channel->node->native_ops & to.channel->node->native_ops & bit(Op::copy_range)) != 0;
    bool now = *known && allowed(what.source, Op::read) && allowed(what.target, Op::copy_range);
    if (!now) co_return -ENOTSUP;
    Request reading;  // its stay inside the source
    reading.op = Op::read;
    reading.id = what.source.context->next_request_id();
    reading.offset = what.source_offset + done;
    reading.length = length;
    reading.complete = [](Request*) {};
    Step writing(what.target, Op::copy_range, what.target_offset + done, length, nullptr);
    writing.source = from;
    enter(*what.source.channel, &reading);
    submit(what.target, &writing);
    int64_t result = co_await writing.done;
    if (result == -ENOTSUP) {
        mark(reading, ENGINE_MARK_LEFT);
        leave(&reading);
    } else {
        finish(&reading, result);
    }
    co_return result;
}

Task<int64_t> copy_through(const CopyRange& what, std::byte* buffer, uint64_t done, uint64_t length) {
    base::clear(what.error);  // of a way that was tried before
    Step reading(what.source, Op::read, what.source_offset + done, length, what.error);
    reading.set_buffer(buffer, length);
    submit(what.source, &reading);
    int64_t result = co_await reading.done;
    if (result < 0) co_return result;
    Step writing(what.target, Op::write, what.target_offset + done, length, what.error);
    writing.set_buffer(buffer, length);
    submit(what.target, &writing);
    result = co_await writing.done;
    co_return result;
}

int refuse(const CopyRange& what, const Port& port, uint64_t offset, Op op) noexcept {
    const Node& node = *port.channel->node;
    const char* name = node.control->name.c_str();
    const char* operation = op_name(Op::copy_range);
    base::Where where{.node = name, .operation = operation, .offset = offset};
    if ((port.user->allowed_ops & bit(op)) == 0) {
        return base::fail(what.error, ENGINE_ERROR_REFUSED, EPERM, where,
                          "user %s holds no permission to %s on node %s", port.user->name.c_str(),
                          op_name(op), name);
    }
    if (op == Op::write && node.read_only) {
        return base::fail(what.error, ENGINE_ERROR_REFUSED, EROFS, where, "node %s is read-only: %s refused",
                          name, operation);
    }
    uint64_t bytes = node.bytes.load_relaxed();
    if (what.length <= bytes && offset <= bytes - what.length) return 0;
    return base::fail(what.error, ENGINE_ERROR_INVALID, EINVAL, where,
                      "node %s: %s of %lu bytes at offset %lu ends past the end of the disk (%lu bytes)",
                      name, operation, what.length, offset, bytes);
}

// The bytes from `done` to `end` of the copy, through a buffer; from the end where it goes backwards.
Task<int64_t> copy_piece(const CopyRange& what, base::Owner<std::byte[]>& buffer, uint64_t done, uint64_t end,
                         bool backwards) {
    uint64_t size = std::min(what.length, buffer_bytes);
    if (buffer == nullptr) {
        void* memory = base::allocate(static_cast<size_t>(size), buffer_alignment);
        buffer = base::Owner<std::byte[]>(static_cast<std::byte*>(memory));
    }
    if (buffer == nullptr) {
        co_return base::fail(what.error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = op_name(Op::copy_range)},
                             "copy-range: no memory for a buffer of %lu bytes", size);
    }
    while (done < end) {
        uint64_t length = std::min(end - done, size);
        uint64_t at = backwards ? end - length : done;
        int64_t result = co_await copy_through(what, buffer.get(), at, length);
        if (result < 0) co_return result;
        (backwards ? end : done) = backwards ? at : at + length;
    }
    co_return 0;
}

}  // namespace

Task<int64_t> copy_range(const CopyRange& what) {
    int refused = refuse(what, what.source, what.source_offset, Op::read);
    if (refused == 0) refused = refuse(what, what.target, what.target_offset, Op::write);
    if (refused != 0) co_return refused;
    Location from = trace_down(*what.source.channel, what.source_offset);
    Location to = trace_down(*what.target.channel, what.target_offset);
    uint64_t apart = from.offset < to.offset ? to.offset - from.offset : from.offset - to.offset;
    bool overlap = from.channel == to.channel && apart < what.length;
    base::Owner<std::byte[]> buffer;
    if (overlap) {
        int64_t result = co_await copy_piece(what, buffer, 0, what.length, from.offset < to.offset);
        co_return result;
    }
    bool by_kernel = true;
    for (uint64_t done = 0, length; done < what.length; done += length) {
        length = std::min(what.length - done, kernel_piece_bytes);
        int64_t result = -ENOTSUP;
        if (by_kernel) result = co_await copy_in_kernel(what, done, length, &by_kernel);
        // Whatever it was: read and write find out, and say so.
        if (result < 0) result = co_await copy_piece(what, buffer, done, done + length, false);
        if (result < 0) co_return result;
    }
    base::clear(what.error);
    co_return 0;
}

}  // namespace engine::block
