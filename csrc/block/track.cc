// The switch, and the tree. Home thread of whoever calls; `reqs` for a few instructions at a time.
#include "block/track.hh"

#include "coro/short_lock.hh"

namespace engine::block {

using coro::ShortLock;
using coro::Task;

namespace {

void wake_all(coro::Executor& here, coro::ReadyItem* first) noexcept {
    while (first != nullptr) {
        coro::ReadyItem* next = first->next;
        here.wake(first, static_cast<Tracking::Waiter*>(first)->executor);
        first = next;
    }
}

}  // namespace

NodeControl::NodeControl() : tracking(std::make_unique<Tracking>()) {}
NodeControl::~NodeControl() = default;

Task<int> Tracking::hold(Channel& channel) {
    for (;;) {
        Waiter waiter(channel.executor());
        bool held = false;
        bool switches = false;
        {
            ShortLock lock(channel.executor(), reqs_);
            held = state_ == State::on;
            switches = state_ == State::off;
            if (held) {
                holders_++;
            } else if (switches) {
                state_ = ENGINE_SEEDED_BUG(tracking_is_on_at_once) ? State::on : State::switching_on;
            } else {
                pending_.push(&waiter);
            }
        }
        if (held) co_return 0;
        if (!switches) {
            co_await waiter.done;
            continue;
        }
        int result = co_await switch_to(channel, true);
        switched(channel, result == 0 ? State::on : State::off);
        if (result != 0) co_return result;
    }
}

void Tracking::let_go(Channel& channel) noexcept {
    ShortLock lock(channel.executor(), reqs_);
    ENGINE_CHECK(holders_ != 0);
    if (--holders_ == 0) released_ns_ = channel.executor().now_ns();
}

// A channel that is made meanwhile finds `active` as it is to be.
Task<int> Tracking::switch_to(Channel& channel, bool on) {
    Node& node = *channel.node;
    {
        base::Guard guard(node.control->lists);
        if (!ENGINE_SEEDED_BUG(tracking_tells_no_new_channel)) active_.store_relaxed(on);
    }
    ChannelVisit visit;
    if (on) {
        visit.visit = [](Channel& each) noexcept { each.set_tracked(true); };
    } else {
        visit.visit = [](Channel& each) noexcept { each.set_tracked(false); };
    }
    bool waits = on && !ENGINE_SEEDED_BUG(tracking_waits_for_nobody);
    GraceOver over = waits ? GraceOver::plain : GraceOver::nothing;
    int result = co_await grace(*channel.context, node, visit, over);
    if (result != 0) {
        base::Guard guard(node.control->lists);
        active_.store_relaxed(!on);
    }
    co_return result;
}

void Tracking::switched(Channel& channel, State state) noexcept {
    coro::ReadyItem* waiting = nullptr;
    {
        ShortLock lock(channel.executor(), reqs_);
        state_ = state;
        released_ns_ = channel.executor().now_ns();
        waiting = pending_.take_all();
    }
    wake_all(channel.executor(), waiting);
}

Tracking::Entry* Tracking::find_older(const Entry& entry) const noexcept {
    Entry* found = nullptr;
    tree_.for_overlaps(entry.start, entry.end, [&](Interval* item) {
        auto* other = static_cast<Entry*>(item);
        bool conflict = other->age < entry.age && (other->serialises || entry.serialises);
        if (ENGINE_SEEDED_BUG(tracking_finds_nobody_older)) conflict = false;
        if (conflict) found = other;
        return !conflict;
    });
    return found;
}

// One that waits is cancelled: it waits no longer, and finds out by its token. Where the one before it has
// just left, its wake-up is on the way already.
class Tracking::GiveUp final : public coro::CancelHook {
  public:
    GiveUp(Tracking& tracking, Channel& channel, Waiter& waiter) noexcept
        : CancelHook([](CancelHook* hook) noexcept {
              auto* self = static_cast<GiveUp*>(hook);
              self->tracking_.give_up(self->channel_, self->waiter_);
          }),
          tracking_(tracking),
          channel_(channel),
          waiter_(waiter) {}

  private:
    Tracking& tracking_;
    Channel& channel_;
    Waiter& waiter_;
};

void Tracking::give_up(Channel& channel, Waiter& waiter) noexcept {
    {
        ShortLock lock(channel.executor(), reqs_);
        if (waiter.behind == nullptr) return;
        waiter.behind->waiters.remove(&waiter);
        waiter.behind = nullptr;
    }
    waiter.done.complete(0);
}

Task<int> Tracking::enter(Channel& channel, Entry& entry, coro::CancelToken token) {
    {
        ShortLock lock(channel.executor(), reqs_);
        entry.age = next_age_++;
        tree_.insert(&entry);
    }
    for (;;) {
        Waiter waiter(channel.executor());
        bool waits = false;
        {
            ShortLock lock(channel.executor(), reqs_);
            Entry* older = find_older(entry);
            waits = older != nullptr;
            if (waits) {
                older->waiters.push(&waiter);
                waiter.behind = older;
            }
        }
        if (!waits) co_return 0;
        GiveUp hook(*this, channel, waiter);
        if (hook.attach(token) != 0) give_up(channel, waiter);
        co_await waiter.done;
        if (token.cancelled()) {
            leave(channel, entry);
            co_return -ECANCELED;
        }
    }
}

void Tracking::leave(Channel& channel, Entry& entry) noexcept {
    coro::ReadyItem* waiting = nullptr;
    {
        ShortLock lock(channel.executor(), reqs_);
        tree_.erase(&entry);
        waiting = entry.waiters.take_all();
        for (coro::ReadyItem* item = waiting; item != nullptr; item = item->next) {
            static_cast<Waiter*>(item)->behind = nullptr;
        }
    }
    wake_all(channel.executor(), waiting);
}

bool Tracking::idle(Channel& channel) noexcept {
    ShortLock lock(channel.executor(), reqs_);
    if (state_ != State::on || holders_ != 0) return false;
    if (channel.executor().now_ns() < released_ns_ + idle_ns) return false;
    state_ = State::switching_off;
    return true;
}

Task<int> Tracking::switch_back(Channel& channel) {
    int result = co_await switch_to(channel, false);
    switched(channel, result == 0 ? State::off : State::on);
    co_return result;
}

}  // namespace engine::block
