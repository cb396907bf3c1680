// Guest memory: a table of regions that turns guest physical addresses into host pointers.
// No lock: a table never changes once it is built and its count is atomic; a cursor belongs to one thread.
#pragma once

#include <engine/base.h>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/alloc.hh"
#include "base/assert.hh"
#include "base/atomic.hh"

namespace engine::virtio {

struct MemoryRegion {
    uint64_t guest;   // guest physical address of its first byte
    uint64_t length;  // bytes; never 0
    uint8_t* host;
};

class MemoryTableRef;

// Immutable and counted: a queue swaps its reference between turns, and whoever still holds iovecs into the
// old table holds a reference to it. The last reference unmaps what the table itself has mapped.
class MemoryTable {
    struct Key {};  // only Builder has it

  public:
    class Builder;
    static constexpr size_t max_regions = 512;

    explicit MemoryTable(Key) noexcept {}
    ~MemoryTable();  // for MemoryTableRef and Builder
    MemoryTable(const MemoryTable&) = delete;
    MemoryTable& operator=(const MemoryTable&) = delete;

    // Ascending by guest address, without overlaps.
    std::span<const MemoryRegion> regions() const noexcept { return regions_; }
    // The region that holds this address, or null.
    const MemoryRegion* find(uint64_t guest) const noexcept;

  private:
    friend class MemoryTableRef;
    struct Mapping {
        void* start;
        size_t length;
    };

    std::vector<MemoryRegion, base::Allocator<MemoryRegion>> regions_;
    std::vector<Mapping, base::Allocator<Mapping>> mappings_;  // to be unmapped
    mutable base::Atomic<uint32_t> references_{0};
};

class MemoryTableRef {
  public:
    MemoryTableRef() noexcept = default;
    MemoryTableRef(const MemoryTableRef& other) noexcept : table_(other.table_) { acquire(); }
    MemoryTableRef(MemoryTableRef&& other) noexcept : table_(std::exchange(other.table_, nullptr)) {}
    MemoryTableRef& operator=(MemoryTableRef other) noexcept {
        std::swap(table_, other.table_);
        return *this;
    }
    ~MemoryTableRef() { release(); }

    explicit operator bool() const noexcept { return table_ != nullptr; }
    const MemoryTable* get() const noexcept { return table_; }
    const MemoryTable* operator->() const noexcept { return table_; }
    const MemoryTable& operator*() const noexcept { return *table_; }

  private:
    friend class MemoryTable::Builder;
    explicit MemoryTableRef(const MemoryTable* table) noexcept : table_(table) { acquire(); }
    void acquire() noexcept {
        if (table_ != nullptr) table_->references_.fetch_add_relaxed(1);
    }
    void release() noexcept;

    const MemoryTable* table_ = nullptr;
};

// Collects regions, checks them, and hands over the finished table. Errors leave the builder as it was.
class MemoryTable::Builder {
  public:
    Builder() noexcept = default;
    Builder(const Builder&) = delete;
    Builder& operator=(const Builder&) = delete;

    // Memory of the caller's, which outlives the table.
    int add(uint64_t guest, void* host, uint64_t length, engine_error* error);
    // Maps `length` bytes of a memfd from `offset`, shared. It must carry F_SEAL_SHRINK and reach that far: a
    // file that its owner can truncate under us would end us with SIGBUS. The descriptor is not kept.
    int map_fd(uint64_t guest, int fd, uint64_t offset, uint64_t length, engine_error* error);
    // The builder is empty afterwards.
    int build(MemoryTableRef* out, engine_error* error);

  private:
    int check(uint64_t guest, uint64_t length, engine_error* error);

    base::Owner<MemoryTable> table_;
};

// Translation with the last hit in front: most elements of a queue lie in one region.
class MemoryCursor {
  public:
    // The table must outlive the cursor's use of it.
    void reset(const MemoryTable* table) noexcept {
        table_ = table;
        last_ = {0, 0, nullptr};
    }

    // The host address of a range that lies in one region, or null. `length` is not 0.
    uint8_t* translate(uint64_t guest, uint64_t length) noexcept {
        uint64_t offset = guest - last_.guest;
        if (ENGINE_LIKELY(offset < last_.length && length <= last_.length - offset))
            return last_.host + offset;
        uint64_t part = length;
        uint8_t* host = translate_part(guest, &part);
        return part == length ? host : nullptr;
    }
    // The host address of the first byte, or null; `length` shrinks to what lies in that byte's region.
    uint8_t* translate_part(uint64_t guest, uint64_t* length) noexcept;
    // Of the last hit; without bytes before the first.
    const MemoryRegion& last() const noexcept { return last_; }

  private:
    const MemoryTable* table_ = nullptr;
    MemoryRegion last_{0, 0, nullptr};
};

}  // namespace engine::virtio
