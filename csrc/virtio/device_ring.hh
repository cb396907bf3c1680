// The device's side of a split virtqueue: takes chains from the available ring, returns them in the used
// ring. Nothing that the driver writes is trusted: each word is read once into a local, checked, then used. A
// violation breaks the ring, never the process. No lock: one thread at a time owns a ring.
#pragma once

#include <engine/base.h>
#include <sys/uio.h>

#include <algorithm>
#include <span>

#include "base/alloc.hh"
#include "base/assert.hh"
#include "virtio/memory.hh"
#include "virtio/ring.hh"

namespace engine::virtio {

// A buffer of the driver's, as host memory: the readable elements first, then the writable ones
// (section 2.7.4.2). It stays valid until push(), as long as the memory table that it came from is held.
struct Chain {
    // Two elements beside the segments of a transfer, and some to spare for elements that cross regions.
    static constexpr unsigned capacity = 144;
    static constexpr unsigned max_segments = 126;  // to be advertised as seg_max

    uint16_t head;
    // Elements that are left: readable ones are iov[first, middle), writable ones iov[middle, end).
    uint32_t first;
    uint32_t middle;
    uint32_t end;
    uint64_t readable_bytes;
    uint64_t writable_bytes;
    iovec iov[capacity];  // not initialised beyond `end`

    std::span<const iovec> readable() const noexcept { return {iov + first, middle - first}; }
    std::span<const iovec> writable() const noexcept { return {iov + middle, end - middle}; }

    // Takes `length` bytes (not 0) off the front of the readable part, each read once. False, and nothing
    // taken, when there are fewer.
    bool read_front(void* to, size_t length) noexcept {
        ENGINE_ASSERT(length != 0);
        if (readable_bytes < length) return false;
        readable_bytes -= length;
        iovec* element = iov + first;
        if (element->iov_len == length) [[likely]] {
            copy_from_shared(to, element->iov_base, length);
            ++first;
            return true;
        }
        read_front_pieces(static_cast<uint8_t*>(to), length);
        return true;
    }
    // Takes the last writable byte, where a status goes; null when there is none.
    uint8_t* take_back_byte() noexcept {
        if (writable_bytes == 0) return nullptr;
        --writable_bytes;
        iovec* element = iov + end - 1;
        if (--element->iov_len == 0) --end;
        return static_cast<uint8_t*>(element->iov_base) + element->iov_len;
    }

  private:
    void read_front_pieces(uint8_t* to, size_t length) noexcept;
};

struct RingConfig {
    uint32_t size;  // descriptors: a power of two, at most 32768
    uint64_t desc;  // guest physical addresses of the three parts
    uint64_t avail;
    uint64_t used;
    uint64_t features;         // feature_event_idx, feature_indirect_desc; others are ignored
    uint16_t first_index = 0;  // where both rings go on, all earlier chains being complete
};

// What a driver can do wrong.
enum class Violation : uint8_t {
    none,
    avail_index,       // moved by more than the queue size, or backwards
    overcommitted,     // more chains offered and not yet used than the queue holds
    head_range,        // a head that is no descriptor of the queue
    head_in_flight,    // a head that was offered before and is not used yet
    next_range,        // a link out of its table
    loop,              // more elements than descriptors in their table
    zero_length,       // an element without bytes
    address,           // outside the guest's memory
    order,             // a readable element after a writable one
    chain_bytes,       // more than 2^32 bytes
    chain_elements,    // more elements than Chain holds
    indirect_feature,  // an indirect descriptor without VIRTIO_F_INDIRECT_DESC
    indirect_nested,   // inside an indirect table
    indirect_next,     // with NEXT as well
    indirect_length,   // not a positive multiple of 16
    indirect_address,  // its table is not in one region of the guest's memory
};

// What does not depend on how words are read: set-up, and everything off the hot path.
class DeviceRingBase {
  public:
    DeviceRingBase(const DeviceRingBase&) = delete;
    DeviceRingBase& operator=(const DeviceRingBase&) = delete;

