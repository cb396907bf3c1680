// The external driver: requests of its node are served by the embedding program (engine/external.h).
//
// A request gets a slot on its own context; slots go to the program and come back through External, whose
// short mutex guards what says so. What a context submits in one turn goes over in one step, and what is
// completed for a context comes back by one message, however much that is.
#pragma once

#include <engine/external.h>

#include <vector>

#include "base/alloc.hh"
#include "base/list.hh"
#include "base/mutex.hh"
#include "block/node.hh"

namespace engine::block {

class External;
struct ExternalSlot;

// Memory for a request's data that may outlive it: in the program's hands (ENGINE_EXTERNAL_KEEP). Counted;
// the header lies in front of the data, by the data's own alignment.
class ExternalMemory {
  public:
    static ExternalMemory* make(size_t bytes, size_t align) noexcept;
    static ExternalMemory* of(void* data) noexcept;
    std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this) + sizeof(ExternalMemory); }
    size_t capacity() const noexcept { return capacity_; }
    void keep() noexcept { references_.fetch_add_acq_rel(1); }
    void release() noexcept;

  private:
    ExternalMemory(void* block, size_t capacity) noexcept : block_(block), capacity_(capacity) {}
    void* block_;
    size_t capacity_;
    base::Atomic<uint32_t> references_{1};
};

struct ExternalState {
    External* external;   // set once, by open
    uint32_t served;      // bit(Op): by the program; other operations that the node has go on to the child
    size_t data_align;    // of memory that is handed out
    uint64_t timeout_ns;  // 0: none, and no copies
};

// Of one context.
struct ExternalChannel {
    struct Item : aio::Message {
        ExternalChannel* own;
    };
    struct Due : aio::Timer {
        ExternalChannel* own;
    };
    // --- home thread only
    Channel* channel = nullptr;
    base::Queue<aio::Message> unsent;  // slots of this turn
    Item flush{};                      // in the ready queue while there are any
    bool flushing = false;
    ExternalSlot* free = nullptr;
    base::List<base::Link> by_age;  // slots that are not finished, oldest first; see ExternalSlot::Age
    Due timer{};                    // for the oldest
    // --- guarded by External::mutex_
    base::Queue<aio::Message> answered;
    ExternalChannel* next_to_tell = nullptr;
    bool told = false;  // the message is under way
    // --- of whoever set `told`, then the home thread's
    Item message{};
};

enum class SlotState : uint8_t {
    free,
    queued,    // waits to be taken
    taken,     // with the program
    answered,  // on its way back
    given_up,  // with the program, but its request has failed by time: it is External's
};

// As a request it is the child's, when it is passed on. The base's fields say what is asked from the start.
struct ExternalSlot : Request, base::Link {  // linked while queued
    struct Age : base::Link {
        ExternalSlot* slot = nullptr;
    };
    // --- home thread, while a request has it
    Request* origin = nullptr;
    ExternalChannel* own = nullptr;
    ExternalMemory* memory = nullptr;  // kept from request to request
    uint64_t deadline_ns = 0;
    Age age;
    // --- written under External::mutex_; find() looks at the two at any time
    SlotState state = SlotState::free;
    uint64_t number = 0;  // the id that the program knows it by; 0: it does not
    uint32_t index = 0;   // constant
    // --- of whoever answers it, under the mutex; from collect() on the home thread's
    bool forward = false;
    bool abandoned = false;  // the program went away
    bool kept = false;       // the program goes on using `memory`
    int64_t answer = 0;
    base::Owner<char[]> text;
};

// What a node and the program that serves it share; freed by the last of the two.
class External {
  public:
    static External* make(Node& node);  // with one reference, the node's

    // --- the node's side, home threads
    // Slots for a context: a chain through `next`, or null when memory is short.
    ExternalSlot* take_slots() noexcept;
    void return_slots(ExternalSlot* chain) noexcept;
    // Hands slots over to the program. False: nobody serves, and the chain is as it was.
    bool offer(aio::Message* chain) noexcept;
    // All that has been answered for one context, oldest first.
    aio::Message* collect(ExternalChannel& own) noexcept;
    // Its time is over. The state that it was in; of a slot that was taken, External is the owner now.
    SlotState give_up(ExternalSlot& slot) noexcept;
    struct Name {
        char text[64];
    };
    Name program() noexcept;
    // The node closes: with no request in flight.
    void node_closed() noexcept;

    // --- the program's side, any thread
    int attach(const char* program, engine_error* error);
    int64_t take(engine_external_request* out, uint32_t max, uint64_t timeout_ns) noexcept;
    int64_t complete(const engine_external_completion* done, uint32_t count) noexcept;
    int64_t forward(const uint64_t* ids, uint32_t count) noexcept;
    int watch() noexcept;
    User* child() noexcept;
    void read_stats(engine_external_stats* out) noexcept;
    int stop() noexcept;
    int detach() noexcept;
    bool same_process() const noexcept { return mark_.same_process(); }

  private:
    struct Waiter : base::Link {  // once it is chosen, of whoever is going to wake it
        bool chosen = false;      // guarded by mutex_
        aio::Signal woken;
    };
    static constexpr uint32_t chunk_slots = 32;
    static constexpr unsigned index_bits = 20;
    struct Chunk {
        ExternalSlot slots[chunk_slots];
    };
    struct Told;  // the contexts to be told of answers, once the mutex is free

    External() = default;
    ~External();
    bool grow() noexcept ENGINE_REQUIRES(mutex_);
    ExternalSlot* find(uint64_t number) noexcept ENGINE_REQUIRES(mutex_);
    uint32_t pop(engine_external_request* out, uint32_t max) noexcept ENGINE_REQUIRES(mutex_);
    void answer(ExternalSlot& slot, Told& told) noexcept ENGINE_REQUIRES(mutex_);
    void abandon_queued(Told& told) noexcept ENGINE_REQUIRES(mutex_);
    void return_slot(ExternalSlot& slot) noexcept ENGINE_REQUIRES(mutex_);
    void signal_fd(bool readable) noexcept ENGINE_REQUIRES(mutex_);
    void choose(uint64_t most, base::List<Waiter>& chosen) noexcept ENGINE_REQUIRES(mutex_);
    static void wake(base::List<Waiter>& chosen) noexcept;
    void release() noexcept;

    aio::ForkMark mark_;
    base::Atomic<uint32_t> references_{1};
    base::Mutex mutex_;
    Node* node_ ENGINE_GUARDED_BY(mutex_) = nullptr;  // null once it is closed
    Name program_ ENGINE_GUARDED_BY(mutex_){};        // the last one, for errors
    bool attached_ ENGINE_GUARDED_BY(mutex_) = false;
    bool stopped_ ENGINE_GUARDED_BY(mutex_) = false;
    base::List<ExternalSlot> queue_ ENGINE_GUARDED_BY(mutex_);
    base::List<Waiter> waiters_ ENGINE_GUARDED_BY(mutex_);
    ExternalSlot* spare_ ENGINE_GUARDED_BY(mutex_) = nullptr;
    std::vector<Chunk*, base::Allocator<Chunk*>> chunks_ ENGINE_GUARDED_BY(mutex_);
    uint64_t next_number_ ENGINE_GUARDED_BY(mutex_) = 1;
    int fd_ ENGINE_GUARDED_BY(mutex_) = -1;
    bool fd_readable_ ENGINE_GUARDED_BY(mutex_) = false;
    engine_external_stats stats_ ENGINE_GUARDED_BY(mutex_){};
};

}  // namespace engine::block
