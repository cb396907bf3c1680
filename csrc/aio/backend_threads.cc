// The threads backend: epoll for descriptors and wake-ups, reads from the page cache inline, everything that
// may sleep on the offload pool. Home thread only, but for wake(), which writes an eventfd.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <new>
#include <vector>

#include "aio/backend.hh"
#include "aio/context.hh"
#include "aio/offload.hh"
#include "base/error.hh"

namespace engine::aio {

namespace {

template <class F>
int64_t repeat_interrupted(F&& call) noexcept {
    for (;;) {
        int64_t result = call();
        if (result >= 0) return result;
        if (errno != EINTR) return -errno;
    }
}

// On a pool thread.
int64_t call_read(IoOp* op) {
    return repeat_interrupted([op] {
        return preadv2(op->fd, op->iov, static_cast<int>(op->iov_count), static_cast<off_t>(op->offset),
                       op->flags);
    });
}

int64_t call_write(IoOp* op) {
    return repeat_interrupted([op] {
        return pwritev2(op->fd, op->iov, static_cast<int>(op->iov_count), static_cast<off_t>(op->offset),
                        op->flags);
    });
}

int64_t call_fdatasync(IoOp* op) {
    return repeat_interrupted([op] { return fdatasync(op->fd); });
}

int64_t call_fallocate(IoOp* op) {
    return repeat_interrupted([op] {
        return fallocate(op->fd, op->flags, static_cast<off_t>(op->offset), static_cast<off_t>(op->length));
    });
}

// File systems that cannot read without waiting (tmpfs), by descriptor. Descriptors are reused for other
// files, so the answer is asked for again from time to time.
class RefusalTable {
  public:
    bool worth_trying(int fd) noexcept {
        Entry& entry = entries_[index(fd)];
        if (entry.fd != fd || entry.skip == 0) return true;
        entry.skip--;
        return false;
    }
    void refused(int fd) noexcept { entries_[index(fd)] = {fd, skips}; }

  private:
    static constexpr uint32_t skips = 4096;
    struct Entry {
        int fd = -1;
        uint32_t skip = 0;
    };
    static size_t index(int fd) noexcept { return static_cast<unsigned>(fd) % 32; }
    std::array<Entry, 32> entries_;
};

class ThreadsBackend final : public Backend {
  public:
    explicit ThreadsBackend(AioContext& context) noexcept : offload_(&context) {}
    ~ThreadsBackend() override;
    int open(engine_error* error);

    engine_backend_kind kind() const noexcept override { return ENGINE_BACKEND_THREADS; }
    void queue(IoOp* op) noexcept override;
    void submit() noexcept override;
    bool has_completions() const noexcept override;
    void reap() noexcept override;
    void wait(int64_t timeout_ns) noexcept override;
    void wake() noexcept override;
    int enter_thread(engine_error*) noexcept override { return 0; }  // any thread will do
    int pollable_fd() const noexcept override { return epoll_fd_; }
    int add_fd(FdHandler* handler) noexcept override;
    void remove_fd(FdHandler* handler) noexcept override;
    void forget_fds() noexcept override {}  // epoll alone knows them, and it is not asked any more

  private:
    static constexpr unsigned events_max = 64;
    // A context that is never idle looks at its descriptors after so many operations: a turn counts for a
    // few.
    static constexpr unsigned work_between_looks = 64;
    static constexpr unsigned turn_work = 4;

    // epoll knows a descriptor once; a second handler for it watches a duplicate.
    struct Duplicate {
        FdHandler* handler;
        int fd;
    };

    bool read_at_once(IoOp* op, bool* sleeps) noexcept;
    void look_at_fds(int64_t timeout_ns) noexcept;
    int wait_in_kernel(int64_t timeout_ns) noexcept;
    void run_fd_handlers() noexcept;
    int watch(int fd, FdHandler* handler) noexcept;

