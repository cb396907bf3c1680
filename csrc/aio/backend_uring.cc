// The io_uring backend: one ring, single issuer, deferred task run; features are probed, never assumed.
// Home thread only, but for wake(), which writes an eventfd.
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "aio/backend.hh"
#include "aio/offload.hh"
#include "base/error.hh"
#include "base/log.hh"

namespace engine::aio {

namespace {

// The low bits of a completion's user data say whose it is. IoOp and FdHandler are at least 8-aligned.
enum Tag : uint64_t { tag_op = 0, tag_fd = 1, tag_wake = 2, tag_none = 3, tag_mask = 7 };

constexpr unsigned looks_between_calls = 64;
constexpr unsigned cq_entries_min = 512;
constexpr unsigned cq_entries_spare = 64;  // for fd polls and the wake-up
constexpr unsigned file_slots = 64;        // files beyond that go by their descriptor
// A disk sees nothing of a batch before the kernel has prepared all of it (Linux plugs the queue meanwhile,
// at about 3 µs a request): it gets this many at a time, so that it works while the rest are prepared.
constexpr unsigned direct_batch_max = 4;

class UringBackend final : public Backend {
  public:
    explicit UringBackend(AioContext* context) : offload_(context) {}
    ~UringBackend() override;
    int open(const BackendChoice& choice, char (&reason)[160], engine_error* error);

    engine_backend_kind kind() const noexcept override { return ENGINE_BACKEND_IO_URING; }
    void queue(IoOp* op) noexcept override;
    void submit() noexcept override;
    bool has_completions() const noexcept override;
    void reap() noexcept override;
    void wait(int64_t timeout_ns) noexcept override;
    void wake() noexcept override;
    int enter_thread(engine_error* error) noexcept override;
    int pollable_fd() const noexcept override { return ring_.ring_fd; }
    int16_t register_file(int fd) noexcept override;
    void unregister_file(int16_t slot) noexcept override;
    int add_fd(FdHandler* handler) noexcept override;
    void remove_fd(FdHandler* handler) noexcept override;
    void forget_fds() noexcept override;

