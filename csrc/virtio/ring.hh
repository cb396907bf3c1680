// The split virtqueue of VIRTIO 1.2, section 2.7: its layout in memory, and the one way in which either side
// touches memory that the other side may write at any moment.
// No state. The two sides share these words and nothing else; either may be hostile.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace engine::virtio {

// Feature bits (section 6).
inline constexpr uint64_t feature_indirect_desc = uint64_t{1} << 28;
inline constexpr uint64_t feature_event_idx = uint64_t{1} << 29;
inline constexpr uint64_t feature_version_1 = uint64_t{1} << 32;

// Descriptor flags (section 2.7.5). Other bits mean nothing here and are ignored.
inline constexpr uint16_t desc_f_next = 1;
inline constexpr uint16_t desc_f_write = 2;
inline constexpr uint16_t desc_f_indirect = 4;

inline constexpr uint16_t avail_f_no_interrupt = 1;  // section 2.7.6
inline constexpr uint16_t used_f_no_notify = 1;      // section 2.7.8

inline constexpr uint32_t max_queue_size = 32768;               // section 2.7
inline constexpr uint64_t max_chain_bytes = uint64_t{1} << 32;  // section 2.7.5.2

// As in memory, little endian (section 2.7.5); len, flags and next are read and written as one word.
struct RingDescriptor {
    uint64_t addr;
    uint64_t len_flags_next;
};
// Sections 2.7.6 and 2.7.8. The rings are followed by used_event and avail_event.
struct RingAvail {
    uint16_t flags;
    uint16_t idx;
};
struct RingUsedElement {
    uint32_t id;
    uint32_t len;
};
struct RingUsed {
    uint16_t flags;
    uint16_t idx;
};
static_assert(sizeof(RingDescriptor) == 16 && sizeof(RingAvail) == 4);
static_assert(sizeof(RingUsedElement) == 8 && sizeof(RingUsed) == 4);

inline constexpr uint64_t desc_alignment = 16, avail_alignment = 2, used_alignment = 4;
constexpr uint64_t desc_bytes(uint32_t size) noexcept {
    return uint64_t{16} * size;
}
constexpr uint64_t avail_bytes(uint32_t size) noexcept {
    return 6 + uint64_t{2} * size;
}
constexpr uint64_t used_bytes(uint32_t size) noexcept {
    return 6 + uint64_t{8} * size;
}

template <class T>
constexpr T little_endian(T value) noexcept {
    if constexpr (std::endian::native == std::endian::little || sizeof(T) == 1) {
        return value;
    } else if constexpr (sizeof(T) == 2) {
        return __builtin_bswap16(value);
    } else if constexpr (sizeof(T) == 4) {
        return __builtin_bswap32(value);
    } else {
        return __builtin_bswap64(value);
    }
}

// The words of shared memory, each touched by one operation that the compiler may neither repeat nor split.
// A load yields a local that is then checked; nothing is read again. Both rings take this as a parameter, so
// that a test can count reads and change each word behind the reader's back.
struct SharedAccess {
    template <class T>
    static T load(const T* word) noexcept {
        return little_endian(ref(word).load(std::memory_order_relaxed));
    }
    template <class T>
    static T load_acquire(const T* word) noexcept {
        return little_endian(ref(word).load(std::memory_order_acquire));
    }
    template <class T>
    static T load_seq_cst(const T* word) noexcept {
        return little_endian(ref(word).load(std::memory_order_seq_cst));
    }
    template <class T>
    static void store(T* word, T value) noexcept {
        ref(word).store(little_endian(value), std::memory_order_relaxed);
    }
    template <class T>
    static void store_seq_cst(T* word, T value) noexcept {
        ref(word).store(little_endian(value), std::memory_order_seq_cst);
    }

  private:
    template <class T>
    static std::atomic_ref<T> ref(const T* word) noexcept {
        static_assert(std::atomic_ref<T>::is_always_lock_free);
        return std::atomic_ref<T>(*const_cast<T*>(word));
    }
};

// Copies bytes that the other side may be changing: each is read once. For headers and the like; bulk data
// goes straight to I/O.
template <class Access = SharedAccess>
inline void copy_from_shared(void* to, const void* from, size_t length) noexcept {
    auto* out = static_cast<uint8_t*>(to);
    auto* in = static_cast<const uint8_t*>(from);
    if ((reinterpret_cast<uintptr_t>(in) & 7) == 0) {
        for (; length >= 8; length -= 8, in += 8, out += 8) {
            uint64_t word = little_endian(Access::load(reinterpret_cast<const uint64_t*>(in)));
            memcpy(out, &word, 8);
        }
    }
    for (; length != 0; --length) *out++ = Access::load(in++);
}

// A descriptor in the host's byte order. Indirect tables may lie anywhere (section 2.7.5.3 asks for no
// alignment).
template <class Access>
inline RingDescriptor load_descriptor(const uint8_t* at) noexcept {
    if ((reinterpret_cast<uintptr_t>(at) & 7) == 0) [[likely]] {
        const auto* words = reinterpret_cast<const RingDescriptor*>(at);
        return {Access::load(&words->addr), Access::load(&words->len_flags_next)};
    }
    RingDescriptor value;
    copy_from_shared<Access>(&value, at, sizeof value);
    return {little_endian(value.addr), little_endian(value.len_flags_next)};
}

// Whether moving an index from `before` to `now` passed the slot that the other side asked to hear about
// (sections 2.7.7 and 2.7.10). All three wrap at 2^16; an index moves by at most the queue size at once.
constexpr bool passed_event(uint16_t event, uint16_t now, uint16_t before) noexcept {
    return static_cast<uint16_t>(now - event - 1) < static_cast<uint16_t>(now - before);
}

// Where the parts of a queue lie, as offsets from a start that is aligned to 128 bytes. What one side writes
// shares no pair of cache lines with what the other writes.
struct RingLayout {
    uint32_t size;              // descriptors
    uint32_t indirect_entries;  // of each indirect table, one table a descriptor; 0: none
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint64_t indirect;
    uint64_t bytes;  // of it all

    static constexpr uint64_t alignment = 128;
    static constexpr bool valid_size(uint64_t size) noexcept {
        return size != 0 && size <= max_queue_size && (size & (size - 1)) == 0;
    }
    // `size` must be valid and `start` aligned. Entries are rounded up to a whole cache line.
    static constexpr RingLayout make(uint32_t size, uint32_t indirect_entries = 0,
                                     uint64_t start = 0) noexcept {
        RingLayout layout{};
        layout.size = size;
        layout.indirect_entries = (indirect_entries + 3) & ~3u;
        layout.desc = align(start);
        layout.avail = align(layout.desc + desc_bytes(size));
        layout.used = align(layout.avail + avail_bytes(size));
        layout.indirect = align(layout.used + used_bytes(size));
        layout.bytes = align(layout.indirect + desc_bytes(layout.indirect_entries) * size) - start;
        return layout;
    }

  private:
    static constexpr uint64_t align(uint64_t n) noexcept { return (n + alignment - 1) & ~(alignment - 1); }
};

}  // namespace engine::virtio
