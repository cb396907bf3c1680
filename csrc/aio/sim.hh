// The simulator: contexts that share one thread, in virtual time, in an order that a seed decides. One seed
// is one history. Everything here belongs to the thread that made it.
//
// What varies with the seed: which context takes the next turn, how much of its ready queue it runs in it,
// how long a turn takes, how long an operation takes, and which of those that are done completes next. What
// fails: the operations named by fail_operation(), each with its error and without effect. An operation takes
// effect in one piece, at the moment it completes; nothing is torn or lost. A handler of one's own
// (serve_with) has other faults.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "aio/backend.hh"
#include "aio/signal.hh"
#include "base/random.hh"

namespace engine::aio {

class AioContext;
class SimBackend;

// What serves the operations of all contexts: the place to put faults in.
class SimHandler {
  public:
    virtual ~SimHandler() = default;
    // Asked when an operation is submitted: how long it will take.
    virtual uint64_t latency_ns(const IoOp& op, base::Random& random) = 0;
    // When that time has come: does it. The result is bytes or 0, or -errno.
    virtual int64_t perform(IoOp& op) = 0;
};

// Files of a fixed size in memory, under descriptors that no real file has. A `call` runs its function.
class SimFiles final : public SimHandler {
  public:
    static constexpr int first_fd = 1 << 20;
    uint64_t latency_min_ns = 2000;
    uint64_t latency_max_ns = 120000;

    // The descriptor of a new file, all zeroes. Throws std::bad_alloc.
    int add(uint64_t bytes);
    std::vector<std::byte>& bytes(int fd) noexcept { return files_[static_cast<size_t>(fd - first_fd)]; }

    uint64_t latency_ns(const IoOp& op, base::Random& random) override;
    int64_t perform(IoOp& op) override;

  private:
    std::vector<std::vector<std::byte>> files_;
};

// There is at most one for a thread. A blocking call on that thread lets the simulation go on while it waits;
// one that waits for what can never come aborts.
class Simulator final : public Waiter {
  public:
    explicit Simulator(uint64_t seed);
    ~Simulator();  // after its contexts

    uint64_t now_ns() const noexcept { return now_ns_; }
    base::Random& random() noexcept { return random_; }
    SimFiles& files() noexcept { return files_; }
    void serve_with(SimHandler& handler) noexcept { handler_ = &handler; }

    // Operations are counted over all contexts in the order of their completion, from 1.
    void fail_operation(uint64_t number, int errnum) { faults_.push_back({number, errnum}); }
    uint64_t operations() const noexcept { return operations_; }

    // One turn of one context, which may have to wait for it until `limit_ns`. False: by then there is
    // nothing to do.
    bool step(uint64_t limit_ns = UINT64_MAX) noexcept;
    // True once the condition holds; false when before that nothing is left to do.
    template <class F>
    bool run_until(F&& condition) {
        while (!condition()) {
            if (!step()) return false;
        }
        return true;
    }
    bool wait(Signal& signal, uint64_t timeout_ns) noexcept override;

    // Of all that has happened: turns, times, operations and results.
    uint64_t trace_hash() const noexcept { return trace_; }
    uint64_t steps() const noexcept { return steps_; }
    // For what a test or a driver wants to have in it as well.
    void trace(uint64_t word) noexcept { trace_ = base::mix(trace_ ^ word) + 0x9e3779b97f4a7c15ull; }

  private:
    friend class AioContext;
    friend class SimBackend;
    struct Member {
        AioContext* context;
        SimBackend* backend;
        uint64_t number;
    };
    struct Fault {
        uint64_t number;
        int errnum;
    };
    static constexpr uint64_t turn_ns_max = 400;
    static constexpr uint64_t batch_max = 8;

    // What a context's backend is made of. Throws std::bad_alloc.
    std::unique_ptr<Backend> join(AioContext& context);
    void leave(const AioContext& context) noexcept;
    uint64_t next_event_ns() const noexcept;
    unsigned count_runnable() const noexcept;
    Member& pick_runnable() noexcept;
    int64_t serve(IoOp& op) noexcept;

    base::Random random_;
    uint64_t now_ns_ = 1'000'000'000;
    uint64_t trace_;
    uint64_t steps_ = 0;
    uint64_t operations_ = 0;
    uint64_t next_number_ = 1;
    SimFiles files_;
    SimHandler* handler_ = &files_;
    std::vector<Fault> faults_;
    std::vector<Member> members_;
};

}  // namespace engine::aio
