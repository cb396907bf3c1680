// Stands in for csrc/base/mutex.hh: a short mutex whose turns the explorer decides, and which orders memory
// as a mutex does. Found before the real one in the include path.
#pragma once

#include <cstdint>

#include "base/assert.hh"
#include "explorer.hh"

#define ENGINE_CAPABILITY(x)
#define ENGINE_SCOPED_CAPABILITY
#define ENGINE_GUARDED_BY(x)
#define ENGINE_REQUIRES(...)
#define ENGINE_EXCLUDES(...)
#define ENGINE_ACQUIRE(...)
#define ENGINE_RELEASE(...)
#define ENGINE_NO_THREAD_SAFETY_ANALYSIS

namespace engine::base {

class Mutex {
  public:
    uint64_t lock() noexcept {
        using explore::Location;
        while (word_.read_modify_write(Location::Change::exchange, 1, explore::Order::acq_rel) != 0) {
            explore::pause();
        }
        return 0;
    }
    uint64_t unlock() noexcept {
        word_.store(0, explore::Order::release);
        return 0;
    }

  private:
    explore::Location word_{0};
};

class Guard {
  public:
    explicit Guard(Mutex& mutex) noexcept : mutex_(mutex) { mutex_.lock(); }
    ~Guard() { mutex_.unlock(); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

  private:
    Mutex& mutex_;
};

}  // namespace engine::base
