// Requests that wait for their time. Home thread of the channel's context.
#include "filters/waiting.hh"

#include <algorithm>

#include "filters/filter.hh"

namespace engine::filters {

using block::Request;

int Waiting::open(block::Channel& channel) noexcept {
    channel_ = &channel;
    fire = [](aio::Timer* timer) { static_cast<Waiting*>(timer)->look(); };
    return channel.context->timers().reserve(this);
}

void Waiting::close() noexcept {
    ENGINE_CHECK(size_ == 0 && !armed());
    channel_->context->timers().unreserve(this);
}

bool Waiting::make_room() noexcept {
    if (size_ < capacity_) return true;
    size_t capacity = capacity_ == 0 ? 32 : 2 * capacity_;
    base::Owner<Entry[]> heap = base::make_array<Entry>(capacity);
    if (heap == nullptr) return false;
    std::copy_n(heap_.get(), size_, heap.get());
    heap_ = std::move(heap);
    capacity_ = capacity;
    return true;
}

void Waiting::add(Request* request, uint64_t delay_ns) noexcept {
    if (hurrying_) {
        pass(*channel_, request);
        return;
    }
    if (!make_room()) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request that is to wait",
                   channel_->node->control->name.c_str());
        return;
    }
    uint64_t due_ns;
    if (__builtin_add_overflow(channel_->context->now_ns(), delay_ns, &due_ns)) due_ns = UINT64_MAX;
    heap_[size_++] = {due_ns, next_number_++, request};
    mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_HELD);
    std::push_heap(heap_.get(), heap_.get() + size_, later);
    if (heap_[0].request == request) wait_for_first();
}

void Waiting::let_go(uint64_t now_ns) noexcept {
    while (size_ != 0 && heap_[0].due_ns <= now_ns) {
        std::pop_heap(heap_.get(), heap_.get() + size_, later);
        Request* request = heap_[--size_].request;
        mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
        pass(*channel_, request);
    }
}

// A context that is winding up has no timers, and what waits would wait for ever: better too early than
// never.
void Waiting::wait_for_first() noexcept {
    if (channel_->context->arm(this, heap_[0].due_ns) != 0) let_go(UINT64_MAX);
}

void Waiting::look() noexcept {
    let_go(hurrying_ ? UINT64_MAX : channel_->context->now_ns());
    if (size_ == 0) {
        channel_->context->disarm(this);
    } else {
        wait_for_first();
    }
}

void Waiting::hurry(bool on) noexcept {
    hurrying_ = on;
    if (on) look();
}

bool Waiting::remove(const Request* request) noexcept {
    Entry* end = heap_.get() + size_;
    Entry* found =
        std::find_if(heap_.get(), end, [request](const Entry& entry) { return entry.request == request; });
    if (found == end) return false;
    mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
    *found = heap_[--size_];
    std::make_heap(heap_.get(), heap_.get() + size_, later);
    look();
    return true;
}

}  // namespace engine::filters
