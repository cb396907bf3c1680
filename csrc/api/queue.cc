// The C interface to disks, virtqueues and workloads. Control plane.
#include "api/handles.hh"
#include "virtio/blk_driver.hh"
#include "workload/generator.hh"

using namespace engine;
using namespace engine::api;

namespace {

virtio::Disk* unwrap(engine_disk_t* handle) {
    return reinterpret_cast<virtio::Disk*>(handle);
}
virtio::BlkQueue* unwrap(engine_queue_t* handle) {
    return reinterpret_cast<virtio::BlkQueue*>(handle);
}
workload::Generator* unwrap(engine_workload_t* handle) {
    return reinterpret_cast<workload::Generator*>(handle);
}
Instance& engine_of(virtio::Disk& disk) {
    return disk.engine();
}

}  // namespace

int engine_disk_create(engine_node_t* node, const engine_disk_config* given, engine_disk_t** out,
                       engine_error* error) {
    return guarded(error, "make disk", [&] {
        engine_disk_config config;
        std::unique_ptr<virtio::Disk> disk;
        int result = unwrap(node)->control->engine->check(error, "make disk");
        if (result == 0) result = read_config(given, &config, "engine_disk_config", error);
        if (result == 0) result = virtio::Disk::create(unwrap(node), config, &disk, error);
        if (result == 0) *out = reinterpret_cast<engine_disk_t*>(disk.release());
        return result;
    });
}

int engine_disk_close(engine_disk_t* handle, engine_error* error) {
    return guarded(error, "close disk", [&] {
        std::unique_ptr<virtio::Disk> disk(unwrap(handle));
        int result = engine_of(*disk).check(error, "close disk");
        if (result == 0) result = virtio::Disk::close(&disk, error);
        if (result != 0) (void)disk.release();
        return result;
    });
}

engine_queue_t* engine_disk_get_queue(engine_disk_t* handle, uint32_t index) {
    return reinterpret_cast<engine_queue_t*>(unwrap(handle)->queue(index));
}

int engine_queue_get_stats(engine_queue_t* handle, engine_queue_stats* out) {
    engine_queue_stats stats{};
    int result = engine_of(unwrap(handle)->disk()).check(nullptr, "query queue", false);
    if (result != 0) return result;
    unwrap(handle)->read_stats(&stats);
    return write_out(stats, out);
}

