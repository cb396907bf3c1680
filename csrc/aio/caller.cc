// Driving a context from outside: one turn at a time, the descriptor that says when, waiting while driving,
// and the watchdog.
#include "aio/caller.hh"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "aio/context.hh"
#include "base/clock.hh"
#include "base/error.hh"
#include "base/log.hh"

namespace engine::aio {

base::Atomic<uint64_t> stall_limit_ns{10'000'000'000};

namespace {

// Every context that its caller drives, for the watchdog alone.
struct Registry {
    std::mutex mutex;
    base::List<CallerLoop> loops;
};
Registry& registry() noexcept {
    static Registry all;
    return all;
}

constexpr int ending_ms_max = 10;

base::Atomic<uint64_t> next_thread_number{1};
thread_local uint64_t thread_number = 0;

}  // namespace

uint64_t this_thread_number() noexcept {
    if (thread_number == 0) thread_number = next_thread_number.fetch_add_relaxed(1);
    return thread_number;
}

// --- the descriptor

int CallerLoop::open(engine_error* error) noexcept {
    const base::Where where{.operation = "create context"};
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    timer_fd_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    itimerspec due{};
    due.it_value.tv_nsec = 1;
    if (epoll_fd_ < 0 || timer_fd_ < 0 || watch(timer_fd_) != 0 ||
        timerfd_settime(timer_fd_, 0, &due, nullptr) != 0) {
        return base::fail_os(error, errno, where, "context %s: no descriptors for a caller-driven context",
                             context_->name().c_str());
    }
    driven_ns.set(base::monotonic_ns());
    std::lock_guard guard(registry().mutex);
    registry().loops.push_back(this);
    return 0;
}

CallerLoop::~CallerLoop() {
    {
        std::lock_guard guard(registry().mutex);
        unlink();
    }
    if (epoll_fd_ >= 0) close(epoll_fd_);
    if (timer_fd_ >= 0) close(timer_fd_);
}

int CallerLoop::watch(int backend_fd) noexcept {
    epoll_event event{};
    event.events = EPOLLIN;
    return epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, backend_fd, &event) == 0 ? 0 : -errno;
}

int CallerLoop::fd() noexcept {
    wanted_.store_release(1);
    return epoll_fd_;
}

// Set anew each time, and relative: two clocks that differ by a hair must not make a loop spin.
void CallerLoop::rest(uint64_t deadline_ns, uint64_t now_ns) noexcept {
    driven_ns.set(base::monotonic_ns());
    if (wanted_.load_acquire() == 0) return;
    bool kept = deadline_ns == 0 || deadline_ns == UINT64_MAX;
    if (kept && deadline_ns == resting_until_ns_) return;
    resting_until_ns_ = deadline_ns;
    itimerspec timer{};
    if (deadline_ns != UINT64_MAX) {
        uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 1;
        timer.it_value.tv_sec = static_cast<time_t>(left_ns / 1000000000);
        timer.it_value.tv_nsec = static_cast<long>(left_ns % 1000000000);
    }
    timerfd_settime(timer_fd_, 0, &timer, nullptr);
}

bool CallerLoop::run() noexcept {
    AioContext* context = nullptr;
    {
        std::lock_guard guard(driving);
        context = context_;
    }
    // The driver is here; who wants to close the context meanwhile waits until it has been told.
    return context != nullptr && context->run_once(0, nullptr) != -ESHUTDOWN;
}

void CallerLoop::retire() noexcept {
    std::lock_guard guard(registry().mutex);
    unlink();
    context_ = nullptr;
}

// --- the watchdog

void name_stalled() noexcept {
    uint64_t limit_ns = stall_limit_ns.load_relaxed();
    uint64_t now_ns = base::monotonic_ns();
    std::lock_guard guard(registry().mutex);
    registry().loops.for_each([&](CallerLoop* loop) {
        uint64_t since_ns = loop->driven_ns.get();
        if (now_ns < since_ns + limit_ns || !loop->context_->has_messages()) return;
        char text[256];
        snprintf(
            text, sizeof text,
            "context %s has left its messages alone for %.1f s, and a blocking call waits: its caller must "
            "go on calling run_once (thread %d)",
            loop->context_->name().c_str(), static_cast<double>(now_ns - since_ns) / 1e9,
            loop->driver_tid.load_relaxed());
        // To somebody in any case: a program that hangs in silence is worse than a line on standard error.
        if (!base::log(ENGINE_LOG_WARNING, "%s", text)) fprintf(stderr, "engine: %s\n", text);
    });
}

// --- a thread that drives contexts

namespace {

// Its destructor runs when the thread ends.
struct DriverHere {
    std::unique_ptr<ThreadDriver> driver;
};
thread_local DriverHere driver_here;

}  // namespace

ThreadDriver* ThreadDriver::here() noexcept {
    if (driver_here.driver == nullptr) {
        if (Waiter::here() != nullptr) return nullptr;  // a simulator has this thread
        std::unique_ptr<ThreadDriver> made(new (std::nothrow) ThreadDriver);
        if (made == nullptr || made->open() != 0) return nullptr;
        driver_here.driver = std::move(made);
        Waiter::here() = driver_here.driver.get();
    }
    return driver_here.driver.get();
}

int ThreadDriver::open() noexcept {
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    event_fd_ = eventfd(0, EFD_CLOEXEC);
    epoll_event event{};
    event.events = EPOLLIN;
    if (epoll_fd_ < 0 || event_fd_ < 0) return -errno;
    return epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, event_fd_, &event) == 0 ? 0 : -errno;
}