    // Starts the ring, or starts it anew; not while chains are in flight. Reads nothing of the guest's. After
    // a failure the ring is as it was.
    int configure(MemoryTableRef memory, const RingConfig& config, engine_error* error);
    // Goes on in another table. On success `memory` holds the old one, which the caller keeps until the
    // chains taken before are complete; on failure nothing has changed.
    int swap_memory(MemoryTableRef& memory, engine_error* error);
    // Forgets the memory. Not while chains are in flight.
    void stop() noexcept;

    bool broken() const noexcept { return violation_ != Violation::none; }
    Violation violation() const noexcept { return violation_; }
    // Of a broken ring.
    const engine_error& error() const noexcept { return error_; }

    uint32_t size() const noexcept { return size_; }
    // Chains taken and not yet pushed.
    uint32_t in_flight() const noexcept { return static_cast<uint16_t>(next_avail_ - used_); }
    // Whether chains were pushed that the driver has not been shown.
    bool unpublished() const noexcept { return used_ != published_; }
    // Where a successor would go on, once nothing is in flight.
    uint16_t next_index() const noexcept { return next_avail_; }

  protected:
    static constexpr unsigned lookahead = 32;

    DeviceRingBase() noexcept = default;
    ~DeviceRingBase() = default;

    // Always false, so that what found the violation can return it.
    bool violate(Violation what, uint32_t index, uint64_t value) noexcept {
        break_ring(what, index, value);
        return false;
    }
    [[gnu::cold, gnu::noinline]] void break_ring(Violation what, uint32_t index, uint64_t value) noexcept;
    // Where the next element goes, and where none may go any more.
    struct Room {
        iovec* out;
        iovec* limit;
    };
    // Appends an element that does not lie in the last region; one that crosses regions becomes several.
    // `room.out` is null after a violation.
    [[gnu::noinline]] Room append_slow(const Chain& chain, Room room, uint64_t addr, uint32_t length,
                                       uint32_t index) noexcept;
    static size_t room_left(const Chain& chain, Room room) noexcept {
        return static_cast<size_t>(chain.iov + Chain::capacity - room.out);
    }

    // Written by configure() alone.
    const uint8_t* desc_ = nullptr;
    RingAvail* avail_ = nullptr;
    uint16_t* avail_ring_ = nullptr;
    uint16_t* used_event_ = nullptr;  // where the driver says when to call
    RingUsed* used_ring_head_ = nullptr;
    RingUsedElement* used_ring_ = nullptr;
    uint16_t* avail_event_ = nullptr;  // where the device says when to kick
    uint32_t size_ = 0;
    uint32_t most_elements_ = 0;  // of a chain without an indirect table
    uint16_t mask_ = 0;
    bool event_index_ = false;
    bool indirect_ = false;

    bool ready_ = false;  // configured and not broken
    bool notifications_ = true;
    Violation violation_ = Violation::none;
    // Free-running indices. heads_[head_next_, head_end_) are read already: the slots from next_avail_ on.
    uint16_t avail_shadow_ = 0;  // avail.idx as last read
    uint16_t next_avail_ = 0;    // the slot that pop() takes next
    uint16_t used_ = 0;          // the slot that push() fills next
    uint16_t published_ = 0;     // used.idx as last stored
    uint16_t head_next_ = 0;
    uint16_t head_end_ = 0;
    uint16_t heads_[lookahead];
    MemoryCursor cursor_;
    base::Owner<uint8_t[]> taken_;  // by head: 1 while in flight

  private:
    struct Parts {
        uint8_t* desc;
        uint8_t* avail;
        uint8_t* used;
    };
    static int locate(const MemoryTable& memory, const RingConfig& config, Parts* parts, engine_error* error);
    void place(const Parts& parts) noexcept;

    RingConfig config_{};
    MemoryTableRef memory_;
    engine_error error_{};
};

template <class Access>
class BasicDeviceRing : public DeviceRingBase {
  public:
    // The next chain, or false: none is there, or the ring is broken.
    bool pop(Chain& chain) noexcept {
        if (head_next_ == head_end_ && !refill()) return false;
        const uint16_t head = heads_[head_next_], slot = next_avail_;
        if (ENGINE_UNLIKELY(head >= size_)) return violate(Violation::head_range, slot, head);
        if (ENGINE_UNLIKELY(taken_[head] != 0)) return violate(Violation::head_in_flight, slot, head);
        if (ENGINE_UNLIKELY(!walk(chain, head))) return false;
        taken_[head] = 1;
        head_next_ = static_cast<uint16_t>(head_next_ + 1);
        next_avail_ = static_cast<uint16_t>(slot + 1);
        return true;
    }