namespace {

// One request by a driver of its own, which lives as long as the call.
int one_request(engine_queue_t* handle, virtio::BlkType type, void* in, const void* out, uint64_t offset,
                uint64_t bytes, uint32_t flags, engine_error* error) {
    virtio::BlkQueue& queue = *unwrap(handle);
    int result = engine_of(queue.disk()).check(error, "queue request");
    if (result != 0) return result;
    base::Where where{
        .node = queue.disk().node_name().c_str(), .operation = "queue request", .offset = offset};
    aio::Signal called;
    virtio::BlkDriver driver;
    virtio::CallNotifier notifier{[](void* opaque) { static_cast<aio::Signal*>(opaque)->set(); }, &called};
    bool data = in != nullptr || out != nullptr;
    result = driver.attach(queue, 1, data ? bytes : virtio::sector_bytes, notifier, error);
    if (result != 0) return result;
    if (out != nullptr) memcpy(driver.data(0), out, bytes);
    bool added = driver.add(0, type, offset, bytes, flags);
    uint32_t slot = 0;
    virtio::BlkStatus status = virtio::blk_ioerr;
    bool done = false;
    if (added) {
        driver.enable_calls();
        driver.publish();
        engine_of(queue.disk()).wait(called);
        done = driver.reap(&slot, &status);
    }
    if (!done) {
        engine_queue_stats stats{};
        queue.read_stats(&stats);
        return base::fail(error, ENGINE_ERROR_CORRUPT, EIO, where, "the queue broke: %s",
                          driver.broken() ? driver.error().message : stats.error.message);
    }
    driver.detach();
    if (status != virtio::blk_ok) {
        bool unsupported = status == virtio::blk_unsupported;
        return base::fail(error, unsupported ? ENGINE_ERROR_UNSUPPORTED : ENGINE_ERROR_OS,
                          unsupported ? ENOTSUP : EIO, where,
                          "the device answered %s to request type %u, %lu bytes at offset %lu",
                          unsupported ? "UNSUPP" : "IOERR", static_cast<unsigned>(type), bytes, offset);
    }
    if (in != nullptr) memcpy(in, driver.data(0), bytes);
    return 0;
}

int check_request(uint32_t op, const void* data, uint64_t offset, uint64_t bytes, uint32_t flags,
                  engine_error* error) {
    base::Where where{.operation = "queue request", .field = "bytes", .offset = offset};
    constexpr uint64_t most = uint64_t{1} << 30;
    if (offset % virtio::sector_bytes != 0 || bytes % virtio::sector_bytes != 0 || bytes > most) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "%lu bytes at offset %lu: a queue takes multiples of 512 bytes, at most 1 GiB",
                          bytes, offset);
    }
    if ((op == ENGINE_OP_READ || op == ENGINE_OP_WRITE) && data == nullptr && bytes != 0) {
        where.field = "data";
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "%lu bytes to transfer, and no buffer",
                          bytes);
    }
    where.field = "flags";
    if ((flags & ~uint32_t{ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK}) != 0) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "unknown flags 0x%x", flags);
    }
    if ((flags & ENGINE_NO_FALLBACK) != 0) {
        return base::fail(error, ENGINE_ERROR_UNSUPPORTED, ENOTSUP, where,
                          "virtio-blk has no word for NO_FALLBACK: leave it out, or ask the node itself");
    }
    return 0;
}

int send_request(engine_queue_t* queue, uint32_t op, void* data, uint64_t offset, uint64_t bytes,
                 uint32_t flags, engine_error* error) {
    switch (op) {
        case ENGINE_OP_READ:
            return one_request(queue, virtio::blk_in, data, nullptr, offset, bytes, 0, error);
        case ENGINE_OP_WRITE:
            return one_request(queue, virtio::blk_out, nullptr, data, offset, bytes, 0, error);
        case ENGINE_OP_FLUSH:
            return one_request(queue, virtio::blk_flush, nullptr, nullptr, 0, 0, 0, error);
        case ENGINE_OP_DISCARD:
            return one_request(queue, virtio::blk_discard, nullptr, nullptr, offset, bytes, 0, error);
        case ENGINE_OP_WRITE_ZEROES:
            return one_request(queue, virtio::blk_write_zeroes, nullptr, nullptr, offset, bytes,
                               (flags & ENGINE_MAY_UNMAP) != 0 ? virtio::blk_range_unmap : 0, error);
        default:
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL,
                              {.operation = "queue request", .field = "op"},
                              "operation %u does not exist on a queue", op);
    }
}

}  // namespace

int engine_queue_io(engine_queue_t* queue, uint32_t op, void* data, uint64_t offset, uint64_t bytes,
                    uint32_t flags, engine_error* error) {
    return guarded(error, "queue request", [&] {
        int result = check_request(op, data, offset, bytes, flags, error);
        if (result == 0) result = send_request(queue, op, data, offset, bytes, flags, error);
        // FUA does not exist on the wire (section 5.2.6): a driver follows such a write with a flush.
        bool durable = (flags & ENGINE_FUA) != 0 && (op == ENGINE_OP_WRITE || op == ENGINE_OP_WRITE_ZEROES);
        if (result == 0 && durable) result = send_request(queue, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, error);
        return result;
    });
}

int engine_queue_get_id(engine_queue_t* queue, char id[20], engine_error* error) {
    return guarded(error, "queue request", [&] {
        return one_request(queue, virtio::blk_get_id, id, nullptr, 0, virtio::blk_id_bytes, 0, error);
    });
}

