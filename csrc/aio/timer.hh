// Timers of one context: an intrusive 4-ary heap on deadlines. Home thread only; no allocation once the heap
// has grown to the number of timers armed, and never for a timer that has a place reserved.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/alloc.hh"

#include "base/timer.hh"

namespace engine::aio {

using Timer = base::Timer;

class TimerHeap {
  public:
    bool empty() const noexcept { return size_ == 0; }
    size_t size() const noexcept { return size_; }
    uint64_t next_deadline_ns() const noexcept { return empty() ? UINT64_MAX : heap_[0]->deadline_ns; }

    // Arms, or moves the deadline of an armed one. -ENOMEM, and then it is as it was: not for one that is
    // armed or has a place reserved.
    [[nodiscard]] int arm(Timer* timer, uint64_t deadline_ns) noexcept;
    // For what arms a timer where nothing may fail: keeps a place for it until unreserve(). 0 or -ENOMEM.
    [[nodiscard]] int reserve(Timer* timer) noexcept;
    void unreserve(Timer* timer) noexcept;
    void arm_reserved(Timer* timer, uint64_t deadline_ns) noexcept;
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
    void insert(Timer* timer, uint64_t deadline_ns) noexcept;
    int make_room() noexcept;

    base::Owner<Timer*[]> heap_;
    size_t size_ = 0;
    // At least `reserved_` + `loose_`.
    size_t capacity_ = 0;
    size_t reserved_ = 0;  // places kept
    size_t loose_ = 0;     // armed without a place of their own
};

}  // namespace engine::aio
