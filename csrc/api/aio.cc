// The C interface to bottom halves, timers and fd handlers.
#include "api/handles.hh"
#include "base/alloc.hh"

using namespace engine;
using namespace engine::api;

namespace {
aio::BottomHalf* unwrap(engine_bh_t* handle) {
    return reinterpret_cast<aio::BottomHalf*>(handle);
}
aio::ForeignTimer* unwrap(engine_timer_t* handle) {
    return reinterpret_cast<aio::ForeignTimer*>(handle);
}
aio::ForeignFdHandler* unwrap(engine_fd_handler_t* handle) {
    return reinterpret_cast<aio::ForeignFdHandler*>(handle);
}
}  // namespace

engine_bh_t* engine_bh_new(engine_context_t* context, engine_bh_fn* fn, void* opaque) {
    return reinterpret_cast<engine_bh_t*>(new (std::nothrow) aio::BottomHalf(*unwrap(context), fn, opaque));
}
int engine_bh_schedule(engine_bh_t* bh) {
    return unwrap(bh)->schedule();
}
void engine_bh_cancel(engine_bh_t* bh) {
    unwrap(bh)->cancel();
}
void engine_bh_delete(engine_bh_t* bh) {
    aio::BottomHalf::destroy(unwrap(bh));
}
int engine_schedule_oneshot(engine_context_t* context, engine_bh_fn* fn, void* opaque) {
    return aio::schedule_oneshot(*unwrap(context), fn, opaque);
}

engine_timer_t* engine_timer_new(engine_context_t* context, engine_timer_fn* done, void* opaque) {
    return reinterpret_cast<engine_timer_t*>(new (std::nothrow)
                                                 aio::ForeignTimer(*unwrap(context), done, opaque));
}
int engine_timer_arm(engine_timer_t* timer, uint64_t deadline_ns) {
    return unwrap(timer)->arm(deadline_ns);
}
int engine_timer_cancel(engine_timer_t* timer) {
    return unwrap(timer)->cancel();
}
void engine_timer_delete(engine_timer_t* timer) {
    aio::ForeignTimer::destroy(unwrap(timer));
}

int engine_fd_handler_new(engine_context_t* context, int fd, engine_bh_fn* on_read, engine_bh_fn* on_write,
                          engine_poll_fn* poll, void* opaque, engine_fd_handler_t** out,
                          engine_error* error) {
    return guarded(error, "watch descriptor", [&] {
        base::Where where{.operation = "watch descriptor", .field = "fd"};
        if (on_read == nullptr && on_write == nullptr) {
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "descriptor %d: no callback given",
                              fd);
        }
        if (poll != nullptr && on_read == nullptr) {
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "descriptor %d: poll needs on_read",
                              fd);
        }
        aio::ForeignFdHandler* made = nullptr;
        int result =
            aio::ForeignFdHandler::create(*unwrap(context), fd, on_read, on_write, poll, opaque, &made);
        if (result != 0) {
            return base::fail_os(error, -result, where, "context %s cannot watch descriptor %d",
                                 unwrap(context)->name().c_str(), fd);
        }
        *out = reinterpret_cast<engine_fd_handler_t*>(made);
        return 0;
    });
}
void engine_fd_handler_delete(engine_fd_handler_t* handler) {
    aio::ForeignFdHandler::destroy(unwrap(handler));
}