namespace {

int check_workload(const engine_workload_config& config, engine_error* error) {
    auto invalid = [&](const char* field, const char* text, unsigned long value) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "workload", .field = field},
                          "workload: %s = %lu: %s", field, value, text);
    };
    if ((config.user == nullptr) == (config.queue == nullptr))
        return invalid("user", "give either a user or a queue", 0);
    if (config.iodepth == 0 || config.iodepth > 65536)
        return invalid("iodepth", "1 to 65536", config.iodepth);
    uint32_t unit = config.queue != nullptr ? 512 : 1;
    bool verify = (config.flags & ENGINE_WORKLOAD_VERIFY) != 0;
    if (verify) unit = 512;
    if (config.ops != nullptr) return workload::Replay::check(config, error);
    if (config.block_size == 0 || config.block_size % unit != 0 || config.block_size > (1u << 30)) {
        return invalid("block_size", "1 byte to 1 GiB; multiples of 512 on a queue or with verify",
                       config.block_size);
    }
    if (config.read_percent > 100) return invalid("read_percent", "0 to 100", config.read_percent);
    if (config.pattern > ENGINE_RANDOM) return invalid("pattern", "sequential or random", config.pattern);
    if (config.count == 0 && config.runtime_ns == 0) return invalid("count", "give a count or a runtime", 0);
    if (config.rate_iops > 1000000000) return invalid("rate_iops", "at most 10^9 a second", config.rate_iops);
    return 0;
}

}  // namespace

int engine_workload_create(engine_t* handle, const engine_workload_config* given, engine_workload_t** out,
                           engine_error* error) {
    return guarded(error, "workload", [&] {
        Instance& engine = *api::unwrap(handle);
        engine_workload_config config;
        std::unique_ptr<workload::Generator> generator;
        int result = engine.check(error, "workload");
        if (result == 0) result = read_config(given, &config, "engine_workload_config", error);
        if (result == 0) result = check_workload(config, error);
        if (result != 0) return result;
        if (config.context == nullptr && config.queue != nullptr)
            config.context = wrap(&unwrap(config.queue)->context());
        result = workload::Generator::create(engine, config, &generator, error);
        if (result == 0) *out = reinterpret_cast<engine_workload_t*>(generator.release());
        return result;
    });
}

int engine_workload_start(engine_workload_t* handle, engine_error* error) {
    return guarded(error, "start workload", [&] {
        int result = unwrap(handle)->engine().check(error, "start workload");
        return result != 0 ? result : unwrap(handle)->start(error);
    });
}
int engine_workload_stop(engine_workload_t* handle) {
    int result = unwrap(handle)->engine().check(nullptr, "stop workload", false);
    return result != 0 ? result : unwrap(handle)->stop();
}
int engine_workload_wait(engine_workload_t* handle, uint64_t timeout_ns) {
    int result = unwrap(handle)->engine().check(nullptr, "wait for workload");
    return result != 0 ? result : unwrap(handle)->wait(timeout_ns);
}
int engine_workload_get_result(engine_workload_t* handle, engine_workload_result* out) {
    std::unique_ptr<engine_workload_result> result(new (std::nothrow) engine_workload_result);
    if (result == nullptr) return -ENOMEM;
    memset(result.get(), 0, sizeof *result);
    unwrap(handle)->read_result(result.get());
    return write_out(*result, out);
}
int engine_workload_get_traces(engine_workload_t* handle, engine_trace* traces, uint64_t capacity,
                               uint64_t* count, uint32_t* every) {
    return unwrap(handle)->read_traces(traces, capacity, count, every);
}
int engine_workload_close(engine_workload_t* handle) {
    int result = unwrap(handle)->engine().check(nullptr, "close workload");
    if (result != 0) return result;
    unwrap(handle)->close();
    delete unwrap(handle);
    return 0;
}
