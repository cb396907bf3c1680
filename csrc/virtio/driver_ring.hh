// The driver's side of a split virtqueue: offers chains in the available ring, collects them from the used
// ring. It knows the memory by a base pointer and guest addresses, so that the device may map it elsewhere,
// in another process. What it needs to go on it keeps in memory of its own: a device that writes nonsense
// breaks the ring, never the process. No lock: one thread at a time owns a ring.
#pragma once

#include <engine/base.h>

#include <algorithm>
#include <span>

#include "base/alloc.hh"
#include "base/assert.hh"
#include "virtio/ring.hh"

namespace engine::virtio {

struct DriverConfig {
    uint8_t* memory;            // where the queue's start is mapped here; aligned to RingLayout::alignment
    uint64_t guest;             // the guest physical address of the same byte, aligned as well
    uint64_t bytes;             // at least layout.bytes past layout's start
    RingLayout layout;          // offsets from there
    uint64_t features;          // feature_event_idx, feature_indirect_desc
    uint32_t indirect_min = 2;  // chains of at least so many elements use an indirect table, if they fit one
    uint16_t first_index = 0;   // where both rings start; the device's must be the same
};

// One element of a chain: guest physical address and bytes, not 0.
struct Element {
    uint64_t addr;
    uint32_t len;
};

// What a device can do wrong.
enum class DeviceViolation : uint8_t {
    none,
    used_index,   // moved past what was offered
    used_id,      // no head that is in flight
    used_length,  // more bytes written than the chain can hold
};

class DriverRingBase {
  public:
    DriverRingBase(const DriverRingBase&) = delete;
    DriverRingBase& operator=(const DriverRingBase&) = delete;

    // Clears the three parts of the ring and starts it; the device must not be running. Chains that were in
    // flight are forgotten. After a failure the ring is as it was.
    int configure(const DriverConfig& config, engine_error* error);

    bool broken() const noexcept { return violation_ != DeviceViolation::none; }
    DeviceViolation violation() const noexcept { return violation_; }
    const engine_error& error() const noexcept { return error_; }

    uint32_t size() const noexcept { return size_; }
    uint32_t free_descriptors() const noexcept { return free_; }
    // Chains added, published or not, and not yet reaped.
    uint32_t in_flight() const noexcept { return static_cast<uint16_t>(added_ - seen_); }
    // The longest chain that an idle ring takes.
    uint32_t max_elements() const noexcept { return indirect_entries_ > size_ ? indirect_entries_ : size_; }

  protected:
    // What the driver remembers of the chain at a head. The tables in shared memory are only written.
    struct Slot {
        void* token;
        uint32_t writable_bytes;  // UINT32_MAX also for 2^32
        uint16_t tail;            // its last descriptor
        uint16_t count;           // its descriptors; 0: not in flight
    };
    DriverRingBase() noexcept = default;
    ~DriverRingBase() = default;

    // Always false, so that what found the violation can return it.
    bool violate(DeviceViolation what, uint64_t value, uint64_t bound) noexcept {
        break_ring(what, value, bound);
        return false;
    }
    [[gnu::cold, gnu::noinline]] void break_ring(DeviceViolation what, uint64_t value,
                                                 uint64_t bound) noexcept;

    // Written by configure() alone.
    RingDescriptor* desc_ = nullptr;
    RingAvail* avail_ = nullptr;
    uint16_t* avail_ring_ = nullptr;
    uint16_t* used_event_ = nullptr;
    RingUsed* used_ring_head_ = nullptr;
    RingUsedElement* used_ring_ = nullptr;
    uint16_t* avail_event_ = nullptr;
    RingDescriptor* indirect_ = nullptr;  // size_ tables of indirect_entries_
    uint64_t indirect_guest_ = 0;
    uint32_t indirect_entries_ = 0;  // 0: none
    uint32_t indirect_min_ = 0;
    uint32_t size_ = 0;
    uint16_t mask_ = 0;
    bool event_index_ = false;

