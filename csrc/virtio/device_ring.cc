// The device's side of a split virtqueue, off the hot path: set-up, elements that cross memory regions, and
// the words for what a driver did wrong. One thread at a time owns a ring.
#include "virtio/device_ring.hh"

#include <cerrno>
#include <cinttypes>
#include <cstdio>

#include "base/error.hh"

namespace engine::virtio {

using base::fail;
using base::Where;

void Chain::read_front_pieces(uint8_t* to, size_t length) noexcept {
    while (length != 0) {
        iovec* element = iov + first;
        size_t part = std::min(length, element->iov_len);
        copy_from_shared(to, element->iov_base, part);
        to += part;
        length -= part;
        element->iov_base = static_cast<uint8_t*>(element->iov_base) + part;
        element->iov_len -= part;
        if (element->iov_len == 0) ++first;
    }
}

namespace {

// One part of the ring as host memory: aligned (section 2.7) on both sides, and within one region.
int locate_part(const MemoryTable& memory, const char* field, uint64_t guest, uint64_t bytes,
                uint64_t alignment, uint8_t** host, engine_error* error) {
    const Where where{.operation = "virtqueue-configure", .field = field, .offset = guest};
    if (guest % alignment != 0) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                    "the virtqueue's %s area at guest address 0x%" PRIx64 " is not aligned to %" PRIu64
                    " bytes",
                    field, guest, alignment);
    }
    const MemoryRegion* region = memory.find(guest);
    if (region == nullptr || bytes > region->length - (guest - region->guest)) {
        return fail(error, ENGINE_ERROR_INVALID, EFAULT, where,
                    "the virtqueue's %s area, %" PRIu64 " bytes at guest address 0x%" PRIx64
                    ", is not within one region of the guest's memory",
                    field, bytes, guest);
    }
    *host = region->host + (guest - region->guest);
    if (reinterpret_cast<uintptr_t>(*host) % alignment != 0) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                    "the virtqueue's %s area at guest address 0x%" PRIx64
                    " is mapped at %p, which is not aligned "
                    "to %" PRIu64 " bytes: choose a region with the same alignment on both sides",
                    field, guest, static_cast<void*>(*host), alignment);
    }
    return 0;
}

}  // namespace

int DeviceRingBase::locate(const MemoryTable& memory, const RingConfig& config, Parts* parts,
                           engine_error* error) {
    if (!RingLayout::valid_size(config.size)) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL,
                    {.operation = "virtqueue-configure", .field = "size"},
                    "a virtqueue of %" PRIu32 " descriptors: a power of two up to %" PRIu32 " is needed",
                    config.size, max_queue_size);
    }
    int result = locate_part(memory, "desc", config.desc, desc_bytes(config.size), desc_alignment,
                             &parts->desc, error);
    if (result == 0) {
        result = locate_part(memory, "avail", config.avail, avail_bytes(config.size), avail_alignment,
                             &parts->avail, error);
    }
    if (result == 0) {
        result = locate_part(memory, "used", config.used, used_bytes(config.size), used_alignment,
                             &parts->used, error);
    }
    return result;
}

void DeviceRingBase::place(const Parts& parts) noexcept {
    desc_ = parts.desc;
    avail_ = reinterpret_cast<RingAvail*>(parts.avail);
    avail_ring_ = reinterpret_cast<uint16_t*>(parts.avail + sizeof(RingAvail));
    used_event_ = avail_ring_ + config_.size;
    used_ring_head_ = reinterpret_cast<RingUsed*>(parts.used);
    used_ring_ = reinterpret_cast<RingUsedElement*>(parts.used + sizeof(RingUsed));
    avail_event_ = reinterpret_cast<uint16_t*>(used_ring_ + config_.size);
}

int DeviceRingBase::configure(MemoryTableRef memory, const RingConfig& config, engine_error* error) {
    const Where where{.operation = "virtqueue-configure"};
    if (in_flight() != 0) {
        return fail(error, ENGINE_ERROR_CONFLICT, EBUSY, where,
                    "the virtqueue has %" PRIu32 " chains in flight: complete them before it starts anew",
                    in_flight());
    }
    if (!memory) return fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "a virtqueue needs a memory table");
    Parts parts{};
    if (int result = locate(*memory, config, &parts, error); result != 0) return result;
    base::Owner<uint8_t[]> taken = base::make_array<uint8_t>(config.size);
    if (taken == nullptr) {
        return fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where,
                    "no memory for a virtqueue of %" PRIu32 " descriptors", config.size);
    }
    config_ = config;
    memory_ = std::move(memory);
    taken_ = std::move(taken);
    place(parts);
    cursor_.reset(memory_.get());
    size_ = config.size;
    most_elements_ = std::min<uint32_t>(config.size, Chain::capacity);
    mask_ = static_cast<uint16_t>(config.size - 1);
    event_index_ = (config.features & feature_event_idx) != 0;
    indirect_ = (config.features & feature_indirect_desc) != 0;
    avail_shadow_ = next_avail_ = used_ = published_ = config.first_index;
    head_next_ = head_end_ = 0;
    violation_ = Violation::none;
    base::clear(&error_);
    // As the driver left used.flags and avail_event: zero, hence notified (section 2.7.10.1).
    notifications_ = true;
    ready_ = true;
    return 0;
}

