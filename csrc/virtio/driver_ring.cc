// The driver's side of a split virtqueue, off the hot path: set-up, and the words for what a device did
// wrong. One thread at a time owns a ring.
#include "virtio/driver_ring.hh"

#include <algorithm>
#include <cerrno>
#include <cinttypes>

#include "base/error.hh"

namespace engine::virtio {

using base::fail;

namespace {

int check(const DriverConfig& config, engine_error* error) {
    const RingLayout& layout = config.layout;
    if (!RingLayout::valid_size(layout.size)) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL,
                    {.operation = "virtqueue-configure", .field = "size"},
                    "a virtqueue of %" PRIu32 " descriptors: a power of two up to %" PRIu32 " is needed",
                    layout.size, max_queue_size);
    }
    if (layout.indirect_entries > UINT16_MAX) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL,
                    {.operation = "virtqueue-configure", .field = "indirect_entries"},
                    "indirect tables of %" PRIu32 " entries: at most %u can be linked",
                    layout.indirect_entries, unsigned{UINT16_MAX});
    }
    if (reinterpret_cast<uintptr_t>(config.memory) % RingLayout::alignment != 0 ||
        config.guest % RingLayout::alignment != 0 || layout.desc % RingLayout::alignment != 0) {
        return fail(
            error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "virtqueue-configure", .field = "memory"},
            "a virtqueue's memory must be aligned to %" PRIu64 " bytes, here and in the guest's addresses",
            RingLayout::alignment);
    }
    // The parts ascend, so that the end of the last one bounds them all.
    if (layout.desc > config.bytes || layout.bytes > config.bytes - layout.desc) {
        return fail(error, ENGINE_ERROR_INVALID, ENOSPC,
                    {.operation = "virtqueue-configure", .field = "bytes"},
                    "a virtqueue of %" PRIu32 " descriptors needs %" PRIu64 " bytes at offset %" PRIu64
                    "; its memory has %" PRIu64,
                    layout.size, layout.bytes, layout.desc, config.bytes);
    }
    return 0;
}

}  // namespace

int DriverRingBase::configure(const DriverConfig& config, engine_error* error) {
    if (int result = check(config, error); result != 0) return result;
    const uint32_t size = config.layout.size;
    base::Owner<Slot[]> slots = base::make_array<Slot>(size);
    base::Owner<uint16_t[]> next = base::make_array<uint16_t>(size);
    const uint32_t entries =
        (config.features & feature_indirect_desc) != 0 ? config.layout.indirect_entries : 0;
    base::Owner<uint16_t[]> sequence;
    if (entries != 0) sequence = base::make_array<uint16_t>(entries);
    if (slots == nullptr || next == nullptr || (sequence == nullptr && entries != 0)) {
        return fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "virtqueue-configure"},
                    "no memory for a virtqueue of %" PRIu32 " descriptors", size);
    }
    for (uint32_t i = 0; i < size; ++i) next[i] = static_cast<uint16_t>((i + 1) & (size - 1));
    for (uint32_t i = 0; i < entries; ++i) sequence[i] = static_cast<uint16_t>(i + 1);
    slots_ = std::move(slots);
    next_ = std::move(next);
    sequence_ = std::move(sequence);
    size_ = size;
    mask_ = static_cast<uint16_t>(size - 1);
    event_index_ = (config.features & feature_event_idx) != 0;
    indirect_entries_ = entries;
    // A chain that no direct descriptors could hold goes indirect, whatever the wish.
    indirect_min_ = std::clamp(config.indirect_min, 1u, size + 1);
    place(config);
    added_ = published_ = used_shadow_ = seen_ = config.first_index;
    free_head_ = 0;
    free_ = size;
    violation_ = DeviceViolation::none;
    base::clear(&error_);
    calls_ = true;
    ready_ = true;
    return 0;
}

// The driver initialises used.flags, too (section 2.7.10.1).
void DriverRingBase::place(const DriverConfig& config) noexcept {
    const RingLayout& layout = config.layout;
    memset(config.memory + layout.desc, 0, desc_bytes(size_));
    memset(config.memory + layout.avail, 0, avail_bytes(size_));
    memset(config.memory + layout.used, 0, used_bytes(size_));
    desc_ = reinterpret_cast<RingDescriptor*>(config.memory + layout.desc);
    avail_ = reinterpret_cast<RingAvail*>(config.memory + layout.avail);
    avail_ring_ = reinterpret_cast<uint16_t*>(config.memory + layout.avail + sizeof(RingAvail));
    used_event_ = avail_ring_ + size_;
    used_ring_head_ = reinterpret_cast<RingUsed*>(config.memory + layout.used);
    used_ring_ = reinterpret_cast<RingUsedElement*>(config.memory + layout.used + sizeof(RingUsed));
    avail_event_ = reinterpret_cast<uint16_t*>(used_ring_ + size_);
    indirect_ = reinterpret_cast<RingDescriptor*>(config.memory + layout.indirect);
    indirect_guest_ = config.guest + layout.indirect;
    avail_->idx = little_endian(config.first_index);
    used_ring_head_->idx = little_endian(config.first_index);
    // Both ask for the first notification, wherever the rings start.
    *used_event_ = little_endian(config.first_index);
    *avail_event_ = little_endian(config.first_index);
}

void DriverRingBase::break_ring(DeviceViolation what, uint64_t value, uint64_t bound) noexcept {
    ready_ = false;
    used_shadow_ = seen_;
    violation_ = what;
    const char* field = "used.idx";
    const char* format = "the virtqueue is broken at used index %u: used index %" PRIu64
                         " is past what was offered (%" PRIu64 "); the device must be reset";
    if (what == DeviceViolation::used_id) {
        field = "used.id";
        format = "the virtqueue is broken at used index %u: head %" PRIu64
                 " is not in flight (the queue has %" PRIu64 "); the device must be reset";
    } else if (what == DeviceViolation::used_length) {
        field = "used.len";
        format = "the virtqueue is broken at used index %u: %" PRIu64
                 " bytes written to a chain with room for %" PRIu64 "; the device must be reset";
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    base::fail(&error_, ENGINE_ERROR_CORRUPT, EPROTO, {.operation = "virtqueue-reap", .field = field}, format,
               unsigned{seen_}, value, bound);
#pragma GCC diagnostic pop
}

}  // namespace engine::virtio
