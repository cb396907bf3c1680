// The file driver beyond reads and writes: flush, discard, zeroes, resize, block status. Home thread of the
// request's context, but for the functions that say they run on the offload pool.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.hh"
#include "base/log.hh"
#include "coro/short_lock.hh"
#include "protocols/file.hh"

namespace engine::block {

namespace {

const FileState& state_of(const Request& request) noexcept {
    return request.channel->node->state<FileState>();
}

bool means_unsupported(int64_t result) noexcept {
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENOTTY || result == -ENODEV;
}

// Runs `call` on the offload pool, then `done` here.
void offload(Request* request, int64_t (*call)(aio::IoOp*), void (*done)(aio::IoOp*, int64_t)) noexcept {
    request->io.kind = aio::IoKind::call;
    request->io.call = call;
    request->io.done = done;
    queue_io(request);
}

void queue_fallocate(Request* request, int32_t mode, void (*done)(aio::IoOp*, int64_t)) noexcept {
    aio::IoOp& io = request->io;
    io.kind = aio::IoKind::fallocate;
    io.done = done;
    io.fd = state_of(*request).fd;
    io.file_slot = -1;
    io.flags = mode;
    io.offset = request->offset;
    io.length = request->length;
    queue_io(request);
}

const char* advice_on(int errnum) noexcept {
    switch (errnum) {
        case ENOSPC:
            return ": make room on its file system and repeat the request";
        case EDQUOT:
            return ": the quota of its owner is used up";
        case EFBIG:
            return ": the file system or a limit of this process (ulimit -f) allows no larger file";
        case EIO:
            return ": the device or the file system failed, see the kernel's log";
        case ENOMEM:
            return ": the system is short of memory or threads";
        default:
            return "";
    }
}

}  // namespace

void finish_failed(Request* request, int errnum, uint64_t offset) noexcept {
    const NodeControl& control = *request->channel->node->control;
    base::fail(request->error, ENGINE_ERROR_OS, errnum,
               {.node = control.name.c_str(),
                .operation = op_name(request->op),
                .offset = offset,
                .request_id = request->id},
               "node %s: %s of %lu bytes at offset %lu failed in file '%s': %s%s", control.name.c_str(),
               op_name(request->op), request->length, offset, control.filename.c_str(),
               strerrordesc_np(errnum), advice_on(errnum));
    finish(request, -errnum);
}

// --- flush. One fdatasync at a time for each node: those that come meanwhile share the next one. Besides
// saving work this keeps the kernel from reporting a lost write to one of two that run side by side, and
// success to the other.

void note_flush_failure(Node& node, int errnum) noexcept {
    base::Atomic<int>& first = node.state<FileState>().shared->flush_error;
    for (int none = 0; !first.compare_exchange_acq_rel(none, errnum);) {
        if (none != 0) return;
    }
    base::log(ENGINE_LOG_ERROR,
              "node %s: a flush of file '%s' failed (%s): writes before it may be lost, and the node refuses "
              "to flush until it is opened anew",
              node.control->name.c_str(), node.control->filename.c_str(), strerrordesc_np(errnum));
}

namespace {

void start_flush(aio::Message* message);

// The requests that a leader syncs for are chained through `next`; the leader's scratch holds the first;
// scratch[1] of one that waits for another's flush is 1.
void conclude(Request* request, int64_t result) noexcept {
    if (request->scratch[1] != 0) mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
    if (result < 0) {
        finish_failed(request, static_cast<int>(-result), UINT64_MAX);
    } else {
        finish(request, 0);
    }
}

void conclude_on_its_context(Request* request, int64_t result, const aio::AioContext* here) noexcept {
    aio::AioContext* home = request->channel->context;
    if (home == here) {
        conclude(request, result);
        return;
    }
    request->result = result;
    request->run = [](aio::Message* message) {
        auto* self = static_cast<Request*>(message);
        conclude(self, self->result);
    };
    home->send(request);  // accepted: its channel has it in flight
}

void flush_done(aio::IoOp* op, int64_t result) {
    Request* leader = reaped(op);
    Channel& channel = *leader->channel;
    if (transient(result)) {
        queue_io(leader);
        return;
    }
    FileShared& shared = *state_of(*leader).shared;
    if (result < 0) note_flush_failure(*channel.node, static_cast<int>(-result));
    int failed = shared.flush_error.load_acquire();
    aio::Message* batch = nullptr;
    {
        coro::ShortLock lock(channel.executor(), shared.flush_mutex);
        batch = shared.flushes_waiting.take_all();
        shared.flushing = batch != nullptr;
    }
    if (batch != nullptr) {
        auto* next_leader = static_cast<Request*>(batch);
        next_leader->scratch[0] = std::bit_cast<uint64_t>(batch->next);
        next_leader->run = start_flush;
        next_leader->channel->context->send(next_leader);
    }
    // From here on the node may be closed as soon as the last of its requests has been told.
    auto* member = std::bit_cast<aio::Message*>(leader->scratch[0]);
    conclude_on_its_context(leader, -failed, channel.context);
    while (member != nullptr) {
        aio::Message* next = member->next;
        conclude_on_its_context(static_cast<Request*>(member), -failed, channel.context);
        member = next;
    }
}

// On the leader's context.
void start_flush(aio::Message* message) {
    auto* leader = static_cast<Request*>(message);
    if (leader->scratch[1] != 0) mark(*leader, ENGINE_MARK_WAITED, ENGINE_WAIT_DEVICE);
    leader->scratch[1] = 0;
    aio::IoOp& io = leader->io;
    io.kind = aio::IoKind::fdatasync;
    io.done = flush_done;
    io.fd = state_of(*leader).fd;
    io.file_slot = -1;
    queue_io(leader);
}

}  // namespace

void submit_flush(Channel& channel, Request* request) noexcept {
    const auto& state = channel.node->state<FileState>();
    FileShared& shared = *state.shared;
    if (channel.node->read_only) {
        finish_later(request, 0);
        return;
    }
    if (int failed = shared.flush_error.load_acquire(); failed != 0) {
        fail_later(request, ENGINE_ERROR_OS, failed,
                   "node %s: an earlier flush of file '%s' failed (%s), writes before it may be lost: check "
                   "the disk, "
                   "then close the node and open it again",
                   channel.node->control->name.c_str(), channel.node->control->filename.c_str(),
                   strerrordesc_np(failed));
        return;
    }
    {
        coro::ShortLock lock(channel.executor(), shared.flush_mutex);
        if (shared.flushing) {
            request->scratch[1] = 1;
            mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_DEVICE);
            shared.flushes_waiting.push(request);
            return;
        }
        shared.flushing = true;
    }
    request->scratch[0] = request->scratch[1] = 0;
    start_flush(request);
}

