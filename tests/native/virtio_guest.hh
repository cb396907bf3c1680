// A guest for the tests of the split ring: memory of its own, and a driver written by hand that can break
// every rule. Used by one thread, but for the words of shared memory.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "check.hh"
#include "virtio/device_ring.hh"
#include "virtio/driver_ring.hh"

namespace guest {

using namespace engine::virtio;

struct Free {
    void operator()(void* block) const { free(block); }
};
// Exactly as long as it says, so that the address sanitizer sees the byte after the last.
using Block = std::unique_ptr<uint8_t[], Free>;

inline Block block(size_t bytes, size_t align = 4096) {
    void* memory = nullptr;
    if (posix_memalign(&memory, align, bytes) != 0) abort();
    memset(memory, 0, bytes);
    return Block(static_cast<uint8_t*>(memory));
}

inline MemoryTableRef one_region(uint64_t address, void* host, uint64_t bytes) {
    MemoryTable::Builder builder;
    MemoryTableRef table;
    engine_error error{};
    if (builder.add(address, host, bytes, &error) != 0 || builder.build(&table, &error) != 0) {
        fprintf(stderr, "%s\n", error.message);
        abort();
    }
    return table;
}

inline bool mentions(const engine_error& error, const char* text) {
    return std::string_view(error.message).find(text) != std::string_view::npos;
}

struct Random {  // xorshift64*
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1) {}
    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545f4914f6cdd1du;
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
    bool one_in(uint32_t n) { return below(n) == 0; }
};

constexpr uint64_t all_features = feature_event_idx | feature_indirect_desc;

// A queue in one region at `base`, data from `data` on, and the driver's side of it by hand.
struct Guest {
    static constexpr uint64_t base = 0x100000;
    static constexpr uint64_t bytes = 1 << 20;
    static constexpr uint64_t data = base + (512 << 10);

    explicit Guest(uint32_t size, uint64_t ring_features = feature_indirect_desc, uint16_t first = 0)
        : memory(block(bytes)), layout(RingLayout::make(size)), features(ring_features), avail(first) {
        table = one_region(base, memory.get(), bytes);
    }

    RingConfig config(uint16_t first_index = 0) const {
        return {layout.size,        base + layout.desc, base + layout.avail,
                base + layout.used, features,           first_index};
    }
    template <class Ring>
    void start(Ring& ring) {
        engine_error error{};
        if (!check::report(ring.configure(table, config(avail), &error) == 0, __FILE__, __LINE__,
                           error.message)) {
            throw check::Failure();
        }
    }

    template <class T>
    T* at(uint64_t offset) const {
        return reinterpret_cast<T*>(memory.get() + offset);
    }
    uint8_t* host(uint64_t address) const { return memory.get() + (address - base); }
    void desc(uint32_t index, uint64_t address, uint32_t length, uint32_t flags, uint32_t next = 0) {
        entry(base + layout.desc, index, address, length, flags, next);
    }
    // In a table that lies anywhere.
    void entry(uint64_t in, uint32_t index, uint64_t address, uint32_t length, uint32_t flags,
               uint32_t next) {
        uint64_t words[2] = {little_endian(address),
                             little_endian(length | uint64_t{flags} << 32 | uint64_t{next} << 48)};
        memcpy(host(in) + 16 * index, words, 16);
    }
    void put_head(uint16_t head) {
        SharedAccess::store(at<uint16_t>(layout.avail + 4 + 2 * (avail % layout.size)), head);
        ++avail;
    }
    void show() { SharedAccess::store_seq_cst(at<uint16_t>(layout.avail + 2), avail); }
    void offer(uint16_t head) {
        put_head(head);
        show();
    }
    uint16_t used_idx() const { return SharedAccess::load_acquire(at<uint16_t>(layout.used + 2)); }
    uint32_t used_id(uint32_t slot) const {
        return SharedAccess::load(at<uint32_t>(layout.used + 4 + 8 * (slot % layout.size)));
    }
    uint32_t used_len(uint32_t slot) const {
        return SharedAccess::load(at<uint32_t>(layout.used + 8 + 8 * (slot % layout.size)));
    }
    uint16_t* used_event() const { return at<uint16_t>(layout.avail + 4 + 2 * layout.size); }
    uint16_t* avail_event() const { return at<uint16_t>(layout.used + 4 + 8 * layout.size); }

    Block memory;
    RingLayout layout;
    uint64_t features;
    uint16_t avail;
    MemoryTableRef table;
};

// Both rings over one memory, as an in-process driver uses them.
struct Pair {
    static constexpr uint64_t base = 0x4000000;

    Pair(uint32_t size, uint32_t indirect_entries, uint64_t features, uint16_t first = 0)
        : layout(RingLayout::make(size, indirect_entries)),
          bytes(layout.bytes + (1 << 20)),
          memory(block(bytes)) {
        engine_error error{};
        DriverConfig config{memory.get(), base, bytes, layout, features};
        config.first_index = first;
        bool good = driver.configure(config, &error) == 0 &&
                    device.configure(
                        one_region(base, memory.get(), bytes),
                        {size, base + layout.desc, base + layout.avail, base + layout.used, features, first},
                        &error) == 0;
        if (!check::report(good, __FILE__, __LINE__, error.message)) throw check::Failure();
    }
    uint64_t data() const { return base + layout.bytes; }
    uint8_t* host(uint64_t address) const { return memory.get() + (address - base); }

    RingLayout layout;
    uint64_t bytes;
    Block memory;
    DriverRing driver;
    DeviceRing device;
};

}  // namespace guest
