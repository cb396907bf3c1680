// The C interface's opaque handles are the core's own objects under other names: casts in one place. No
// state.
#pragma once

#include <engine/engine.h>

#include <cstring>
#include <new>
#include <system_error>

#include "aio/bottom_half.hh"
#include "aio/foreign.hh"
#include "base/error.hh"
#include "block/graph.hh"

namespace engine::api {

inline Instance* unwrap(engine_t* handle) {
    return reinterpret_cast<Instance*>(handle);
}
inline engine_t* wrap(Instance* engine) {
    return reinterpret_cast<engine_t*>(engine);
}
inline aio::AioContext* unwrap(engine_context_t* handle) {
    return reinterpret_cast<aio::AioContext*>(handle);
}
inline engine_context_t* wrap(aio::AioContext* context) {
    return reinterpret_cast<engine_context_t*>(context);
}
inline block::Node* unwrap(engine_node_t* handle) {
    return reinterpret_cast<block::Node*>(handle);
}
inline engine_node_t* wrap(block::Node* node) {
    return reinterpret_cast<engine_node_t*>(node);
}
inline block::User* unwrap(engine_user_t* handle) {
    return reinterpret_cast<block::User*>(handle);
}
inline engine_user_t* wrap(block::User* user) {
    return reinterpret_cast<engine_user_t*>(user);
}

// Checks `size` and reads what the caller's version of a struct has of it; the rest stays zero.
template <class T>
int read_config(const T* given, T* out, const char* name, engine_error* error) {
    memset(out, 0, sizeof *out);
    if (given == nullptr || given->size < sizeof(uint32_t)) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "size"},
                          "%s: pass a struct whose size field is set to sizeof(%s)", name, name);
    }
    if (given->size > sizeof *out) {
        return base::fail(error, ENGINE_ERROR_UNSUPPORTED, EINVAL, {.field = "size"},
                          "%s is %u bytes: the caller was built for a newer engine (%zu bytes here)", name,
                          given->size, sizeof *out);
    }
    memcpy(out, given, given->size);
    return 0;
}

// Gives a struct back in the caller's version: no more than `size` bytes of it.
template <class T>
int write_out(const T& from, T* out) {
    uint32_t size = out->size;
    if (size < sizeof(uint32_t)) return -EINVAL;
    if (size > sizeof from) size = sizeof from;
    uint32_t kept = out->size;
    memcpy(out, &from, size);
    out->size = kept;
    return 0;
}

// No exception leaves the C interface: memory that is short is an error like any other.
template <class F>
int guarded(engine_error* error, const char* operation, F&& f) noexcept {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = operation}, "%s: out of memory",
                          operation);
    } catch (const std::system_error& problem) {
        return base::fail(error, ENGINE_ERROR_LIMIT, problem.code().value(), {.operation = operation},
                          "%s: %s", operation, problem.what());
    }
}

}  // namespace engine::api
