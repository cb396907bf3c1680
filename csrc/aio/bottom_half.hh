// Bottom halves: callbacks that any thread schedules and the home thread runs.
#pragma once

#include "aio/context.hh"
#include "base/atomic.hh"

namespace engine::aio {

class BottomHalf : private Message {
  public:
    using Function = void (*)(void* opaque);

    BottomHalf(AioContext& context, Function function, void* opaque) noexcept
        : context_(context), function_(function), opaque_(opaque) {
        run = &run_scheduled;
    }

    // Any thread. 0: it will run; scheduling it again before it does adds nothing. -ESHUTDOWN: it never will.
    int schedule() noexcept;
    // Any thread. Takes a schedule back that has not begun to run.
    void cancel() noexcept { state_.fetch_and_acq_rel(~armed); }
    // Any thread: it does not run again, and is freed when nothing points to it any more.
    static void destroy(BottomHalf* bh) noexcept;

  private:
    ~BottomHalf() = default;
    // `queued`: the message is on its way. `armed`: the callback is wanted. `doomed`: to be freed.
    static constexpr uint32_t queued = 1, armed = 2, doomed = 4;

    static void run_scheduled(Message* message) noexcept;
    int request(uint32_t what) noexcept;

    AioContext& context_;
    Function function_;
    void* opaque_;
    base::Atomic<uint32_t> state_{0};
};

// Any thread: runs function(opaque) once. -ENOMEM or -ESHUTDOWN: it never will.
int schedule_oneshot(AioContext& context, BottomHalf::Function function, void* opaque) noexcept;

}  // namespace engine::aio
