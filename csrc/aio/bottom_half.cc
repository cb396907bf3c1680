// Bottom halves. State changes are single atomic operations; the inbox carries the message.
#include "aio/bottom_half.hh"

#include "base/alloc.hh"

namespace engine::aio {

// Nobody waits for anybody: who finds it queued knows that the message is in the inbox, or that its sender is
// in the gate and will put it there.
int BottomHalf::request(uint32_t what) noexcept {
    AioContext& context = context_;  // once the message is in, it may run, and this may be gone
    bool open = context.enter_gate();
    bool push = false;
    int result = 0;
    uint32_t state = state_.load_acquire();
    do {
        push = (state & queued) == 0;
        if (push && !open) {
            result = -ESHUTDOWN;
            break;
        }
        // Pairs with run_scheduled(): what was written before is seen by the callback.
    } while (!state_.compare_exchange_acq_rel(state, state | what | queued));
    if (push && open) context.push(this);
    if (open) context.leave_gate();
    return result;
}

int BottomHalf::schedule() noexcept {
    return request(armed);
}

void BottomHalf::run_scheduled(Message* message) noexcept {
    auto* self = static_cast<BottomHalf*>(message);
    // Once it is no longer queued, and the gate closed, destroy() on another thread frees it at once.
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
