// One buffer, many offsets: a window of requests that refills itself on the context, so that a caller pays
// for one message, whatever the number of parts. Home thread of the port's context, but for prepare() before
// it begins and cancel() while it runs.
#pragma once

#include <engine/async.h>

#include <cerrno>

#include "base/alloc.hh"
#include "block/node.hh"

namespace engine::block {

class Many {
  public:
    static constexpr uint32_t default_depth = 64;
    static constexpr uint32_t max_depth = 1024;

    // The caller's mistakes, before anything is begun.
    static int check(const engine_many& what, engine_error* error) noexcept;

    // Before it is sent: takes the slots that it needs, or keeps those of its last run. -ENOMEM.
    int prepare(const engine_many& what, Port& port) noexcept;
    // Any thread, until `finished`: begins no more parts.
    void cancel() noexcept { cancelled_.store_release(true); }
    // Home thread.
    void begin() noexcept;

    // --- set by the owner
    void (*finished)(Many*) = nullptr;  // on the home thread, once, not inside begin(); it may free this
    engine_error* error = nullptr;      // optional: of the first part that failed, or that it was cut short

    // Once finished: how many parts succeeded; or -ECANCELED, or, where it stops at a failure, that one's
    // -errno.
    int64_t result() const noexcept {
        if (cut_short_) return -ECANCELED;
        return errnum_ != 0 && what_.stop_at_failure != 0 ? -errnum_ : static_cast<int64_t>(succeeded_);
    }
    bool failed() const noexcept { return errnum_ != 0 || cut_short_; }

  private:
    struct Slot : Request {
        Slot() noexcept {}  // NOLINT(modernize-use-equals-default): leaves `failure` unwritten: it is large
        Many* many = nullptr;
        uint64_t part = 0;
        engine_error
            failure;  // counts only where the result says so: a way that was tried first may have failed
    };
    struct End : aio::Message {
        Many* many;
    };
    void refill() noexcept;
    void issue(Slot& slot) noexcept;
    void completed(Slot& slot) noexcept;
    void note_failure(Slot& slot) noexcept;
    void cut_short() noexcept;
    void finish_if_idle() noexcept;

    engine_many what_{};
    Port* port_ = nullptr;
    base::Atomic<bool> cancelled_{false};
    base::Owner<Slot[]> slots_;
    uint32_t slot_count_ = 0;
    Slot* free_ = nullptr;  // linked by `next`
    uint64_t next_part_ = 0;
    uint64_t succeeded_ = 0;
    uint32_t in_flight_ = 0;
    int errnum_ = 0;          // of the first part that failed
    bool stopped_ = false;    // begins nothing more
    bool cut_short_ = false;  // by cancel()
    End end_{};               // the ready queue's, so that nothing ends inside begin()
};

}  // namespace engine::block
