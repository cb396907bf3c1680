// Port: where a user's requests enter the graph on one context, and the only place where they are held back.
// One for each pair of user and context; it lives as long as both. Home thread of its context, but for what
// says otherwise.
#pragma once

#include "aio/context.hh"
#include "block/request.hh"

namespace engine::block {

class User;

class Port {
  public:
    Port(Channel* entry, aio::AioContext* on, const User* owner, uint32_t operations) noexcept
        : channel(entry), allowed_ops(operations), context(on), user(owner), ops_(operations) {}
    ~Port() { ENGINE_CHECK(parks_ == 0 && waiting_.empty()); }
    Port(const Port&) = delete;
    Port& operator=(const Port&) = delete;

    Channel* channel;      // changes only while parked
    uint32_t allowed_ops;  // bit(Op); none while parked, so that entering asks one question
    aio::AioContext* const context;
    const User* const user;
    // How often requests were held back here, and for how long at most. Read anywhere.
    base::Counter pauses, pause_ns_total, pause_ns_max;

    // Requests that come from here on wait, in order. Counts.
    void park() noexcept;
    // The last one lets them go on, through the channel that is the port's now.
    void unpark() noexcept;
    bool parked() const noexcept { return parks_ != 0; }
    // A request that did not pass the first question: it waits, or is refused.
    void hold_or_refuse(Request* request) noexcept;
    // Fails one that has not entered, later, and says why. It never enters: a graph at rest stays at rest.
    void refuse(Request* request, engine_error_kind kind, int errnum, const char* format, ...) noexcept
        __attribute__((format(printf, 5, 6)));
    // Takes back one that waits here. False: it does not.
    bool withdraw(Request* request) noexcept;

  private:
    void trace_parked(const Request& request, uint8_t kind) const noexcept;

    const uint32_t ops_;
    unsigned parks_ = 0;
    uint64_t parked_at_ns_ = 0;
    base::Queue<aio::Message> waiting_;
};

// Entry: permission, id, then the request layer. Completes through request->complete, never inside.
void submit(Port& port, Request* request) noexcept;
// Asks one that was submitted here, and has not completed, to stop. It completes exactly once, not inside:
// with -ECANCELED where it only waited for something, else with its result.
void cancel(Port& port, Request* request) noexcept;

}  // namespace engine::block
