// The loop. One turn: completions, due timers, inbox, ready queue, pollers; then all new operations in one
// system call (few at a time for a disk without the page cache: backend_uring.cc); then, with nothing left to
// do, busy polling within the adaptive budget, and sleep.
#include "aio/context.hh"

#include <algorithm>

#include "base/clock.hh"
#include "base/error.hh"

namespace engine::aio {

namespace {
constexpr unsigned ready_budget = 1024;  // items a turn, so that timers and I/O get their share
constexpr unsigned ready_between_looks = 64;
constexpr unsigned timer_budget = 256;
constexpr uint64_t poll_first_ns = 4000;
constexpr uint64_t poll_grow = 2;

thread_local AioContext* current_context = nullptr;
}  // namespace

AioContext* AioContext::current() noexcept {
    return current_context;
}
AioContext*& AioContext::current_slot() noexcept {
    return current_context;
}

// In the gate: the message may have run before this returns, the backend is still there.
void AioContext::push(Message* message) noexcept {
    Push pushed = inbox_.push(message);
    ENGINE_CHECK(pushed != Push::closed);
    if (pushed == Push::wake) backend_->wake();
}

bool AioContext::hold() noexcept {
    uint32_t now = users.load_acquire();
    do {
        if ((now & no_holds) != 0) return false;
    } while (!users.compare_exchange_acq_rel(now, now + 1));
    return true;
}

int64_t AioContext::forbid_holds() noexcept {
    uint32_t now = users.load_acquire();
    do {
        if ((now & no_holds) != 0) return -ESHUTDOWN;
        if (now != 0) return now;
    } while (!users.compare_exchange_acq_rel(now, no_holds));
    return 0;
}

int AioContext::arm(Timer* timer, uint64_t deadline_ns) noexcept {
    if (stopping_) return -ESHUTDOWN;
    return timers_.arm(timer, deadline_ns);
}

void AioContext::set_poll_max_ns(int64_t ns) noexcept {
    poll_max_ns_.store_relaxed(ns < 0 ? default_poll_max_ns : ns);
}

void AioContext::run() noexcept {
    while (!stopping_) {
        // Per node, an idle context lets wait() submit, which saves a system call.
        bool more = locked_turn(false);
        if (more || stopping_) continue;
        if (backend_->has_completions()) {
            backend_->submit();  // however long that goes on, what is queued must not wait for its end
        } else {
            idle(UINT64_MAX);
        }
    }
}

// True when there is work left that needs no waiting. Under the global mutex what handlers submit goes out
// while it is held, as with one big lock.
bool AioContext::locked_turn(bool submit) noexcept {
    uint64_t locked_ns = 0;
    if (config_.turn_mutex != nullptr) {
        stats_.lock_wait_ns.add(config_.turn_mutex->lock());
        stats_.lock_acquisitions.increment();
        locked_ns = now_ns();
    }
    bool more = turn(ready_budget, timer_budget);
    if (submit || more || poll_ns_ != 0 || config_.turn_mutex != nullptr) backend_->submit();
    if (config_.turn_mutex != nullptr) {
        stats_.lock_hold_ns.add(now_ns() - locked_ns);
        config_.turn_mutex->unlock();
        config_.turn_mutex->give_way();
    }
    return more;
}

// A callback may remove any poller, its own and the next one included.
template <class F>
void AioContext::for_each_poller(F&& f) noexcept {
    for (Poller* poller = pollers_.front(); poller != nullptr; poller = next_poller_) {
        next_poller_ = pollers_.after(poller);
        f(poller);
    }
}

bool AioContext::turn(unsigned ready_most, unsigned timers_most) noexcept {
    stats_.turns.increment();
    backend_->reap();
    if (!timers_.empty()) stats_.timers.add(timers_.run_due(now_ns(), timers_most));
    run_inbox();
    unsigned some = std::min(ready_most, ready_between_looks);
    unsigned ran = run_ready(some);
    if (ENGINE_UNLIKELY(ran == some)) ran += run_ready_and_inbox(ready_most - some);
    if (ran != 0) stats_.ready_items.add(ran);
    bool progress = false;
    for_each_poller([&](Poller* poller) { progress |= poller->poll(); });
    if (progress) poll_progress_++;
    return progress || has_ready();
}

// Who works through a long queue looks at the inbox now and then: others wait for an answer.
[[gnu::noinline]] unsigned AioContext::run_ready_and_inbox(unsigned most) noexcept {
    unsigned ran = 0;
    for (unsigned count, some; ran < most; ran += count) {
        if (!inbox_.empty()) run_inbox();
        some = std::min(most - ran, ready_between_looks);
        count = run_ready(some);
        if (count < some) return ran + count;
    }
    return ran;
}

void AioContext::run_inbox() noexcept {
    Message* message = inbox_.take_all();
    uint64_t taken = 0;
    while (message != nullptr) {
        Message* next = message->next;  // run may free the message
        ready(message);
        message = next;
        taken++;
    }
    if (taken != 0) stats_.messages.add(taken);
}

bool AioContext::work_in_sight() noexcept {
    if (!inbox_.empty() || backend_->has_completions()) return true;
    bool work = false;
    for_each_poller([&](Poller* poller) { work |= poller->has_work(); });
    return work;
}

bool AioContext::busy_poll(uint64_t start_ns, uint64_t deadline_ns) noexcept {
    uint64_t end_ns = start_ns + poll_ns_;
    stats_.poll_attempts.increment();
    uint64_t seen_ns;
    bool found;
    do {
        found = work_in_sight();
        seen_ns = now_ns();
        if (!found) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    } while (!found && seen_ns < end_ns && seen_ns < deadline_ns);
    stats_.poll_ns.add(seen_ns - start_ns);
    if (found || seen_ns >= deadline_ns) {
        stats_.poll_successes.increment();
        return true;
    }
    return false;
}

void AioContext::idle(uint64_t limit_ns) noexcept {
    uint64_t start_ns = now_ns();
    uint64_t deadline_ns = std::min(timers_.next_deadline_ns(), limit_ns);
    if (deadline_ns <= start_ns) {
        backend_->submit();  // a timer that is always due must not keep it waiting
        return;
    }
    int64_t poll_max_ns = poll_max_ns_.load_relaxed();
    if (ENGINE_UNLIKELY(poll_ns_ > static_cast<uint64_t>(poll_max_ns))) {  // it has been lowered
        poll_ns_ = static_cast<uint64_t>(poll_max_ns);
        stats_.poll_current_ns.set(poll_ns_);
    }
    if (poll_ns_ != 0 && busy_poll(start_ns, deadline_ns)) {
        adapt_poll(now_ns() - start_ns);
        return;
    }
    bool work = false;
    for_each_poller([&](Poller* poller) { work |= poller->prepare_sleep(); });
    if (!work && inbox_.may_sleep()) {
        uint64_t sleep_start_ns = now_ns();
        int64_t timeout_ns = -1;
        if (deadline_ns != UINT64_MAX) {
            timeout_ns =
                deadline_ns > sleep_start_ns ? static_cast<int64_t>(deadline_ns - sleep_start_ns) : 0;
        }
        stats_.sleeps.increment();
        backend_->wait(timeout_ns);
        if (inbox_.woke_up()) stats_.wakeups.increment();
        stats_.sleep_ns.add(now_ns() - sleep_start_ns);
    } else {
        backend_->submit();  // nor must a stream of messages
    }
    for_each_poller([](Poller* poller) { poller->end_sleep(); });
    if (poll_max_ns != 0) adapt_poll(now_ns() - start_ns);
}

// Between two turns that somebody else calls for it waits as it would in idle(), outside.
void AioContext::begin_rest(bool more) noexcept {
    bool work = more || backend_->has_completions();
    for_each_poller([&](Poller* poller) { work |= poller->prepare_sleep(); });
    resting_ = !work && inbox_.may_sleep();
    if (resting_) stats_.sleeps.increment();
}

void AioContext::end_rest() noexcept {
    if (resting_ && inbox_.woke_up()) stats_.wakeups.increment();
    resting_ = false;
    for_each_poller([](Poller* poller) { poller->end_sleep(); });
}

// The budget grows while waits turn out shorter than the most we may poll, and falls to nothing when they do
// not.
void AioContext::adapt_poll(uint64_t idle_ns) noexcept {
    auto most = static_cast<uint64_t>(poll_max_ns_.load_relaxed());
    if (idle_ns <= poll_ns_) return;
    if (idle_ns > most) {
        poll_ns_ = 0;
    } else if (poll_ns_ < most) {
        poll_ns_ = poll_ns_ == 0 ? poll_first_ns : poll_ns_ * poll_grow;
        if (poll_ns_ > most) poll_ns_ = most;
    }
    stats_.poll_current_ns.set(poll_ns_);
}

void AioContext::wake() noexcept {
    if (caller_ == nullptr || !enter_gate()) return;
    backend_->wake();
    leave_gate();
}

void AioContext::stop() {
    struct Stop : Message {
        AioContext* context;
    } message;
    message.context = this;
    message.run = [](Message* m) { static_cast<Stop*>(m)->context->stopping_ = true; };
    ENGINE_CHECK(!on_home());
    if (caller_ != nullptr) stop_driven();
    if (config_.simulator != nullptr) stop_simulated();
    if (!thread_.joinable()) return;
    send(&message);
    thread_.join();
    // Who comes from here on is refused, and wakes nobody. Descriptors and workers go now, not with the
    // engine.
    backend_.reset();
}

void AioContext::read_stats(engine_context_stats* out) const noexcept {
    const LoopStats& s = stats_;
    ENGINE_CHECK(backend_ != nullptr);  // a handle that was closed
    const BackendStats& b = backend_->stats;
    out->turns = s.turns.get();
    out->bottom_halves = s.bottom_halves.get();
    out->messages = s.messages.get();
    out->ready_items = s.ready_items.get();
    out->timers = s.timers.get();
    out->fd_events = b.fd_events.get();
    out->wakeups = s.wakeups.get();
    out->sleeps = s.sleeps.get();
    out->system_calls = b.system_calls.get();
    out->submitted = b.submitted.get();
    out->completed = b.completed.get();
    out->submit_batches = b.submit_batches.get();
    out->offloaded = b.offloaded.get();
    out->poll_attempts = s.poll_attempts.get();
    out->poll_successes = s.poll_successes.get();
    out->poll_ns = s.poll_ns.get();
    out->sleep_ns = s.sleep_ns.get();
    out->poll_current_ns = s.poll_current_ns.get();
    out->lock_acquisitions = s.lock_acquisitions.get();
    out->lock_wait_ns = s.lock_wait_ns.get();
    out->lock_hold_ns = s.lock_hold_ns.get();
}

}  // namespace engine::aio
