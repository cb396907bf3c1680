// How a context reaches the kernel: an interface with two implementations, `io_uring` and `threads`.
// Everything but wake() runs on the home thread.
#pragma once

#include <engine/aio.h>
#include <sys/uio.h>

#include <memory>

#include "aio/inbox.hh"
#include "base/assert.hh"
#include "base/atomic.hh"
#include "base/clock.hh"
#include "base/list.hh"

namespace engine::aio {

class AioContext;

enum class IoKind : uint8_t {
    read,
    write,
    fdatasync,
    fallocate,
    call,  // `call` runs on the offload pool: what may block and has no asynchronous form
};

// One operation of the kernel's, or one call for the offload pool. Intrusive: it lives in the request that
// needs it until `done`, which runs on the home thread, never inside queue().
struct IoOp : Message {
    void (*done)(IoOp*, int64_t result) = nullptr;  // bytes or 0, or -errno
    int64_t (*call)(IoOp*) = nullptr;
    const iovec* iov = nullptr;
    uint64_t offset = 0;
    uint64_t length = 0;  // bytes, all parts together
    int64_t result = 0;
    int fd = -1;
    uint32_t iov_count = 0;
    int32_t flags = 0;  // read, write: RWF_*; fallocate: FALLOC_FL_*
    IoKind kind = IoKind::call;
    bool direct = false;  // the file bypasses the page cache, so that trying without waiting makes no sense
    int16_t file_slot = -1;  // of the same file as `fd`, from register_file(); -1: none
    // --- of one that is traced: who queues it says so, and has the times when it is done
    bool traced = false;
    IoOp* next_traced = nullptr;
    uint64_t submitted_ns = 0;  // about to be with the kernel
    uint64_t reaped_ns = 0;     // seen to be done
};

// A descriptor watched level-triggered, by the context that made it.
struct FdHandler : base::Link {  // io_uring: linked while it is watched, or removed and still armed
    int fd = -1;
    uint32_t events = 0;  // POLLIN, POLLOUT
    void (*ready)(FdHandler*, uint32_t events) = nullptr;
    bool removed = false;                    // no more callbacks
    bool armed = false;                      // io_uring: a poll request is with the kernel
    bool in_callback = false;                // `ready` is on the stack
    void (*released)(FdHandler*) = nullptr;  // the backend holds no pointer any more
};

// Written on the home thread, read anywhere.
struct BackendStats {
    base::Counter system_calls, submitted, completed, submit_batches, offloaded, fd_events;
};

class Backend {
  public:
    virtual ~Backend() = default;

    virtual engine_backend_kind kind() const noexcept = 0;
    // Accepts an operation; it reaches the kernel with the next submit() or wait().
    virtual void queue(IoOp* op) noexcept = 0;
    // All new operations in one system call where the backend can. Runs no completion.
    virtual void submit() noexcept = 0;
    // Is there something for reap()? Never enters the kernel.
    virtual bool has_completions() const noexcept = 0;
    // Runs the completions that are there.
    virtual void reap() noexcept = 0;
    // Submits what is new, then blocks until a completion, an fd event, wake() or the time-out; -1: none.
    virtual void wait(int64_t timeout_ns) noexcept = 0;
    // Any thread: ends a wait().
    virtual void wake() noexcept = 0;
    // For a caller-driven context: this thread is the home thread from here on. Not while operations are in
    // flight.
    virtual int enter_thread(engine_error* error) noexcept = 0;
    // Readable when there is something to reap; another one after enter_thread().
    virtual int pollable_fd() const noexcept = 0;

    // For a file that many operations will name: a slot by which the kernel finds it without counting its
    // users, which costs all contexts that share the file a cache line. -1: no room, or no use for it.
    virtual int16_t register_file(int /*fd*/) noexcept { return -1; }
    virtual void unregister_file(int16_t /*slot*/) noexcept {}

    virtual int add_fd(FdHandler* handler) noexcept = 0;
    // No callback after this returns; `released` follows, possibly later.
    virtual void remove_fd(FdHandler* handler) noexcept = 0;
    // The context is closing: no handler is called or pointed to any more, but for those already removed.
    virtual void forget_fds() noexcept = 0;

    // One that is traced has been seen to be done.
    void stamp_reaped(IoOp* op, uint64_t now_ns) noexcept {
        op->reaped_ns = now_ns;
        traced_--;
    }

    BackendStats stats;

  protected:
    // Operations that are traced: from queue() on; before the system call that submits; before each batch of
    // completions, 0 where none is traced.
    void note_queued(IoOp* op) noexcept {
        if (ENGINE_LIKELY(!op->traced)) return;
        op->next_traced = unsubmitted_;
        unsubmitted_ = op;
        traced_++;
    }
    // One that goes to the offload pool at once.
    void note_handed_over(IoOp* op) noexcept {
        if (ENGINE_LIKELY(!op->traced)) return;
        op->submitted_ns = base::now_ns();
        traced_++;
    }
    void note_submitting() noexcept {
        if (ENGINE_UNLIKELY(unsubmitted_ != nullptr)) stamp_submitted();
    }
    uint64_t reaping_ns() const noexcept { return ENGINE_UNLIKELY(traced_ != 0) ? base::now_ns() : 0; }

  private:
    [[gnu::noinline, gnu::cold]] void stamp_submitted() noexcept {
        uint64_t now_ns = base::now_ns();
        for (; unsubmitted_ != nullptr; unsubmitted_ = unsubmitted_->next_traced) {
            unsubmitted_->submitted_ns = now_ns;
        }
    }

    IoOp* unsubmitted_ = nullptr;
    uint64_t traced_ = 0;  // queued, and not seen to be done
};

struct BackendChoice {
    uint32_t kind = ENGINE_BACKEND_AUTO;
    uint32_t queue_depth = 256;
    const cpu_set_t* worker_cpus = nullptr;  // where its workers may run; null: anywhere
    size_t worker_cpus_size = 0;
    bool caller_driven = false;  // the home thread is another one, which calls enter_thread()
};

// On the home thread, unless caller-driven: makes the backend that was asked for, or says why not. `reason`
// tells why this one.
int make_backend(AioContext& context, const BackendChoice& choice, std::unique_ptr<Backend>* out,
                 char (&reason)[160], engine_error* error);
int make_uring_backend(const BackendChoice& choice, std::unique_ptr<Backend>* out, char (&reason)[160],
                       engine_error* error, AioContext* context);
int make_threads_backend(AioContext& context, std::unique_ptr<Backend>* out, engine_error* error);

}  // namespace engine::aio