ThreadDriver::~ThreadDriver() {
    for (Entry& entry : entries_) entry.loop->abandon();
    if (Waiter::here() == this) Waiter::here() = nullptr;
    if (epoll_fd_ >= 0) close(epoll_fd_);
    if (event_fd_ >= 0) close(event_fd_);
}

void ThreadDriver::forget_closed() noexcept {
    std::erase_if(entries_, [](const Entry& entry) {
        return entry.loop->closing.load_acquire() != 0 || !entry.loop->driven_here();
    });
}

int ThreadDriver::add(const std::shared_ptr<CallerLoop>& loop) noexcept {
    try {
        entries_.push_back({loop, false});
        return 0;
    } catch (const std::bad_alloc&) {
        return -ENOMEM;
    }
}

void ThreadDriver::watch_all() noexcept {
    for (Entry& entry : entries_) {
        if (entry.watched) continue;
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = entry.loop.get();
        entry.watched = epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, entry.loop->fd(), &event) == 0;
    }
}

// Waits until there is something to do, and does it. True: the signal has been given.
bool ThreadDriver::run_ready(int timeout_ms) noexcept {
    constexpr int events_max = 16;
    epoll_event events[events_max];
    int count = epoll_wait(epoll_fd_, events, events_max, timeout_ms);
    bool given = false;
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == nullptr) {
            uint64_t value = 0;
            given = read(event_fd_, &value, sizeof value) == sizeof value;
            continue;
        }
        auto* loop = static_cast<CallerLoop*>(events[i].data.ptr);
        if (!loop->run()) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, loop->fd(), nullptr);
    }
    return given;
}

bool ThreadDriver::wait(Signal& signal, uint64_t timeout_ns) noexcept {
    if (!signal.announce(event_fd_)) return true;
    forget_closed();
    watch_all();
    uint64_t end_ns;
    if (__builtin_add_overflow(base::monotonic_ns(), timeout_ns, &end_ns)) end_ns = UINT64_MAX;
    for (;;) {
        uint64_t now_ns = base::monotonic_ns();
        if (now_ns >= end_ns) {
            if (signal.withdraw(event_fd_)) return false;
            end_ns = UINT64_MAX;  // it was given at the last moment: its write is about to come
        }
        uint64_t left_ns = std::min(end_ns - now_ns, stall_limit_ns.load_relaxed());
        if (run_ready(static_cast<int>((left_ns + 999999) / 1000000))) return true;
        if (base::monotonic_ns() >= now_ns + stall_limit_ns.load_relaxed()) name_stalled();
    }
}

// --- of the context

int AioContext::check_driver(engine_error* error) {
    base::Where where{.operation = "run context"};
    if (caller_ == nullptr) {
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL, where, "context %s was not made as caller-driven: %s",
            name().c_str(),
            config_.simulator != nullptr ? "the simulator drives it" : "it has a thread of its own");
    }
    if (AioContext* here = current(); here != nullptr) {
        return base::fail(error, ENGINE_ERROR_INVALID, EDEADLK, where,
                          "context %s cannot be run from inside a callback of context %s", name().c_str(),
                          here->name().c_str());
    }
    if (!mark_.same_process()) {
        return base::fail(error, ENGINE_ERROR_CLOSED, EBADF, where,
                          "context %s belongs to the parent of this process: make a new engine after fork()",
                          name().c_str());
    }
    auto taken = [this] {
        return caller_->driver.load_acquire() != 0 && !caller_->driven_here() && !caller_->orphaned();
    };
    // A thread of a language's own may count as joined a moment before it ends.
    for (int tries = 0; taken() && tries < ending_ms_max; tries++) {
        constexpr timespec millisecond{0, 1'000'000};
        nanosleep(&millisecond, nullptr);
    }
    if (taken()) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, where,
                          "context %s is driven by thread %d, which ran it first: run it there",
                          name().c_str(), caller_->driver_tid.load_relaxed());
    }
    return 0;
}

