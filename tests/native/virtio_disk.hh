// What the tests of virtio-blk share: engines, contexts, nodes and disks that close themselves, a recorder
// between the request layer and a driver, and a guest that drives a queue by hand. Each belongs to the test's
// own thread.
#pragma once

#include <engine/engine.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <mutex>
#include <vector>

#include "check.hh"
#include "virtio/blk.hh"
#include "virtio_guest.hh"

namespace rig {

using namespace engine;
using guest::mentions;
using virtio::BlkQueue;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif
#else
constexpr bool sanitized = false;
#endif

inline void require(bool good, const char* what, const engine_error& error) {
    if (good) return;
    check::report(false, what, 0, error.message);
    throw check::Failure();
}

struct Engine {
    explicit Engine(uint32_t locking = ENGINE_LOCKING_PER_NODE) {
        engine_config config{};
        config.size = sizeof config;
        config.locking = locking;
        require(engine_create(&config, &handle, &error) == 0, "engine_create", error);
    }
    Engine(const Engine&) = delete;
    ~Engine() { check::report(engine_close(handle, &error) == 0, "engine_close", 0, error.message); }

    // It sleeps whenever it has nothing to do. `cpu` -1: not pinned.
    engine_context_t* context(const char* name, int32_t cpu = -1) {
        engine_context_config config{};
        config.size = sizeof config;
        config.name = name;
        config.cpus = &cpu;
        config.cpu_count = cpu < 0 ? 0 : 1;
        engine_context_t* out = nullptr;
        require(engine_context_create(handle, &config, &out, &error) == 0, "engine_context_create", error);
        return out;
    }
    engine_node_t* open(std::vector<engine_option> options) {
        engine_node_t* out = nullptr;
        require(engine_node_open(handle, options.data(), options.size(), &out, &error) == 0,
                "engine_node_open", error);
        return out;
    }
    engine_t* handle = nullptr;
    engine_error error{};
};

// Two CPUs for two contexts; the same one twice where there is no other.
inline std::pair<int32_t, int32_t> two_cpus() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return {-1, -1};
    int32_t first = -1, last = -1;
    for (int32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        if (first < 0) first = cpu;
        last = cpu;
    }
    return {first, last};
}

// A file of so many bytes, removed at the end.
struct TemporaryFile {
    explicit TemporaryFile(off_t bytes) {
        const char* folder = getenv("TMPDIR");
        path = std::string(folder != nullptr ? folder : "/tmp") + "/virtio-XXXXXX";
        fd = mkstemp(path.data());
        if (fd < 0 || ftruncate(fd, bytes) != 0) abort();
    }
    TemporaryFile(const TemporaryFile&) = delete;
    ~TemporaryFile() {
        unlink(path.c_str());
        close(fd);
    }
    std::string path;
    int fd;
};

struct Disk {
    Disk() = default;
    Disk(engine_node_t* node, std::vector<engine_context_t*> on, engine_disk_config given = defaults()) {
        given.queue_count = static_cast<uint32_t>(on.size());
        given.contexts = on.data();
        require(engine_disk_create(node, &given, &handle, &error) == 0, "engine_disk_create", error);
    }
    Disk(const Disk&) = delete;
    ~Disk() { close(); }
    void close() {
        if (handle == nullptr) return;
        check::report(engine_disk_close(handle, &error) == 0, "engine_disk_close", 0, error.message);
        handle = nullptr;
    }
    static engine_disk_config defaults() {
        engine_disk_config config{};
        config.size = sizeof config;
        config.queue_size = 64;
        config.write_cache = config.event_index = config.indirect = 1;
        config.name = "vda";
        config.serial = "serial-0001";
        return config;
    }
    engine_queue_t* queue(uint32_t index) const { return engine_disk_get_queue(handle, index); }
    BlkQueue& core(uint32_t index) const { return *reinterpret_cast<BlkQueue*>(queue(index)); }
    engine_queue_stats stats(uint32_t index) const {
        engine_queue_stats out{};
        out.size = sizeof out;
        CHECK_EQ(engine_queue_get_stats(queue(index), &out), 0);
        return out;
    }
    engine_disk_t* handle = nullptr;
    engine_error error{};
};

inline engine_node_stats node_stats(engine_node_t* node, engine_context_t* context = nullptr) {
    engine_node_stats out{};
    out.size = sizeof out;
    CHECK_EQ(engine_node_get_stats(node, context, &out), 0);
    return out;
}

// Stands before a node's driver: notes what the request layer hands down, and fails it where told. Set up
// before the node's first request.
class Recorder : private block::Driver {
  public:
    struct Seen {
        block::Op op;
        uint8_t flags;
        uint64_t offset;
        uint64_t length;
    };
    explicit Recorder(engine_node_t* handle)
        : Driver(*node_of(handle)->driver), below_(node_of(handle)->driver) {
        submit = &note;
        node_of(handle)->driver = this;
        node_ = node_of(handle);
    }
    Recorder(const Recorder&) = delete;
    ~Recorder() { node_->driver = below_; }  // no request is in flight any more

