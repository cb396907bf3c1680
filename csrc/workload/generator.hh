// The load generator's core: what to do next, and how long it took. It runs on its context's thread alone;
// the counters may be read from anywhere. How a request travels is the business of its two kinds: over a
// node, or through a virtqueue.
#pragma once

#include <engine/workload.h>

#include <memory>
#include <vector>

#include "aio/context.hh"
#include "base/histogram.hh"
#include "base/random.hh"
#include "block/graph.hh"
#include "block/trace.hh"
#include "workload/replay.hh"

namespace engine::workload {

// As engine_op numbers them.
enum class Kind : uint8_t { read, write, flush, discard };

// One place for a request in flight.
struct Ticket {
    Ticket* next_free;
    uint64_t start_ns;
    uint64_t offset;
    uint32_t length;
    uint32_t index;
    Kind kind;
    bool check;           // a read of a block that this workload had written before
    block::Trace* trace;  // null: it was not drawn
};

class alignas(128) Generator {
  public:
    // Control plane. The target is attached by the kind's own factory.
    static int create(Instance& engine, const engine_workload_config& config, std::unique_ptr<Generator>* out,
                      engine_error* error);
    virtual ~Generator();

    Instance& engine() const noexcept { return engine_; }
    int start(engine_error* error);
    // 0, or -EDEADLK on another context's thread.
    int stop() noexcept;
    // 0, -ETIMEDOUT, or -EDEADLK on a context's thread.
    int wait(uint64_t timeout_ns) noexcept;
    void read_result(engine_workload_result* out) const noexcept;
    // 0, or -EBUSY while it is running.
    int read_traces(engine_trace* out, uint64_t capacity, uint64_t* count, uint32_t* every) const noexcept;
    // Foreign threads. Stops, waits, lets go of the target.
    void close() noexcept;

  protected:
    Generator(Instance& engine, const engine_workload_config& config, aio::AioContext& context);

    // --- of the kind
    virtual int attach(engine_error* error) = 0;  // control plane
    virtual void detach() noexcept = 0;           // control plane
    virtual void begin() = 0;                     // home: before the first issue
    virtual void issue(Ticket& ticket) noexcept = 0;
    virtual void issued() noexcept = 0;  // a batch has been issued, not in answer to completions
    virtual void end() noexcept = 0;     // home: after the last completion
    virtual std::byte* buffer(const Ticket& ticket) noexcept = 0;
    virtual block::User* user() const noexcept = 0;
    // Where its requests enter the graph.
    virtual aio::AioContext& entry_context() noexcept { return context_; }

    // A request is done; `result` is 0 or -errno. Its ticket is free again, and what may follow it is issued.
    void completed(Ticket& ticket, int result) noexcept;
    bool running() const noexcept { return running_; }
    Ticket& ticket(uint32_t index) noexcept { return tickets_[index]; }

    Instance& engine_;
    engine_workload_config config_;
    aio::AioContext& context_;

  private:
    struct Clock : aio::Timer {
        Generator* generator;
    };
    // The last that happens here: from the ready queue, because the waiter may destroy the generator at once.
    struct Over : aio::Message {
        Generator* generator;
    };
    int prepare(engine_error* error);
    void make_tickets(uint64_t most);
    int begin_running();
    void choose(Ticket& ticket) noexcept;
    void issue_next(uint64_t start_ns) noexcept;
    void refill() noexcept;
    void refill_open_loop() noexcept;
    void end_issuing() noexcept { left_ = 0; }
    [[gnu::noinline]] void failed(const Ticket& ticket, int result) noexcept;
    [[gnu::noinline, gnu::cold]] void begin_trace(Ticket& ticket) noexcept;
    [[gnu::noinline, gnu::cold]] void end_trace(Ticket& ticket, int result) noexcept;
    void end_issuing_due_before(uint64_t ns) noexcept;
    void record_missed() noexcept;
    void record_missed_of_replay() noexcept;
    [[gnu::noinline]] void verify(const Ticket& ticket) noexcept;
    [[gnu::noinline]] void finish_if_idle() noexcept;
    void fill(const Ticket& ticket) noexcept;
    bool matches(const Ticket& ticket) noexcept;
    void mark_written(uint64_t offset) noexcept;
    bool was_written(uint64_t offset) const noexcept;
    uint64_t start_of_next() const noexcept;
    uint64_t start_of_due(uint64_t number) const noexcept;
    uint64_t due_before(uint64_t ns) const noexcept;

    // --- constant while running
    uint64_t first_block_ = 0;
    uint64_t blocks_ = 0;
    bool latency_ = true;
    bool open_loop_ = false;
    bool verify_ = false;
    bool sized_ = false;  // requests differ in length
    // --- home thread
    base::Random random_;
    Replay replay_;
    uint64_t next_block_ = 0;
    uint64_t left_ = 0;              // requests to issue; 0 also when it is to stop
    uint64_t due_ = 0;               // open loop: requests whose intended start has been taken
    uint64_t missed_ = 0;            // open loop: those after them that were due and will not be issued
    uint64_t missed_before_ns_ = 0;  // of a replay: those that were due by then, of `missed_` at most
    uint64_t ends_ns_ = UINT64_MAX;  // when time is up
    uint64_t writes_since_flush_ = 0;
    uint32_t in_flight_ = 0;
    bool running_ = false;
    bool ended_ = false;
    bool full_ = false;  // open loop: a request that is due has found all tickets taken
    std::vector<Ticket> tickets_;
    Ticket* free_ = nullptr;
    std::vector<uint64_t> written_;  // verify: a bit a block
    block::TraceStore traces_;
    Clock end_timer_, due_timer_;
    Over over_message_;
    // --- written on the home thread, read anywhere
    struct Way {
        base::Counter requests;
        base::Counter bytes;  // of requests that differ in length
        base::Histogram latency_ns;
    };
    Way ways_[4];  // by Kind
    base::Counter errors_, verify_errors_, late_, unissued_, depth_[8];
    base::Counter started_ns_, ended_ns_, error_errnum_, error_offset_;
    base::Atomic<uint32_t> state_{0};  // 0 made, 1 started, 2 over
    aio::Signal over_;
    bool attached_ = false;
};

std::unique_ptr<Generator> make_node_generator(Instance& engine, const engine_workload_config& config,
                                               aio::AioContext& context);
std::unique_ptr<Generator> make_queue_generator(Instance& engine, const engine_workload_config& config,
                                                aio::AioContext& context);

}  // namespace engine::workload
