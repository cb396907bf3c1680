// What a thread blocks on until another has done something for it. One waits, another sets it, once.
#pragma once

#include <cstdint>

#include "base/atomic.hh"

namespace engine::aio {

class Signal;

// How a thread waits that drives contexts itself: it goes on driving them meanwhile, since what it waits for
// may need them. There is one for each such thread.
class Waiter {
  public:
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    // True once it is set; false when the time is over.
    virtual bool wait(Signal& signal, uint64_t timeout_ns) noexcept = 0;
    // Of this thread. Null: it drives nothing, and just sleeps.
    static Waiter*& here() noexcept;

  protected:
    Waiter() noexcept = default;
    ~Waiter() = default;
};

class Signal {
  public:
    // Any thread. The waiter may destroy the object as soon as it has returned.
    void set() noexcept;
    void wait() noexcept { wait_for(UINT64_MAX); }
    // False: the time was over first. UINT64_MAX: no limit.
    bool wait_for(uint64_t timeout_ns) noexcept;
    bool is_set() const noexcept { return state_.load_acquire() == done; }

    // --- for a Waiter
    // set() will write to this eventfd, once. False: it is set already, and nothing is written.
    bool announce(int event_fd) noexcept;
    // Takes that back. False: it has been set, and the write is on its way.
    bool withdraw(int event_fd) noexcept;

  private:
    static constexpr uint32_t fresh = 0, asleep = 1, done = 2, first_fd = 4;  // first_fd + n: eventfd n
    base::Atomic<uint32_t> state_{fresh};
};

}  // namespace engine::aio
