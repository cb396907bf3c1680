// virtio-blk (VIRTIO 1.2, section 5.2): the device side. A disk has queues; each is served by one context, on
// whose thread all of it runs but for what says "any thread". How chains travel is the ring's business
// (device_ring.hh); what they mean is decided here.
#pragma once

#include <engine/queue.h>

#include <memory>
#include <string>
#include <vector>

#include "aio/bottom_half.hh"
#include "block/graph.hh"
#include "virtio/device_ring.hh"

namespace engine::virtio {

// Request types and status (sections 5.2.6, 5.2.6.1).
enum BlkType : uint32_t {
    blk_in = 0,
    blk_out = 1,
    blk_flush = 4,
    blk_get_id = 8,
    blk_discard = 11,
    blk_write_zeroes = 13,
};
enum BlkStatus : uint8_t { blk_ok = 0, blk_ioerr = 1, blk_unsupported = 2 };

struct BlkHeader {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;  // 512 bytes
};
struct BlkRange {  // of discard and write zeroes
    uint64_t sector;
    uint32_t sectors;
    uint32_t flags;  // bit 0: unmap
};
inline constexpr uint32_t blk_range_unmap = 1;
inline constexpr unsigned blk_id_bytes = 20;
inline constexpr uint64_t sector_bytes = 512;

class Disk;

// How the device tells the driver that chains were used. Called on the queue's home thread; must not block.
struct CallNotifier {
    void (*notify)(void* opaque) = nullptr;
    void* opaque = nullptr;
    // Of a driver in this process that draws requests for traces: by the head of the chain, written before
    // the chain is published and read when it is popped. Null: no guest can say anything of the kind.
    block::Trace** traces = nullptr;
};

// On cache lines of its own, and on pairs of them: its neighbour may be served by another context.
class alignas(128) BlkQueue final : private aio::Poller {
  public:
    BlkQueue(Disk& disk, aio::AioContext& context, unsigned index);
    ~BlkQueue();

    // Control plane, any foreign thread.
    int open(engine_error* error);
    // One driver at a time: -EBUSY while another is attached. The ring may be smaller than the disk's
    // queue_size. From here to stop() it counts as a use of the disk.
    int start(MemoryTableRef memory, const RingConfig& config, CallNotifier call, engine_error* error);
    // Takes no more chains, waits for those in flight, lets go of the memory.
    void stop() noexcept;
    void close() noexcept;

    // Any thread: the driver has published chains and the device asked to be told.
    void kick() noexcept { kick_->schedule(); }

    Disk& disk() noexcept { return disk_; }
    aio::AioContext& context() noexcept { return context_; }
    // Any foreign thread.
    void read_stats(engine_queue_stats* out);

  private:
    struct Slot;

    int make_slots() noexcept;
    int refuse_start(const RingConfig& config, engine_error* error);

    bool poll() override;
    bool has_work() override { return running_ && (ring_.unpublished() || ring_.has_work()); }
    bool prepare_sleep() override;
    void end_sleep() override { ring_.disable_notifications(); }

    void handle(Slot* slot) noexcept;
    [[gnu::cold, gnu::noinline]] void refuse_without_status(Slot* slot) noexcept;
    void transfer(Slot* slot, bool in, uint64_t sector) noexcept;
    void range(Slot* slot, const BlkHeader& header) noexcept;
    void get_id(Slot* slot) noexcept;
    void submit(Slot* slot) noexcept;
    void complete(Slot* slot, BlkStatus status) noexcept;
    void break_queue(engine_error_kind kind, const char* field, const char* reason) noexcept;
    void publish() noexcept;
    [[gnu::noinline]] void settle_stop() noexcept;
    void release() noexcept;
    static void completed(block::Request* request) noexcept;
    [[gnu::cold, gnu::noinline]] static void end_trace(block::Request* request) noexcept;

    Disk& disk_;
    aio::AioContext& context_;
    unsigned index_;
    block::Port* port_ = nullptr;
    aio::BottomHalf* kick_ = nullptr;
    base::Atomic<uint32_t> attached_{0};  // a driver has it
    // --- home thread
    DeviceRing ring_;
    CallNotifier call_;
    bool running_ = false;
    bool broken_ = false;
    Slot* free_ = nullptr;
    std::vector<base::Owner<Slot>, base::Allocator<base::Owner<Slot>>> slots_;  // a chain for each descriptor
    aio::Signal* stopped_ = nullptr;
    engine_error error_{};  // of a broken queue; read by others once `broken` says so
    // --- statistics, written on the home thread
    base::Counter requests_, done_, kicks_, calls_, polls_, batches_, broken_flag_;
    block::OpCounters op_[block::op_count];
};

class Disk {
  public:
    // Control plane, any foreign thread.
    static int create(block::Node* node, const engine_disk_config& config, std::unique_ptr<Disk>* out,
                      engine_error* error);
    // -EBUSY while a driver is attached to one of its queues.
    static int close(std::unique_ptr<Disk>* disk, engine_error* error);
    ~Disk();

    block::User* user() noexcept { return user_; }
    Instance& engine() noexcept { return *user_->engine; }
    // Of the node that it was made on; meanwhile a filter may stand above it.
    const std::string& node_name() const noexcept { return node_name_; }
    const engine_disk_config& config() const noexcept { return config_; }
    uint64_t features() const noexcept {
        return (config_.event_index != 0 ? feature_event_idx : 0) |
               (config_.indirect != 0 ? feature_indirect_desc : 0);
    }
    const std::string& serial() const noexcept { return serial_; }
    BlkQueue* queue(uint32_t index) noexcept {
        return index < queues_.size() ? queues_[index].get() : nullptr;
    }

  private:
    Disk() = default;
    block::User* user_ = nullptr;
    engine_disk_config config_{};
    std::string serial_;
    std::string node_name_;
    std::vector<std::unique_ptr<BlkQueue>> queues_;
};

}  // namespace engine::virtio