// --- discard and zeroes

namespace {

bool refused(const FileState& state, uint32_t refusal) noexcept {
    return (state.shared->refusals.load_relaxed() & refusal) != 0;
}

void note_refusal(const Request& request, FileRefusal refusal) noexcept {
    if ((state_of(request).shared->refusals.fetch_or_acq_rel(refusal) & refusal) != 0) return;
    const NodeControl& control = *request.channel->node->control;
    base::log(ENGINE_LOG_INFO, "node %s: the file system of '%s' cannot %s", control.name.c_str(),
              control.filename.c_str(),
              refusal == refuses_punch ? "punch holes: discards do nothing"
                                       : "zero a range: zeroes are written out");
}

void discard_done(aio::IoOp* op, int64_t result) {
    Request* request = reaped(op);
    if (transient(result)) {
        queue_io(request);
    } else if (means_unsupported(result)) {
        // Advice that cannot be taken is no error; neither is it asked for again.
        note_refusal(*request, refuses_punch);
        finish(request, 0);
    } else if (result < 0) {
        finish_failed(request, static_cast<int>(-result), request->offset);
    } else {
        finish(request, 0);
    }
}

// On the offload pool. Only whole blocks can be discarded.
int64_t discard_device(aio::IoOp* op) {
    const Request& request = *Request::of(op);
    const FileState& state = state_of(request);
    uint64_t mask = state.block_size - 1;
    uint64_t start = (request.offset + mask) & ~mask;
    uint64_t end = (request.offset + request.length) & ~mask;
    if (start >= end) return 0;
    uint64_t range[2] = {start, end - start};
    return ioctl(state.fd, BLKDISCARD, range) == 0 ? 0 : -errno;
}

void zeroes_done(aio::IoOp* op, int64_t result) {
    Request* request = reaped(op);
    const FileState& state = state_of(*request);
    if (transient(result)) {
        queue_io(request);
        return;
    }
    if (means_unsupported(result)) {
        bool punched = (op->flags & FALLOC_FL_PUNCH_HOLE) != 0;
        note_refusal(*request, punched ? refuses_punch : refuses_zero_range);
        if (punched && !refused(state, refuses_zero_range)) {
            queue_fallocate(request, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, zeroes_done);
        } else {
            finish(request, -ENOTSUP);  // the request layer writes zeroes instead
        }
        return;
    }
    if (result < 0) {
        finish_failed(request, static_cast<int>(-result), request->offset);
    } else {
        finish(request, 0);
    }
}

}  // namespace