    bool ready_ = false;  // configured and not broken
    bool calls_ = true;
    DeviceViolation violation_ = DeviceViolation::none;
    // Free-running indices.
    uint16_t added_ = 0;        // the slot that add() fills next
    uint16_t published_ = 0;    // avail.idx as last stored
    uint16_t used_shadow_ = 0;  // used.idx as last read
    uint16_t seen_ = 0;         // the slot that reap() takes next
    uint16_t free_head_ = 0;    // free descriptors are linked through next_
    uint32_t free_ = 0;
    base::Owner<Slot[]> slots_;
    base::Owner<uint16_t[]> next_;
    base::Owner<uint16_t[]> sequence_;  // next_ for an indirect table: 1, 2, 3, …

  private:
    void place(const DriverConfig& config) noexcept;

    engine_error error_{};
};

template <class Access>
class BasicDriverRing : public DriverRingBase {
  public:
    // A chain that is being written, an element at a time: the readable ones first, none without bytes.
    class Draft {
      public:
        void readable(uint64_t addr, uint32_t len) noexcept { put(addr, len, desc_f_next); }
        void writable(uint64_t addr, uint32_t len) noexcept {
            put(addr, len, desc_f_next | desc_f_write);
            writable_bytes_ += len;
        }

      private:
        friend class BasicDriverRing<Access>;
        void put(uint64_t addr, uint32_t len, uint64_t flags) noexcept {
            ENGINE_ASSERT(len != 0);
            tail_ = index_;
            index_ = next_[tail_];
            last_word_ = len | flags << 32 | uint64_t{index_} << 48;
            Access::store(&table_[tail_].addr, addr);
            Access::store(&table_[tail_].len_flags_next, last_word_);
        }

        RingDescriptor* table_;  // the ring's own, or the indirect one of the head
        const uint16_t* next_;   // by descriptor: the one that follows
        uint64_t writable_bytes_;
        uint64_t last_word_;  // second word of `tail_`
        uint32_t count_;      // of the ring's descriptors
        uint16_t tail_;       // the last one written
        uint16_t index_;      // the next to be written
    };

    // Begins a chain of so many elements; all of them are to be put before offer(). False: too few free
    // descriptors now (or at all, beyond max_elements()), no element, or a broken ring.
    bool start(size_t elements, Draft* draft) noexcept {
        const bool indirect = elements >= indirect_min_ && elements <= indirect_entries_;
        const size_t count = indirect ? 1 : elements;
        if (ENGINE_UNLIKELY(count > free_ || elements == 0 || !ready_)) return false;
        draft->table_ = desc_;
        draft->next_ = next_.get();
        draft->index_ = draft->tail_ = free_head_;
        draft->writable_bytes_ = draft->last_word_ = 0;
        draft->count_ = static_cast<uint32_t>(count);
        if (indirect) {
            draft->table_ = indirect_ + size_t{free_head_} * indirect_entries_;
            draft->next_ = sequence_.get();
            draft->index_ = 0;
        }
        return true;
    }
    // Of the next chain that is offered.
    uint16_t next_head() const noexcept { return free_head_; }
    // The device sees it after publish().
    void offer(Draft& draft, void* token) noexcept {
        // The last descriptor links to none.
        const uint64_t link = uint64_t{desc_f_next} << 32 | uint64_t{UINT16_MAX} << 48;
        Access::store(&draft.table_[draft.tail_].len_flags_next, draft.last_word_ & ~link);
        const uint16_t head = free_head_;
        if (draft.table_ != desc_) {
            const uint64_t table = indirect_guest_ + uint64_t{head} * indirect_entries_ * 16;
            Access::store(&desc_[head].addr, table);
            Access::store(&desc_[head].len_flags_next,
                          uint64_t{draft.index_} * 16 | uint64_t{desc_f_indirect} << 32);
            draft.tail_ = head;
            draft.index_ = next_[head];
        }
        free_head_ = draft.index_;
        free_ -= draft.count_;
        const uint64_t bytes = std::min<uint64_t>(draft.writable_bytes_, UINT32_MAX);
        slots_[head] = {token, static_cast<uint32_t>(bytes), draft.tail_,
                        static_cast<uint16_t>(draft.count_)};
        const uint16_t place = added_;
        added_ = static_cast<uint16_t>(place + 1);
        Access::store(&avail_ring_[place & mask_], head);
    }

