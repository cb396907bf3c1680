// Limits that throttle nodes share by name, on any number of contexts: leaky buckets, each one atomic word.
// No lock on the request path: a reservation is one compare-exchange a bucket. `set` is control plane.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>

#include "base/assert.hh"
#include "base/atomic.hh"

namespace engine::filters {

// One limit, as it is given; units are bytes or requests.
struct Limit {
    uint64_t average = 0;  // units a second; 0: none
    uint64_t burst = 0;    // units a second while a burst lasts; 0: no bursts
    uint64_t seconds = 1;  // that a burst lasts
    bool operator==(const Limit&) const = default;
};

enum Direction : uint8_t { reading, writing };

struct Limits {
    enum Which : uint8_t { bps_total, bps_read, bps_write, iops_total, iops_read, iops_write, count };
    std::array<Limit, count> limit;
    uint64_t iops_size = 0;  // bytes; a larger request counts as so many; 0: as one
    bool operator==(const Limits&) const = default;
};

// Times here are ticks: 1/64 ns since the group was made, so that rounding stays below a percent at 10^9
// units a second, and they last for nine years.
constexpr uint64_t ticks_a_ns = 64;

// A bucket leaks at a steady rate; what is done fills it, and more may be done once it holds no more than its
// size. Whatever is let in counts in full, so that one request larger than the bucket still goes, and the
// average holds. What is stored is not the level but when the bucket will be empty: then leaking costs
// nothing, and one word is all the state.
class Bucket {
  public:
    // What lies in it is kept, in units; as far as the new one can hold it.
    void set(uint64_t units_a_second, uint64_t size_ticks, uint64_t now) noexcept;

    // Ticks that so many units take at the bucket's rate.
    uint64_t cost(uint64_t units) const noexcept {
        unsigned __int128 product = static_cast<unsigned __int128>(units) * ticks_a_unit_.load_relaxed();
        product = (product + (1u << (fraction_bits - 1))) >> fraction_bits;
        return product > cost_max ? cost_max : static_cast<uint64_t>(product);
    }
    // From when on, not before `now`, something may go.
    uint64_t earliest(uint64_t now) const noexcept { return earliest_of(empty_at_.load_relaxed(), now); }
    // Fills in `cost` from `at` on, and returns when that may go.
    uint64_t charge(uint64_t at, uint64_t cost) noexcept {
        uint64_t before = empty_at_.load_relaxed();
        uint64_t after;
        do {
            after = (before > at ? before : at) + cost;
            if (ENGINE_UNLIKELY(after > time_max)) after = time_max;
        } while (!empty_at_.compare_exchange_acq_rel(before, after));
        return earliest_of(before, at);
    }

    static constexpr uint64_t cost_max = uint64_t{1} << 61;
    static constexpr uint64_t time_max = uint64_t{1} << 62;

  private:
    static constexpr unsigned fraction_bits = 24;

    uint64_t earliest_of(uint64_t empty_at, uint64_t now) const noexcept {
        uint64_t size = size_ticks_.load_relaxed();
        return empty_at > size && empty_at - size > now ? empty_at - size : now;
    }

    base::Atomic<uint64_t> empty_at_;
    base::Atomic<uint64_t> ticks_a_unit_;  // with fraction_bits of fraction
    base::Atomic<uint64_t> size_ticks_;
};

class ThrottleGroup {
  public:
    explicit ThrottleGroup(uint64_t now_ns) noexcept : epoch_ns_(now_ns) {}

    // Control plane. Takes effect at once; who has a reservation asks again when it sees another generation.
    void set(const Limits& limits, uint64_t now_ns) noexcept;
    Limits limits() const;

    // --- any context
    uint32_t generation() const noexcept { return generation_.load_acquire(); }
    bool limited(Direction direction) const noexcept { return active_[direction].load_relaxed() != 0; }
    // Counts a request, and returns when it may go: `now_ns`, or later.
    uint64_t reserve(Direction direction, uint64_t bytes, uint64_t now_ns) noexcept;

  private:
    // Each limit has two buckets: the average one, and one that keeps a long burst to its own rate.
    static constexpr unsigned bucket_count = 2 * Limits::count;
    static bool applies(unsigned which, Direction direction) noexcept {
        return which % 3 == 0 || which % 3 == (direction == reading ? 1u : 2u);
    }
    uint64_t cost(unsigned bucket, uint64_t bytes) const noexcept;
    uint64_t ticks(uint64_t now_ns) const noexcept {
        return now_ns > epoch_ns_ ? (now_ns - epoch_ns_) * ticks_a_ns : 0;
    }

    const uint64_t epoch_ns_;
    mutable std::mutex mutex_;
    Limits limits_;  // guarded by mutex_
    // --- written by set() alone, word by word: a request that comes in between counts by a mixture, once
    base::Atomic<uint32_t> generation_;
    base::Atomic<uint64_t> iops_size_;
    std::array<base::Atomic<uint32_t>, 2> active_;  // by direction: a bit a bucket that limits it
    // --- written by every request that is limited
    alignas(128) std::array<Bucket, bucket_count> buckets_;
};

}  // namespace engine::filters