    std::vector<Seen> take() {
        std::lock_guard guard(mutex_);
        return std::exchange(seen_, {});
    }
    // From now on requests end with this instead of reaching the driver; 0: they reach it.
    std::atomic<int> fail_with{0};

  private:
    static block::Node* node_of(engine_node_t* handle) { return reinterpret_cast<block::Node*>(handle); }
    static void note(block::Channel& channel, block::Request* request) {
        auto* self = const_cast<Recorder*>(static_cast<const Recorder*>(channel.node->driver));
        {
            std::lock_guard guard(self->mutex_);
            self->seen_.push_back({request->op, request->flags, request->offset, request->length});
        }
        if (int result = self->fail_with.load(); result != 0) {
            block::finish_later(request, result);
        } else {
            self->below_->submit(channel, request);
        }
    }
    const block::Driver* below_;
    block::Node* node_;
    std::mutex mutex_;
    std::vector<Seen> seen_;
};

// A guest of one queue with descriptors written by hand. `request` is for one chain at a time.
struct HandDriver {
    static constexpr uint8_t untouched = 0xff;
    static constexpr int broken = -1, hung = -2;
    static constexpr uint64_t header = guest::Guest::data;
    static constexpr uint64_t range = header + 64;
    static constexpr uint64_t status = header + 128;
    static constexpr uint64_t data = header + 4096;

    struct Part {
        uint64_t address;
        uint32_t length;
        bool writable = false;
    };

    explicit HandDriver(BlkQueue& driven, uint32_t size = 64, uint64_t features = guest::all_features)
        : guest(size, features), queue(driven) {
        engine_error error{};
        require(start(&error) == 0, "BlkQueue::start", error);
    }
    HandDriver(const HandDriver&) = delete;
    ~HandDriver() { stop(); }
    int start(engine_error* error) {
        int result = queue.start(guest.table, guest.config(guest.avail), {&HandDriver::called, this}, error);
        started = result == 0;
        return result;
    }
    void stop() {
        if (started) queue.stop();
        started = false;
    }
    // A device that was reset begins with a clean ring.
    void reset() {
        stop();
        memset(guest.memory.get(), 0, guest.layout.bytes);
        guest.avail = 0;
        engine_error error{};
        require(start(&error) == 0, "BlkQueue::start", error);
    }
    static void called(void* opaque) { static_cast<HandDriver*>(opaque)->calls.fetch_add(1); }

    void put_header(uint32_t type, uint64_t sector) {
        virtio::BlkHeader value{virtio::little_endian(type), 0, virtio::little_endian(sector)};
        memcpy(guest.host(header), &value, sizeof value);
    }
    void put_range(uint64_t sector, uint32_t sectors, uint32_t flags, unsigned index = 0) {
        virtio::BlkRange value{virtio::little_endian(sector), virtio::little_endian(sectors),
                               virtio::little_endian(flags)};
        memcpy(guest.host(range) + sizeof value * index, &value, sizeof value);
    }
    // Lays the parts out from descriptor `first` on.
    void put_chain(const std::vector<Part>& parts, uint32_t first = 0) {
        for (uint32_t i = 0; i < parts.size(); i++) {
            bool last = i + 1 == parts.size();
            uint32_t flags =
                (parts[i].writable ? virtio::desc_f_write : 0u) | (last ? 0u : virtio::desc_f_next);
            guest.desc(first + i, parts[i].address, parts[i].length, flags, last ? 0 : first + i + 1);
        }
    }
    // True: everything offered is used. False: the queue broke, or five seconds went by.
    bool wait_used() {
        for (double end = check::seconds() + 5; check::seconds() < end;) {
            if (guest.used_idx() == guest.avail) return true;
            if (is_broken()) return guest.used_idx() == guest.avail;
            usleep(20);
        }
        return false;
    }
    bool is_broken() const {
        engine_queue_stats stats{};
        queue.read_stats(&stats);
        return stats.broken != 0;
    }
    // One chain: what its status byte says, `broken` or `hung`.
    int request(const std::vector<Part>& parts) {
        *guest.host(status) = untouched;
        put_chain(parts);
        guest.offer(0);
        queue.kick();
        if (wait_used()) return is_broken() ? broken : *guest.host(status);
        return is_broken() ? broken : hung;
    }
    int request(uint32_t type, uint64_t sector, std::vector<Part> middle) {
        put_header(type, sector);
        middle.insert(middle.begin(), {header, sizeof(virtio::BlkHeader)});
        middle.push_back({status, 1, true});
        return request(middle);
    }

    guest::Guest guest;
    BlkQueue& queue;
    bool started = false;
    std::atomic<uint64_t> calls{0};
};

}  // namespace rig
