// virtio-blk devices: making and closing them. Control plane.
#include <cstring>

#include "base/error.hh"
#include "virtio/blk.hh"

namespace engine::virtio {

namespace {

int check(const Instance& engine, const engine_disk_config& config, engine_error* error) {
    auto invalid = [&](const char* field, const char* text, unsigned long value) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "make disk", .field = field},
                          "%s: %lu: %s", field, value, text);
    };
    if (config.queue_count == 0 || config.queue_count > 1024) {
        return invalid("queue_count", "1 to 1024 queues are possible", config.queue_count);
    }
    if (!RingLayout::valid_size(config.queue_size)) {
        return invalid("queue_size", "a power of two, at most 32768", config.queue_size);
    }
    if (config.contexts == nullptr) return invalid("contexts", "one context a queue is needed", 0);
    for (uint32_t i = 0; i < config.queue_count; i++) {
        auto* context = reinterpret_cast<aio::AioContext*>(config.contexts[i]);
        if (context != nullptr && context->instance == &engine) continue;
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "make disk", .field = "contexts"}, "contexts: queue %u has %s", i,
                          context == nullptr ? "none" : "a context of another engine than the node's");
    }
    if (config.serial != nullptr && strlen(config.serial) > blk_id_bytes) {
        return invalid("serial", "at most 20 bytes", strlen(config.serial));
    }
    return 0;
}

}  // namespace

int Disk::create(block::Node* node, const engine_disk_config& given, std::unique_ptr<Disk>* out,
                 engine_error* error) {
    engine_disk_config config = given;
    if (config.queue_size == 0) config.queue_size = 256;
    int result = check(*node->control->engine, config, error);
    if (result != 0) return result;
    std::unique_ptr<Disk> disk(new Disk);
    disk->node_name_ = node->control->name;
    disk->serial_ = config.serial == nullptr ? "" : config.serial;
    disk->config_ = config;
    // Several devices and callers of one program may share a node; other programs are kept off by the file's
    // locks.
    uint32_t permissions = ENGINE_PERM_CONSISTENT_READ;
    if (config.read_only == 0) permissions |= ENGINE_PERM_WRITE | ENGINE_PERM_WRITE_UNCHANGED;
    result = block::create_user(node, config.name == nullptr ? "virtio-blk" : config.name, permissions,
                                ENGINE_PERM_ALL, &disk->user_, error);
    if (result != 0) return result;
    for (uint32_t i = 0; i < config.queue_count; i++) {
        auto* context = reinterpret_cast<aio::AioContext*>(config.contexts[i]);
        auto queue = std::make_unique<BlkQueue>(*disk, *context, i);
        if (!context->hold()) {
            return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN,
                              {.operation = "make disk", .field = "contexts"},
                              "context %s of queue %u is closed", context->name().c_str(), i);
        }
        disk->queues_.push_back(std::move(queue));
        result = disk->queues_.back()->open(error);
        if (result != 0) return result;
    }
    disk->config_.contexts = nullptr;  // the caller's array
    disk->config_.name = disk->config_.serial = nullptr;
    *out = std::move(disk);
    return 0;
}

Disk::~Disk() {
    for (auto& queue : queues_) {
        queue->close();
        queue->context().let_go();
    }
    queues_.clear();
    if (user_ != nullptr) block::close_user(user_, nullptr);
}

int Disk::close(std::unique_ptr<Disk>* disk, engine_error* error) {
    if (uint32_t users = (*disk)->user_->references.load_acquire(); users != 0) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, {.operation = "close disk"},
                          "%u workloads or calls drive the queues of '%s': close them first", users,
                          (*disk)->user_->name.c_str());
    }
    disk->reset();
    return 0;
}

}  // namespace engine::virtio
