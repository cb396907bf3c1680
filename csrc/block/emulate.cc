// Emulated operations, as tasks: they read as straight code. Home thread of the request's context.
#include "block/emulate.hh"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/alloc.hh"
#include "block/bounce.hh"
#include "block/graph.hh"
#include "block/track.hh"
#include "block/vector.hh"
#include "coro/completion.hh"
#include "coro/task.hh"

namespace engine::block {

namespace {

using coro::Task;

constexpr size_t zero_chunk_bytes = 65536;
constexpr size_t zero_chunks_max = 16;
constexpr size_t slice_parts_max = 32;

uint64_t down(const Node& node, uint64_t at) noexcept {
    return at & ~uint64_t{node.request_alignment - 1};
}
uint64_t up(const Node& node, uint64_t at) noexcept {
    return down(node, at + node.request_alignment - 1);
}
uint64_t end_of(const Request& request) noexcept {
    return request.offset + request.length;
}

bool changes(Op op) noexcept {
    return (bit(op) & (bit(Op::write) | bit(Op::write_zeroes) | bit(Op::discard))) != 0;
}
bool aligned(const Node& node, const Request& request) noexcept {
    return ((request.offset | request.length) & (node.request_alignment - 1)) == 0;
}

// Addresses, and where one part ends and the next begins.
bool memory_aligned(const Node& node, const Request& request) noexcept {
    if (node.memory_alignment == 1) return true;
    uint64_t bits = 0;
    for (uint32_t i = 0; i < request.iov_count; i++) {
        bits |= reinterpret_cast<uintptr_t>(request.iov[i].iov_base);
        if (i + 1 != request.iov_count) bits |= request.iov[i].iov_len;
    }
    return (bits & (node.memory_alignment - 1)) == 0;
}

// A change of a part of a block writes back what it has read.
bool must_serialise(const Node& node, const Request& request) noexcept {
    return (request.op == Op::write || request.op == Op::write_zeroes) && !aligned(node, request);
}

bool needs_bounce(const Node& node, const Request& request) noexcept {
    if (request.op == Op::write_zeroes) return !aligned(node, request);
    if (request.op != Op::read && request.op != Op::write) return false;
    bool too_scattered = request.length > node.max_transfer && request.iov_count > slice_parts_max &&
                         node.request_alignment != 1;
    // Where a transfer may not be as long as buffers are aligned, only one that is copied can be split.
    bool too_long = request.length > node.max_transfer && node.max_transfer < node.memory_alignment;
    return !aligned(node, request) || !memory_aligned(node, request) || too_scattered || too_long;
}

// A request of a task's own, on the node of the request that it works for.
struct SubRequest : Request {
    coro::Completion<int64_t> done;

