// The timer heap. Home thread only.
#include "aio/timer.hh"

#include "base/assert.hh"

namespace engine::aio {

void TimerHeap::sift_up(Timer* timer, size_t index) noexcept {
    while (index > 0) {
        size_t parent = (index - 1) / 4;
        if (heap_[parent]->deadline_ns <= timer->deadline_ns) break;
        place(heap_[parent], index);
        index = parent;
    }
    place(timer, index);
}

void TimerHeap::sift_down(Timer* timer, size_t index) noexcept {
    for (;;) {
        size_t first = index * 4 + 1;
        if (first >= heap_.size()) break;
        size_t end = first + 4 < heap_.size() ? first + 4 : heap_.size();
        size_t least = first;
        for (size_t child = first + 1; child < end; child++) {
            if (heap_[child]->deadline_ns < heap_[least]->deadline_ns) least = child;
        }
        if (heap_[least]->deadline_ns >= timer->deadline_ns) break;
        place(heap_[least], index);
        index = least;
    }
    place(timer, index);
}

void TimerHeap::arm(Timer* timer, uint64_t deadline_ns) {
    if (timer->armed()) {
        ENGINE_ASSERT(heap_[timer->index] == timer);
        uint64_t before = timer->deadline_ns;
        timer->deadline_ns = deadline_ns;
        if (deadline_ns < before) {
            sift_up(timer, timer->index);
        } else {
            sift_down(timer, timer->index);
        }
        return;
    }
    timer->deadline_ns = deadline_ns;
    heap_.push_back(timer);
    sift_up(timer, heap_.size() - 1);
}

void TimerHeap::remove_at(size_t index) noexcept {
    Timer* gone = heap_[index];
    Timer* last = heap_.back();
    heap_.pop_back();
    gone->index = Timer::not_armed;
    if (last == gone) return;
    place(last, index);
    if (index > 0 && heap_[(index - 1) / 4]->deadline_ns > last->deadline_ns) {
        sift_up(last, index);
    } else {
        sift_down(last, index);
    }
}

bool TimerHeap::cancel(Timer* timer) noexcept {
    if (!timer->armed()) return false;
    ENGINE_ASSERT(heap_[timer->index] == timer);
    remove_at(timer->index);
    return true;
}

void TimerHeap::abandon_all() {
    while (!heap_.empty()) {
        Timer* timer = heap_.back();
        remove_at(heap_.size() - 1);
        if (timer->abandon != nullptr) timer->abandon(timer);
    }
}

unsigned TimerHeap::run_due(uint64_t now_ns, unsigned most) {
    unsigned fired = 0;
    while (fired < most && !heap_.empty() && heap_[0]->deadline_ns <= now_ns) {
        Timer* timer = heap_[0];
        remove_at(0);
        fired++;
        timer->fire(timer);
    }
    return fired;
}

}  // namespace engine::aio
