// A short mutex with a profile, which is written under the mutex itself and may be read by any thread.
#pragma once

#include <time.h>

#include <mutex>

#include "base/atomic.hh"
#include "base/clock.hh"
#include "base/lock_profile.hh"

#if defined(__clang__)
#define ENGINE_CAPABILITY(x) __attribute__((capability(x)))
#define ENGINE_SCOPED_CAPABILITY __attribute__((scoped_lockable))
#define ENGINE_GUARDED_BY(x) __attribute__((guarded_by(x)))
#define ENGINE_REQUIRES(...) __attribute__((requires_capability(__VA_ARGS__)))
#define ENGINE_EXCLUDES(...) __attribute__((locks_excluded(__VA_ARGS__)))
#define ENGINE_ACQUIRE(...) __attribute__((acquire_capability(__VA_ARGS__)))
#define ENGINE_RELEASE(...) __attribute__((release_capability(__VA_ARGS__)))
#define ENGINE_NO_THREAD_SAFETY_ANALYSIS __attribute__((no_thread_safety_analysis))
#else
#define ENGINE_CAPABILITY(x)
#define ENGINE_SCOPED_CAPABILITY
#define ENGINE_GUARDED_BY(x)
#define ENGINE_REQUIRES(...)
#define ENGINE_EXCLUDES(...)
#define ENGINE_ACQUIRE(...)
#define ENGINE_RELEASE(...)
#define ENGINE_NO_THREAD_SAFETY_ANALYSIS
#endif

namespace engine::base {

class ENGINE_CAPABILITY("mutex") Mutex {
  public:
    // Returns the nanoseconds waited: 0 when it was free.
    uint64_t lock() noexcept ENGINE_ACQUIRE() ENGINE_NO_THREAD_SAFETY_ANALYSIS {
        uint64_t waited = 0;
        if (!mutex_.try_lock()) {
            uint64_t start = now_ns();
            uint64_t nobody = 0;
            waiters_.fetch_add_acq_rel(1);
            waiting_since_ns_.compare_exchange_acq_rel(nobody, start);
            mutex_.lock();
            uint64_t end = now_ns();
            waiting_since_ns_.store_relaxed(waiters_.fetch_sub_acq_rel(1) > 1 ? end : 0);
            waited = end > start ? end - start : 1;
        }
        profile_.acquired(waited);
        if (profile_.enabled()) locked_at_ns_ = now_ns();
        return waited;
    }
    // Returns the nanoseconds held: 0 unless profiling is on.
    uint64_t unlock() noexcept ENGINE_RELEASE() ENGINE_NO_THREAD_SAFETY_ANALYSIS {
        uint64_t held = 0;
        if (profile_.enabled()) {
            held = now_ns() - locked_at_ns_;
            profile_.released(held);
        }
        mutex_.unlock();
        return held;
    }

    // For who takes it over and over, between unlock() and lock(): an ordinary mutex goes to whoever comes
    // first, and a thread that must be woken never does. Past a millisecond somebody else has his turn.
    void give_way() noexcept {
        uint64_t since = waiting_since_ns_.load_relaxed();
        if (since == 0 || now_ns() < since + patience_ns) return;
        for (timespec pause{0, 20000}; waiting_since_ns_.load_relaxed() == since;) nanosleep(&pause, nullptr);
    }

    // Before its first use.
    void enable_profile() { profile_.enable(); }
    uint64_t acquisitions() const noexcept { return profile_.acquisitions(); }
    uint64_t contended() const noexcept { return profile_.contended(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        profile_.add_to(wait, hold);
    }

  private:
    static constexpr uint64_t patience_ns = 1'000'000;
    std::mutex mutex_;
    Atomic<uint32_t> waiters_{0};
    Atomic<uint64_t> waiting_since_ns_{
        0};  // of those who wait, since the last of them had it; 0: nobody waits
    LockProfile profile_;
    uint64_t locked_at_ns_ = 0;
};

class ENGINE_SCOPED_CAPABILITY Guard {
  public:
    explicit Guard(Mutex& mutex) noexcept ENGINE_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
    ~Guard() ENGINE_RELEASE() { mutex_.unlock(); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

  private:
    Mutex& mutex_;
};

}  // namespace engine::base
