// Timers and fd handlers for callers on any thread: each change is a message to the home thread.
#pragma once

#include "aio/context.hh"
#include "aio/poller.hh"

namespace engine::aio {

// For each arming `done` runs exactly once on the home thread: fired (1) or cancelled (0). A closing context
// cancels, and so does one that has no memory left for another timer. Arming one that is armed moves its
// deadline.
class ForeignTimer {
  public:
    using Function = void (*)(void* opaque, int fired);

    ForeignTimer(AioContext& context, Function done, void* opaque) noexcept
        : context_(context), done_(done), opaque_(opaque) {
        timer_.owner = this;
        timer_.fire = [](Timer* timer) { static_cast<Owned*>(timer)->owner->finish(1); };
        timer_.abandon = [](Timer* timer) { static_cast<Owned*>(timer)->owner->finish(0); };
        destruction_.timer = this;
        destruction_.run = [](Message* message) { static_cast<Command*>(message)->timer->destroy_now(); };
    }
    // Any thread. 0, -ENOMEM or -ESHUTDOWN.
    int arm(uint64_t deadline_ns) noexcept;
    int cancel() noexcept;
    // Any thread: cancels, then frees it on the home thread.
    static void destroy(ForeignTimer* timer) noexcept;

  private:
    struct Owned : Timer {
        ForeignTimer* owner;
    };
    enum class Action : uint8_t { arm, cancel };
    struct Command : Message {
        ForeignTimer* timer;
        uint64_t deadline_ns;
        Action action;
    };
    ~ForeignTimer() = default;
    int send(Action action, uint64_t deadline_ns) noexcept;
    int apply(Action action, uint64_t deadline_ns) noexcept;
    void destroy_now() noexcept;
    void finish(int fired) noexcept { done_(opaque_, fired); }
    void release() noexcept {
        if (references_.fetch_sub_acq_rel(1) == 1) delete this;
    }

    AioContext& context_;
    Function done_;
    void* opaque_;
    Owned timer_;
    Command destruction_{};   // needs no memory when it is wanted
    bool destroyed_ = false;  // home only
    // Its user's, and one for each command under way: a closing context may refuse destroy() with an earlier
    // command still to be run.
    base::Atomic<uint32_t> references_{1};
};

class ForeignFdHandler final : private Poller {
  public:
    using Function = void (*)(void* opaque);
    using PollFunction = int (*)(void* opaque);

    // Blocks for the home thread, or runs at once on it.
    static int create(AioContext& context, int fd, Function on_read, Function on_write, PollFunction poll,
                      void* opaque, ForeignFdHandler** out);
    // Blocks until no callback can run any more, or does it at once on the home thread.
    static void destroy(ForeignFdHandler* handler) noexcept;

  private:
    struct Owned : FdHandler {
        ForeignFdHandler* owner;
    };
    ForeignFdHandler() noexcept = default;
    bool poll() override;
    bool has_work() override { return poll_ != nullptr && poll_(opaque_) != 0; }
    bool prepare_sleep() override { return has_work(); }
    void end_sleep() override {}
    void ready(uint32_t events) noexcept;

    AioContext* context_ = nullptr;
    Function on_read_ = nullptr;
    Function on_write_ = nullptr;
    PollFunction poll_ = nullptr;
    void* opaque_ = nullptr;
    Owned handler_;
};

}  // namespace engine::aio
