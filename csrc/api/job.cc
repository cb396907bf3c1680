// The C interface to jobs. Control plane.
#include "api/handles.hh"
#include "jobs/copy.hh"

using namespace engine;
using namespace engine::api;

namespace {
jobs::Copy* unwrap(engine_copy_t* handle) {
    return reinterpret_cast<jobs::Copy*>(handle);
}
}  // namespace

int engine_copy_create(engine_t* handle, const engine_copy_config* given, engine_copy_t** out,
                       engine_error* error) {
    return guarded(error, "copy", [&] {
        Instance& engine = *api::unwrap(handle);
        engine_copy_config config;
        std::unique_ptr<jobs::Copy> copy;
        int result = engine.check(error, "copy");
        if (result == 0) result = read_config(given, &config, "engine_copy_config", error);
        if (result == 0) result = jobs::Copy::create(engine, config, &copy, error);
        if (result == 0) *out = reinterpret_cast<engine_copy_t*>(copy.release());
        return result;
    });
}

int engine_copy_start(engine_copy_t* handle, engine_error* error) {
    return guarded(error, "start copy", [&] {
        int result = unwrap(handle)->engine().check(error, "start copy");
        return result != 0 ? result : unwrap(handle)->start(error);
    });
}

int engine_copy_wait(engine_copy_t* handle, uint64_t timeout_ns, engine_error* error) {
    int result = unwrap(handle)->engine().check(error, "wait for copy");
    return result != 0 ? result : unwrap(handle)->wait(timeout_ns, error);
}

int engine_copy_cancel(engine_copy_t* handle) {
    int result = unwrap(handle)->engine().check(nullptr, "cancel copy", false);
    if (result == 0) unwrap(handle)->cancel();
    return result;
}

int engine_copy_get_progress(engine_copy_t* handle, engine_copy_progress* out) {
    engine_copy_progress progress{};
    int result = unwrap(handle)->engine().check(nullptr, "query copy", false);
    if (result != 0) return result;
    unwrap(handle)->read_progress(&progress);
    return write_out(progress, out);
}

int engine_copy_close(engine_copy_t* handle) {
    int result = unwrap(handle)->engine().check(nullptr, "close copy");
    if (result != 0) return result;
    unwrap(handle)->close();
    delete unwrap(handle);
    return 0;
}