    SubRequest(Channel& on, const Request& origin, Op operation) noexcept : done(on.executor()) {
        op = operation;
        id = origin.id;
        error = origin.error;
        trace = origin.trace;
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

struct Piece {
    Op op;
    uint64_t offset;
    uint64_t length;
    const iovec* iov = nullptr;
    uint32_t iov_count = 0;
    uint8_t flags = 0;
};

Task<int64_t> perform(Channel& channel, const Request& origin, Piece piece) {
    SubRequest sub(channel, origin, piece.op);
    sub.offset = piece.offset;
    sub.length = piece.length;
    sub.iov = piece.iov;
    sub.iov_count = piece.iov_count;
    sub.flags = piece.flags;
    sub.submit(channel);
    int64_t result = co_await sub.done;
    co_return result;
}

Task<int64_t> perform(Channel& channel, const Request& origin, Op op, uint64_t offset, std::byte* data,
                      uint64_t length, uint8_t flags) {
    iovec part{data, length};
    Piece piece{.op = op, .offset = offset, .length = length, .iov = &part, .iov_count = 1, .flags = flags};
    int64_t result = co_await perform(channel, origin, piece);
    co_return result;
}

Task<int64_t> flush(Channel& channel, const Request& origin) {
    if (channel.node->no_flush || !native(channel, Op::flush)) co_return 0;
    Piece piece{.op = Op::flush, .offset = 0, .length = 0};
    int64_t result = co_await perform(channel, origin, piece);
    co_return result;
}

// --- reads and writes whose buffers suit: as they are, or in slices that are short enough

Task<int64_t> transfer(Channel& channel, const Request& origin, uint8_t flags) {
    const Node& node = *channel.node;
    Piece piece{origin.op, origin.offset, origin.length, origin.iov, origin.iov_count, flags};
    if (origin.length <= node.max_transfer) {
        int64_t result = co_await perform(channel, origin, piece);
        co_return result;
    }
    // What a slice leaves of a part must be aligned in memory as well.
    uint64_t unit = std::max(node.request_alignment, node.memory_alignment);
    uint64_t most = node.max_transfer & ~(unit - 1);
    VectorCursor cursor(origin.iov, origin.iov_count);
    iovec parts[slice_parts_max];
    piece.iov = parts;
    for (uint64_t done = 0; done < origin.length;) {
        piece.offset = origin.offset + done;
        piece.iov_count = cursor.slice(most, parts, &piece.length);
        int64_t result = co_await perform(channel, origin, piece);
        if (result < 0) co_return result;
        cursor.advance(piece.length);
        done += piece.length;
    }
    co_return 0;
}

// --- the others: through the bounce buffer, in whole blocks

uint64_t piece_most(const Node& node, const Bounce& bounce) noexcept {
    uint64_t most = std::min<uint64_t>(bounce.bytes(), node.max_transfer);
    return std::max<uint64_t>(down(node, most), node.request_alignment);
}

Task<int64_t> read_through(Channel& channel, const Request& origin, Bounce& bounce) {
    const Node& node = *channel.node;
    VectorCursor cursor(origin.iov, origin.iov_count);
    uint64_t end = end_of(origin);
    for (uint64_t at = origin.offset; at < end;) {
        uint64_t from = down(node, at);
        uint64_t to = std::min(up(node, end), from + piece_most(node, bounce));
        int64_t result = co_await perform(channel, origin, Op::read, from, bounce.data(), to - from, 0);
        if (result < 0) co_return result;
        uint64_t bytes = std::min(to, end) - at;
        cursor.copy_from(bounce.data() + (at - from), bytes);
        at += bytes;
    }
    co_return 0;
}

// What of the blocks from `from` to `to` is to stay: the one before `at`, and the one after `end`.
Task<int64_t> read_edges(Channel& channel, const Request& origin, Bounce& bounce, uint64_t from, uint64_t at,
                         uint64_t end, uint64_t to) {
    uint64_t block = channel.node->request_alignment;
    int64_t result = 0;
    if (block < channel.node->memory_alignment && (at != from || end != to)) {
        // Only the beginning of the buffer suits the driver.
        result = co_await perform(channel, origin, Op::read, from, bounce.data(), to - from, 0);
        co_return result;
    }
    if (at != from) {
        result = co_await perform(channel, origin, Op::read, from, bounce.data(), block, 0);
    }
    bool same = at != from && to - from == block;
    if (result >= 0 && end != to && !same) {
        std::byte* last = bounce.data() + (to - from - block);
        result = co_await perform(channel, origin, Op::read, to - block, last, block, 0);
    }
    co_return result;
}

Task<int64_t> write_through(Channel& channel, const Request& origin, Bounce& bounce, uint8_t flags) {
    const Node& node = *channel.node;
    VectorCursor cursor(origin.iov, origin.iov_count);
    uint64_t end = end_of(origin);
    for (uint64_t at = origin.offset; at < end;) {
        uint64_t from = down(node, at);
        uint64_t to = std::min(up(node, end), from + piece_most(node, bounce));
        uint64_t stop = std::min(to, end);
        int64_t result = co_await read_edges(channel, origin, bounce, from, at, stop, to);
        if (result < 0) co_return result;
        cursor.copy_to(bounce.data() + (at - from), stop - at);
        result = co_await perform(channel, origin, Op::write, from, bounce.data(), to - from, flags);
        if (result < 0) co_return result;
        at = stop;
    }
    co_return 0;
}

// --- zeroes

// zero_chunk_bytes of zeroes that satisfy every driver: the kernel's page of zeroes over and over, so that
// they take no memory. Null where it would not map them.
const std::byte* zero_chunk() noexcept {
    static const std::byte* const chunk = []() noexcept -> const std::byte* {
        void* mapped = mmap(nullptr, alignment_max + zero_chunk_bytes, PROT_READ,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapped == MAP_FAILED) return nullptr;
        auto address = reinterpret_cast<uintptr_t>(mapped);
        return static_cast<std::byte*>(mapped) + (-address & (alignment_max - 1));
    }();
    return chunk;
}

// One write of zeroes of at most zero_chunk_bytes * zero_chunks_max.
Task<int64_t> write_zero_chunk(Channel& channel, const Request& origin, uint64_t offset, uint64_t length) {
    const std::byte* chunk = zero_chunk();
    if (chunk == nullptr) co_return -ENOMEM;
    iovec parts[zero_chunks_max];
    Piece piece{.op = Op::write, .offset = offset, .length = length, .iov = parts};
    while (length != 0) {
        size_t bytes = length < zero_chunk_bytes ? static_cast<size_t>(length) : zero_chunk_bytes;
        parts[piece.iov_count++] = {const_cast<std::byte*>(chunk), bytes};
        length -= bytes;
    }
    int64_t result = co_await perform(channel, origin, piece);
    co_return result;
}

// Whole blocks.
Task<int64_t> zero_blocks(Channel& channel, const Request& origin, uint64_t from, uint64_t to,
                          uint8_t flags) {
    const Node& node = *channel.node;
    int64_t result = -ENOTSUP;
    if (native(channel, Op::write_zeroes)) {
        Piece piece{.op = Op::write_zeroes, .offset = from, .length = to - from, .flags = flags};
        result = co_await perform(channel, origin, piece);
    }
    bool fall_back = (flags & ENGINE_NO_FALLBACK) == 0 && native(channel, Op::write);
    if (result != -ENOTSUP || !fall_back) co_return result;
    uint64_t most = std::min<uint64_t>(zero_chunk_bytes * zero_chunks_max, node.max_transfer);
    most = std::max<uint64_t>(down(node, most), node.request_alignment);
    result = 0;
    for (uint64_t at = from; at < to && result >= 0;) {
        uint64_t length = std::min(to - at, most);
        result = co_await write_zero_chunk(channel, origin, at, length);
        at += length;
    }
    co_return result;
}

// A part of one block.
Task<int64_t> zero_within_block(Channel& channel, const Request& origin, Bounce& bounce, uint64_t from,
                                uint64_t to) {
    uint64_t block = channel.node->request_alignment;
    uint64_t start = down(*channel.node, from);
    int64_t result = co_await perform(channel, origin, Op::read, start, bounce.data(), block, 0);
    if (result < 0) co_return result;
    memset(bounce.data() + (from - start), 0, to - from);
    result = co_await perform(channel, origin, Op::write, start, bounce.data(), block, 0);
    co_return result;
}

Task<int64_t> zeroes(Channel& channel, const Request& origin, Bounce& bounce, uint8_t flags) {
    const Node& node = *channel.node;
    uint64_t start = origin.offset, end = end_of(origin);
    uint64_t first = up(node, start), last = down(node, end);
    int64_t result = 0;
    if (first > last) {  // all in one block
        result = co_await zero_within_block(channel, origin, bounce, start, end);
        co_return result;
    }
    if (start != first) result = co_await zero_within_block(channel, origin, bounce, start, first);
    if (result >= 0 && first != last) {
        result = co_await zero_blocks(channel, origin, first, last, flags);
    }
    if (result >= 0 && last != end) {
        result = co_await zero_within_block(channel, origin, bounce, last, end);
    }
    co_return result;
}

// --- the whole

// Only whole blocks can be discarded: it is advice.
Task<int64_t> discard(Channel& channel, const Request& origin) {
    uint64_t from = up(*channel.node, origin.offset), to = down(*channel.node, end_of(origin));
    if (from >= to) co_return 0;
    Piece piece{.op = Op::discard, .offset = from, .length = to - from, .flags = origin.flags};
    int64_t result = co_await perform(channel, origin, piece);
    co_return result;
}

Task<int64_t> write(Channel& channel, const Request& origin, Bounce& bounce) {
    const Node& node = *channel.node;
    int64_t result;
    if (node.detect_zeroes != DetectZeroes::off && VectorCursor(origin.iov, origin.iov_count).zeroes()) {
        uint8_t unmap = node.detect_zeroes == DetectZeroes::unmap ? ENGINE_MAY_UNMAP : 0;
        result = co_await zeroes(channel, origin, bounce, unmap);
        co_return result;
    }
    auto flags = static_cast<uint8_t>(origin.flags & node.native_write_flags);
    if (bounce.data() != nullptr) {
        result = co_await write_through(channel, origin, bounce, flags);
    } else {
        result = co_await transfer(channel, origin, flags);
    }
    co_return result;
}

Task<int64_t> carry_out(Channel& channel, const Request& origin, Bounce& bounce) {
    int64_t result = -ENOTSUP;
    if (origin.op == Op::write_zeroes) {
        auto flags = static_cast<uint8_t>(origin.flags & ~ENGINE_FUA);  // flushed afterwards
        result = co_await zeroes(channel, origin, bounce, flags);
    } else if (origin.op == Op::write) {
        result = co_await write(channel, origin, bounce);
    } else if (origin.op == Op::discard) {
        result = co_await discard(channel, origin);
    } else if (bounce.data() != nullptr) {
        result = co_await read_through(channel, origin, bounce);
    } else {
        result = co_await transfer(channel, origin, 0);
    }
    co_return result;
}

bool flushes_afterwards(const Node& node, const Request& origin) noexcept {
    if ((origin.flags & ENGINE_FUA) == 0) return false;
    bool passed_on = origin.op == Op::write && (node.native_write_flags & ENGINE_FUA) != 0;
    return !passed_on || node.detect_zeroes != DetectZeroes::off;
}

// In the order that track.hh demands: the switch, memory, the tree.
Task<int64_t> run(Channel& channel, const Request& origin) {
    const Node& node = *channel.node;
    Tracking& tracking = *node.control->tracking;
    Tracking::Entry entry;
    Bounce bounce;
    bool serialises = must_serialise(node, origin);
    bool entered = false;
    int step = 0;
    if (serialises) {
        TracedWait wait(origin, ENGINE_WAIT_OVERLAP);
        step = co_await tracking.hold(channel);
    }
    bool held = serialises && step == 0;
    if (step == 0 && needs_bounce(node, origin)) {
        uint64_t wanted =
            origin.op == Op::write_zeroes ? 1 : up(node, origin.length) + node.request_alignment;
        TracedWait wait(origin, ENGINE_WAIT_MEMORY);
        step = co_await Bounce::take(channel, wanted, bounce);
    }
    if (step == 0 && changes(origin.op) && (held || channel.tracked)) {
        entry.serialises = serialises;
        entry.start = down(node, origin.offset);
        entry.end = up(node, end_of(origin));
        TracedWait wait(origin, ENGINE_WAIT_OVERLAP);
        step = co_await tracking.enter(channel, entry);
        entered = step == 0;
    }
    int64_t result = step;
    if (result == 0) result = co_await carry_out(channel, origin, bounce);
    if (entered) tracking.leave(channel, entry);
    if (held) tracking.let_go(channel);
    if (result >= 0 && flushes_afterwards(node, origin)) result = co_await flush(channel, origin);
    if (entered && tracking.idle(channel)) co_await tracking.switch_back(channel);
    co_return result < 0 ? result : 0;
}

struct Emulation : coro::Callback<int64_t> {
    Request* request = nullptr;
    bool serialises = false;

    static void over(coro::Callback<int64_t>* callback, int64_t result) noexcept {
        base::Owner<Emulation> self(static_cast<Emulation*>(callback));
        Request* request = self->request;
        Channel& channel = *request->channel;
        if (self->serialises) {
            channel.serialising.leave(request->link(), channel.executor());
            channel.requests.enter(request->link(), request);
        }
        self.reset();
        finish(request, result);
    }
};

}  // namespace

bool suits_driver(const Channel& channel, const Request& request) noexcept {
    const Node& node = *channel.node;
    switch (request.op) {
        case Op::read:
        case Op::write:
            if (request.op == Op::write && (channel.tracked || node.detect_zeroes != DetectZeroes::off ||
                                            (request.flags & ~node.native_write_flags) != 0)) {
                return false;
            }
            return request.length <= node.max_transfer && aligned(node, request) &&
                   memory_aligned(node, request);
        case Op::discard:
            return !channel.tracked && aligned(node, request);
        case Op::write_zeroes:
            return false;
        case Op::copy_range:
            return !channel.tracked && node.detect_zeroes == DetectZeroes::off && aligned(node, request);
        default:
            return true;
    }
}

void emulate(Channel& channel, Request* request) noexcept {
    base::Owner<Emulation> emulation = base::make<Emulation>();
    if (emulation == nullptr) {
        finish_later(request, -ENOMEM);
        return;
    }
    emulation->request = request;
    emulation->serialises = must_serialise(*channel.node, *request);
    emulation->completed = &Emulation::over;
    if (emulation->serialises) {
        channel.requests.leave(request->link(), channel.executor());
        channel.serialising.enter(request->link(), request);
    }
    coro::start(channel.executor(), run(channel, *request),
                static_cast<coro::Callback<int64_t>*>(emulation.release()));
}

}  // namespace engine::block
