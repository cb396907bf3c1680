// Timers of one context: an intrusive 4-ary heap on deadlines. Home thread only; no allocation once the heap
// has grown to the number of timers armed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/timer.hh"

namespace engine::aio {

using Timer = base::Timer;

class TimerHeap {
  public:
    bool empty() const noexcept { return heap_.empty(); }
    size_t size() const noexcept { return heap_.size(); }
    uint64_t next_deadline_ns() const noexcept { return heap_.empty() ? UINT64_MAX : heap_[0]->deadline_ns; }

    // Arms, or moves the deadline of an armed one.
    void arm(Timer* timer, uint64_t deadline_ns);
    // True when it was armed.
    bool cancel(Timer* timer) noexcept;
    // Disarms them all.
    void abandon_all();
    // Fires what is due at `now_ns`; at most `most`, so that a timer which arms itself anew cannot hold the
    // turn.
    unsigned run_due(uint64_t now_ns, unsigned most);

  private:
    void place(Timer* timer, size_t index) noexcept {
        heap_[index] = timer;
        timer->index = static_cast<uint32_t>(index);
    }
    void sift_up(Timer* timer, size_t index) noexcept;
    void sift_down(Timer* timer, size_t index) noexcept;
    void remove_at(size_t index) noexcept;

    std::vector<Timer*> heap_;
};

}  // namespace engine::aio