    // Completes a chain: `written` bytes of its writable part are filled, from its beginning
    // (section 2.7.8.2). The driver sees it after publish(). On a broken ring this only ends the chain's
    // flight.
    void push(uint16_t head, uint32_t written) noexcept {
        ENGINE_ASSERT(head < size_ && taken_[head] != 0);
        const uint16_t slot = used_;
        used_ = static_cast<uint16_t>(slot + 1);
        taken_[head] = 0;
        if (ENGINE_UNLIKELY(!ready_)) return;
        RingUsedElement* element = &used_ring_[slot & mask_];
        Access::store(&element->id, uint32_t{head});
        Access::store(&element->len, written);
    }

    // Hands over everything pushed since the last time. True: the driver wants to be called.
    bool publish() noexcept {
        const uint16_t before = published_, now = used_;
        if (before == now || !ready_) return false;
        published_ = now;
        // As a release it pairs with the acquire in BasicDriverRing::reap: entries before index. As a store
        // before a load it pairs with BasicDriverRing::enable_calls: one of the two sees the other's.
        Access::store_seq_cst(&used_ring_head_->idx, now);
        if (event_index_) return passed_event(Access::load_seq_cst(used_event_), now, before);
        return (Access::load_seq_cst(&avail_->flags) & avail_f_no_interrupt) == 0;
    }

    // Whether pop() would find something. For polling: nothing is consumed or checked.
    bool has_work() const noexcept {
        return head_next_ != head_end_ ||
               (ready_ && (avail_shadow_ != next_avail_ || Access::load(&avail_->idx) != next_avail_));
    }

    // Asks for a kick when the next chain comes. False: one came meanwhile and perhaps without a kick, so
    // look again before sleeping (section 2.7.10).
    bool enable_notifications() noexcept {
        if (!ready_) return true;
        notifications_ = true;
        // Store before load: pairs with BasicDriverRing::publish, which does it the other way round.
        if (event_index_) {
            Access::store_seq_cst(avail_event_, next_avail_);
        } else {
            Access::store_seq_cst(&used_ring_head_->flags, uint16_t{0});
        }
        return Access::load_seq_cst(&avail_->idx) == next_avail_;
    }
    // A wish, not a promise: kicks may still come.
    void disable_notifications() noexcept {
        if (!ready_ || !notifications_) return;
        notifications_ = false;
        if (event_index_) {
            // A slot just passed; it comes round again after 2^16 chains, with one kick too many.
            Access::store(avail_event_, static_cast<uint16_t>(next_avail_ - 1));
        } else {
            Access::store(&used_ring_head_->flags, used_f_no_notify);
        }
    }

  private:
    // Reads the heads of the chains that came, a batch at a time, and fetches their descriptors ahead.
    [[gnu::noinline]] bool refill() noexcept {
        if (!ready_) return false;
        uint16_t pending = static_cast<uint16_t>(avail_shadow_ - next_avail_);
        if (pending == 0) {
            // Pairs with the store in BasicDriverRing::publish: descriptors and entries before index.
            const uint16_t idx = Access::load_acquire(&avail_->idx);
            pending = static_cast<uint16_t>(idx - next_avail_);
            if (pending == 0) return false;
            if (pending > size_) return violate(Violation::avail_index, next_avail_, idx);
            if (static_cast<uint16_t>(idx - published_) > size_) {
                return violate(Violation::overcommitted, published_, idx);
            }
            avail_shadow_ = idx;
        }
        const unsigned count = std::min<unsigned>(pending, lookahead);
        for (unsigned i = 0; i < count; ++i) {
            heads_[i] = Access::load(&avail_ring_[(next_avail_ + i) & mask_]);
            __builtin_prefetch(desc_ + size_t{16} * (heads_[i] & mask_));
        }
        head_next_ = 0;
        head_end_ = static_cast<uint16_t>(count);
        return true;
    }

