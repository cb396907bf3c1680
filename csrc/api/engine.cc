// The C interface to engines and contexts. Control plane.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "api/handles.hh"
#include "base/clock.hh"
#include "block/meta_lock.hh"

using namespace engine;
using namespace engine::api;

const char* engine_version(void) {
    return ENGINE_VERSION;
}

void engine_get_build_info(engine_build_info* out) {
    engine_build_info info{};
#if defined(__OPTIMIZE__) && defined(NDEBUG)
    info.optimised = 1;
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    info.sanitized = 1;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    info.sanitized = 1;
#endif
#endif
    base::copy_text(info.version, ENGINE_VERSION);
#if defined(__clang__)
    base::copy_text(info.compiler, "clang " __clang_version__);
#else
    base::copy_text(info.compiler, "gcc " __VERSION__);
#endif
    base::copy_text(info.liburing, ENGINE_LIBURING_VERSION);
    snprintf(info.flags, sizeof info.flags, "%s%s", info.optimised != 0 ? "optimised" : "debug",
             info.sanitized != 0 ? ", sanitizer" : "");
    write_out(info, out);
}

namespace {

int start_context(Instance& engine, aio::ContextConfig config, engine_context_t** out, engine_error* error) {
    std::lock_guard guard(engine.control);
    for (const auto& context : engine.contexts) {
        if (context->name() == config.name) {
            return base::fail(error, ENGINE_ERROR_CONFLICT, EEXIST,
                              {.operation = "create context", .field = "name"},
                              "there is a context '%s' already", config.name.c_str());
        }
    }
    if (engine.locking == ENGINE_LOCKING_GLOBAL) config.turn_mutex = &engine.turn_mutex;
    // Whatever may fail comes first: a context that runs must find its place.
    engine.contexts.reserve(engine.contexts.size() + 1);
    engine.retired.reserve(engine.retired.size() + engine.contexts.size() + 1);
    std::unique_ptr<aio::AioContext> context;
    int result = aio::AioContext::create(std::move(config), &context, error);
    if (result != 0) return result;
    context->instance = &engine;
    if (engine.main_context == nullptr) engine.main_context = context.get();
    if (out != nullptr) *out = wrap(context.get());
    engine.contexts.push_back(std::move(context));
    return 0;
}

int check_context_config(const engine_context_config& config, engine_error* error) {
    auto invalid = [&](const char* field, const char* text, long value) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "create context", .field = field}, "context %s: %s (%ld)",
                          config.name == nullptr ? "?" : config.name, text, value);
    };
    if (config.name == nullptr || config.name[0] == '\0' || strlen(config.name) > 31) {
        return invalid("name", "a name of 1 to 31 bytes is needed",
                       config.name == nullptr ? 0 : static_cast<long>(strlen(config.name)));
    }
    if (config.backend > ENGINE_BACKEND_THREADS) return invalid("backend", "unknown backend", config.backend);
    if (config.poll_max_ns < -1 || config.poll_max_ns > 1000000000) {
        return invalid("poll_max_ns", "0 to 1 s, or -1 for the default", config.poll_max_ns);
    }
    if (config.caller_driven > 1) return invalid("caller_driven", "0 or 1", config.caller_driven);
    if (config.queue_depth > 32768) return invalid("queue_depth", "at most 32768", config.queue_depth);
    if (config.cpu_count != 0 && config.cpus == nullptr) return invalid("cpus", "missing", config.cpu_count);
    for (uint32_t i = 0; i < config.cpu_count; i++) {
        if (config.cpus[i] < 0 || config.cpus[i] >= ENGINE_MAX_CPUS) {
            return invalid("cpus", "a CPU is a number from 0 to 1023", config.cpus[i]);
        }
    }
    return 0;
}

}  // namespace

namespace {

void set_limits(const engine_config& config, block::Limits& limits) {
    if (config.max_bounce_bytes != 0) limits.bounce_bytes.set_most(config.max_bounce_bytes);
    if (config.max_requests != 0) limits.requests.set_most(config.max_requests);
    if (config.max_descriptors != 0) limits.descriptors.set_most(config.max_descriptors);
}

}  // namespace

