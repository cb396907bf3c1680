// Background work of a node on its home: passes of one task, asked for from any context, never two at a time.
//
// Invariants: after a kick a pass begins, as soon as there is a home; active_ from the message that begins
// passes to the end of the last one; who waits for that (stop, settle) is on the home, and alone, because
// both are called under the node's edges.
#pragma once

#include "block/node.hh"
#include "coro/completion.hh"
#include "coro/task.hh"

namespace engine::block {

class HomeWork {
  public:
    // Does what there is to do by now. -errno: it could not, and is to begin again with the next kick.
    using Pass = coro::Task<int> (*)(Channel& home);

    explicit HomeWork(Pass pass) noexcept;
    HomeWork(const HomeWork&) = delete;
    HomeWork& operator=(const HomeWork&) = delete;
    ~HomeWork() { ENGINE_CHECK(waiter_ == nullptr); }

    // Any context: there is work.
    void kick() noexcept;
    // Driver::start_home. What was asked for while there was no home is done now.
    void start(Channel& home) noexcept;
    // Driver::stop_home: the pass under way ends, no other begins.
    coro::Task<int> stop(Channel& home);
    // Driver::settle: until there is nothing left to do, or a pass has failed.
    coro::Task<int> settle(Channel& home);

  private:
    struct Kick : aio::Message {
        HomeWork* work = nullptr;
    };
    struct PassEnd : coro::Callback<int> {
        HomeWork* work = nullptr;
    };
    enum class Turn { idle, busy, mine };
    void send() noexcept ENGINE_REQUIRES(mutex_);
    void go_on(int result) noexcept;
    Turn take_turn() noexcept;
    void end_turn(int result) noexcept;

    const Pass pass_;
    base::Mutex mutex_;  // short
    Channel* home_ ENGINE_GUARDED_BY(mutex_) = nullptr;
    bool wanted_ ENGINE_GUARDED_BY(mutex_) = false;  // kicked since the last pass began, or that one failed
    bool active_ ENGINE_GUARDED_BY(mutex_) = false;
    Kick kick_;                                // on its way while active_
    PassEnd pass_end_;                         // the home's, as is:
    coro::Completion<int>* waiter_ = nullptr;  // for active_ to end
};

}  // namespace engine::block