    // Follows a chain from its head. Each step adds an element, enters the one indirect table or fails, and a
    // table of n descriptors gives at most n elements: hence a loop ends, whatever the descriptors say.
    bool walk(Chain& chain, uint16_t head) noexcept {
        const uint8_t* table = desc_;
        uint32_t entries = size_, index = head;
        Room room{chain.iov, chain.iov + most_elements_};
        uint32_t direction = 0;  // desc_f_write from the first writable element on
        uint64_t bytes = 0;
        MemoryRegion region = cursor_.last();
        bool nested = false;
        chain.head = head;
        chain.first = 0;
        for (;;) {
            const RingDescriptor descriptor = load_descriptor<Access>(table + size_t{16} * index);
            const uint64_t addr = descriptor.addr;
            const uint32_t length = static_cast<uint32_t>(descriptor.len_flags_next);
            const uint32_t flags = static_cast<uint32_t>(descriptor.len_flags_next >> 32);  // and next, above
            if ((flags & desc_f_indirect) != 0) [[unlikely]] {
                if (nested) return violate(Violation::indirect_nested, index, addr);
                if ((flags & desc_f_next) != 0) {
                    return violate(Violation::indirect_next, index, flags >> 16);
                }
                table = enter(addr, length, index);
                if (table == nullptr) return false;
                nested = true;
                index = 0;
                entries = length / 16;
                room.limit = room.out + std::min<size_t>(entries, room_left(chain, room));
                continue;
            }
            if (ENGINE_UNLIKELY(length == 0)) return violate(Violation::zero_length, index, addr);
            if (ENGINE_UNLIKELY(room.out == room.limit)) {
                return violate(room_left(chain, room) == 0 ? Violation::chain_elements : Violation::loop,
                               index, Chain::capacity);
            }
            if (((flags ^ direction) & desc_f_write) != 0) {
                if (ENGINE_UNLIKELY(direction != 0)) return violate(Violation::order, index, addr);
                direction = desc_f_write;
                chain.middle = static_cast<uint32_t>(room.out - chain.iov);
                chain.readable_bytes = bytes;
            }
            bytes += length;
            const uint64_t offset = addr - region.guest;
            if (offset < region.length && length <= region.length - offset) [[likely]] {
                *room.out++ = {region.host + offset, length};
            } else {
                room = append_slow(chain, room, addr, length, index);
                if (room.out == nullptr) return false;
                region = cursor_.last();
            }
            if ((flags & desc_f_next) == 0) break;
            const uint32_t next = flags >> 16;
            if (ENGINE_UNLIKELY(next >= entries)) return violate(Violation::next_range, index, next);
            index = next;
        }
        if (ENGINE_UNLIKELY(bytes > max_chain_bytes))
            return violate(Violation::chain_bytes, chain.head, bytes);
        chain.end = static_cast<uint32_t>(room.out - chain.iov);
        if (direction == 0) chain.middle = chain.end, chain.readable_bytes = bytes;
        chain.writable_bytes = bytes - chain.readable_bytes;
        return true;
    }

    // The indirect table that a descriptor refers to, or null (section 2.7.5.3). The WRITE flag beside
    // INDIRECT is ignored. In a table, a chain longer than the queue is let through: 2.7.5.3.1 forbids it,
    // Linux does it. Out of line: chains without a table then keep their registers.
    [[gnu::noinline]] const uint8_t* enter(uint64_t addr, uint32_t length, uint32_t index) noexcept {
        if (!indirect_) return violate(Violation::indirect_feature, index, addr), nullptr;
        if (length == 0 || length % 16 != 0) {
            return violate(Violation::indirect_length, index, length), nullptr;
        }
        uint8_t* host = cursor_.translate(addr, length);
        if (host == nullptr) return violate(Violation::indirect_address, index, addr), nullptr;
        return host;
    }
};

using DeviceRing = BasicDeviceRing<SharedAccess>;

}  // namespace engine::virtio
