// The requests inside one node on one context, oldest first, and the marks of those who wait until all that
// were there before them have left (grace). Home thread of the channel's context alone: the request path has
// no barrier for it, only two stores at each end.
//
// This list takes the place of a pair of counters that a flip swaps: marks of several waiters may stand in it
// at the same time, and its front is the oldest request, which a quiesce that runs out of time names.
#pragma once

#include "base/assert.hh"
#include "base/atomic.hh"
#include "coro/executor.hh"

namespace engine::block {

struct Request;

// Unlinked from the start; whoever unlinks it does not reset it.
struct InFlightLink {
    InFlightLink* previous;
    InFlightLink* following;
    Request* of;  // whose place in the list this is; null: a mark's
};

// Made ready once, when every request that entered before it has left.
struct GraceMark : InFlightLink, coro::ReadyItem {
    GraceMark* next_mark = nullptr;
    bool standing = false;
};

class InFlightList {
  public:
    InFlightList() noexcept { head_.previous = head_.following = &head_; }
    InFlightList(const InFlightList&) = delete;
    InFlightList& operator=(const InFlightList&) = delete;

    bool empty() const noexcept { return head_.following == &head_; }
    void enter(InFlightLink* link, Request* request) noexcept {
        InFlightLink* last = head_.previous;
        link->of = request;
        link->previous = last;
        link->following = &head_;
        last->following = link;
        head_.previous = link;
    }
    void leave(InFlightLink* link, coro::Executor& executor) noexcept {
        link->previous->following = link->following;
        link->following->previous = link->previous;
        if (ENGINE_UNLIKELY(first_mark_ != nullptr)) pass_marks(executor);
    }

    // The mark becomes ready on the executor, at once where nothing is inside.
    void add_mark(GraceMark* mark, coro::Executor& executor) noexcept {
        ENGINE_ASSERT(!mark->standing);
        mark->standing = true;
        mark->next_mark = nullptr;
        *last_mark_ = mark;
        last_mark_ = &mark->next_mark;
        enter(mark, nullptr);
        pass_marks(executor);
    }
    // One that still stands is taken away and never made ready. False: it has passed.
    bool remove_mark(GraceMark* mark) noexcept {
        if (!mark->standing) return false;
        mark->standing = false;
        mark->previous->following = mark->following;
        mark->following->previous = mark->previous;
        GraceMark** link = &first_mark_;
        while (*link != mark) link = &(*link)->next_mark;
        *link = mark->next_mark;
        if (mark->next_mark == nullptr) last_mark_ = link;
        return true;
    }

    // The oldest request; null: there is none. (A mark is never in front: it has passed.)
    Request* oldest() const noexcept { return empty() ? nullptr : head_.following->of; }

  private:
    [[gnu::noinline]] void pass_marks(coro::Executor& executor) noexcept {
        while (first_mark_ != nullptr &&
               (head_.following == first_mark_ || ENGINE_SEEDED_BUG(marks_pass_whoever_is_inside))) {
            GraceMark* mark = first_mark_;
            first_mark_ = mark->next_mark;
            if (first_mark_ == nullptr) last_mark_ = &first_mark_;
            mark->previous->following = mark->following;
            mark->following->previous = mark->previous;
            mark->standing = false;
            executor.ready(mark);
        }
    }

    InFlightLink head_;
    GraceMark* first_mark_ = nullptr;
    GraceMark** last_mark_ = &first_mark_;
};

}  // namespace engine::block
