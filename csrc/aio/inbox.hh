// The only way into a context from another thread: a lock-free stack of messages and the sleep/wake protocol.
// Any thread pushes; only the home thread takes. Explored as shipped by tests/native/explore_inbox.cc.
#pragma once

#include <cerrno>
#include <cstdint>

#include "base/atomic.hh"
#include "base/work_item.hh"

namespace engine::aio {

// `run` is called once on the home thread, and may free the message.
using Message = base::WorkItem;

enum class Push {
    queued,  // it will run, exactly once; the home thread is awake and will see it
    wake,    // the same, and the caller must wake the home thread: it alone has this duty
    closed,  // it never will
};

// Who is about to push. The home thread closes the inbox only when nobody is in there any more: so whoever
// has entered pushes with success, and may say so before it has.
class SendGate {
  public:
    // Any thread. False: it is closed, and stays so. Pairs with close(): who is refused sees all that the
    // home thread did before.
    bool enter() noexcept {
        if ((inside_.fetch_add_acq_rel(1) & closed) == 0) return true;
        inside_.fetch_sub_acq_rel(1);
        return false;
    }
    void leave() noexcept { inside_.fetch_sub_acq_rel(1); }

    // Home only, once; then it waits until the gate is empty.
    void close() noexcept { inside_.fetch_or_acq_rel(closed); }
    bool empty() const noexcept { return (inside_.load_acquire() & ~closed) == 0; }

  private:
    static constexpr uint32_t closed = 1u << 31;
    base::Atomic<uint32_t> inside_{0};
};

class Inbox {
  public:
    // Any thread. Pairs with take_all (the message's content) and with may_sleep (no lost wake-up): the push
    // is before the load of `sleeping_`, the store of `sleeping_` before the second look at `head_`; both
    // seq_cst.
    Push push(Message* message) noexcept {
        Message* head = head_.load_relaxed();
        do {
            if (head == closed_mark()) {
                // Pairs with close(): who is refused sees all that the home thread did before.
                (void)head_.load_acquire();
                return Push::closed;
            }
            message->next = head;
        } while (!head_.compare_exchange_seq_cst(head, message));
        // Whoever clears `sleeping_` wakes: exactly one pusher a sleep makes the system call.
        if (sleeping_.load_seq_cst() != 0 && sleeping_.exchange_seq_cst(0) != 0) return Push::wake;
        return Push::queued;
    }

    // Home only. All messages so far, oldest first.
    Message* take_all() noexcept {
        if (head_.load_relaxed() == nullptr) return nullptr;
        return reverse(head_.exchange_acq_rel(nullptr));
    }

    // Home only. Nobody can push from here on; what was pushed before is returned, oldest first, to be run.
    Message* close() noexcept { return reverse(head_.exchange_acq_rel(closed_mark())); }

    // Home only. A hint for busy polling.
    bool empty() const noexcept { return head_.load_relaxed() == nullptr; }

    // Home only, before blocking: true when it may block, and then some pusher will have Push::wake.
    bool may_sleep() noexcept {
        sleeping_.store_seq_cst(1);
        if (head_.load_seq_cst() == nullptr) return true;
        sleeping_.store_relaxed(0);
        return false;
    }

    // Home only, after blocking for whatever reason. True when a pusher cleared the flag, so a wake-up is
    // under way or has been consumed.
    bool woke_up() noexcept { return sleeping_.exchange_seq_cst(0) == 0; }

  private:
    static Message* closed_mark() noexcept { return reinterpret_cast<Message*>(uintptr_t{1}); }
    static Message* reverse(Message* list) noexcept {
        Message* out = nullptr;
        while (list != nullptr) {
            Message* next = list->next;
            list->next = out;
            out = list;
            list = next;
        }
        return out;
    }

    alignas(64) base::Atomic<Message*> head_{nullptr};
    base::Atomic<uint32_t> sleeping_{0};
};

}  // namespace engine::aio
