// Sending a request to its context, and waiting.
#include "block/blocking.hh"

#include "base/error.hh"
#include "block/entry.hh"

namespace engine::block {

namespace {

// On the home thread, while the channel that it ended on is still there: a failure that nobody has told of.
void ended(Request* request) {
    auto* call = static_cast<BlockingCall*>(request);
    if (call->result < 0) describe_failure(call->error, *call, static_cast<int>(-call->result));
    call->done.set();
}

int64_t through_child(Node& node, size_t child, BlockingCall* call, void* data, size_t bytes,
                      engine_error* error) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    iovec part{data, bytes};
    call->iov = &part;
    call->iov_count = 1;
    call->length = bytes;
    int64_t result = perform(node.control->children[child].user, nullptr, call, error);
    call->iov = nullptr;
    return result;
}

}  // namespace

int64_t perform(User* user, aio::AioContext* context, BlockingCall* call, engine_error* error) {
    Instance& engine = *user->engine;
    int result = engine.check(error, op_name(call->op));
    if (result != 0) return result;
    if (context == nullptr) context = engine.main();
    result = begin_use(engine, user, context, op_name(call->op), &call->port, error);
    if (result != 0) return result;
    base::clear(error);
    call->error = error;
    call->complete = ended;
    call->run = [](aio::Message* message) {
        auto* self = static_cast<BlockingCall*>(message);
        submit(*self->port, self);
    };
    if (call->op == Op::resize) {
        result = resize_node(user, context, call->offset, quiesce_timeout_ns, error);
        call->result = result;
    } else {
        result = context->send(call);
        if (result == 0) engine.wait(call->done);
    }
    end_use(user, context);
    if (result == 0 && call->result >= 0) {
        base::clear(error);  // a way that was tried first may have failed
        return call->result;
    }
    int errnum = static_cast<int>(result != 0 ? -result : -call->result);
    if (error != nullptr && error->kind == ENGINE_ERROR_NONE) {
        base::fail_os(error, errnum, {.operation = op_name(call->op), .offset = call->offset},
                      "user %s: %s at offset %lu failed", user->name.c_str(), op_name(call->op),
                      call->offset);
    }
    return -errnum;
}

int64_t read_child(Node& node, size_t child, uint64_t offset, void* data, size_t bytes, engine_error* error) {
    BlockingCall call;
    call.op = Op::read;
    call.offset = offset;
    return through_child(node, child, &call, data, bytes, error);
}

int64_t write_child(Node& node, size_t child, uint64_t offset, const void* data, size_t bytes, uint8_t flags,
                    engine_error* error) {
    BlockingCall call;
    call.op = Op::write;
    call.flags = flags;
    call.offset = offset;
    return through_child(node, child, &call, const_cast<void*>(data), bytes, error);
}

}  // namespace engine::block
