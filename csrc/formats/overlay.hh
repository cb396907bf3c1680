// The overlay format: a temporary disk over any node. Reads shine through to `backing`, which is never
// written; writes go to clusters of `file`, the data node; the table of both is in memory, so all of it is
// gone when the node closes.
//
// A request maps under `meta` and does its I/O without it. So:
//   a write of something new takes three steps: under `meta` it finds, or allocates, the host clusters and
//   counts itself among their writers; it writes the data; under `meta` it makes its sub-clusters data. Who
//   reads meanwhile has the old content, and so has everybody if the write fails; an entry without data and
//   writers drops its host cluster. It is used anew only after grace, because requests that mapped it before
//   may still read or write it. The home's background work sees to that.
//   Writes that overlap write to the same host cluster. What one has made data, and a clear has hidden, must
//   not come back with the other: a write whose clusters were cleared since its first step does it all again.
// A write covers whole sub-clusters (request_alignment), so nothing is ever copied up.
#pragma once

#include <algorithm>

#include "block/child_requests.hh"
#include "block/home_work.hh"
#include "formats/overlay_table.hh"

namespace engine::formats {

// In the order of the driver's roles.
constexpr size_t backing_child = 0;
constexpr size_t data_child = 1;

struct Layout {
    unsigned cluster_bits;
    unsigned sub_bits;
    uint64_t backing_bytes;  // beyond them there is nothing to shine through

    uint64_t cluster_bytes() const noexcept { return uint64_t{1} << cluster_bits; }
    unsigned subs() const noexcept { return 1u << (cluster_bits - sub_bits); }
    uint64_t index(uint64_t offset) const noexcept { return offset >> cluster_bits; }
    uint64_t inside(uint64_t offset) const noexcept { return offset & (cluster_bytes() - 1); }
    unsigned sub(uint64_t offset) const noexcept { return static_cast<unsigned>(inside(offset) >> sub_bits); }
    uint64_t host_offset(uint32_t host, uint64_t offset) const noexcept {
        return (uint64_t{host} << cluster_bits) + inside(offset);
    }
    // Of `length` from `offset` on: what lies in the cluster that it starts in.
    uint64_t within(uint64_t offset, uint64_t length) const noexcept {
        return std::min(length, cluster_bytes() - inside(offset));
    }
    // The sub-clusters of a range that lies in one cluster. In part counts as whole: the end of the disk may
    // be.
    SubSet subset(uint64_t offset, uint64_t length) const noexcept {
        return SubSet::range(sub(offset), sub(offset + length - 1) - sub(offset) + 1);
    }
};

// What a lookup returns: a part of the disk that is alike. Valid without `meta` until the request has left.
struct Extent {
    Source source = Source::zero;
    uint64_t length = 0;
    uint64_t host = 0;  // data: where, in the data node
};

// Where a write of something new goes: from its offset on, `length` bytes in all.
struct Places {
    static constexpr unsigned most = 8;
    std::array<Extent, most> extents;
    unsigned count = 0;
    uint64_t length = 0;
    uint64_t clears = 0;  // so many came before
    int error = 0;        // what kept it from being more
};

// The map of a node. Under `meta`; no lock of its own.
class Map {
  public:
    // False: no memory.
    bool init(const Layout& layout, uint64_t bytes, uint32_t host_clusters) noexcept;
    const Layout& layout() const noexcept { return layout_; }
    HostSpace& space() noexcept { return space_; }

    // What the range starts with, of at most `pieces` pieces that are alike.
    Extent find(const Held& meta, uint64_t offset, uint64_t length, unsigned pieces = 256) const noexcept;
    // commit() of the same range, as long as it has become, follows unless that is 0.
    void reserve(const Exclusive& meta, uint64_t offset, uint64_t length, Places* places) noexcept;
    struct Committed {
        bool dropped = false;  // clusters were
        bool again = false;    // not all of it is data: it was cleared meanwhile
    };
    // The range has been written, or it could not be.
    Committed commit(const Exclusive& meta, uint64_t offset, const Places& places, bool written) noexcept;
    // Makes the beginning of a range zero. How many bytes that was; 0: no memory for the table.
    uint64_t clear(const Exclusive& meta, uint64_t offset, uint64_t length, bool* dropped) noexcept;

  private:
    Extent piece(const Held& meta, uint64_t offset, uint64_t length) const noexcept;
    int reserve_one(const Exclusive& meta, uint64_t offset, uint64_t length, Places* places) noexcept;
    bool let_go(const Exclusive& meta, Entry& entry) noexcept;
    void note_clear(Entry& entry) noexcept {
        if (entry.writers != 0) entry.cleared = ++clears_;
    }
    uint64_t clear_step(const Exclusive& meta, uint64_t offset, uint64_t length, bool* dropped) noexcept;

    Layout layout_{};
    uint64_t bytes_ = 0;
    uint64_t clears_ = 0;  // that have met writers
    Table table_;
    HostSpace space_;
};

struct Overlay {
    Overlay() noexcept;
    block::MetaLock meta;
    Map map;
    block::HomeWork reclaim;  // of what has been dropped
};

struct OverlayState {
    Overlay* overlay;
    bool own_data;  // the data node is one that the driver chose
};

// A request that is served by a task.
struct Work : coro::Callback<int64_t> {
    block::Request* request = nullptr;
};

struct OverlayChannel {
    Overlay* overlay;
    block::MetaLock::Slot* slot;
    block::RequestPool<Work> works;
    block::ChildRequests::Pool parts;
};

// --- overlay_io.cc
void overlay_submit(block::Channel& channel, block::Request* request);
// --- overlay_reclaim.cc: a pass of the background work
coro::Task<int> reclaim(block::Channel& home);

}  // namespace engine::formats