int engine_create(const engine_config* given, engine_t** out, engine_error* error) {
    return guarded(error, "create engine", [&] {
        engine_config config;
        int result = read_config(given, &config, "engine_config", error);
        if (result != 0) return result;
        if (config.backend > ENGINE_BACKEND_THREADS) {
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "backend"}, "unknown backend %u",
                              config.backend);
        }
        if (config.locking > ENGINE_LOCKING_GLOBAL) {
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "locking"},
                              "unknown locking mode %u", config.locking);
        }
        auto instance = std::make_unique<Instance>();
        instance->pid = getpid();
        instance->locking = config.locking;
        instance->lock_profile = config.lock_profile != 0;
        if (instance->lock_profile) instance->turn_mutex.enable_profile();
        set_limits(config, instance->limits);
        aio::ContextConfig main_config;
        main_config.name = "main";
        main_config.backend = config.backend;
        main_config.poll_max_ns = 0;  // it serves control and background work: it does not spin
        result = start_context(*instance, std::move(main_config), nullptr, error);
        if (result != 0) return result;
        *out = wrap(instance.release());
        return 0;
    });
}

int engine_context_create(engine_t* handle, const engine_context_config* given, engine_context_t** out,
                          engine_error* error) {
    return guarded(error, "create context", [&] {
        Instance& engine = *unwrap(handle);
        engine_context_config config;
        int result = engine.check(error, "create context");
        if (result == 0) result = read_config(given, &config, "engine_context_config", error);
        if (result == 0) result = check_context_config(config, error);
        if (result != 0) return result;
        aio::ContextConfig made;
        made.name = config.name;
        made.cpus.assign(config.cpus, config.cpus + config.cpu_count);
        made.backend = config.backend;
        if (config.queue_depth != 0) made.queue_depth = config.queue_depth;
        made.sched_policy = config.sched_policy;
        made.sched_priority = config.sched_priority;
        made.poll_max_ns = config.poll_max_ns;
        made.caller_driven = config.caller_driven != 0;
        return start_context(engine, std::move(made), out, error);
    });
}

engine_context_t* engine_context_find(engine_t* handle, const char* name) {
    Instance& engine = *unwrap(handle);
    if (engine.check(nullptr, "find context", false) != 0) return nullptr;
    aio::AioContext* found = block::find_context(engine, name);
    return found == nullptr ? nullptr : wrap(found);
}

int engine_context_close(engine_context_t* handle, engine_error* error) {
    return guarded(error, "close context", [&] {
        aio::AioContext* context = unwrap(handle);
        Instance& engine = *context->instance;
        int result = engine.check(error, "close context");
        if (result != 0) return result;
        base::Where where{.operation = "close context"};
        if (context == engine.main()) {
            return base::fail(error, ENGINE_ERROR_INVALID, EBUSY, where,
                              "context main lives until the engine closes");
        }
        result = context->adopt(error);
        if (result != 0) return result;
        int64_t holds = context->forbid_holds();
        if (holds < 0) {
            return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN, where, "context %s is closed already",
                              context->name().c_str());
        }
        if (holds != 0) {
            return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, where,
                              "context %s serves %ld queues, workloads or calls: close them first",
                              context->name().c_str(), static_cast<long>(holds));
        }
        result = block::leave_context(engine, context, error);
        if (result != 0) {
            context->allow_holds();
            return result;
        }
        context->stop();
        std::lock_guard guard(engine.control);
        auto found = std::find_if(engine.contexts.begin(), engine.contexts.end(),
                                  [&](const auto& other) { return other.get() == context; });
        if (found == engine.contexts.end()) return 0;
        engine.retired.push_back(std::move(*found));
        engine.contexts.erase(found);
        return 0;
    });
}

int engine_close(engine_t* handle, engine_error* error) {
    return guarded(error, "close engine", [&] {
        Instance* engine = unwrap(handle);
        int result = engine->check(error, "close engine");
        if (result != 0) return result;
        for (const auto& context : engine->contexts) {
            result = context->adopt(error);
            if (result != 0) return result;
        }
        if (uint32_t queues = engine->completion_queues.load_acquire(); queues != 0) {
            return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, {.operation = "close engine"},
                              "%u completion queues are open: close them first", queues);
        }
        // Nodes in use keep the engine open: closing under their users would be worse than saying so.
        for (bool progress = true; progress && !engine->nodes.empty();) {
            progress = false;
            for (block::Node* node : std::vector<block::Node*>(engine->nodes)) {
                if (std::find(engine->nodes.begin(), engine->nodes.end(), node) == engine->nodes.end())
                    continue;
                result = block::close_node(node, error);
                if (result == 0) progress = true;
                if (result == -ENOMEM) return result;  // it may succeed later; being in use would not tell
            }
        }
        if (!engine->nodes.empty()) return result;
        base::clear(error);  // what was in use at first
        for (auto it = engine->contexts.rbegin(); it != engine->contexts.rend(); ++it) (*it)->stop();
        delete engine;
        return 0;
    });
}

