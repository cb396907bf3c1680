// The C interface to nodes, users and blocking I/O.
#include <algorithm>

#include "api/handles.hh"
#include "block/blocking.hh"
#include "block/copy_range.hh"
#include "block/entry.hh"
#include "filters/fault.hh"
#include "filters/throttle.hh"

using namespace engine;
using namespace engine::api;
using block::Op;

int engine_node_open(engine_t* handle, const engine_option* options, size_t count, engine_node_t** out,
                     engine_error* error) {
    return guarded(error, "open", [&] {
        Instance& engine = *unwrap(handle);
        block::OptionBag bag;
        block::Node* node = nullptr;
        int result = engine.check(error, "open");
        if (result == 0) result = bag.fill(options, count, error);
        if (result == 0) result = block::open_node(engine, std::move(bag), &node, error);
        if (result == 0) *out = wrap(node);
        return result;
    });
}

int engine_node_close(engine_node_t* handle, engine_error* error) {
    return guarded(error, "close", [&] {
        block::Node* node = unwrap(handle);
        int result = node->control->engine->check(error, "close");
        return result != 0 ? result : block::close_node(node, error);
    });
}

engine_node_t* engine_node_find(engine_t* handle, const char* name) {
    Instance& engine = *unwrap(handle);
    if (name == nullptr || engine.check(nullptr, "find node", false) != 0) return nullptr;
    return wrap(block::find_node(engine, name));
}

int engine_node_get_info(engine_node_t* handle, engine_node_info* out) {
    block::Node& node = *unwrap(handle);
    if (int result = node.control->engine->check(nullptr, "query node", false); result != 0) return result;
    engine_node_info info{};
    info.read_only = node.read_only ? 1 : 0;
    base::copy_text(info.name, node.control->name.c_str());
    base::copy_text(info.driver, node.driver->name);
    base::copy_text(info.filename, node.control->filename.c_str());
    info.bytes = node.bytes.load_relaxed();
    info.request_alignment = node.best_request_alignment;
    info.memory_alignment = node.best_memory_alignment;
    info.max_transfer = node.max_transfer == UINT64_MAX ? 0 : node.max_transfer;
    info.ops = node.native_ops;
    info.holes = node.holes ? 1 : 0;
    info.id = node.control->id;
    {
        base::Guard guard(node.control->lists);
        info.child_count = static_cast<uint32_t>(node.control->children.size());
        info.user_count = static_cast<uint32_t>(node.control->users.size());
    }
    return write_out(info, out);
}

engine_node_t* engine_node_get_child(engine_node_t* handle, uint32_t index, char* role, size_t role_size) {
    block::NodeControl& control = *unwrap(handle)->control;
    base::Guard guard(control.lists);
    if (index >= control.children.size()) return nullptr;
    base::copy_text(role, role_size, control.children[index].role.c_str());
    return wrap(control.children[index].node);
}

int engine_node_get_stats(engine_node_t* handle, engine_context_t* context, engine_node_stats* out) {
    block::NodeControl& control = *unwrap(handle)->control;
    if (int result = control.engine->check(nullptr, "query node", false); result != 0) return result;
    engine_node_stats stats{};
    base::Guard guard(control.lists);
    for (const auto& channel : control.channels) {
        if (context != nullptr && channel->context != unwrap(context)) continue;
        stats.channels++;
        stats.in_flight += channel->in_flight.get();
        for (unsigned i = 0; i < block::op_count; i++) {
            stats.op[i].requests += channel->op[i].requests.get();
            stats.op[i].bytes += channel->op[i].bytes.get();
            stats.op[i].errors += channel->op[i].errors.get();
        }
    }
    return write_out(stats, out);
}

int engine_user_create(engine_node_t* handle, const char* name, uint32_t permissions, uint32_t shared,
                       engine_user_t** out, engine_error* error) {
    return guarded(error, "attach", [&] {
        block::Node* node = unwrap(handle);
        block::User* user = nullptr;
        int result = node->control->engine->check(error, "attach");
        if (result == 0)
            result =
                block::create_user(node, name == nullptr ? "?" : name, permissions, shared, &user, error);
        if (result == 0) *out = wrap(user);
        return result;
    });
}

int engine_user_close(engine_user_t* handle, engine_error* error) {
    return guarded(error, "detach", [&] {
        int result = unwrap(handle)->engine->check(error, "detach");
        return result != 0 ? result : block::close_user(unwrap(handle), error);
    });
}

int engine_throttle_set(engine_node_t* handle, const engine_option* options, size_t count,
                        engine_error* error) {
    return guarded(error, "throttle", [&] {
        block::Node& node = *unwrap(handle);
        block::OptionBag bag;
        int result = node.control->engine->check(error, "throttle", false);
        if (result == 0) result = bag.fill(options, count, error);
        return result != 0 ? result : filters::set_throttle(node, std::move(bag), error);
    });
}

int engine_fault_resume(engine_node_t* handle, engine_error* error) {
    return guarded(error, "resume", [&] {
        block::Node& node = *unwrap(handle);
        int result = node.control->engine->check(error, "resume");
        return result != 0 ? result : filters::resume_faults(node, error);
    });
}

namespace {

uint64_t timeout_or_default(uint64_t timeout_ns) {
    return timeout_ns == 0 ? block::quiesce_timeout_ns : timeout_ns;
}

}  // namespace

