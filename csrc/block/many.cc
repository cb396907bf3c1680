// One buffer, many offsets: see many.hh. A part that completes makes room for the next at once, so that the
// window stays full and what becomes due in one turn goes to the kernel in one call.
#include "block/many.hh"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.hh"
#include "block/entry.hh"

namespace engine::block {

int Many::check(const engine_many& what, engine_error* error) noexcept {
    auto invalid = [&](const char* field, const char* text, uint64_t value) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "many", .field = field},
                          "%s: %s (%lu)", field, text, value);
    };
    if (what.op != ENGINE_OP_READ && what.op != ENGINE_OP_WRITE) {
        return invalid("op", "only reads and writes go in a vector", what.op);
    }
    if ((what.flags & ~uint32_t{ENGINE_FUA}) != 0) return invalid("flags", "unknown flags", what.flags);
    if (what.iodepth > max_depth) return invalid("iodepth", "at most 1024", what.iodepth);
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(what.count, what.length, &bytes) || what.count > INT64_MAX) {
        return invalid("count", "count * length does not fit in 64 bits", what.count);
    }
    if (what.count != 0 && (what.offsets == nullptr || what.results == nullptr)) {
        return invalid("offsets", "offsets and results are needed for this many parts", what.count);
    }
    if (bytes != 0 && what.buffer == nullptr) return invalid("buffer", "missing, for this many bytes", bytes);
    return 0;
}

int Many::prepare(const engine_many& what, Port& port) noexcept {
    what_ = what;
    port_ = &port;
    uint32_t depth = what.iodepth == 0 ? default_depth : what.iodepth;
    if (depth > what.count) depth = static_cast<uint32_t>(what.count);
    if (slot_count_ < depth) {
        slots_ = base::make_array<Slot>(depth);
        slot_count_ = slots_ == nullptr ? 0 : depth;
        if (slots_ == nullptr) return -ENOMEM;
    }
    free_ = nullptr;
    for (uint32_t i = depth; i-- != 0;) {
        Slot& slot = slots_[i];
        slot.many = this;
        slot.complete = [](Request* request) {
            auto* self = static_cast<Slot*>(request);
            self->many->completed(*self);
        };
        slot.next = free_;
        free_ = &slot;
    }
    cancelled_.store_relaxed(false);
    next_part_ = 0;
    succeeded_ = 0;
    in_flight_ = 0;
    errnum_ = 0;
    stopped_ = cut_short_ = false;
    end_.many = this;
    end_.run = [](aio::Message* message) {
        Many* self = static_cast<End*>(message)->many;
        self->finished(self);
    };
    return 0;
}

void Many::begin() noexcept {
    refill();
    finish_if_idle();
}

void Many::refill() noexcept {
    if (ENGINE_UNLIKELY(cancelled_.load_acquire()) && !stopped_) cut_short();
    while (free_ != nullptr && next_part_ < what_.count && !stopped_) {
        Slot& slot = *free_;
        free_ = static_cast<Slot*>(slot.next);
        issue(slot);
    }
}

void Many::issue(Slot& slot) noexcept {
    slot.part = next_part_++;
    slot.op = static_cast<Op>(what_.op);
    slot.flags = static_cast<uint8_t>(what_.flags);
    slot.offset = what_.offsets[slot.part];
    slot.length = what_.length;
    slot.set_buffer(static_cast<std::byte*>(what_.buffer) + slot.part * what_.length, what_.length);
    slot.failure.size = sizeof slot.failure;
    slot.failure.kind = ENGINE_ERROR_NONE;
    slot.error = &slot.failure;
    in_flight_++;
    submit(*port_, &slot);
}

void Many::completed(Slot& slot) noexcept {
    in_flight_--;
    slot.next = free_;
    free_ = &slot;
    if (ENGINE_LIKELY(slot.result >= 0)) {
        what_.results[slot.part] = static_cast<int64_t>(what_.length);
        succeeded_++;
    } else {
        what_.results[slot.part] = slot.result;
        note_failure(slot);
    }
    refill();
    finish_if_idle();
}

void Many::note_failure(Slot& slot) noexcept {
    if (what_.stop_at_failure != 0) stopped_ = true;
    if (errnum_ != 0) return;
    errnum_ = static_cast<int>(-slot.result);
    describe_failure(&slot.failure, slot, errnum_);
    if (error == nullptr) return;
    uint32_t size = error->size;
    *error = slot.failure;
    error->size = size;
}

void Many::cut_short() noexcept {
    stopped_ = true;
    if (next_part_ == what_.count) return;  // all are begun: there is nothing to leave out
    cut_short_ = true;
    const char* name = port_->channel->node->control->name.c_str();
    base::fail(error, ENGINE_ERROR_OS, ECANCELED, {.node = name, .operation = "many"},
               "node %s: cancelled after %lu of %lu parts were begun", name, next_part_, what_.count);
}

void Many::finish_if_idle() noexcept {
    if (in_flight_ != 0 || (next_part_ != what_.count && !stopped_)) return;
    std::fill(what_.results + next_part_, what_.results + what_.count, -ECANCELED);
    next_part_ = what_.count;
    port_->context->ready(&end_);
}

}  // namespace engine::block
