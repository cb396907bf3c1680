// Emulated operations, as tasks: they read as straight code. Home thread of the request's context.
#include "block/emulate.hh"

#include "base/alloc.hh"
#include "coro/completion.hh"
#include "coro/task.hh"

namespace engine::block {

namespace {

using coro::Task;

constexpr size_t zero_chunk_bytes = 65536;
constexpr size_t zero_chunks_max = 16;
alignas(4096) const std::byte zero_chunk[zero_chunk_bytes] = {};

// A request of a task's own, on the node of the request that it works for.
struct SubRequest : Request {
    coro::Completion<int64_t> done;

    SubRequest(Channel& on, const Request& origin, Op operation) noexcept : done(on.executor()) {
        op = operation;
        id = origin.id;
        error = origin.error;
        complete = [](Request* request) {
            auto* self = static_cast<SubRequest*>(request);
            self->done.complete(self->result);
        };
    }
    // Straight to the driver: the request that it works for has been checked.
    void submit(Channel& on) noexcept {
        enter(on, this);
        on.node->driver->submit(on, this);
    }
};

bool native(const Channel& channel, Op op) noexcept {
    return (channel.node->native_ops & bit(op)) != 0;
}

Task<int64_t> flush(Channel& channel, const Request& origin) {
    if (channel.node->no_flush || !native(channel, Op::flush)) co_return 0;
    SubRequest sub(channel, origin, Op::flush);
    sub.submit(channel);
    int64_t result = co_await sub.done;
    co_return result;
}

Task<int64_t> write_parts(Channel& channel, const Request& origin, uint8_t flags) {
    SubRequest sub(channel, origin, Op::write);
    sub.offset = origin.offset;
    sub.length = origin.length;
    sub.iov = origin.iov;
    sub.iov_count = origin.iov_count;
    sub.flags = flags;
    sub.submit(channel);
    int64_t result = co_await sub.done;
    co_return result;
}

// One write of zeroes of at most zero_chunk_bytes * zero_chunks_max.
Task<int64_t> write_zero_chunk(Channel& channel, const Request& origin, uint64_t offset, uint64_t length) {
    iovec parts[zero_chunks_max];
    SubRequest sub(channel, origin, Op::write);
    sub.offset = offset;
    sub.length = length;
    sub.iov = parts;
    while (length != 0) {
        size_t bytes = length < zero_chunk_bytes ? static_cast<size_t>(length) : zero_chunk_bytes;
        parts[sub.iov_count++] = {const_cast<std::byte*>(zero_chunk), bytes};
        length -= bytes;
    }
    sub.submit(channel);
    int64_t result = co_await sub.done;
    co_return result;
}

Task<int64_t> native_zeroes(Channel& channel, const Request& origin) {
    SubRequest sub(channel, origin, Op::write_zeroes);
    sub.offset = origin.offset;
    sub.length = origin.length;
    sub.flags = static_cast<uint8_t>(origin.flags & ~ENGINE_FUA);
    sub.submit(channel);
    int64_t result = co_await sub.done;
    co_return result;
}

Task<int64_t> zeroes(Channel& channel, const Request& origin) {
    const Node& node = *channel.node;
    int64_t result = -ENOTSUP;
    if (native(channel, Op::write_zeroes)) result = co_await native_zeroes(channel, origin);
    if (result == -ENOTSUP && (origin.flags & ENGINE_NO_FALLBACK) == 0) {
        uint64_t most = zero_chunk_bytes * zero_chunks_max;
        if (node.max_transfer < most) most = node.max_transfer;
        result = 0;
        for (uint64_t done = 0; done < origin.length && result >= 0;) {
            uint64_t length = origin.length - done < most ? origin.length - done : most;
            result = co_await write_zero_chunk(channel, origin, origin.offset + done, length);
            done += length;
        }
    }
    co_return result;
}

Task<int64_t> run(Channel& channel, const Request& origin) {
    int64_t result;
    if (origin.op == Op::write_zeroes) {
        result = co_await zeroes(channel, origin);
    } else {
        result = co_await write_parts(channel, origin, origin.flags & channel.node->native_write_flags);
    }
    if (result >= 0 && (origin.flags & ENGINE_FUA) != 0) result = co_await flush(channel, origin);
    co_return result < 0 ? result : 0;
}

struct Emulation : coro::Callback<int64_t> {
    Request* request;
};

}  // namespace

void emulate(Channel& channel, Request* request) noexcept {
    base::Owner<Emulation> emulation = base::make<Emulation>();
    if (emulation == nullptr) {
        finish_later(request, -ENOMEM);
        return;
    }
    emulation->request = request;
    emulation->completed = [](coro::Callback<int64_t>* callback, int64_t result) {
        base::Owner<Emulation> self(static_cast<Emulation*>(callback));
        finish(self->request, result);
    };
    coro::start(channel.executor(), run(channel, *request),
                static_cast<coro::Callback<int64_t>*>(emulation.release()));
}

}  // namespace engine::block