    base::Queue<Message> queued_;
    base::Queue<Message> done_;  // finished inside submit(): reap() tells
    RefusalTable refusals_;
    int epoll_fd_ = -1;
    int event_fd_ = -1;
    bool has_pwait2_ = true;
    std::array<epoll_event, events_max> events_;
    unsigned event_count_ = 0;
    unsigned fd_count_ = 0;
    unsigned work_since_look_ = 0;
    std::vector<Duplicate> duplicates_;
    OffloadPool offload_;
};

int ThreadsBackend::open(engine_error* error) {
    const base::Where where{.operation = "epoll_create", .field = "backend"};
    if (offload_.open() != 0) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where, "threads backend: out of memory");
    }
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd_ < 0)
        return base::fail_os(error, errno, where, "threads backend: cannot make an epoll descriptor");
    event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0) return base::fail_os(error, errno, where, "threads backend: cannot make an eventfd");
    // Edge-triggered: each write is an event of its own, and nobody needs to read the counter.
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, event_fd_, &event) != 0) {
        return base::fail_os(error, errno, where, "threads backend: cannot watch its eventfd");
    }
    return 0;
}

ThreadsBackend::~ThreadsBackend() {
    offload_.stop();
    for (const Duplicate& duplicate : duplicates_) close(duplicate.fd);
    if (epoll_fd_ >= 0) close(epoll_fd_);
    if (event_fd_ >= 0) close(event_fd_);
}

void ThreadsBackend::queue(IoOp* op) noexcept {
    stats.submitted.increment();
    note_queued(op);
    queued_.push(op);
}

// True: it is done, its result is in the operation. `sleeps`: it would have had to wait for the device.
bool ThreadsBackend::read_at_once(IoOp* op, bool* sleeps) noexcept {
    if (op->kind != IoKind::read || op->direct || !refusals_.worth_trying(op->fd)) return false;
    stats.system_calls.increment();
    ssize_t result = preadv2(op->fd, op->iov, static_cast<int>(op->iov_count), static_cast<off_t>(op->offset),
                             op->flags | RWF_NOWAIT);
    if (result >= 0) {
        op->result = result;
        return true;
    }
    switch (errno) {
        case EOPNOTSUPP:
            refusals_.refused(op->fd);
            return false;
        case EAGAIN:
            *sleeps = true;
            return false;
        case EINTR:
            return false;
        default:
            op->result = -errno;
            return true;
    }
}

void ThreadsBackend::submit() noexcept {
    if (queued_.empty()) return;
    note_submitting();
    stats.submit_batches.increment();
    base::Queue<Message> unknown, slow;
    uint64_t offloaded = 0;
    while (Message* message = queued_.pop()) {
        auto* op = static_cast<IoOp*>(message);
        bool sleeps = false;
        if (read_at_once(op, &sleeps)) {
            done_.push(op);
            continue;
        }
        switch (op->kind) {
            case IoKind::read:
                op->call = call_read;
                break;
            case IoKind::write:
                op->call = call_write;
                break;
            case IoKind::fdatasync:
                op->call = call_fdatasync;
                break;
            case IoKind::fallocate:
                op->call = call_fallocate;
                break;
            case IoKind::call:
                break;
        }
        (sleeps ? slow : unknown).push(op);
        offloaded++;
    }
    if (offloaded == 0) return;
    stats.offloaded.add(offloaded);
    offload_.run_all(&unknown, &slow);
}

// What is queued counts: submitting it is cheap, and most of it is done at once.
bool ThreadsBackend::has_completions() const noexcept {
    return !done_.empty() || !queued_.empty() || event_count_ != 0;
}

void ThreadsBackend::reap() noexcept {
    submit();
    work_since_look_ += turn_work;
    if (fd_count_ != 0 && event_count_ == 0 && work_since_look_ >= work_between_looks) look_at_fds(0);
    run_fd_handlers();
    Message* done = done_.take_all();
    uint64_t now_ns = reaping_ns();
    while (done != nullptr) {
        auto* op = static_cast<IoOp*>(done);
        done = done->next;  // op->done may free the operation
        stats.completed.increment();
        work_since_look_++;
        if (ENGINE_UNLIKELY(op->traced)) stamp_reaped(op, now_ns);
        op->done(op, op->result);
    }
}

