// Reads and writes of the file driver. A request whose transfer comes back short goes on from there, without
// a copy of its vector. Home thread of the request's context; allocates nothing.
#include <limits.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "protocols/file.hh"

namespace engine::block {

namespace {

// The kernel moves no more than this in one call, whatever is asked; a multiple of every alignment.
constexpr uint64_t transfer_max = 0x7ffff000;
constexpr uint32_t parts_max = IOV_MAX;

uint64_t progress_of(const Request& request) noexcept {
    return request.io.offset - request.offset;
}

// Where in the vector `progress` bytes end: the index of the part, and the bytes of it that are done.
struct Position {
    uint32_t part;
    uint64_t within;
};

Position find_position(const Request& request, uint64_t progress) noexcept {
    Position position{0, progress};
    while (position.part < request.iov_count && position.within >= request.iov[position.part].iov_len) {
        position.within -= request.iov[position.part].iov_len;
        position.part++;
    }
    return position;
}

void zero_rest(const Request& request, uint64_t progress) noexcept {
    Position position = find_position(request, progress);
    for (; position.part < request.iov_count; position.part++, position.within = 0) {
        const iovec& part = request.iov[position.part];
        memset(static_cast<std::byte*>(part.iov_base) + position.within, 0, part.iov_len - position.within);
    }
}

// Hands the next piece to the backend. A part that is begun, or longer than one call can move, goes alone,
// through a vector of one in the request's scratch; else as many whole parts as one call takes.
void transfer_from(Request* request, uint64_t progress) noexcept {
    static_assert(sizeof request->scratch == sizeof(iovec));
    aio::IoOp& io = request->io;
    Position position = find_position(*request, progress);
    const iovec* first = request->iov + position.part;
    io.offset = request->offset + progress;
    if (position.within != 0 || first->iov_len > transfer_max) {
        uint64_t length = std::min(first->iov_len - position.within, transfer_max);
        io.iov =
            new (request->scratch) iovec{static_cast<std::byte*>(first->iov_base) + position.within, length};
        io.iov_count = 1;
        io.length = length;
    } else {
        io.iov = first;
        io.iov_count = 0;
        io.length = 0;
        while (position.part + io.iov_count < request->iov_count && io.iov_count < parts_max &&
               io.length + first[io.iov_count].iov_len <= transfer_max) {
            io.length += first[io.iov_count++].iov_len;
        }
    }
    queue_io(request);
}

void fail_transfer(Request* request, int errnum) noexcept {
    // The kernel tells each lost write once, to whoever syncs next: that may have been this one. What a full
    // file system refused was not lost, it was never accepted.
    if ((request->flags & ENGINE_FUA) != 0 && errnum != ENOSPC && errnum != EDQUOT && errnum != EFBIG) {
        note_flush_failure(*request->channel->node, errnum);
    }
    finish_failed(request, errnum, request->offset + progress_of(*request));
}

// Everything but a transfer that moved all at once.
[[gnu::noinline]] void go_on(Request* request, int64_t result) noexcept {
    if (result < 0) {
        if (transient(result)) {
            queue_io(request);
        } else {
            fail_transfer(request, static_cast<int>(-result));
        }
        return;
    }
    uint64_t progress = progress_of(*request) + static_cast<uint64_t>(result);
    if (progress == request->length) {
        finish(request, 0);
        return;
    }
    // Past the end of the file: its size is rounded up to the alignment, or somebody else has cut it.
    bool ragged = (progress & (request->channel->node->request_alignment - 1)) != 0;
    if (request->op == Op::read && (result == 0 || ragged)) {
        zero_rest(*request, progress);
        finish(request, 0);
        return;
    }
    if (result == 0 || ragged) {
        fail_transfer(request, EIO);
        return;
    }
    transfer_from(request, progress);
}

void transfer_done(aio::IoOp* op, int64_t result) {
    Request* request = reaped(op);
    if (ENGINE_LIKELY(result == static_cast<int64_t>(request->length))) {
        finish(request, 0);
    } else {
        go_on(request, result);
    }
}

void submit_transfer(Channel& channel, Request* request, aio::IoKind kind) noexcept {
    const auto& state = channel.node->state<FileState>();
    aio::IoOp& io = request->io;
    io.done = transfer_done;
    io.fd = state.fd;
    io.file_slot = channel.state<FileChannel>().slot;
    io.kind = kind;
    io.direct = state.direct;
    io.flags = (request->flags & ENGINE_FUA) != 0 && kind == aio::IoKind::write ? RWF_DSYNC : 0;
    if (ENGINE_UNLIKELY(request->length > transfer_max || request->iov_count > parts_max)) {
        transfer_from(request, 0);
        return;
    }
    io.iov = request->iov;
    io.iov_count = request->iov_count;
    io.offset = request->offset;
    io.length = request->length;
    queue_io(request);
}

}  // namespace

void file_submit(Channel& channel, Request* request) {
    switch (request->op) {
        case Op::read:
            submit_transfer(channel, request, aio::IoKind::read);
            break;
        case Op::write:
            submit_transfer(channel, request, aio::IoKind::write);
            break;
        case Op::flush:
            submit_flush(channel, request);
            break;
        case Op::discard:
            submit_discard(channel, request);
            break;
        case Op::write_zeroes:
            submit_write_zeroes(channel, request);
            break;
        case Op::resize:
            submit_resize(channel, request);
            break;
        case Op::block_status:
            submit_block_status(channel, request);
            break;
        case Op::copy_range:
            submit_copy_range(channel, request);
            break;
    }
}

}  // namespace engine::block
