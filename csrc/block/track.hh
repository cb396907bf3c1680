// Tracking: which requests that change a node are under way where, kept only while somebody has to know. A
// read-modify-write must not overlap another change: it would write back what it read before. So the first
// one switches the node to *tracked*: every context is told, and what was inside before has left (grace);
// from then on every change is in the tree, and waits for those older ones that overlap it, where one of the
// two serialises. A node where nothing has serialised for a while switches back. Explored as shipped by
// tests/native/explore_track.cc.
//
//   1. From its submission on, one that serialises is in Channel::serialising, not in Channel::requests: the
//      switch waits for the latter alone, and so never for itself or its like.
//   2. Bounce memory is taken after the switch and before the tree. So who waits in the tree waits for
//      requests that have all they need, and who waits for memory holds up no switch.
//   3. Each waits for older ones only: there is no circle.
//
// The tree alone, enter() and leave(), is also for drivers that keep one of their own (filters/verify.hh).
#pragma once

#include "base/list.hh"
#include "base/mutex.hh"
#include "block/grace.hh"
#include "block/interval_tree.hh"
#include "coro/cancel.hh"
#include "coro/completion.hh"
#include "coro/task.hh"

namespace engine::block {

class Tracking {
  public:
    struct Entry;
    // Who waits, on a context of its own. Lives in the frame of a task.
    struct Waiter : coro::ReadyItem {
        explicit Waiter(coro::Executor& on) noexcept : executor(on), done(on) {
            run = [](coro::ReadyItem* item) { static_cast<Waiter*>(item)->done.complete(0); };
        }
        coro::Executor& executor;
        coro::Completion<int> done;
        Entry* behind = nullptr;  // whose waiters it is among; under `reqs`
    };
    // One request in the tree.
    struct Entry : Interval {
        bool serialises = false;
        base::Queue<coro::ReadyItem> waiters;  // for it to leave; under `reqs`
    };

    Tracking() noexcept = default;
    Tracking(const Tracking&) = delete;
    Tracking& operator=(const Tracking&) = delete;

    // For who makes a channel, under the node's `lists`: is it tracked from the start?
    bool active() const noexcept { return active_.load_relaxed(); }

    // --- tasks of the channel's context

    // 0: the node is tracked, and stays so until let_go(). -ENOMEM.
    coro::Task<int> hold(Channel& channel);
    void let_go(Channel& channel) noexcept;
    // Enters the tree and waits for those before it. leave() follows. -ENOMEM, or cancelled while it waited,
    // -ECANCELED: it is not in there.
    coro::Task<int> enter(Channel& channel, Entry& entry, coro::CancelToken token = {});
    void leave(Channel& channel, Entry& entry) noexcept;
    // By a tracked request, before it completes: switches back where nothing has serialised for a while.
    bool idle(Channel& channel) noexcept;  // true: the caller is the one, and switch_back() follows
    coro::Task<int> switch_back(Channel& channel);

  private:
    enum class State : uint8_t { off, switching_on, on, switching_off };
    static constexpr uint64_t idle_ns = 100'000'000;

    coro::Task<int> switch_to(Channel& channel, bool on);
    void switched(Channel& channel, State state) noexcept;
    class GiveUp;
    void give_up(Channel& channel, Waiter& waiter) noexcept;
    Entry* find_older(const Entry& entry) const noexcept ENGINE_REQUIRES(reqs_);

    base::Atomic<bool> active_{false};  // written under the node's `lists`
    base::Mutex reqs_;                  // short
    State state_ ENGINE_GUARDED_BY(reqs_) = State::off;
    uint64_t holders_ ENGINE_GUARDED_BY(reqs_) = 0;
    uint64_t released_ns_ ENGINE_GUARDED_BY(reqs_) = 0;  // when the last of them let go
    uint64_t next_age_ ENGINE_GUARDED_BY(reqs_) = 0;
    IntervalTree tree_ ENGINE_GUARDED_BY(reqs_);
    base::Queue<coro::ReadyItem> pending_ ENGINE_GUARDED_BY(reqs_);  // for the switch to be over
};

}  // namespace engine::block
