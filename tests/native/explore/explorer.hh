// An interleaving explorer: the threads of a scenario are fibers of one thread, every atomic operation is a
// point where another may run, and weak memory is a matter of choice as well. All choices are explored,
// within bounds; or random ones, from a seed. A failure comes with its schedule, which can be replayed.
//
// The memory model is C11's without fences, slightly strengthened. Every location keeps its stores, every
// thread a view: the oldest store of each location that it may still read. A load may read any store from
// there on; an acquire that reads from a release joins the view that went with it; a read-modify-write reads
// the latest store and carries on the release sequence; seq_cst operations of one location see what earlier
// seq_cst operations of it stored or read. What is not modelled: a modification order that differs from the
// order in which stores are executed, and loads that read from stores which are executed later.
#pragma once

#include <array>
#include <climits>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

namespace explore {

inline constexpr unsigned threads_max =
    8;  // the main fiber, which sets up and checks at the end, is number 0
inline constexpr unsigned locations_max = 48;

// --- a scenario: called once for every execution, to make fresh objects and threads

class Program {
  public:
    void thread(const char* name, std::function<void()> body);
    // When all threads have ended; sees all that they did.
    void at_end(std::function<void()> body);
};
using Scenario = std::function<void(Program&)>;

struct Options {
    unsigned preemptions = 3;  // taking the processor from a thread that could go on
    // Who goes on where a thread blocks or ends is free, unless this is less: so often another one than the
    // first in order. What has many threads that sleep and wake has too many orders to try them all.
    unsigned detours = UINT_MAX;
    unsigned stale_reads = 3;        // loads that read another store than the latest
    unsigned spurious_failures = 1;  // of a weak compare-exchange
    unsigned steps_max = 2000;       // more is a livelock
    uint64_t executions_max = UINT64_MAX;
    // Not 0: that many executions with random choices instead, preemptions and detours without bound.
    uint64_t random_executions = 0;
    uint64_t seed = 1;
};

struct Report {
    bool failed = false;
    bool complete = false;  // every choice within the bounds was made
    uint64_t executions = 0;
    std::string what;      // failed: why
    std::string schedule;  // for replay()
    std::string trace;     // one line an operation
};

Report explore(const Options& options, const Scenario& scenario);
Report replay(const Options& options, const Scenario& scenario, const std::string& schedule);

// --- for the threads of a scenario

// Its number; the main fiber is 0.
unsigned current_thread();
// Ends the execution as failed. In the main fiber it returns.
void fail(const std::string& what);
inline void require(bool good, const char* what) {
    if (!good) fail(what);
}
// One of 0 … count-1, each explored.
unsigned choose(unsigned count);
// A point where another thread may run, as before every atomic operation.
void point();
// For loops that wait: let the others run first.
void pause();

// What a thread sleeps on, as on an eventfd: a signal that comes first is kept. It orders no memory: what is
// explored must not lean on the kernel's barriers.
class Event {
  public:
    void signal();
    void wait();

  private:
    bool signalled_ = false;
    uint32_t waiters_ = 0;  // one bit a thread
};

// Knows which operations happened before which.
using Clock = std::array<uint32_t, threads_max>;

// Data that is not atomic: two accesses, one of them a write, of which neither happened before the other are
// a failure.
class PlainAccess {
  public:
    void read();
    void write();

  private:
    Clock reads_{};
    unsigned writer_ = 0;
    uint32_t written_ = 0;
};
template <class T>
class Plain {
  public:
    Plain() = default;
    explicit Plain(T initial) : value_(initial) {}
    T get() {
        access_.read();
        return value_;
    }
    void set(T value) {
        access_.write();
        value_ = value;
    }

  private:
    PlainAccess access_;
    T value_{};
};

// --- for explore_atomic.hh

enum class Order : uint8_t { relaxed, acquire, release, acq_rel, seq_cst };

using View = std::array<uint16_t, locations_max>;

class Location {
  public:
    explicit Location(uint64_t initial);
    ~Location();
    Location(const Location&) = delete;
    Location& operator=(const Location&) = delete;

    uint64_t load(Order order);
    void store(uint64_t value, Order order);
    enum class Change : uint8_t { exchange, add, subtract, bit_or, bit_and };
    uint64_t read_modify_write(Change change, uint64_t operand, Order order);
    // Weak: may fail spuriously.
    bool compare_exchange(uint64_t& expected, uint64_t desired, Order success, Order failure);

  private:
    struct Store {
        uint64_t value;
        View view;  // what an acquire that reads it joins
        Clock clock;
    };
    void enter(const char* operation) const;
    unsigned oldest_readable(Order order) const;
    unsigned choose_store(Order order);
    void read_from(unsigned index, Order order);
    void append(uint64_t value, Order order, bool modifies);

    std::vector<Store> stores_;
    unsigned id_;
};

template <class T>
uint64_t to_word(T value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    return word;
}
template <class T>
T from_word(uint64_t word) {
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// A bug put in on purpose, to show that the explorer finds it: the operation of that name is weaker than it
// says.
enum class Mutation : uint8_t {
    none,
    store_seq_cst_is_release,
    load_seq_cst_is_acquire,
    null_is_read_unseen,  // load_seq_cst of a pointer answers null without looking
    compare_exchange_is_relaxed,
    compare_exchange_is_two_steps,
    exchange_acq_rel_is_relaxed,
    exchange_acq_rel_is_two_steps,  // a load and a store
    exchange_seq_cst_is_two_steps,
    fetch_add_seq_cst_is_acq_rel,
    fetch_sub_seq_cst_is_acq_rel,
    // --- bugs of coro/rwlock.hh, by ENGINE_SEEDED_BUG
    failed_reader_checks_nothing,
    reader_queues_at_an_open_gate,
    leaving_during_a_check_goes_unseen,
    turn_passes_before_readers,
    // --- of block/grace.cc and block/in_flight.hh
    grace_answers_before_the_marks,
    grace_waits_for_a_closed_context,
    grace_asks_the_first_context_alone,
    marks_pass_whoever_is_inside,
    // --- of block/quiesce.cc and Port
    quiesce_parks_after_the_wait,
    quiesce_goes_on_before_the_change,
    quiesce_leaves_marks_standing,
    quiesce_takes_the_deadline_for_rest,
    unpark_counts_nothing,
    // --- of block/track.cc
    tracking_waits_for_nobody,
    tracking_finds_nobody_older,
    tracking_is_on_at_once,
    tracking_tells_no_new_channel,
};
void set_mutation(Mutation mutation);
bool mutated(Mutation mutation);

}  // namespace explore