int engine_node_insert_filter(engine_node_t* below, const engine_option* options, size_t count,
                              uint64_t timeout_ns, engine_node_t** out, engine_error* error) {
    return guarded(error, "insert", [&] {
        block::OptionBag bag;
        block::Node* node = nullptr;
        int result = unwrap(below)->control->engine->check(error, "insert");
        if (result == 0) result = bag.fill(options, count, error);
        if (result == 0) {
            result = block::insert_filter(unwrap(below), std::move(bag), timeout_or_default(timeout_ns),
                                          &node, error);
        }
        if (result == 0) *out = wrap(node);
        return result;
    });
}

int engine_node_remove_filter(engine_node_t* filter, uint64_t timeout_ns, engine_node_t** freed,
                              engine_error* error) {
    return guarded(error, "remove", [&] {
        block::Node* below = nullptr;
        int result = unwrap(filter)->control->engine->check(error, "remove");
        if (result == 0) {
            result = block::remove_filter(unwrap(filter), timeout_or_default(timeout_ns), &below, error);
        }
        if (result == 0 && freed != nullptr) *freed = below == nullptr ? nullptr : wrap(below);
        return result;
    });
}

int engine_node_replace(engine_node_t* from, engine_node_t* to, uint64_t timeout_ns, engine_error* error) {
    return guarded(error, "replace", [&] {
        int result = unwrap(from)->control->engine->check(error, "replace");
        return result != 0
                   ? result
                   : block::replace_node(unwrap(from), unwrap(to), timeout_or_default(timeout_ns), error);
    });
}

int engine_user_get_pauses(engine_user_t* handle, engine_pause_stats* out) {
    engine_pause_stats stats{};
    unwrap(handle)->for_each_port([&](block::Port& port) {
        stats.count += port.pauses.get();
        stats.total_ns += port.pause_ns_total.get();
        stats.longest_ns = std::max(stats.longest_ns, port.pause_ns_max.get());
    });
    return write_out(stats, out);
}

int64_t engine_user_io(engine_user_t* user, engine_context_t* context, uint32_t op, const engine_iovec* iov,
                       uint32_t iov_count, uint64_t offset, uint64_t bytes, uint32_t flags,
                       engine_error* error) {
    static_assert(sizeof(engine_iovec) == sizeof(iovec));
    if (op > ENGINE_OP_RESIZE) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.field = "op"}, "unknown operation %u", op);
    }
    if (int result = block::check_entry(op, flags, iov, iov_count, bytes, error); result != 0) return result;
    block::BlockingCall call;
    call.op = static_cast<Op>(op);
    call.flags = static_cast<uint8_t>(flags);
    call.offset = offset;
    call.length = bytes;
    bool data = call.op == Op::read || call.op == Op::write;
    if (data) {
        call.iov = reinterpret_cast<const iovec*>(iov);
        call.iov_count = iov_count;
    }
    int64_t result = block::perform(unwrap(user), unwrap(context), &call, error);
    return result < 0 ? result : data ? static_cast<int64_t>(bytes) : 0;
}

namespace {

// A blocking call for a copy: a task of its context.
struct CopyCall : coro::Callback<int64_t> {
    struct Beginning : aio::Message {
        CopyCall* call;
    } beginning;
    block::CopyRange what;
    int64_t result = 0;
    aio::Signal done;

    explicit CopyCall(const block::CopyRange& range) noexcept : what(range) {
        beginning.call = this;
        beginning.run = [](aio::Message* message) {
            CopyCall* self = static_cast<Beginning*>(message)->call;
            coro::start(self->what.executor(), block::copy_range(self->what),
                        static_cast<coro::Callback<int64_t>*>(self));
        };
        completed = [](coro::Callback<int64_t>* callback, int64_t outcome) {
            auto* self = static_cast<CopyCall*>(callback);
            self->result = outcome;
            self->done.set();
        };
    }
};

}  // namespace

int64_t engine_user_copy_range(engine_user_t* from, uint64_t source_offset, engine_user_t* to,
                               uint64_t target_offset, uint64_t bytes, engine_context_t* on,
                               engine_error* error) {
    block::User *source = unwrap(from), *target = unwrap(to);
    Instance& engine = *target->engine;
    constexpr const char* operation = "copy-range";
    int64_t result = engine.check(error, operation);
    if (result != 0) return result;
    aio::AioContext* context = on == nullptr ? engine.main() : unwrap(on);
    block::Port *source_port = nullptr, *target_port = nullptr;
    result = block::begin_use(engine, source, context, operation, &source_port, error);
    if (result != 0) return result;
    result = block::begin_use(engine, target, context, operation, &target_port, error);
    if (result == 0) {
        base::clear(error);
        CopyCall call({*source_port, source_offset, *target_port, target_offset, bytes, error});
        result = context->send(&call.beginning);
        if (result == 0) {
            engine.wait(call.done);
            result = call.result;
        }
        block::end_use(target, context);
    }
    block::end_use(source, context);
    if (result == 0) return static_cast<int64_t>(bytes);
    if (error != nullptr && error->kind == ENGINE_ERROR_NONE) {
        base::fail_os(error, static_cast<int>(-result), {.operation = operation, .offset = target_offset},
                      "user %s: %s at offset %lu failed", target->name.c_str(), operation, target_offset);
    }
    return result;
}

int64_t engine_user_block_status(engine_user_t* user, engine_context_t* context, uint64_t offset,
                                 uint64_t bytes, engine_extent* extents, uint32_t capacity,
                                 engine_error* error) {
    block::BlockingCall call;
    call.op = Op::block_status;
    call.offset = offset;
    call.length = bytes;
    call.extents = extents;
    call.extent_capacity = capacity;
    return block::perform(unwrap(user), unwrap(context), &call, error);
}
