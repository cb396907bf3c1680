// The timer heap. Home thread only.
#include "aio/timer.hh"

#include <algorithm>
#include <cerrno>
#include <utility>

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
        if (first >= size_) break;
        size_t end = first + 4 < size_ ? first + 4 : size_;
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

// One more place than are spoken for.
int TimerHeap::make_room() noexcept {
    if (reserved_ + loose_ < capacity_) return 0;
    size_t capacity = capacity_ == 0 ? 16 : capacity_ * 2;
    base::Owner<Timer*[]> heap = base::make_array<Timer*>(capacity);
    if (heap == nullptr) return -ENOMEM;
    std::copy_n(heap_.get(), size_, heap.get());
    heap_ = std::move(heap);
    capacity_ = capacity;
    return 0;
}

int TimerHeap::reserve(Timer* timer) noexcept {
    ENGINE_ASSERT(!timer->reserved && !timer->armed());
    int result = make_room();
    if (result != 0) return result;
    timer->reserved = true;
    reserved_++;
    return 0;
}

void TimerHeap::unreserve(Timer* timer) noexcept {
    ENGINE_ASSERT(timer->reserved && !timer->armed());
    timer->reserved = false;
    reserved_--;
}

void TimerHeap::insert(Timer* timer, uint64_t deadline_ns) noexcept {
    if (!timer->reserved) loose_++;
    timer->deadline_ns = deadline_ns;
    sift_up(timer, size_++);
}

int TimerHeap::arm(Timer* timer, uint64_t deadline_ns) noexcept {
    if (timer->armed()) {
        ENGINE_ASSERT(heap_[timer->index] == timer);
        uint64_t before = timer->deadline_ns;
        timer->deadline_ns = deadline_ns;
        if (deadline_ns < before) {
            sift_up(timer, timer->index);
        } else {
            sift_down(timer, timer->index);
        }
        return 0;
    }
    int result = timer->reserved ? 0 : make_room();
    if (result == 0) insert(timer, deadline_ns);
    return result;
}

void TimerHeap::arm_reserved(Timer* timer, uint64_t deadline_ns) noexcept {
    ENGINE_CHECK(timer->reserved);
    (void)arm(timer, deadline_ns);
}

void TimerHeap::remove_at(size_t index) noexcept {
    Timer* gone = heap_[index];
    Timer* last = heap_[--size_];
    gone->index = Timer::not_armed;
    if (!gone->reserved) loose_--;
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
    while (!empty()) {
        Timer* timer = heap_[size_ - 1];
        remove_at(size_ - 1);
        if (timer->abandon != nullptr) timer->abandon(timer);
    }
}

unsigned TimerHeap::run_due(uint64_t now_ns, unsigned most) {
    unsigned fired = 0;
    while (fired < most && !empty() && heap_[0]->deadline_ns <= now_ns) {
        Timer* timer = heap_[0];
        remove_at(0);
        fired++;
        timer->fire(timer);
    }
    return fired;
}

}  // namespace engine::aio
