// The file driver's own declarations: a regular file or a block device. FileState lies on the node's pages
// and is constant while the node is open; what changes is in FileShared, and says what guards it.
#pragma once

#include "base/list.hh"
#include "base/mutex.hh"
#include "block/node.hh"

namespace engine::block {

// What the file system below has been found unable to do.
enum FileRefusal : uint32_t { refuses_punch = 1, refuses_zero_range = 2 };

struct FileShared {
    base::Atomic<uint32_t> refusals{0};  // FileRefusal
    // The first failed flush: the kernel reports a lost write once, so later flushes must not say that all is
    // well.
    base::Atomic<int> flush_error{0};
    base::Mutex flush_mutex;  // short, held for a few instructions
    base::Queue<aio::Message> flushes_waiting ENGINE_GUARDED_BY(flush_mutex);
    bool flushing ENGINE_GUARDED_BY(flush_mutex) = false;
};

struct FileState {
    FileShared* shared;
    int fd;
    bool direct;          // cache.direct: O_DIRECT
    bool device;          // a block device
    uint32_t block_size;  // of a device: logical block, bytes
};

struct FileChannel {
    int16_t slot;  // of the file, with the context's backend; -1: none
};

// --- file_open.cc
int file_open_channel(Channel& channel);
void file_close_channel(Channel& channel);
int file_open(Node& node, const OpenArguments& arguments);
void file_close(Node& node);
// Size of a device, bytes; or -errno.
int64_t device_bytes(int fd) noexcept;

// --- file_lock.cc: OFD locks on the byte ranges that QEMU uses.
enum class FileLocking { automatic, on, off };
// Gives all locks back now: the kernel may hold on to an open file for a moment after its last request
// completed, and whoever opens it anew must not find our own locks there.
void unlock_file(int fd) noexcept;
int lock_file(int fd, const char* filename, bool read_only, FileLocking locking, engine_error* error);

// --- file_io.cc: the request path
void file_submit(Channel& channel, Request* request);

// --- file_control.cc: what is rarer than reads and writes
void submit_flush(Channel& channel, Request* request) noexcept;
void submit_discard(Channel& channel, Request* request) noexcept;
void submit_write_zeroes(Channel& channel, Request* request) noexcept;
void submit_resize(Channel& channel, Request* request) noexcept;
void submit_block_status(Channel& channel, Request* request) noexcept;
void submit_copy_range(Channel& channel, Request* request) noexcept;
// Remembers that writes may have been lost, and says so.
void note_flush_failure(Node& node, int errnum) noexcept;
// Finishes with the kernel's refusal, told in the request's error object. From a completion only.
void finish_failed(Request* request, int errnum, uint64_t offset) noexcept;

// Hands the request's operation to the backend of its context; reaped() is the first thing when it is done.
inline void queue_io(Request* request) noexcept {
    request->io.traced = request->trace != nullptr;
    mark(*request, ENGINE_MARK_QUEUED);
    request->channel->context->backend().queue(&request->io);
}
inline Request* reaped(aio::IoOp* op) noexcept {
    Request* request = Request::of(op);
    if (ENGINE_UNLIKELY(op->traced)) {
        add_mark_at(*request, ENGINE_MARK_SUBMITTED, op->submitted_ns);
        add_mark_at(*request, ENGINE_MARK_REAPED, op->reaped_ns);
    }
    return request;
}

// Interrupted or short of something for a moment: the same operation is worth another try.
inline bool transient(int64_t result) noexcept {
    return result == -EINTR || result == -EAGAIN;
}

}  // namespace engine::block
