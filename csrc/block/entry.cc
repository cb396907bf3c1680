// How requests from outside enter the graph.
#include "block/entry.hh"

#include <cerrno>

#include "base/error.hh"

namespace engine::block {

int check_entry(uint32_t op, uint32_t flags, const engine_iovec* iov, uint32_t iov_count, uint64_t bytes,
                engine_error* error) noexcept {
    constexpr uint32_t iov_count_max = 1024;
    if (op >= ENGINE_OP_COUNT) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "op"}, "unknown operation %u", op);
    }
    if ((flags & ~uint32_t{ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK}) != 0) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "flags"}, "unknown flags 0x%x",
                          flags);
    }
    if (op != ENGINE_OP_READ && op != ENGINE_OP_WRITE) return 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < iov_count; i++) {
        if (__builtin_add_overflow(sum, iov[i].length, &sum)) sum = UINT64_MAX;
    }
    if (sum == bytes && iov_count <= iov_count_max) return 0;
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "iov"},
                      "%u buffers hold %lu bytes, %lu were asked for (at most 1024 buffers)", iov_count, sum,
                      bytes);
}

int begin_use(Instance& engine, User* user, aio::AioContext* context, const char* operation, Port** port,
              engine_error* error) {
    if (user->engine != &engine || context->instance != &engine) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = operation},
                          "%s: user %s, context %s and whoever waits for them belong to different engines",
                          operation, user->name.c_str(), context->name().c_str());
    }
    if (!context->hold()) {
        return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN, {.operation = operation},
                          "context %s is closed", context->name().c_str());
    }
    int result = open_port(user, context, port, error);
    if (result != 0) {
        context->let_go();
        return result;
    }
    user->references.fetch_add_acq_rel(1);
    return 0;
}

void end_use(User* user, aio::AioContext* context) noexcept {
    user->references.fetch_sub_acq_rel(1);
    context->let_go();
}

namespace {

// In use, so what is below it stays.
void hurry_all(Channel& channel, bool on) noexcept {
    if (channel.node->driver->hurry != nullptr) channel.node->driver->hurry(channel, on);
    for (Channel* child : channel.children) hurry_all(*child, on);
}

}  // namespace

// A parked port belongs to a change of the graph, which has seen to it already.
void let_go_below(Port& port) noexcept {
    if (port.parked()) return;
    hurry_all(*port.channel, true);
    hurry_all(*port.channel, false);
}

void wait_to_close(aio::Signal& over, aio::AioContext& context, std::initializer_list<Port*> ports) noexcept {
    while (!over.wait_for(close_patience_ns)) {
        (void)context.call_and_wait([&ports] {
            for (Port* port : ports) {
                if (port != nullptr) let_go_below(*port);
            }
        });
    }
}

void describe_failure(engine_error* error, const Request& request, int errnum) noexcept {
    if (error == nullptr || error->kind != ENGINE_ERROR_NONE) return;
    const char* name = request.channel->node->control->name.c_str();
    const char* operation = op_name(request.op);
    base::fail_os(error, errnum,
                  {.node = name, .operation = operation, .offset = request.offset, .request_id = request.id},
                  "node %s: %s of %lu bytes at offset %lu failed", name, operation, request.length,
                  request.offset);
}

}  // namespace engine::block
