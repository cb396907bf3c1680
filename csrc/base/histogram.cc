// Log-linear histogram of nanoseconds: reading and merging. One thread records, any thread may read.
#include "base/histogram.hh"

#include <engine/workload.h>

#include <cmath>
#include <cstring>

namespace engine::base {

// The last value, 2^64 - 1, has exponent 58 and so falls into the last bucket of the 60th power of two.
static_assert(Histogram::bucket_count == (64 - Histogram::linear_bits + 1) << Histogram::linear_bits);

void Histogram::add_to(engine_histogram* out) const noexcept {
    for (unsigned i = 0; i < bucket_count; i++) {
        uint64_t n = buckets_[i].get();
        out->buckets[i] += n;
        out->count += n;
    }
    out->sum += sum_.get();
    if (min_.get() < out->min) out->min = min_.get();
    if (max_.get() > out->max) out->max = max_.get();
}

void Histogram::reset(engine_histogram* out) noexcept {
    memset(out, 0, sizeof *out);
    out->min = UINT64_MAX;
}

void Histogram::merge(engine_histogram* into, const engine_histogram* from) noexcept {
    for (unsigned i = 0; i < bucket_count; i++) into->buckets[i] += from->buckets[i];
    into->count += from->count;
    into->sum += from->sum;
    if (from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
}

uint64_t Histogram::percentile(const engine_histogram* histogram, double share) noexcept {
    if (histogram->count == 0) return 0;
    double wanted = std::ceil(share * static_cast<double>(histogram->count));
    uint64_t rank = wanted < 1 ? 1 : static_cast<uint64_t>(wanted);
    uint64_t seen = 0;
    for (unsigned i = 0; i < bucket_count; i++) {
        seen += histogram->buckets[i];
        if (seen < rank) continue;
        uint64_t high = i + 1 < bucket_count ? low_of(i + 1) - 1 : UINT64_MAX;
        return high < histogram->max ? high : histogram->max;
    }
    return histogram->max;
}

}  // namespace engine::base

extern "C" {
void engine_histogram_merge(engine_histogram* into, const engine_histogram* from) {
    engine::base::Histogram::merge(into, from);
}
uint64_t engine_histogram_percentile(const engine_histogram* histogram, double share) {
    return engine::base::Histogram::percentile(histogram, share);
}
}
