// The arithmetic of throttle groups. set() under the group's mutex, the rest on any context without a lock.
#include "filters/throttle_group.hh"

namespace engine::filters {

namespace {

constexpr uint64_t ticks_a_second = ticks_a_ns * 1000000000;
// Without a burst limit a tenth of a second may come at once: else every second request would have to wait.
constexpr uint64_t slack_ticks = ticks_a_second / 10;

uint64_t clamp(unsigned __int128 ticks) noexcept {
    return ticks > Bucket::cost_max ? Bucket::cost_max : static_cast<uint64_t>(ticks);
}

uint64_t average_size_ticks(const Limit& limit) noexcept {
    if (limit.burst == 0) return slack_ticks;
    unsigned __int128 units = static_cast<unsigned __int128>(limit.burst) * limit.seconds;
    if (units > UINT64_MAX) units = UINT64_MAX;
    return clamp(units * ticks_a_second / limit.average);
}

}  // namespace

void Bucket::set(uint64_t units_a_second, uint64_t size_ticks, uint64_t now) noexcept {
    uint64_t rate = (ticks_a_second << fraction_bits) / units_a_second;
    if (rate == 0) rate = 1;
    uint64_t rate_before = ticks_a_unit_.load_relaxed();
    size_ticks_.store_relaxed(size_ticks);
    ticks_a_unit_.store_relaxed(rate);
    uint64_t before = empty_at_.load_relaxed();
    uint64_t after;
    do {
        uint64_t level = before > now && rate_before != 0 ? before - now : 0;
        uint64_t converted =
            level == 0 ? 0 : clamp(static_cast<unsigned __int128>(level) * rate / rate_before);
        after = now + (converted < size_ticks ? converted : size_ticks);
    } while (!empty_at_.compare_exchange_acq_rel(before, after));
}

void ThrottleGroup::set(const Limits& limits, uint64_t now_ns) noexcept {
    std::lock_guard guard(mutex_);
    uint64_t now = ticks(now_ns);
    uint32_t active[2] = {0, 0};
    for (unsigned which = 0; which < Limits::count; which++) {
        const Limit& limit = limits.limit[which];
        if (limit.average == 0) continue;
        uint32_t bits = 1u << (2 * which);
        buckets_[size_t{2} * which].set(limit.average, average_size_ticks(limit), now);
        if (limit.burst != 0 && limit.seconds > 1) {
            buckets_[size_t{2} * which + 1].set(limit.burst, slack_ticks, now);
            bits |= bits << 1;
        }
        for (Direction direction : {reading, writing}) {
            if (applies(which, direction)) active[direction] |= bits;
        }
    }
    limits_ = limits;
    iops_size_.store_relaxed(limits.iops_size);
    for (Direction direction : {reading, writing}) active_[direction].store_relaxed(active[direction]);
    generation_.store_release(generation_.load_relaxed() + 1);  // pairs with generation()
}

Limits ThrottleGroup::limits() const {
    std::lock_guard guard(mutex_);
    return limits_;
}

uint64_t ThrottleGroup::cost(unsigned bucket, uint64_t bytes) const noexcept {
    if (bucket / 2 <= Limits::bps_write) return buckets_[bucket].cost(bytes);
    uint64_t one = buckets_[bucket].cost(1);
    uint64_t size = iops_size_.load_relaxed();
    if (size == 0 || bytes <= size) return one;
    return clamp(static_cast<unsigned __int128>(one) * bytes / size);
}

uint64_t ThrottleGroup::reserve(Direction direction, uint64_t bytes, uint64_t now_ns) noexcept {
    uint64_t now = ticks(now_ns);
    uint32_t active = active_[direction].load_relaxed();
    // First when all of them allow it, so that each is filled then and not before: one that has room must not
    // leak what another one still keeps waiting.
    uint64_t at = now;
    if ((active & (active - 1)) != 0) {
        for (uint32_t left = active; left != 0; left &= left - 1) {
            uint64_t earliest = buckets_[static_cast<unsigned>(__builtin_ctz(left))].earliest(now);
            if (earliest > at) at = earliest;
        }
    }
    uint64_t due = at;
    for (uint32_t left = active; left != 0; left &= left - 1) {
        auto bucket = static_cast<unsigned>(__builtin_ctz(left));
        uint64_t allowed = buckets_[bucket].charge(at, cost(bucket, bytes));
        if (allowed > due) due = allowed;
    }
    return due <= now ? now_ns : epoch_ns_ + (due + ticks_a_ns - 1) / ticks_a_ns;
}

}  // namespace engine::filters
