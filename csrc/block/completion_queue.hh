// Completion queues: requests that somebody outside submits in arrays and takes back in arrays, over a
// descriptor.
//
// `mutex_` guards what submitting, cancelling and draining share: pools, the table of tokens, the list of
// batches. A context takes no lock here: it pushes what has completed on the inbox `done_`, whose consumer is
// whoever drains, and writes the descriptor once for all that one turn completed.
#pragma once

#include <engine/async.h>

#include <optional>
#include <span>
#include <vector>

#include "aio/inbox.hh"
#include "block/many.hh"
#include "block/request_pool.hh"
#include "block/token_table.hh"

namespace engine {
struct Instance;
}

namespace engine::block {

class CompletionQueue;
struct Batch;
struct Lane;

// One request of an array, or the completion of a whole vector. Its place is the queue's pool.
struct AsyncRequest : Request {
    AsyncRequest() noexcept {
    }  // NOLINT(modernize-use-equals-default): leaves `failure` unwritten: it is large
    Batch* batch = nullptr;
    Many* many = nullptr;                 // the vector that it stands for; null: it is a request itself
    AsyncRequest* sibling = nullptr;      // of the batch, in order of submission; later of `shown_`
    AsyncRequest* same_bucket = nullptr;  // of the token table
    uint64_t token = 0;
    int64_t outcome = 0;                  // what the completion says
    bool failed = false;                  // and that `failure` counts
    base::Atomic<bool> cancelled{false};  // set under the queue's mutex, read at home
    bool under_way = false;               // submitted, and has not completed; home only
    engine_error failure;
};

// A vector, and the batch that it is all of.
struct BatchedMany : Many {
    Batch* batch = nullptr;
};

// What one call submitted: the message that takes it to its context. It holds its user and its context until
// the last request of it has completed, and is used again once all are drained.
struct Batch : aio::Message, base::Link {
    // --- set under the queue's mutex, before the send
    CompletionQueue* queue = nullptr;
    Lane* lane = nullptr;
    User* user = nullptr;
    Port* port = nullptr;
    uint64_t serial = 0;
    std::optional<aio::Signal> over;  // all have completed, and user and context are let go
    base::Owner<BatchedMany> many;    // kept, with its slots, from one use to the next
    // --- home only from the send on
    AsyncRequest* first = nullptr;  // to be submitted
    uint64_t left = 0;              // not completed
    // --- under the queue's mutex
    uint64_t undrained = 0;
    uint32_t waiters = 0;
};

// What tells a context that the requests of a token are to stop.
struct CancelNote : aio::Message {
    Lane* lane = nullptr;
    uint64_t token = 0;
};

// The queue as one context sees it.
struct Lane {
    struct Notice : aio::Message {
        Lane* lane = nullptr;
    };
    CompletionQueue* queue = nullptr;
    aio::AioContext* context = nullptr;
    bool cancels = false;  // cancel() has found one of its requests; under the queue's mutex
    // --- home only
    Notice notice;      // on the ready queue, behind what else completes in this turn
    uint64_t owed = 0;  // writes to the descriptor: not 0 while the notice is there
    base::Counter notifications;
};

// The caller's array, whose elements may be of an older version and so smaller than ours.
class RequestArray {
  public:
    // Checks each of them. 0 or -EINVAL.
    static int read(const engine_request* requests, size_t count, RequestArray* out,
                    engine_error* error) noexcept;
    size_t count() const noexcept { return count_; }
    engine_request operator[](size_t index) const noexcept;

  private:
    const std::byte* first_ = nullptr;
    size_t stride_ = 0;
    size_t count_ = 0;
};

class CompletionQueue {
  public:
    static int create(Instance& engine, base::Owner<CompletionQueue>* out, engine_error* error);
    explicit CompletionQueue(Instance& engine) noexcept : engine_(engine) {}
    // After close().
    ~CompletionQueue();
    CompletionQueue(const CompletionQueue&) = delete;
    CompletionQueue& operator=(const CompletionQueue&) = delete;

    Instance& engine() noexcept { return engine_; }
    int fileno() const noexcept { return event_fd_; }

    // Any thread. `context` null: main.
    int submit(User* user, aio::AioContext* context, const RequestArray& requests, engine_error* error);
    int submit_many(User* user, aio::AioContext* context, const engine_many& what, uint64_t token,
                    engine_error* error);
    int64_t cancel(uint64_t token) noexcept;
    int wait(const User* user, const aio::AioContext* context, uint64_t timeout_ns,
             engine_error* error) noexcept;
    void read_stats(engine_cq_stats* out) noexcept;
    // One thread at a time.
    size_t drain(std::span<engine_completion> out) noexcept;
    // Waits until no context touches it any more; what drivers hold back by choice goes on meanwhile.
    void close() noexcept;

  private:
    template <class F>
    void on_each_lane(F f) noexcept;
    void let_go(const Lane* lane) noexcept;
    void tell_lane(Lane* lane, uint64_t token) noexcept ENGINE_REQUIRES(mutex_);
    int begin_batch(User* user, aio::AioContext* context, size_t count, Batch** out, engine_error* error);
    int take_locked(Batch* batch, size_t count) noexcept ENGINE_REQUIRES(mutex_);
    Batch* take_batch() ENGINE_REQUIRES(mutex_);
    Lane* lane_on(aio::AioContext* context) ENGINE_REQUIRES(mutex_);
    int send(Batch* batch, engine_error* error) noexcept;
    void give_up(Batch* batch) noexcept;
    void retire(Batch* batch) noexcept ENGINE_REQUIRES(mutex_);
    void collect(std::span<engine_completion> out, size_t* count) noexcept ENGINE_REQUIRES(mutex_);
    void read_descriptor() noexcept ENGINE_REQUIRES(mutex_);
    void write_descriptor(uint64_t writes) noexcept;

    // --- home thread of the batch's context
    static void submit_batch(aio::Message* message) noexcept;
    static void complete(Request* request) noexcept;
    static void finish(AsyncRequest* request) noexcept;
    void stop(uint64_t token, const aio::AioContext* here) noexcept;
    static void notify(aio::Message* message) noexcept;

    Instance& engine_;
    int event_fd_ = -1;
    aio::Inbox done_;
    base::Mutex mutex_;
    RequestPool<AsyncRequest> requests_ ENGINE_GUARDED_BY(mutex_);
    base::List<Batch> active_ ENGINE_GUARDED_BY(mutex_);  // with requests that are not drained, or waited for
    base::List<Batch> ending_ ENGINE_GUARDED_BY(mutex_);  // drained, and not over for an instant yet
    std::vector<base::Owner<Batch>> batches_ ENGINE_GUARDED_BY(mutex_);  // all there are
    base::Queue<aio::Message> free_batches_ ENGINE_GUARDED_BY(mutex_);
    std::vector<base::Owner<Lane>> lanes_ ENGINE_GUARDED_BY(mutex_);
    TokenTable<AsyncRequest> tokens_ ENGINE_GUARDED_BY(mutex_);
    aio::Message* fetched_ ENGINE_GUARDED_BY(mutex_) = nullptr;  // taken from done_, not yet drained
    AsyncRequest* shown_ ENGINE_GUARDED_BY(mutex_) =
        nullptr;                                     // failures of the last drain, linked by `sibling`
    bool armed_ ENGINE_GUARDED_BY(mutex_) = false;   // the next push has to write the descriptor
    uint64_t unread_ ENGINE_GUARDED_BY(mutex_) = 0;  // writes to it that no read has taken yet
    engine_cq_stats stats_ ENGINE_GUARDED_BY(mutex_){};
};

}  // namespace engine::block