int DeviceRingBase::swap_memory(MemoryTableRef& memory, engine_error* error) {
    if (!memory_ || !memory) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "virtqueue-configure"},
                    memory ? "the virtqueue is not configured" : "a virtqueue needs a memory table");
    }
    Parts parts{};
    if (int result = locate(*memory, config_, &parts, error); result != 0) return result;
    std::swap(memory_, memory);
    place(parts);
    cursor_.reset(memory_.get());
    return 0;
}

void DeviceRingBase::stop() noexcept {
    ENGINE_ASSERT(in_flight() == 0);
    ready_ = false;
    head_next_ = head_end_ = 0;
    memory_ = MemoryTableRef();
    cursor_.reset(nullptr);
}

DeviceRingBase::Room DeviceRingBase::append_slow(const Chain& chain, Room room, uint64_t addr, uint32_t bytes,
                                                 uint32_t index) noexcept {
    uint64_t length = bytes;
    if (addr + (length - 1) < addr) {
        violate(Violation::address, index, addr);
        return {nullptr, nullptr};
    }
    for (;;) {
        uint64_t part = length;
        uint8_t* host = cursor_.translate_part(addr, &part);
        if (host == nullptr) {
            violate(Violation::address, index, addr);
            return {nullptr, nullptr};
        }
        *room.out++ = {host, part};
        length -= part;
        if (length == 0) return room;
        addr += part;
        // One element of the chain becomes one more of ours.
        if (room_left(chain, room) == 0) {
            violate(Violation::chain_elements, index, Chain::capacity);
            return {nullptr, nullptr};
        }
        if (room.limit != chain.iov + Chain::capacity) ++room.limit;
    }
}

namespace {

struct Wording {
    const char* field;
    const char* format;  // of index and value
};

// Indexed by Violation.
constexpr Wording wordings[] = {
    {"", ""},
    {"avail.idx", "available index went from %" PRIu32 " to %" PRIu64 ", further than the queue is long"},
    {"avail.idx", "available index %2$" PRIu64 " offers more chains than the queue holds: "
                  "the used ring is at %1$" PRIu32},
    {"avail.ring", "available slot %" PRIu32 " names descriptor %" PRIu64 ", which the queue does not have"},
    {"avail.ring", "available slot %" PRIu32 " offers head %" PRIu64 " again before it was used"},
    {"desc.next", "descriptor %" PRIu32 " links to %" PRIu64 ", beyond the end of its table"},
    {"desc.next",
     "the chain comes to descriptor %" PRIu32 " after as many others as its table has: it is a loop"},
    {"desc.len", "descriptor %" PRIu32 " at guest address 0x%" PRIx64 " has no bytes"},
    {"desc.addr", "descriptor %" PRIu32 " reaches guest address 0x%" PRIx64 ", where there is no memory"},
    {"desc.flags",
     "descriptor %" PRIu32 " at guest address 0x%" PRIx64 " is readable and follows a writable one"},
    {"desc.len", "the chain at head %" PRIu32 " has %" PRIu64 " bytes: more than 2^32"},
    {"desc.next", "descriptor %" PRIu32 " makes the chain longer than %" PRIu64 " elements"},
    {"desc.flags", "descriptor %" PRIu32 " is indirect (table at 0x%" PRIx64
                   ") but VIRTIO_F_INDIRECT_DESC was not negotiated"},
    {"desc.flags", "indirect descriptor %" PRIu32 " is itself indirect (table at 0x%" PRIx64 ")"},
    {"desc.flags", "descriptor %" PRIu32 " is indirect and yet links to %" PRIu64},
    {"desc.len",
     "descriptor %" PRIu32 " has an indirect table of %" PRIu64 " bytes, no positive multiple of 16"},
    {"desc.addr", "descriptor %" PRIu32 " has its indirect table at guest address 0x%" PRIx64
                  ", not within one region of memory"},
};
static_assert(std::size(wordings) == static_cast<size_t>(Violation::indirect_address) + 1);

}  // namespace

void DeviceRingBase::break_ring(Violation what, uint32_t index, uint64_t value) noexcept {
    ready_ = false;
    head_next_ = head_end_ = 0;
    violation_ = what;
    const Wording& wording = wordings[static_cast<size_t>(what)];
    const bool guest_address = what == Violation::address || what == Violation::indirect_address ||
                               what == Violation::zero_length || what == Violation::order;
    char text[192];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, wording.format, index, value);
#pragma GCC diagnostic pop
    fail(&error_, what == Violation::chain_elements ? ENGINE_ERROR_LIMIT : ENGINE_ERROR_CORRUPT, EPROTO,
         {.operation = "virtqueue-pop", .field = wording.field, .offset = guest_address ? value : UINT64_MAX},
         "the virtqueue is broken at available index %u: %s; the driver must reset it", unsigned{next_avail_},
         text);
}

}  // namespace engine::virtio
