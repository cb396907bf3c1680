// A short mutex with a profile: acquisitions and contended ones are counted always, histograms of wait and
// hold when profiling is on. The figures are written under the mutex itself and may be read by any thread.
#pragma once

#include <memory>
#include <mutex>

#include "base/clock.hh"
#include "base/histogram.hh"

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
            contended_.increment();
            wait_total_ns_.add(waited);
        }
        acquisitions_.increment();
        if (profile_ != nullptr) {
            profile_->wait.record(waited);
            locked_at_ns_ = now_ns();
        }
        return waited;
    }
    // Returns the nanoseconds held: 0 unless profiling is on.
    uint64_t unlock() noexcept ENGINE_RELEASE() ENGINE_NO_THREAD_SAFETY_ANALYSIS {
        uint64_t held = 0;
        if (profile_ != nullptr) {
            held = now_ns() - locked_at_ns_;
            profile_->hold.record(held);
        }
        mutex_.unlock();
        return held;
    }

    // Before its first use.
    void enable_profile() { profile_ = std::make_unique<Profile>(); }
    uint64_t acquisitions() const noexcept { return acquisitions_.get(); }
    uint64_t contended() const noexcept { return contended_.get(); }
    void read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
        if (profile_ == nullptr) return;
        profile_->wait.add_to(wait);
        profile_->hold.add_to(hold);
    }

  private:
    struct Profile {
        Histogram wait, hold;
    };
    std::mutex mutex_;
    Counter acquisitions_, contended_, wait_total_ns_;
    std::unique_ptr<Profile> profile_;
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
