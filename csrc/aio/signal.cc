// Signals: a futex, or an eventfd where the waiter looks at other descriptors as well.
#include "aio/signal.hh"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "aio/caller.hh"
#include "base/clock.hh"

namespace engine::aio {

namespace {

thread_local Waiter* waiter_here = nullptr;

long futex(base::Atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) noexcept {
    static_assert(sizeof(base::Atomic<uint32_t>) == sizeof(uint32_t));
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, timeout, nullptr, 0);
}

}  // namespace

Waiter*& Waiter::here() noexcept {
    return waiter_here;
}

// After the exchange nothing of the object is touched but its address, which the kernel only compares.
void Signal::set() noexcept {
    uint32_t before = state_.exchange_acq_rel(done);
    if (before == asleep) futex(&state_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr);
    if (before < first_fd) return;
    uint64_t one = 1;
    while (write(static_cast<int>(before - first_fd), &one, sizeof one) < 0 && errno == EINTR) {
    }
}

bool Signal::announce(int event_fd) noexcept {
    uint32_t expected = fresh;
    while (!state_.compare_exchange_acq_rel(expected, first_fd + static_cast<uint32_t>(event_fd))) {
        if (expected == done) return false;
    }
    return true;
}

bool Signal::withdraw(int event_fd) noexcept {
    uint32_t expected = first_fd + static_cast<uint32_t>(event_fd);
    while (!state_.compare_exchange_acq_rel(expected, fresh)) {
        if (expected == done) return false;
    }
    return true;
}

bool Signal::wait_for(uint64_t timeout_ns) noexcept {
    if (Waiter* waiter = Waiter::here(); waiter != nullptr) return waiter->wait(*this, timeout_ns);
    uint64_t end_ns;
    if (__builtin_add_overflow(base::monotonic_ns(), timeout_ns, &end_ns)) end_ns = UINT64_MAX;
    for (;;) {
        uint32_t expected = fresh;
        if (is_set()) return true;
        if (!state_.compare_exchange_acq_rel(expected, asleep) && expected == done) return true;
        uint64_t now_ns = base::monotonic_ns();
        if (now_ns >= end_ns) return is_set();
        // Nobody sleeps in silence for a context that its caller has left alone. Who waits in short pieces
        // sees to that himself.
        uint64_t limit_ns = stall_limit_ns.load_relaxed();
        uint64_t left_ns = std::min(end_ns - now_ns, limit_ns);
        timespec timeout{static_cast<time_t>(left_ns / 1000000000), static_cast<long>(left_ns % 1000000000)};
        bool over = futex(&state_, FUTEX_WAIT_PRIVATE, asleep, &timeout) < 0 && errno == ETIMEDOUT;
        if (over && left_ns == limit_ns) name_stalled();
    }
}

}  // namespace engine::aio
