// Log-linear histogram of nanoseconds (layout: engine/aio.h). One thread records, any thread may read.
#pragma once

#include <engine/aio.h>

#include "base/atomic.hh"

namespace engine::base {

class Histogram {
  public:
    static constexpr unsigned linear_bits = 5;  // 32 buckets a power of two: 3 % resolution
    static constexpr unsigned bucket_count = ENGINE_HISTOGRAM_BUCKETS;

    static unsigned bucket_of(uint64_t value) noexcept {
        if (value < 2u << linear_bits) return static_cast<unsigned>(value);
        unsigned exponent = 63 - static_cast<unsigned>(__builtin_clzll(value)) - linear_bits;
        return (exponent << linear_bits) + static_cast<unsigned>(value >> exponent);
    }
    static uint64_t low_of(unsigned bucket) noexcept {
        if (bucket < 2u << linear_bits) return bucket;
        unsigned exponent = (bucket >> linear_bits) - 1;
        return uint64_t{(bucket & 31u) + 32u} << exponent;
    }

    void record(uint64_t ns) noexcept {
        buckets_[bucket_of(ns)].increment();
        sum_.add(ns);
        if (ns < min_.get()) min_.set(ns);
        if (ns > max_.get()) max_.set(ns);
    }
    // So many values of one bucket, spread evenly from the lowest to the highest.
    void record_many(uint64_t low_ns, uint64_t high_ns, uint64_t count) noexcept {
        if (count == 0) return;
        buckets_[bucket_of(high_ns)].add(count);
        // Of very many very long ones the sum stays at its end, and with it the mean: not so percentiles.
        auto all = static_cast<unsigned __int128>(count) * (low_ns + (high_ns - low_ns) / 2);
        uint64_t room = UINT64_MAX - sum_.get();
        sum_.add(all > room ? room : static_cast<uint64_t>(all));
        if (low_ns < min_.get()) min_.set(low_ns);
        if (high_ns > max_.get()) max_.set(high_ns);
    }
    void absorb(const Histogram& other) noexcept {
        for (unsigned i = 0; i < bucket_count; i++) buckets_[i].add(other.buckets_[i].get());
        sum_.add(other.sum_.get());
        if (other.min_.get() < min_.get()) min_.set(other.min_.get());
        if (other.max_.get() > max_.get()) max_.set(other.max_.get());
    }
    // Adds to `out` (which starts zeroed, with min = UINT64_MAX).
    void add_to(engine_histogram* out) const noexcept;
    static void reset(engine_histogram* out) noexcept;
    static void merge(engine_histogram* into, const engine_histogram* from) noexcept;
    static uint64_t percentile(const engine_histogram* histogram, double share) noexcept;

    Histogram() noexcept { min_.set(UINT64_MAX); }

  private:
    Counter sum_, min_, max_;
    Counter buckets_[bucket_count];
};

}  // namespace engine::base