  private:
    int open_ring(const BackendChoice& choice, engine_error* error);
    io_uring_sqe* get_sqe() noexcept;
    void prepare(IoOp* op) noexcept;
    void arm_wake() noexcept;
    void arm_fd(FdHandler* handler) noexcept;
    void complete(const io_uring_cqe& cqe) noexcept;
    void complete_fd(FdHandler* handler, int result) noexcept;
    bool task_run_wanted() const noexcept {
        return (__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) &
                (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
    }

    io_uring ring_{};
    unsigned queue_depth_ = 0;
    unsigned set_up_flags_ = 0;
    bool ring_open_ = false;
    bool disabled_ = false;               // until the thread that will drive it enables it
    bool deferred_ = false;               // completions appear only when the kernel is entered
    mutable bool flag_is_stale_ = false;  // the last time that it was set there was nothing
    mutable unsigned looks_at_stale_flag_ = 0;
    int event_fd_ = -1;
    uint64_t event_value_ = 0;
    unsigned in_flight_ = 0;
    uint64_t reaping_ns_ = 0;       // when the completions of this batch were seen
    unsigned in_flight_max_ = 0;    // the completion queue holds them all
    base::Queue<Message> waiting_;  // operations beyond that
    bool has_file_slots_ = false;
    std::array<bool, file_slots> file_slot_used_{};
    base::List<FdHandler> watched_;
    base::List<FdHandler> removed_;  // whose poll requests the kernel has not given back yet
    OffloadPool offload_;
};

// The ring alone. The single issuer of one that is caller-driven is the thread that enables it.
int UringBackend::open_ring(const BackendChoice& choice, engine_error* error) {
    const base::Where where{.operation = "io_uring_setup", .field = "backend"};
    io_uring_params params{};
    unsigned base_flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    if (choice.caller_driven) base_flags |= IORING_SETUP_R_DISABLED;
    // Who polls a ring with deferred task run is not woken (nor reliably by an eventfd registered with it,
    // Linux 6.18): where a foreign loop does, the kernel interrupts its wait instead.
    const std::array<unsigned, 3> own_thread = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    const std::array<unsigned, 3> foreign_loop = {IORING_SETUP_SINGLE_ISSUER, 0, 0};
    int result = 0;
    for (unsigned flags : choice.caller_driven ? foreign_loop : own_thread) {
        memset(&params, 0, sizeof params);
        params.flags = base_flags | flags;
        params.cq_entries = std::max(choice.queue_depth * 8, cq_entries_min);
        result = io_uring_queue_init_params(choice.queue_depth, &ring_, &params);
        set_up_flags_ = flags;
        if (result != -EINVAL) break;  // an older kernel: ask for less
    }
    if (result == -ENOMEM) {
        rlimit limit{};
        getrlimit(RLIMIT_MEMLOCK, &limit);
        return base::fail(
            error, ENGINE_ERROR_LIMIT, ENOMEM, where,
            "io_uring: the kernel refused memory for the rings; RLIMIT_MEMLOCK is %lu KiB: raise it "
            "(ulimit -l) or use the threads backend",
            static_cast<unsigned long>(limit.rlim_cur / 1024));
    }
    if (result == -EPERM || result == -ENOSYS || result == -EACCES) {
        return base::fail(
            error, ENGINE_ERROR_UNSUPPORTED, -result, where,
            "io_uring is refused here (%s): a seccomp filter, kernel.io_uring_disabled or an old "
            "kernel; use the threads backend",
            strerrordesc_np(-result));
    }
    if (result < 0) return base::fail_os(error, -result, where, "io_uring: cannot set up a ring");
    ring_open_ = true;
    disabled_ = choice.caller_driven;
    deferred_ = (set_up_flags_ & IORING_SETUP_DEFER_TASKRUN) != 0;
    in_flight_max_ = params.cq_entries - cq_entries_spare;
    return 0;
}

int UringBackend::open(const BackendChoice& choice, char (&reason)[160], engine_error* error) {
    const base::Where where{.operation = "io_uring_setup", .field = "backend"};
    queue_depth_ = choice.queue_depth;
    int result = open_ring(choice, error);
    if (result != 0) return result;
    if (offload_.open() != 0)
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where, "io_uring: out of memory");
    event_fd_ = eventfd(0, EFD_CLOEXEC);
    if (event_fd_ < 0) return base::fail_os(error, errno, where, "cannot make an eventfd");
    bool pinned = false;
    if (choice.worker_cpus != nullptr) {
        int refused = io_uring_register_iowq_aff(&ring_, choice.worker_cpus_size, choice.worker_cpus);
        pinned = refused == 0;
        if (!pinned) {
            base::log(ENGINE_LOG_WARNING, "io_uring: its workers are not pinned with their context (%s)",
                      strerrordesc_np(-refused));
        }
    }
    // A caller-driven ring is disabled still, and another one takes its place when its thread changes.
    has_file_slots_ = !disabled_ && io_uring_register_files_sparse(&ring_, file_slots) == 0;
    snprintf(reason, sizeof reason, "io_uring: %s%s%s, %u + %u entries",
             deferred_                                           ? "single issuer, deferred task run"
             : (set_up_flags_ & IORING_SETUP_SINGLE_ISSUER) != 0 ? "single issuer"
             : set_up_flags_ != 0                                ? "cooperative task run"
                                                                 : "plain ring",
             has_file_slots_ ? ", registered files" : "", pinned ? ", workers pinned" : "",
             ring_.sq.ring_entries, ring_.cq.ring_entries);
    arm_wake();
    if (!disabled_) submit();
    return 0;
}

int UringBackend::enter_thread(engine_error* error) noexcept {
    const base::Where where{.operation = "io_uring_register", .field = "backend"};
    if (!disabled_) {  // another thread was its issuer, and has ended: its ring is of no use any more
        if (in_flight_ != 0) {
            return base::fail(
                error, ENGINE_ERROR_CONFLICT, EBUSY, where,
                "io_uring: the thread that drove this context ended with %u operations in flight",
                in_flight_);
        }
        io_uring_queue_exit(&ring_);
        ring_open_ = false;
        int result = open_ring({.queue_depth = queue_depth_, .caller_driven = true}, error);
        if (result != 0) return result;
        while (FdHandler* handler = removed_.front()) {
            handler->unlink();
            handler->released(handler);
        }
        arm_wake();
        watched_.for_each([this](FdHandler* handler) { arm_fd(handler); });
    }
    // liburing 2.3 declares io_uring_enable_rings() and does not export it.
    if (syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) < 0) {
        return base::fail_os(error, errno, where, "io_uring: cannot enable the ring");
    }
    disabled_ = false;
    submit();
    return 0;
}

UringBackend::~UringBackend() {
    offload_.stop();
    if (ring_open_) io_uring_queue_exit(&ring_);
    while (FdHandler* handler = removed_.front()) {
        handler->unlink();
        handler->released(handler);
    }
    if (event_fd_ >= 0) close(event_fd_);
}

io_uring_sqe* UringBackend::get_sqe() noexcept {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    while (sqe == nullptr) {  // full: hand over what is there
        submit();
        sqe = io_uring_get_sqe(&ring_);
    }
    return sqe;
}

void UringBackend::queue(IoOp* op) noexcept {
    if (op->kind == IoKind::call) {
        stats.offloaded.increment();
        stats.submitted.increment();
        note_handed_over(op);
        offload_.run(op);
        return;
    }
    if (in_flight_ >= in_flight_max_) {
        waiting_.push(op);
        return;
    }
    prepare(op);
}

void UringBackend::prepare(IoOp* op) noexcept {
    io_uring_sqe* sqe = get_sqe();
    note_queued(op);
    in_flight_++;
    stats.submitted.increment();
    switch (op->kind) {
        case IoKind::read:
            if (op->iov_count == 1) {
                io_uring_prep_read(sqe, op->fd, op->iov->iov_base, static_cast<unsigned>(op->iov->iov_len),
                                   op->offset);
            } else {
                io_uring_prep_readv(sqe, op->fd, op->iov, op->iov_count, op->offset);
            }
            sqe->rw_flags = op->flags;
            break;
        case IoKind::write:
            if (op->iov_count == 1) {
                io_uring_prep_write(sqe, op->fd, op->iov->iov_base, static_cast<unsigned>(op->iov->iov_len),
                                    op->offset);
            } else {
                io_uring_prep_writev(sqe, op->fd, op->iov, op->iov_count, op->offset);
            }
            sqe->rw_flags = op->flags;
            break;
        case IoKind::fdatasync:
            io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
            break;
        case IoKind::fallocate:
            io_uring_prep_fallocate(sqe, op->fd, op->flags, static_cast<off_t>(op->offset),
                                    static_cast<off_t>(op->length));
            break;
        case IoKind::call:
            break;  // went to the pool
    }
    if (op->file_slot >= 0) {
        sqe->fd = op->file_slot;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    sqe->user_data = reinterpret_cast<uint64_t>(op) | tag_op;
    bool direct = op->direct && (op->kind == IoKind::read || op->kind == IoKind::write);
    if (direct && io_uring_sq_ready(&ring_) >= direct_batch_max) submit();
}

int16_t UringBackend::register_file(int fd) noexcept {
    if (!has_file_slots_) return -1;
    auto* free = std::find(file_slot_used_.begin(), file_slot_used_.end(), false);
    if (free == file_slot_used_.end()) return -1;
    auto slot = static_cast<unsigned>(free - file_slot_used_.begin());
    if (io_uring_register_files_update(&ring_, slot, &fd, 1) != 1) return -1;
    *free = true;
    return static_cast<int16_t>(slot);
}

// The kernel keeps the file until what is in flight there has completed.
void UringBackend::unregister_file(int16_t slot) noexcept {
    if (slot < 0) return;
    int none = -1;
    io_uring_register_files_update(&ring_, static_cast<unsigned>(slot), &none, 1);
    file_slot_used_[static_cast<size_t>(slot)] = false;
}

void UringBackend::submit() noexcept {
    if (io_uring_sq_ready(&ring_) == 0) return;
    note_submitting();
    stats.system_calls.increment();
    stats.submit_batches.increment();
    // With deferred task run the same call also posts what has finished.
    int result = deferred_ ? io_uring_submit_and_get_events(&ring_) : io_uring_submit(&ring_);
    (void)result;  // EAGAIN, EBUSY: the entries stay in the ring and go with the next turn
}

// The kernel queues the work first and then sets the flag: where the work is run in between, the flag stays
// set with nothing behind it, until some work is run again. Once that has shown, the flag is worth a system
// call only now and then, and no reason to stay awake.
bool UringBackend::has_completions() const noexcept {
    if (io_uring_cq_ready(&ring_) != 0) return true;
    if (!task_run_wanted()) {
        flag_is_stale_ = false;
        return false;
    }
    return !flag_is_stale_ || ++looks_at_stale_flag_ % looks_between_calls == 0;
}

void UringBackend::reap() noexcept {
    unsigned ready = io_uring_cq_ready(&ring_);
    if (ready == 0) {
        if (!task_run_wanted()) return;
        stats.system_calls.increment();
        io_uring_get_events(&ring_);
        ready = io_uring_cq_ready(&ring_);
    }
    flag_is_stale_ = ready == 0;
    reaping_ns_ = reaping_ns();
    unsigned head = *ring_.cq.khead;
    for (unsigned i = 0; i < ready; i++, head++) {
        // Copied and given back one by one: a handler may fill the submission ring and so enter the kernel.
        io_uring_cqe cqe = ring_.cq.cqes[head & *ring_.cq.kring_mask];
        io_uring_cq_advance(&ring_, 1);
        complete(cqe);
    }
    while (in_flight_ < in_flight_max_) {
        Message* op = waiting_.pop();
        if (op == nullptr) break;
        prepare(static_cast<IoOp*>(op));
    }
}

void UringBackend::complete(const io_uring_cqe& cqe) noexcept {
    uint64_t pointer = cqe.user_data & ~uint64_t{tag_mask};
    switch (cqe.user_data & tag_mask) {
        case tag_op: {
            auto* op = reinterpret_cast<IoOp*>(pointer);
            in_flight_--;
            stats.completed.increment();
            if (ENGINE_UNLIKELY(op->traced)) stamp_reaped(op, reaping_ns_);
            op->done(op, cqe.res);
            break;
        }
        case tag_fd:
            complete_fd(reinterpret_cast<FdHandler*>(pointer), cqe.res);
            break;
        case tag_wake:
            arm_wake();
            break;
        default:
            break;
    }
}

void UringBackend::wait(int64_t timeout_ns) noexcept {
    note_submitting();
    stats.system_calls.increment();
    if (io_uring_sq_ready(&ring_) != 0) stats.submit_batches.increment();
    if (timeout_ns < 0) {
        io_uring_submit_and_wait(&ring_, 1);
        return;
    }
    __kernel_timespec timeout{timeout_ns / 1000000000, timeout_ns % 1000000000};
    io_uring_cqe* cqe = nullptr;
    io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
}

void UringBackend::wake() noexcept {
    uint64_t one = 1;
    while (write(event_fd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void UringBackend::arm_wake() noexcept {
    io_uring_sqe* sqe = get_sqe();
    io_uring_prep_read(sqe, event_fd_, &event_value_, sizeof event_value_, 0);
    sqe->user_data = tag_wake;
}

int UringBackend::add_fd(FdHandler* handler) noexcept {
    watched_.push_back(handler);
    arm_fd(handler);
    return 0;
}

// One shot, armed again after its callback: level-triggered for the user.
void UringBackend::arm_fd(FdHandler* handler) noexcept {
    io_uring_sqe* sqe = get_sqe();
    io_uring_prep_poll_add(sqe, handler->fd, handler->events);
    sqe->user_data = reinterpret_cast<uint64_t>(handler) | tag_fd;
    handler->armed = true;
}

void UringBackend::complete_fd(FdHandler* handler, int result) noexcept {
    handler->armed = false;
    if (handler->removed) {
        handler->unlink();
        handler->released(handler);
        return;
    }
    stats.fd_events.increment();
    // A descriptor that cannot be polled reports an error to its handler once, and is not watched any longer.
    handler->in_callback = true;
    handler->ready(handler, result < 0 ? static_cast<uint32_t>(POLLERR) : static_cast<uint32_t>(result));
    handler->in_callback = false;
    if (handler->removed) {
        handler->released(handler);
    } else if (result >= 0) {
        arm_fd(handler);
    }
}

void UringBackend::remove_fd(FdHandler* handler) noexcept {
    handler->removed = true;
    handler->unlink();
    if (!handler->armed) {
        if (!handler->in_callback) handler->released(handler);  // else complete_fd is on the stack and will
        return;
    }
    removed_.push_back(handler);
    // A thread that closes a context which another one drove cannot submit: then the ring's end releases it.
    if (io_uring_sq_space_left(&ring_) == 0) submit();
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return;
    io_uring_prep_poll_remove(sqe, reinterpret_cast<uint64_t>(handler) | tag_fd);
    sqe->user_data = tag_none;
}

void UringBackend::forget_fds() noexcept {
    while (FdHandler* handler = watched_.front()) handler->unlink();
}

}  // namespace

int make_uring_backend(const BackendChoice& choice, std::unique_ptr<Backend>* out, char (&reason)[160],
                       engine_error* error, AioContext* context) {
    auto backend = std::make_unique<UringBackend>(context);
    int result = backend->open(choice, reason, error);
    if (result == 0) *out = std::move(backend);
    return result;
}

}  // namespace engine::aio
