// A short mutex with a profile, which is written under the mutex itself and may be read by any thread.
#pragma once

#include <mutex>

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
            mutex_.lock();
            uint64_t end = now_ns();
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

    // Before its first use.
    void enable_profile() { profile_.enable(); }
    uint64_t acquisitions() const noexcept { return profile_.acquisitions(); }
    uint64_t contended() const noexcept { return profile_.contended(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        profile_.add_to(wait, hold);
    }

  private:
    std::mutex mutex_;
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