    // The same at once, for elements that lie in arrays.
    bool add(std::span<const Element> readable, std::span<const Element> writable, void* token) noexcept {
        Draft draft;
        if (!start(readable.size() + writable.size(), &draft)) return false;
        for (const Element& element : readable) draft.readable(element.addr, element.len);
        for (const Element& element : writable) draft.writable(element.addr, element.len);
        offer(draft, token);
        return true;
    }

    // Hands over everything added since the last time. True: the device wants a kick.
    bool publish() noexcept {
        const uint16_t before = published_, now = added_;
        if (before == now || !ready_) return false;
        published_ = now;
        // As a release it pairs with the acquire in BasicDeviceRing::refill (section 2.7.13.3). As a store
        // before a load (section 2.7.13.4) it pairs with BasicDeviceRing::enable_notifications.
        Access::store_seq_cst(&avail_->idx, now);
        if (event_index_) return passed_event(Access::load_seq_cst(avail_event_), now, before);
        return (Access::load_seq_cst(&used_ring_head_->flags) & used_f_no_notify) == 0;
    }

    // The next chain that the device has used: its token, and how many bytes it says it wrote. False: none,
    // or a broken ring.
    bool reap(void** token, uint32_t* written) noexcept {
        const uint16_t place = seen_;
        if (place == used_shadow_ && !refresh()) return false;
        const RingUsedElement* element = &used_ring_[place & mask_];
        const uint32_t id = Access::load(&element->id);
        const uint32_t length = Access::load(&element->len);
        if (ENGINE_UNLIKELY(id >= size_)) return violate(DeviceViolation::used_id, id, size_);
        Slot& slot = slots_[id];
        if (ENGINE_UNLIKELY(slot.count == 0)) return violate(DeviceViolation::used_id, id, size_);
        if (length > slot.writable_bytes) [[unlikely]] {
            return violate(DeviceViolation::used_length, length, slot.writable_bytes);
        }
        *token = slot.token;
        *written = length;
        next_[slot.tail] = free_head_;
        free_head_ = static_cast<uint16_t>(id);
        free_ += slot.count;
        slot.count = 0;
        seen_ = static_cast<uint16_t>(place + 1);
        return true;
    }

    // Whether reap() would find something. For polling.
    bool has_used() const noexcept {
        return seen_ != used_shadow_ || (ready_ && Access::load(&used_ring_head_->idx) != seen_);
    }

    // Asks for a call when the next chain is used. False: one was meanwhile and perhaps without a call, so
    // look again before sleeping (section 2.7.14).
    bool enable_calls() noexcept {
        if (!ready_) return true;
        calls_ = true;
        // Store before load: pairs with BasicDeviceRing::publish, which does it the other way round.
        if (event_index_) {
            Access::store_seq_cst(used_event_, seen_);
        } else {
            Access::store_seq_cst(&avail_->flags, uint16_t{0});
        }
        return Access::load_seq_cst(&used_ring_head_->idx) == seen_;
    }
    // A wish, not a promise: calls may still come.
    void disable_calls() noexcept {
        if (!ready_ || !calls_) return;
        calls_ = false;
        if (event_index_) {
            // A slot just passed; it comes round again after 2^16 chains, with one call too many.
            Access::store(used_event_, static_cast<uint16_t>(seen_ - 1));
        } else {
            Access::store(&avail_->flags, avail_f_no_interrupt);
        }
    }

  private:
    bool refresh() noexcept {
        if (!ready_) return false;
        // Pairs with the store in BasicDeviceRing::publish: entries, and the data behind them, before index.
        const uint16_t idx = Access::load_acquire(&used_ring_head_->idx);
        if (idx == seen_) return false;
        if (static_cast<uint16_t>(idx - seen_) > static_cast<uint16_t>(published_ - seen_)) [[unlikely]] {
            return violate(DeviceViolation::used_index, idx, published_);
        }
        used_shadow_ = idx;
        return true;
    }
};

using DriverRing = BasicDriverRing<SharedAccess>;

}  // namespace engine::virtio