void ThreadsBackend::wait(int64_t timeout_ns) noexcept {
    submit();
    if (done_.empty()) look_at_fds(timeout_ns);
}

int ThreadsBackend::wait_in_kernel(int64_t timeout_ns) noexcept {
    stats.system_calls.increment();
    if (has_pwait2_) {
        timespec timeout{timeout_ns / 1000000000, timeout_ns % 1000000000};
        long count = syscall(SYS_epoll_pwait2, epoll_fd_, events_.data(), events_max,
                             timeout_ns < 0 ? nullptr : &timeout, nullptr, 0);
        if (count >= 0) return static_cast<int>(count);
        if (errno != ENOSYS && errno != EPERM) return 0;  // interrupted
        has_pwait2_ = false;                              // before Linux 5.11, or filtered
        stats.system_calls.increment();
    }
    int64_t timeout_ms = timeout_ns < 0 ? -1 : std::min<int64_t>((timeout_ns + 999999) / 1000000, INT_MAX);
    int count = epoll_wait(epoll_fd_, events_.data(), events_max, static_cast<int>(timeout_ms));
    return std::max(count, 0);
}

void ThreadsBackend::look_at_fds(int64_t timeout_ns) noexcept {
    work_since_look_ = 0;
    int count = wait_in_kernel(timeout_ns);
    event_count_ = 0;
    for (int i = 0; i < count; i++) {
        if (events_[i].data.ptr != nullptr) events_[event_count_++] = events_[i];  // null: a wake-up
    }
}

void ThreadsBackend::run_fd_handlers() noexcept {
    for (unsigned i = 0; i < event_count_; i++) {
        auto* handler = static_cast<FdHandler*>(events_[i].data.ptr);
        if (handler == nullptr) continue;  // removed meanwhile
        events_[i].data.ptr = nullptr;
        stats.fd_events.increment();
        handler->in_callback = true;
        handler->ready(handler, events_[i].events);
        handler->in_callback = false;
        if (handler->removed) handler->released(handler);
    }
    event_count_ = 0;
}

int ThreadsBackend::watch(int fd, FdHandler* handler) noexcept {
    static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR && EPOLLHUP == POLLHUP);
    epoll_event event{};
    event.events = handler->events;
    event.data.ptr = handler;
    return epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

int ThreadsBackend::add_fd(FdHandler* handler) noexcept {
    int result = watch(handler->fd, handler);
    if (result == -EEXIST) {
        try {
            duplicates_.reserve(duplicates_.size() + 1);
        } catch (const std::bad_alloc&) {
            return -ENOMEM;
        }
        int duplicate = fcntl(handler->fd, F_DUPFD_CLOEXEC, 0);
        if (duplicate < 0) return -errno;
        result = watch(duplicate, handler);
        if (result == 0) {
            duplicates_.push_back({handler, duplicate});
        } else {
            close(duplicate);
        }
    }
    if (result == 0) fd_count_++;
    return result;
}

void ThreadsBackend::remove_fd(FdHandler* handler) noexcept {
    handler->removed = true;
    for (unsigned i = 0; i < event_count_; i++) {
        if (events_[i].data.ptr == handler) events_[i].data.ptr = nullptr;
    }
    auto own = std::find_if(duplicates_.begin(), duplicates_.end(),
                            [handler](const Duplicate& duplicate) { return duplicate.handler == handler; });
    if (own != duplicates_.end()) {
        epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, own->fd, nullptr);
        close(own->fd);
        duplicates_.erase(own);
    } else {
        epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, handler->fd, nullptr);
    }
    fd_count_--;
    if (!handler->in_callback) handler->released(handler);  // else run_fd_handlers is on the stack and will
}

void ThreadsBackend::wake() noexcept {
    uint64_t one = 1;
    while (write(event_fd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

}  // namespace

int make_threads_backend(AioContext& context, std::unique_ptr<Backend>* out, engine_error* error) {
    auto backend = std::make_unique<ThreadsBackend>(context);
    int result = backend->open(error);
    if (result == 0) *out = std::move(backend);
    return result;
}

}  // namespace engine::aio
