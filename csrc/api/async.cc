// The C interface to completion queues, arrays of requests and vectors.
#include "api/handles.hh"
#include "block/completion_queue.hh"
#include "block/entry.hh"

using namespace engine;
using namespace engine::api;

namespace {

block::CompletionQueue* unwrap(engine_cq_t* handle) {
    return reinterpret_cast<block::CompletionQueue*>(handle);
}

// A vector whose caller waits for it: the message takes it to its context.
struct WaitingMany : block::Many, aio::Message {
    aio::Signal over;
};

}  // namespace

int engine_cq_create(engine_t* handle, engine_cq_t** out, engine_error* error) {
    return guarded(error, "create completion queue", [&] {
        base::Owner<block::CompletionQueue> made;
        int result = unwrap(handle)->check(error, "create completion queue", false);
        if (result == 0) result = block::CompletionQueue::create(*unwrap(handle), &made, error);
        if (result == 0) *out = reinterpret_cast<engine_cq_t*>(made.release());
        return result;
    });
}

int engine_cq_close(engine_cq_t* handle, engine_error* error) {
    int result = unwrap(handle)->engine().check(error, "close completion queue");
    if (result != 0) return result;
    base::Owner<block::CompletionQueue> queue(unwrap(handle));
    queue->close();
    return 0;
}

int engine_cq_fileno(engine_cq_t* handle) {
    return unwrap(handle)->fileno();
}

int64_t engine_cq_drain(engine_cq_t* handle, engine_completion* out, size_t capacity) {
    if (int result = unwrap(handle)->engine().check(nullptr, "drain", false); result != 0) return result;
    return static_cast<int64_t>(unwrap(handle)->drain({out, capacity}));
}

int engine_cq_get_stats(engine_cq_t* handle, engine_cq_stats* out) {
    if (int result = unwrap(handle)->engine().check(nullptr, "get stats", false); result != 0) return result;
    engine_cq_stats stats{};
    unwrap(handle)->read_stats(&stats);
    return write_out(stats, out);
}

int engine_submit(engine_cq_t* handle, engine_user_t* user, engine_context_t* context,
                  const engine_request* requests, size_t count, engine_error* error) {
    return guarded(error, "submit", [&] {
        block::RequestArray array;
        int result = block::RequestArray::read(requests, count, &array, error);
        return result != 0 ? result : unwrap(handle)->submit(unwrap(user), unwrap(context), array, error);
    });
}

int engine_submit_many(engine_cq_t* handle, engine_user_t* user, engine_context_t* context,
                       const engine_many* given, uint64_t token, engine_error* error) {
    return guarded(error, "submit", [&] {
        engine_many what;
        int result = read_config(given, &what, "engine_many", error);
        return result != 0 ? result
                           : unwrap(handle)->submit_many(unwrap(user), unwrap(context), what, token, error);
    });
}

int64_t engine_cancel(engine_cq_t* handle, uint64_t token) {
    if (int result = unwrap(handle)->engine().check(nullptr, "cancel", false); result != 0) return result;
    return unwrap(handle)->cancel(token);
}

int engine_cq_wait(engine_cq_t* handle, engine_user_t* user, engine_context_t* context, uint64_t timeout_ns,
                   engine_error* error) {
    int result = unwrap(handle)->engine().check(error, "wait");
    return result != 0 ? result : unwrap(handle)->wait(unwrap(user), unwrap(context), timeout_ns, error);
}

namespace {

int64_t perform_many(block::User* user, aio::AioContext* context, const engine_many& what,
                     engine_error* error) {
    block::Port* port = nullptr;
    int result = block::begin_use(*user->engine, user, context, "many", &port, error);
    if (result != 0) return result;
    WaitingMany many;
    many.error = error;
    many.finished = [](block::Many* self) { static_cast<WaitingMany*>(self)->over.set(); };
    many.run = [](aio::Message* self) { static_cast<WaitingMany*>(self)->begin(); };
    base::clear(error);
    result = many.prepare(what, *port);
    if (result == 0) result = context->send(&many);
    if (result == 0) user->engine->wait(many.over);
    block::end_use(user, context);
    if (result == 0) return many.result();
    return base::fail_os(error, -result, {.operation = "many"},
                         "user %s: cannot begin a vector on context %s", user->name.c_str(),
                         context->name().c_str());
}

}  // namespace

int64_t engine_user_many(engine_user_t* handle, engine_context_t* on, const engine_many* given,
                         engine_error* error) {
    int64_t done = 0;
    int failed = guarded(error, "many", [&] {
        block::User* user = unwrap(handle);
        Instance& engine = *user->engine;
        engine_many what;
        int result = engine.check(error, "many");
        if (result == 0) result = read_config(given, &what, "engine_many", error);
        if (result == 0) result = block::Many::check(what, error);
        if (result == 0) done = perform_many(user, on == nullptr ? engine.main() : unwrap(on), what, error);
        return result;
    });
    return failed != 0 ? failed : done;
}
