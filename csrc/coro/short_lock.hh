// Holds a short mutex and has the executor count it, so that suspending with one held aborts; of one with a
// rank the chain knows as well. Home thread only.
#pragma once

#include "base/mutex.hh"
#include "coro/executor.hh"
#include "coro/lock_chain.hh"

namespace engine::coro {

class ENGINE_SCOPED_CAPABILITY ShortLock {
  public:
    ShortLock(Executor& executor, base::Mutex& mutex) noexcept ENGINE_ACQUIRE(mutex)
        : executor_(executor), mutex_(mutex) {
        mutex_.lock();
        executor_.short_lock_taken();
    }
    // `reqs`: the label outlives the lock.
    ShortLock(LockChain& chain, base::Mutex& mutex, const LockLabel& label) noexcept ENGINE_ACQUIRE(mutex)
        : executor_(chain.executor()),
          mutex_(mutex),
          entry_(LockChain::Request(chain, &mutex, label).granted()) {
        mutex_.lock();
        executor_.short_lock_taken();
    }
    ~ShortLock() ENGINE_RELEASE() {
        executor_.short_lock_released();
        mutex_.unlock();
    }
    ShortLock(const ShortLock&) = delete;
    ShortLock& operator=(const ShortLock&) = delete;

  private:
    Executor& executor_;
    base::Mutex& mutex_;
    [[no_unique_address]] LockChain::Entry entry_;
};

}  // namespace engine::coro
