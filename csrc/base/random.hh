// wyrand: a small generator of pseudo-random numbers. Fast, and good enough to choose offsets and schedules;
// seeded, so that a run can be repeated. No lock: its owner guards it.
#pragma once

#include <cstdint>

namespace engine::base {

class Random {
  public:
    explicit Random(uint64_t seed) noexcept : state_(seed) {}
    uint64_t next() noexcept {
        state_ += 0xa0761d6478bd642full;
        unsigned __int128 product = static_cast<unsigned __int128>(state_) * (state_ ^ 0xe7037ed1a0b428dbull);
        return static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
    }
    uint64_t below(uint64_t bound) noexcept {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
    }
    // From `low` to `high`, both included.
    uint64_t between(uint64_t low, uint64_t high) noexcept { return low + below(high - low + 1); }

  private:
    uint64_t state_;
};

// splitmix64's finaliser: neighbouring numbers become unlike.
inline uint64_t mix(uint64_t x) noexcept {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

}  // namespace engine::base
