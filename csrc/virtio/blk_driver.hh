// virtio-blk: a driver side within this process, for the load generator and for blocking calls. It shares
// with the device nothing but an arena of memory: ring, headers, status bytes and data buffers. One thread at
// a time owns it.
#pragma once

#include "virtio/blk.hh"
#include "virtio/driver_ring.hh"

namespace engine::virtio {

class BlkDriver {
  public:
    BlkDriver() = default;
    ~BlkDriver();
    BlkDriver(const BlkDriver&) = delete;
    BlkDriver& operator=(const BlkDriver&) = delete;

    // Any foreign thread: makes the arena for `slots` requests of up to `bytes_each` and attaches it to the
    // queue. `traced`: requests may carry traces.
    int attach(BlkQueue& queue, uint32_t slots, uint64_t bytes_each, CallNotifier call, engine_error* error,
               bool traced = false);
    // Any foreign thread: waits for what is in flight.
    void detach() noexcept;

    uint32_t slots() const noexcept { return slots_; }
    std::byte* data(uint32_t slot) noexcept { return arena_ + data_at_ + slot * data_stride_; }

    // Fills slot's header and offers its chain; the device sees it after publish(). `bytes` are of data in or
    // out; for discard and write zeroes `bytes` is the length of the range. False: the ring is broken.
    bool add(uint32_t slot, BlkType type, uint64_t offset, uint64_t bytes, uint32_t range_flags = 0,
             block::Trace* trace = nullptr) noexcept;
    void publish() noexcept {
        if (ring_.publish()) queue_->kick();
    }
    // False: none is done.
    bool reap(uint32_t* slot, BlkStatus* status) noexcept {
        void* token = nullptr;
        uint32_t written;
        if (!ring_.reap(&token, &written)) return false;
        *slot = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(token));
        *status = static_cast<BlkStatus>(SharedAccess::load(&cell(*slot)->status));
        return true;
    }
    bool has_used() const noexcept { return ring_.has_used(); }
    bool enable_calls() noexcept { return ring_.enable_calls(); }
    void disable_calls() noexcept { ring_.disable_calls(); }
    bool broken() const noexcept { return ring_.broken(); }
    const engine_error& error() const noexcept { return ring_.error(); }

  private:
    // What goes with a request beside its data, on a cache line of its own.
    struct alignas(64) Cell {
        BlkHeader header;
        BlkRange range;
        uint8_t status;
    };
    Cell* cell(uint32_t slot) noexcept { return reinterpret_cast<Cell*>(arena_ + cells_at_) + slot; }
    uint64_t guest(const void* host) const noexcept {
        return guest_base + static_cast<uint64_t>(static_cast<const std::byte*>(host) - arena_);
    }

    static constexpr uint64_t guest_base =
        0x100000;  // not 0, so that an address is never taken for a null pointer

    BlkQueue* queue_ = nullptr;
    DriverRing ring_;
    std::byte* arena_ = nullptr;
    uint64_t arena_bytes_ = 0;
    uint64_t cells_at_ = 0;
    uint64_t data_at_ = 0;
    uint64_t data_stride_ = 0;
    uint32_t slots_ = 0;
    base::Owner<block::Trace*[]> traces_;  // by head; null: none is traced
};

// Here, so that it becomes part of whoever fills a queue.
inline bool BlkDriver::add(uint32_t slot, BlkType type, uint64_t offset, uint64_t bytes, uint32_t range_flags,
                           block::Trace* trace) noexcept {
    Cell* at = cell(slot);
    const bool ranged = type == blk_discard || type == blk_write_zeroes;
    const uint64_t sector = offset / sector_bytes, at_guest = guest(at);
    DriverRing::Draft chain;
    if (!ring_.start(bytes != 0 || ranged ? 3 : 2, &chain)) return false;
    at->header = {little_endian<uint32_t>(type), 0, little_endian(ranged ? 0 : sector)};
    chain.readable(at_guest + offsetof(Cell, header), sizeof(BlkHeader));
    if (ranged) {
        at->range = {little_endian(sector), little_endian(static_cast<uint32_t>(bytes / sector_bytes)),
                     little_endian(range_flags)};
        chain.readable(at_guest + offsetof(Cell, range), sizeof(BlkRange));
    } else if (bytes != 0 && (type == blk_in || type == blk_get_id)) {
        chain.writable(guest(data(slot)), static_cast<uint32_t>(bytes));
    } else if (bytes != 0) {
        chain.readable(guest(data(slot)), static_cast<uint32_t>(bytes));
    }
    SharedAccess::store(&at->status, uint8_t{0xff});
    chain.writable(at_guest + offsetof(Cell, status), 1);
    if (ENGINE_UNLIKELY(traces_ != nullptr)) traces_[ring_.next_head()] = trace;
    ring_.offer(chain, reinterpret_cast<void*>(static_cast<uintptr_t>(slot)));
    return true;
}

}  // namespace engine::virtio
