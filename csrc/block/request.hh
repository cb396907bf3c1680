// A request: intrusive, owned by whoever submits it, untouched by it until `complete` is called. It lives on
// one context from submission to completion. Submitting never allocates.
#pragma once

#include <engine/block.h>
#include <sys/uio.h>

#include "aio/backend.hh"
#include "aio/inbox.hh"
#include "block/in_flight.hh"

namespace engine::block {

class Channel;
struct Request;
struct Trace;  // what a request that was drawn leaves behind (block/trace.hh)

enum class Op : uint8_t {
    read = ENGINE_OP_READ,
    write = ENGINE_OP_WRITE,
    flush = ENGINE_OP_FLUSH,
    discard = ENGINE_OP_DISCARD,
    write_zeroes = ENGINE_OP_WRITE_ZEROES,
    resize = ENGINE_OP_RESIZE,
    block_status = ENGINE_OP_BLOCK_STATUS,
    copy_range = ENGINE_OP_COPY_RANGE,
};
constexpr unsigned op_count = ENGINE_OP_COUNT;
const char* op_name(Op op) noexcept;
constexpr uint32_t bit(Op op) noexcept {
    return 1u << static_cast<unsigned>(op);
}

// What a driver that holds its own data can do; to copy between files is for a file alone.
constexpr uint32_t ops_of_data = (1u << op_count) - 1 - bit(Op::copy_range);

// Where a range lies as it is: in the node of a protocol, from `offset` on.
struct Location {
    Channel* channel = nullptr;
    uint64_t offset = 0;
};

// What a level of the graph that hands a request on (block/forward.hh) has back afterwards, and the request's
// place in the list of the channel below: its own stays in that of the level that it entered first.
struct ForwardFrame : InFlightLink {
    ForwardFrame* next = nullptr;  // of the level above it; in the pool: the next free one
    Channel* channel = nullptr;
    void (*complete)(Request*) = nullptr;
    uint64_t offset = 0;
};

// Where a driver of this request keeps what it needs: the first line is hot, the rest for real I/O.
struct Request : aio::Message, InFlightLink {
    // --- set by the submitter
    void (*complete)(Request*) = nullptr;  // on the home thread, exactly once, never inside submit()
    uint64_t offset = 0;                   // bytes
    uint64_t length = 0;                   // bytes, all parts of iov together for reads and writes
    const iovec* iov = nullptr;
    uint32_t iov_count = 0;
    Op op = Op::read;
    uint8_t flags = 0;  // engine_request_flags
    // --- set on the way
    Channel* channel = nullptr;     // the one that it was submitted to
    ForwardFrame* frame = nullptr;  // of the levels that have handed it on, lowest first
    uint64_t id = 0;
    Trace* trace = nullptr;         // null: it was not drawn
    int64_t result = 0;             // 0, or block_status: extents filled; -errno
    engine_error* error = nullptr;  // optional: filled by the layer that fails it
    // --- block_status: where the answer goes
    engine_extent* extents = nullptr;
    uint32_t extent_capacity = 0;
    // --- copy_range: what is to be copied; it stays where it is until this has completed
    Location source;
    // --- of the driver that has it now
    uint64_t scratch[2] = {};
    aio::IoOp io;
    iovec single{};  // a place for a one-part vector, so that callers need none of their own

    void set_buffer(void* base, size_t bytes) noexcept {
        single = {base, bytes};
        iov = &single;
        iov_count = 1;
    }
    // Its place in the list of the channel that it is with now.
    InFlightLink* link() noexcept {
        if (frame == nullptr) return this;
        return frame;
    }
    // The request that holds an IoOp.
    static Request* of(aio::IoOp* op) noexcept;
};

}  // namespace engine::block