int engine_context_get_info(engine_context_t* handle, engine_context_info* out, engine_error* error) {
    engine_context_info info{};
    int result = unwrap(handle)->instance->check(error, "query context", false);
    if (result == 0) {
        result = unwrap(handle)->read_info(&info);
        if (result != 0) {
            return base::fail_os(error, -result, {.operation = "query context"},
                                 "context %s: cannot read its CPUs", unwrap(handle)->name().c_str());
        }
    }
    return result != 0 ? result : write_out(info, out);
}

int engine_context_get_stats(engine_context_t* handle, engine_context_stats* out) {
    engine_context_stats stats{};
    unwrap(handle)->read_stats(&stats);
    return write_out(stats, out);
}

int engine_context_run_once(engine_context_t* context, int64_t timeout_ns, engine_error* error) {
    return unwrap(context)->run_once(timeout_ns, error);
}

int engine_context_fileno(engine_context_t* context) {
    return unwrap(context)->fileno();
}

int engine_context_wake(engine_context_t* context) {
    unwrap(context)->wake();
    return 0;
}

int engine_context_set_poll(engine_context_t* handle, int64_t poll_max_ns) {
    if (poll_max_ns < -1 || poll_max_ns > 1000000000) return -EINVAL;
    unwrap(handle)->set_poll_max_ns(poll_max_ns);
    return 0;
}

int engine_context_barrier(engine_context_t* handle) {
    if (unwrap(handle)->instance->check(nullptr, "wait for callbacks", false) != 0) return -ESHUTDOWN;
    return unwrap(handle)->call_and_wait([] {});
}

uint32_t engine_lock_count(engine_t* handle) {
    Instance& engine = *unwrap(handle);
    if (engine.check(nullptr, "query locks", false) != 0) return 0;
    std::lock_guard guard(engine.control);
    uint32_t count = engine.locking == ENGINE_LOCKING_GLOBAL ? 1 : 0;
    for (const block::Node* node : engine.nodes) count += node->control->meta != nullptr ? 2 : 1;
    return count;
}

int engine_lock_get(engine_t* handle, uint32_t index, engine_lock_info* out) {
    Instance& engine = *unwrap(handle);
    if (int result = engine.check(nullptr, "query locks", false); result != 0) return result;
    std::unique_ptr<engine_lock_info> info(new (std::nothrow) engine_lock_info);
    if (info == nullptr) return -ENOMEM;
    memset(info.get(), 0, sizeof *info);
    base::Histogram::reset(&info->wait_ns);
    base::Histogram::reset(&info->hold_ns);
    std::lock_guard guard(engine.control);
    bool found = false;
    auto fill_if_reached = [&](const auto& lock, uint32_t rank, const char* owner, const char* name) {
        if (found || index-- != 0) return;
        found = true;
        info->acquisitions = lock.acquisitions();
        info->contended = lock.contended();
        lock.read_profile(&info->wait_ns, &info->hold_ns);
        info->rank = rank;
        base::copy_text(info->owner, owner);
        base::copy_text(info->lock, name);
    };
    if (engine.locking == ENGINE_LOCKING_GLOBAL) fill_if_reached(engine.turn_mutex, 0, "engine", "global");
    for (const block::Node* node : engine.nodes) {
        const block::NodeControl& control = *node->control;
        fill_if_reached(control.edges, 1, control.name.c_str(), "edges");
        if (control.meta != nullptr) fill_if_reached(*control.meta, 2, control.name.c_str(), "meta");
    }
    return found ? write_out(*info, out) : -ENOENT;
}

int engine_probe_backend(uint32_t backend, char* features, size_t features_size, engine_error* error) {
    return guarded(error, "probe backend", [&] {
        aio::ContextConfig config;
        config.name = "probe";
        config.backend = backend;
        std::unique_ptr<aio::AioContext> context;
        int result = aio::AioContext::create(std::move(config), &context, error);
        if (result != 0) return result;
        engine_context_info info{};
        context->read_info(&info);
        base::copy_text(features, features_size, info.backend_reason);
        context->stop();
        return 0;
    });
}