// With `driving`. The first call fixes the thread; when that has ended another may take its place.
int AioContext::become_driver(engine_error* error) {
    base::Where where{.operation = "run context"};
    ThreadDriver* thread = ThreadDriver::here();
    if (thread == nullptr || thread->add(caller_) != 0) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where,
                          "context %s: no memory or descriptors to drive it on this thread", name().c_str());
    }
    bind_to_this_thread();
    int result = backend_->enter_thread(error);
    if (result != 0) return result;
    result = caller_->watch(backend_->pollable_fd());
    if (result != 0 && result != -EEXIST) {
        return base::fail_os(error, -result, where, "context %s: its descriptor cannot be watched",
                             name().c_str());
    }
    tid_.store_relaxed(static_cast<int32_t>(syscall(SYS_gettid)));
    caller_->driver_tid.store_release(tid_.load_relaxed());
    caller_->driver.store_release(this_thread_number());
    return 0;
}

int AioContext::adopt(engine_error* error) {
    if (caller_ == nullptr || caller_->driven_here() || !caller_->orphaned()) return 0;
    {
        std::lock_guard guard(caller_->driving);
        int result = become_driver(error);
        if (result != 0) return result;
    }
    // What was sent before has woken a thread that is no more.
    int result = run_once(0, error);
    return result < 0 ? result : 0;
}

// What ran since the loop began, of whatever kind.
uint64_t AioContext::work_done() const noexcept {
    return stats_.messages.get() + stats_.ready_items.get() + stats_.timers.get() +
           backend_->stats.completed.get() + backend_->stats.fd_events.get() + poll_progress_;
}

int AioContext::run_once(int64_t timeout_ns, engine_error* error) {
    int result = check_driver(error);
    if (result != 0) return result;
    std::lock_guard lock(caller_->driving);
    if (caller_->closing.load_acquire() != 0) {
        return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN, {.operation = "run context"},
                          "context %s is closed", name().c_str());
    }
    if (!caller_->driven_here()) {
        result = check_driver(error);  // another thread may have been faster
        if (result == 0) result = become_driver(error);
        if (result != 0) return result;
    }
    Home home(*this);
    uint64_t before = work_done();
    caller_->driven_ns.set(base::monotonic_ns());
    end_rest();
    uint64_t start_ns = now_ns();
    uint64_t limit_ns = UINT64_MAX;
    if (timeout_ns >= 0 && __builtin_add_overflow(start_ns, static_cast<uint64_t>(timeout_ns), &limit_ns)) {
        limit_ns = UINT64_MAX;
    }
    // Always a look into the kernel: a descriptor that the foreign loop saw ready must not go unseen.
    if (std::min(limit_ns, timers_.next_deadline_ns()) <= start_ns || has_ready() || work_in_sight()) {
        backend_->wait(0);
    } else {
        idle(limit_ns);
    }
    begin_rest(locked_turn(true));
    caller_->rest(resting_ ? timers_.next_deadline_ns() : 0, now_ns());
    return work_done() != before ? 1 : 0;
}

int AioContext::fileno() noexcept {
    if (caller_ == nullptr) return -EINVAL;
    return caller_->closing.load_acquire() != 0 ? -ESHUTDOWN : caller_->fd();
}

// Whoever closes it is its driver from here on: run_once() elsewhere answers that it is closed.
void AioContext::stop_driven() noexcept {
    if (stopping_) return;
    caller_->closing.store_release(1);
    backend_->wake();
    std::lock_guard guard(caller_->driving);
    bind_to_this_thread();
    {
        Home home(*this);
        stopping_ = true;
        wind_up();
    }
    caller_->rest(UINT64_MAX, 0);
    caller_->retire();
    backend_.reset();
}

}  // namespace engine::aio
