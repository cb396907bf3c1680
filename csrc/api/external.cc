// The C interface to block drivers in the embedding program.
#include "protocols/external.hh"
#include "api/handles.hh"
#include "block/registry.hh"

using namespace engine;
using namespace engine::api;

namespace {
block::External* unwrap(engine_external_t* handle) {
    return reinterpret_cast<block::External*>(handle);
}
}  // namespace

int engine_external_attach(engine_node_t* handle, const char* program, engine_external_t** out,
                           engine_error* error) {
    return guarded(error, "attach", [&] {
        block::Node& node = *unwrap(handle);
        int result = node.control->engine->check(error, "attach", false);
        if (result != 0) return result;
        if (node.driver != &block::external_driver) {
            return base::fail(
                error, ENGINE_ERROR_INVALID, EINVAL,
                {.node = node.control->name.c_str(), .operation = "attach", .field = "driver"},
                "node %s has driver %s: only one with driver external can be served by a program",
                node.control->name.c_str(), node.driver->name);
        }
        block::External* external = node.state<block::ExternalState>().external;
        result = external->attach(program == nullptr ? "program" : program, error);
        if (result == 0) *out = reinterpret_cast<engine_external_t*>(external);
        return result;
    });
}

int64_t engine_external_take(engine_external_t* handle, engine_external_request* requests, uint32_t max,
                             uint64_t timeout_ns) {
    if (!unwrap(handle)->same_process()) return -EBADF;
    if (timeout_ns != 0 && aio::AioContext::current() != nullptr) return -EDEADLK;
    return unwrap(handle)->take(requests, max, timeout_ns);
}
int64_t engine_external_complete(engine_external_t* handle, const engine_external_completion* done,
                                 uint32_t count) {
    return unwrap(handle)->same_process() ? unwrap(handle)->complete(done, count) : -EBADF;
}
int64_t engine_external_forward(engine_external_t* handle, const uint64_t* ids, uint32_t count) {
    return unwrap(handle)->same_process() ? unwrap(handle)->forward(ids, count) : -EBADF;
}
int engine_external_get_fd(engine_external_t* handle) {
    return unwrap(handle)->same_process() ? unwrap(handle)->watch() : -EBADF;
}
engine_user_t* engine_external_get_child(engine_external_t* handle) {
    return unwrap(handle)->same_process() ? wrap(unwrap(handle)->child()) : nullptr;
}
int engine_external_get_stats(engine_external_t* handle, engine_external_stats* out) {
    if (!unwrap(handle)->same_process()) return -EBADF;
    engine_external_stats stats{};
    unwrap(handle)->read_stats(&stats);
    return write_out(stats, out);
}
int engine_external_stop(engine_external_t* handle) {
    return unwrap(handle)->same_process() ? unwrap(handle)->stop() : -EBADF;
}
int engine_external_close(engine_external_t* handle) {
    return unwrap(handle)->same_process() ? unwrap(handle)->detach() : -EBADF;
}
void engine_external_release(void* memory) {
    block::ExternalMemory::of(memory)->release();
}
