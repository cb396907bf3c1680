// virtio-blk: the driver side within this process. One thread at a time owns it.
#include "virtio/blk_driver.hh"

#include <sys/mman.h>

#include "base/error.hh"

namespace engine::virtio {

namespace {
constexpr uint64_t page = 4096;
constexpr uint64_t round_up(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}
constexpr uint32_t elements_max = 3;  // header, data, status
}  // namespace

int BlkDriver::attach(BlkQueue& queue, uint32_t slots, uint64_t bytes_each, CallNotifier call,
                      engine_error* error, bool traced) {
    const engine_disk_config& config = queue.disk().config();
    base::Where where{.node = queue.disk().node_name().c_str(), .operation = "attach driver"};
    // An indirect chain takes one descriptor, a direct one three.
    uint32_t most = config.indirect != 0 ? config.queue_size : config.queue_size / elements_max;
    if (slots > most) {
        return base::fail(
            error, ENGINE_ERROR_LIMIT, EINVAL, where,
            "a queue of %u descriptors%s holds %u requests, %u were asked for: make the queue larger",
            config.queue_size, config.indirect != 0 ? "" : " without indirect tables", most, slots);
    }
    RingLayout layout = RingLayout::make(config.queue_size, config.indirect != 0 ? elements_max : 0);
    cells_at_ = round_up(layout.bytes, page);
    data_at_ = round_up(cells_at_ + slots * sizeof(Cell), page);
    data_stride_ = round_up(bytes_each, page);
    if (__builtin_mul_overflow(data_stride_, slots, &arena_bytes_) || bytes_each > UINT32_MAX) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where, "%u buffers of %lu bytes are too much",
                          slots, bytes_each);
    }
    arena_bytes_ += data_at_;
    void* memory = mmap(nullptr, arena_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return base::fail_os(error, errno, where, "cannot map %lu bytes for buffers", arena_bytes_);
    }
    arena_ = static_cast<std::byte*>(memory);
    slots_ = slots;
    if (traced) {
        traces_ = base::make_array<block::Trace*>(config.queue_size);
        if (traces_ == nullptr) return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where, "no memory");
        call.traces = traces_.get();
    }

    DriverConfig driver{};
    driver.memory = reinterpret_cast<uint8_t*>(arena_);
    driver.guest = guest_base;
    driver.bytes = arena_bytes_;
    driver.layout = layout;
    driver.features = queue.disk().features();
    // With room for all chains in the ring itself, indirect tables only add a step.
    driver.indirect_min = slots <= config.queue_size / elements_max ? UINT32_MAX : 2;
    MemoryTable::Builder builder;
    MemoryTableRef table;
    int result = ring_.configure(driver, error);
    if (result == 0) result = builder.add(guest_base, arena_, arena_bytes_, error);
    if (result == 0) result = builder.build(&table, error);
    if (result != 0) return result;
    ring_.disable_calls();
    RingConfig device{};
    device.size = config.queue_size;
    device.desc = guest_base + layout.desc;
    device.avail = guest_base + layout.avail;
    device.used = guest_base + layout.used;
    device.features = driver.features;
    result = queue.start(std::move(table), device, call, error);
    if (result == 0) queue_ = &queue;  // from here on there is something to detach from
    return result;
}

void BlkDriver::detach() noexcept {
    if (queue_ != nullptr) queue_->stop();
    queue_ = nullptr;
}

BlkDriver::~BlkDriver() {
    detach();
    if (arena_ != nullptr) munmap(arena_, arena_bytes_);
}

}  // namespace engine::virtio