void submit_discard(Channel& channel, Request* request) noexcept {
    const auto& state = channel.node->state<FileState>();
    if (refused(state, refuses_punch)) {
        finish_later(request, 0);
    } else if (state.device) {
        offload(request, discard_device, discard_done);
    } else {
        queue_fallocate(request, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, discard_done);
    }
}

// FUA is the request layer's: it flushes afterwards.
void submit_write_zeroes(Channel& channel, Request* request) noexcept {
    const auto& state = channel.node->state<FileState>();
    bool unaligned = state.device && ((request->offset | request->length) & (state.block_size - 1)) != 0;
    bool punch = (request->flags & ENGINE_MAY_UNMAP) != 0 && !refused(state, refuses_punch);
    if (unaligned || (!punch && refused(state, refuses_zero_range))) {
        finish_later(request, -ENOTSUP);
        return;
    }
    queue_fallocate(request, (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
                    zeroes_done);
}

// --- resize. Requests in flight are not waited for in here: a write beyond the new end would make the file
// grow.

namespace {

uint64_t rounded(const Node& node, uint64_t bytes) noexcept {
    return (bytes + node.request_alignment - 1) & ~uint64_t{node.request_alignment - 1};
}

// On the offload pool.
int64_t truncate_file(aio::IoOp* op) {
    const Request& request = *Request::of(op);
    int result;
    do {
        result = ftruncate(state_of(request).fd, static_cast<off_t>(request.offset));
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : -errno;
}

// On the offload pool. A device has the size that it has; what can change is what we know of it.
int64_t measure_device(aio::IoOp* op) {
    const Request& request = *Request::of(op);
    int64_t bytes = device_bytes(state_of(request).fd);
    if (bytes < 0) return bytes;
    return static_cast<uint64_t>(bytes) == request.offset ? 0 : -ENOTSUP;
}

void resize_done(aio::IoOp* op, int64_t result) {
    Request* request = reaped(op);
    Node& node = *request->channel->node;
    if (result >= 0) {
        node.bytes.store_relaxed(rounded(node, request->offset));
        finish(request, 0);
        return;
    }
    node.bytes.store_relaxed(request->scratch[0]);
    if (result == -ENOTSUP && state_of(*request).device) {
        const char* name = node.control->name.c_str();
        base::fail(request->error, ENGINE_ERROR_UNSUPPORTED, ENOTSUP,
                   {.node = name, .operation = "resize", .request_id = request->id},
                   "node %s: '%s' is a device, and is not %lu bytes large: change its size with the tools of "
                   "its own "
                   "(lvresize, for example) and then give that size",
                   name, node.control->filename.c_str(), request->offset);
        finish(request, -ENOTSUP);
        return;
    }
    finish_failed(request, static_cast<int>(-result), request->offset);
}

}  // namespace

void submit_resize(Channel& channel, Request* request) noexcept {
    Node& node = *channel.node;
    const auto& state = node.state<FileState>();
    if (request->offset >
        static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - node.request_alignment) {
        fail_later(request, ENGINE_ERROR_LIMIT, EFBIG, "node %s: %lu bytes are more than a file can have",
                   node.control->name.c_str(), request->offset);
        return;
    }
    // A smaller size holds at once, so that nothing is let in behind it and makes the file grow again.
    request->scratch[0] = node.bytes.load_relaxed();
    if (!state.device && rounded(node, request->offset) < request->scratch[0]) {
        node.bytes.store_relaxed(rounded(node, request->offset));
    }
    offload(request, state.device ? measure_device : truncate_file, resize_done);
}

// --- block status

namespace {

// On the offload pool. Each step fills an extent, so `capacity` bounds them.
int64_t find_extents(aio::IoOp* op) {
    Request& request = *Request::of(op);
    const FileState& state = state_of(request);
    const uint64_t mask = request.channel->node->request_alignment - 1;
    const uint64_t end = request.offset + request.length;
    uint64_t at = request.offset;
    uint32_t count = 0;
    auto add = [&](uint64_t to, uint32_t flags) {
        request.extents[count++] = {at, to - at, flags, 0};
        at = to;
    };
    while (at < end && count < request.extent_capacity) {
        off_t found = lseek(state.fd, static_cast<off_t>(at), SEEK_DATA);
        if (found < 0 && errno != ENXIO) return -errno;
        // None before the end of the file: a hole as far as was asked. Data starts where its block starts.
        uint64_t data = found < 0 ? end : std::min(static_cast<uint64_t>(found) & ~mask, end);
        if (data > at) {
            add(data, ENGINE_EXTENT_ZERO);
            continue;
        }
        found = lseek(state.fd, static_cast<off_t>(std::max(at, static_cast<uint64_t>(found))), SEEK_HOLE);
        if (found < 0 && errno != ENXIO) return -errno;
        uint64_t hole = found < 0 ? end : (static_cast<uint64_t>(found) + mask) & ~mask;
        add(hole > at && hole < end ? hole : end, ENGINE_EXTENT_DATA);
    }
    return count;
}

void extents_done(aio::IoOp* op, int64_t result) {
    Request* request = reaped(op);
    if (result < 0) {
        finish_failed(request, static_cast<int>(-result), request->offset);
    } else {
        finish(request, result);
    }
}

// --- copies between files

// On the offload pool. All of it, or nothing that counts: a file that ends early is for reads to pad.
int64_t copy_between_files(aio::IoOp* op) {
    const Request& request = *Request::of(op);
    int from = request.source.channel->node->state<FileState>().fd;
    auto from_offset = static_cast<loff_t>(request.source.offset);
    auto to_offset = static_cast<loff_t>(request.offset);
    for (uint64_t left = request.length; left != 0;) {
        ssize_t copied = copy_file_range(from, &from_offset, state_of(request).fd, &to_offset, left, 0);
        if (copied < 0 && errno == EINTR) continue;
        if (copied <= 0)
            return -ENOTSUP;  // another file system, pipes, an old kernel: who asked goes another way
        left -= static_cast<uint64_t>(copied);
    }
    return 0;
}

void copy_done(aio::IoOp* op, int64_t result) {
    finish(reaped(op), result);
}

}  // namespace

void submit_block_status(Channel& channel, Request* request) noexcept {
    const auto& state = channel.node->state<FileState>();
    if (!state.device) {
        offload(request, find_extents, extents_done);
        return;
    }
    if (request->extent_capacity != 0) {
        request->extents[0] = {request->offset, request->length, ENGINE_EXTENT_DATA, 0};
    }
    finish_later(request, request->extent_capacity != 0 ? 1 : 0);
}

void submit_copy_range(Channel& channel, Request* request) noexcept {
    if (request->source.channel->node->driver == channel.node->driver) {
        offload(request, copy_between_files, copy_done);
    } else {
        finish_later(request, -ENOTSUP);
    }
}

}  // namespace engine::block
