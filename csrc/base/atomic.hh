// Named atomics: every ordering is an operation on a named object, never a free-standing fence.
// In an explorer build (ENGINE_EXPLORE) the same operations go to the interleaving explorer, so that the code
// that ships is the code that is explored.
#pragma once

#ifdef ENGINE_EXPLORE
#include "explore_atomic.hh"
#else

#include <atomic>
#include <cstdint>

// A bug of that name, which the explorer's tests put in to show that they find it. Nothing in what ships.
#define ENGINE_SEEDED_BUG(name) false

namespace engine::base {

template <class T>
class Atomic {
  public:
    constexpr Atomic() noexcept : value_{} {}
    constexpr explicit Atomic(T initial) noexcept : value_(initial) {}
    Atomic(const Atomic&) = delete;
    Atomic& operator=(const Atomic&) = delete;

    T load_relaxed() const noexcept { return value_.load(std::memory_order_relaxed); }
    T load_acquire() const noexcept { return value_.load(std::memory_order_acquire); }
    T load_seq_cst() const noexcept { return value_.load(std::memory_order_seq_cst); }
    void store_relaxed(T v) noexcept { value_.store(v, std::memory_order_relaxed); }
    void store_release(T v) noexcept { value_.store(v, std::memory_order_release); }
    void store_seq_cst(T v) noexcept { value_.store(v, std::memory_order_seq_cst); }
    T exchange_acq_rel(T v) noexcept { return value_.exchange(v, std::memory_order_acq_rel); }
    T exchange_seq_cst(T v) noexcept { return value_.exchange(v, std::memory_order_seq_cst); }
    bool compare_exchange_seq_cst(T& expected, T desired) noexcept {
        return value_.compare_exchange_weak(expected, desired, std::memory_order_seq_cst);
    }
    bool compare_exchange_acq_rel(T& expected, T desired) noexcept {
        return value_.compare_exchange_weak(expected, desired, std::memory_order_acq_rel,
                                            std::memory_order_acquire);
    }
    T fetch_add_relaxed(T v) noexcept { return value_.fetch_add(v, std::memory_order_relaxed); }
    T fetch_add_acq_rel(T v) noexcept { return value_.fetch_add(v, std::memory_order_acq_rel); }
    T fetch_sub_acq_rel(T v) noexcept { return value_.fetch_sub(v, std::memory_order_acq_rel); }
    T fetch_add_seq_cst(T v) noexcept { return value_.fetch_add(v, std::memory_order_seq_cst); }
    T fetch_sub_seq_cst(T v) noexcept { return value_.fetch_sub(v, std::memory_order_seq_cst); }
    T fetch_or_acq_rel(T v) noexcept { return value_.fetch_or(v, std::memory_order_acq_rel); }
    T fetch_and_acq_rel(T v) noexcept { return value_.fetch_and(v, std::memory_order_acq_rel); }

  private:
    std::atomic<T> value_;
};

// A figure that one thread writes and any may read: a plain add, no bus lock, no data race.
class Counter {
  public:
    void add(uint64_t n) noexcept { value_.store_relaxed(value_.load_relaxed() + n); }
    void increment() noexcept { add(1); }
    void subtract(uint64_t n) noexcept { value_.store_relaxed(value_.load_relaxed() - n); }
    void set(uint64_t n) noexcept { value_.store_relaxed(n); }
    uint64_t get() const noexcept { return value_.load_relaxed(); }

  private:
    Atomic<uint64_t> value_;
};

}  // namespace engine::base
#endif
