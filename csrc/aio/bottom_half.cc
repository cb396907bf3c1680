// Bottom halves. State changes are single atomic operations; the inbox carries the message.
#include "aio/bottom_half.hh"

#include <sched.h>

#include "base/alloc.hh"

namespace engine::aio {

int BottomHalf::request(uint32_t what) noexcept {
    uint32_t state = state_.load_acquire();
    for (;;) {
        if ((state & closed) != 0) return -ESHUTDOWN;
        if ((state & pushing) != 0) {  // another thread is between its claim and its push: a few instructions
            sched_yield();
            state = state_.load_acquire();
            continue;
        }
        bool push = (state & queued) == 0;
        // Pairs with run_scheduled(): what was written before is seen by the callback.
        if (!state_.compare_exchange_acq_rel(state, state | what | queued | (push ? pushing : 0))) continue;
        if (!push) return 0;
        int result = context_.send(this);
        // The message may be running, or run and freed, once it is in: it is not freed while `pushing` is
        // set.
        if (result == 0) {
            state_.fetch_and_acq_rel(~pushing);
        } else {
            state_.fetch_or_acq_rel(closed);
            state_.fetch_and_acq_rel(~(pushing | queued | armed));
        }
        return result;
    }
}

int BottomHalf::schedule() noexcept {
    return request(armed);
}

void BottomHalf::run_scheduled(Message* message) noexcept {
    auto* self = static_cast<BottomHalf*>(message);
    while ((self->state_.load_acquire() & pushing) != 0) sched_yield();
    // Once it is no longer queued, and the inbox closed, destroy() on another thread frees it at once.
    AioContext& context = self->context_;
    Function function = self->function_;
    void* opaque = self->opaque_;
    uint32_t state = self->state_.fetch_and_acq_rel(~(queued | armed));
    if ((state & doomed) != 0) {
        delete self;
        return;
    }
    if ((state & armed) == 0) return;
    context.stats().bottom_halves.increment();
    function(opaque);
}

void BottomHalf::destroy(BottomHalf* bh) noexcept {
    bh->cancel();
    if (bh->request(doomed) != 0) delete bh;  // the context is gone: nothing runs any more
}

namespace {
struct OneShot : Message {
    AioContext* context;
    BottomHalf::Function function;
    void* opaque;
};

void run_oneshot(Message* message) {
    auto* self = static_cast<OneShot*>(message);
    BottomHalf::Function function = self->function;
    void* opaque = self->opaque;
    self->context->stats().bottom_halves.increment();
    base::deallocate(self);
    function(opaque);
}
}  // namespace

int schedule_oneshot(AioContext& context, BottomHalf::Function function, void* opaque) noexcept {
    void* memory = base::allocate(sizeof(OneShot));
    if (memory == nullptr) return -ENOMEM;
    auto* shot = new (memory) OneShot;
    shot->context = &context;
    shot->function = function;
    shot->opaque = opaque;
    shot->run = run_oneshot;
    int result = context.send(shot);
    if (result != 0) base::deallocate(shot);
    return result;
}

}  // namespace engine::aio
