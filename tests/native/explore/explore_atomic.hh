// base::Atomic of an explorer build: the same names, each operation a step of the explorer.
// Included by base/atomic.hh when ENGINE_EXPLORE is defined.
#pragma once

#include <cstdint>

#include "explorer.hh"

#define ENGINE_SEEDED_BUG(name) (::explore::mutated(::explore::Mutation::name))

namespace engine::base {

template <class T>
class Atomic {
    using Order = explore::Order;
    using Change = explore::Location::Change;
    using Mutation = explore::Mutation;

  public:
    Atomic() : location_(explore::to_word(T{})) {}
    explicit Atomic(T initial) : location_(explore::to_word(initial)) {}
    Atomic(const Atomic&) = delete;
    Atomic& operator=(const Atomic&) = delete;

    T load_relaxed() const { return load(Order::relaxed); }
    T load_acquire() const { return load(Order::acquire); }
    T load_seq_cst() const {
        if (std::is_pointer_v<T> && explore::mutated(Mutation::null_is_read_unseen)) return T{};
        return load(explore::mutated(Mutation::load_seq_cst_is_acquire) ? Order::acquire : Order::seq_cst);
    }
    void store_relaxed(T v) { store(v, Order::relaxed); }
    void store_release(T v) { store(v, Order::release); }
    void store_seq_cst(T v) {
        store(v, explore::mutated(Mutation::store_seq_cst_is_release) ? Order::release : Order::seq_cst);
    }
    T exchange_acq_rel(T v) {
        if (explore::mutated(Mutation::exchange_acq_rel_is_two_steps)) {
            T old = load(Order::acquire);
            store(v, Order::release);
            return old;
        }
        bool weak = explore::mutated(Mutation::exchange_acq_rel_is_relaxed);
        return change(Change::exchange, v, weak ? Order::relaxed : Order::acq_rel);
    }
    T exchange_seq_cst(T v) {
        if (explore::mutated(Mutation::exchange_seq_cst_is_two_steps)) {
            T old = load(Order::seq_cst);
            store(v, Order::seq_cst);
            return old;
        }
        return change(Change::exchange, v, Order::seq_cst);
    }
    bool compare_exchange_seq_cst(T& expected, T desired) {
        bool weak = explore::mutated(Mutation::compare_exchange_is_relaxed);
        Order order = weak ? Order::relaxed : Order::seq_cst;
        return compare_exchange(expected, desired, order, order);
    }
    bool compare_exchange_acq_rel(T& expected, T desired) {
        if (explore::mutated(Mutation::compare_exchange_is_relaxed)) {
            return compare_exchange(expected, desired, Order::relaxed, Order::relaxed);
        }
        return compare_exchange(expected, desired, Order::acq_rel, Order::acquire);
    }
    T fetch_add_relaxed(T v) { return change(Change::add, v, Order::relaxed); }
    T fetch_add_acq_rel(T v) { return change(Change::add, v, Order::acq_rel); }
    T fetch_sub_acq_rel(T v) { return change(Change::subtract, v, Order::acq_rel); }
    T fetch_add_seq_cst(T v) {
        bool weak = explore::mutated(Mutation::fetch_add_seq_cst_is_acq_rel);
        return change(Change::add, v, weak ? Order::acq_rel : Order::seq_cst);
    }
    T fetch_sub_seq_cst(T v) {
        bool weak = explore::mutated(Mutation::fetch_sub_seq_cst_is_acq_rel);
        return change(Change::subtract, v, weak ? Order::acq_rel : Order::seq_cst);
    }
    T fetch_or_acq_rel(T v) { return change(Change::bit_or, v, Order::acq_rel); }
    T fetch_and_acq_rel(T v) { return change(Change::bit_and, v, Order::acq_rel); }

  private:
    T load(Order order) const { return explore::from_word<T>(location_.load(order)); }
    void store(T v, Order order) { location_.store(explore::to_word(v), order); }
    // Words wrap like T, because only its bytes are read back.
    T change(Change kind, T v, Order order) {
        return explore::from_word<T>(location_.read_modify_write(kind, explore::to_word(v), order));
    }
    bool compare_exchange(T& expected, T desired, Order success, Order failure) {
        if (explore::mutated(Mutation::compare_exchange_is_two_steps)) {
            T old = load(failure);
            bool same = old == expected;
            if (same) store(desired, success);
            expected = old;
            return same;
        }
        uint64_t word = explore::to_word(expected);
        bool done = location_.compare_exchange(word, explore::to_word(desired), success, failure);
        expected = explore::from_word<T>(word);
        return done;
    }

    mutable explore::Location location_;
};

// Its claim is that writers follow one another: checked as for plain data. Readers look at the end.
class Counter {
  public:
    void add(uint64_t n) { value_.set(value_.get() + n); }
    void increment() { add(1); }
    void subtract(uint64_t n) { value_.set(value_.get() - n); }
    void set(uint64_t n) { value_.set(n); }
    uint64_t get() const { return value_.get(); }

  private:
    mutable explore::Plain<uint64_t> value_;
};

}  // namespace engine::base
