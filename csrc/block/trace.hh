// Traces: what sampled requests did, when and where. A front end draws requests (TraceStore), and whoever has
// one of them adds marks, on the thread that it is on; parts that are made of a request share its trace. A
// request that was not drawn costs a look at a null pointer for each mark.
//
//   good: mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_HELD);  … mark(*request, ENGINE_MARK_WAITED, …) later
//         TracedWait wait(*request, ENGINE_WAIT_LOCK);  guard = co_await meta.lock_shared(…);  wait.over();
#pragma once

#include <engine/trace.h>

#include "base/random.hh"
#include "block/request.hh"
#include "block/request_pool.hh"

namespace engine::block {

class Node;

struct Trace : engine_trace {
    Trace() noexcept {}  // NOLINT: nothing is zeroed; TraceStore::draw() begins one
    Trace* next = nullptr;

    void add(const aio::AioContext& context, const Node* node, uint8_t kind, uint8_t detail,
             uint64_t at_ns) noexcept;
};
constexpr uint32_t trace_marks_max = sizeof(engine_trace::marks) / sizeof(engine_trace_mark);

// Of a request that is in a node's channel, now or at another time.
[[gnu::noinline, gnu::cold]] void add_mark(const Request& request, uint8_t kind, uint8_t detail) noexcept;
[[gnu::noinline, gnu::cold]] void add_mark_at(const Request& request, uint8_t kind, uint64_t at_ns) noexcept;
inline void mark(const Request& request, uint8_t kind, uint8_t detail = 0) noexcept {
    if (ENGINE_UNLIKELY(request.trace != nullptr)) add_mark(request, kind, detail);
}

// From here to over(), or to its end, a task waits on behalf of the request.
class TracedWait {
  public:
    TracedWait(const Request& request, engine_wait why) noexcept : request_(&request), why_(why) {
        mark(request, ENGINE_MARK_WAIT, why);
    }
    TracedWait(const TracedWait&) = delete;
    TracedWait& operator=(const TracedWait&) = delete;
    ~TracedWait() { over(); }
    void over() noexcept {
        if (request_ != nullptr) mark(*request_, ENGINE_MARK_WAITED, why_);
        request_ = nullptr;
    }

  private:
    const Request* request_;
    engine_wait why_;
};

// The traces of one front end: its thread alone, or nobody's once all have ended. It keeps a bounded number:
// when they have become too many every second one goes, and half as many are drawn from there on. So those
// that are kept are drawn evenly from beginning to end.
class TraceStore {
  public:
    static constexpr uint32_t kept_max = 4096;

    TraceStore() noexcept = default;
    TraceStore(const TraceStore&) = delete;
    TraceStore& operator=(const TraceStore&) = delete;

    // One request in so many, at random distances, so that no pattern of the workload is hit or missed; 0:
    // none.
    void set_up(uint32_t every, uint64_t seed) noexcept;
    // Counts a request. True: this one, and draw() follows.
    bool due() noexcept { return ENGINE_UNLIKELY(--distance_ == 0); }
    // Null where memory is short, or too many are in flight.
    Trace* draw(const aio::AioContext& front, uint64_t start_ns) noexcept;
    void ended(Trace* trace, uint64_t end_ns, int result) noexcept;

    // One in so many, by now.
    uint32_t every() const noexcept { return every_; }
    uint64_t kept() const noexcept { return kept_; }
    // The latest first. How many were written.
    uint64_t read(engine_trace* out, uint64_t capacity) const noexcept;

  private:
    void thin_out() noexcept;

    uint64_t distance_ = UINT64_MAX;  // to the next one that is drawn
    uint32_t every_ = 0;
    uint32_t in_flight_ = 0;
    uint32_t kept_ = 0;
    Trace* latest_ = nullptr;
    base::Random random_{0};
    RequestPool<Trace> pool_;
};

}  // namespace engine::block
