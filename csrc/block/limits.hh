// What one engine may use at most, all its nodes and queues together. Any thread; nothing of it is on the
// path of a request that needs none.
#pragma once

#include <cstdint>

#include "base/atomic.hh"

namespace engine::block {

class Quota {
  public:
    explicit Quota(uint64_t most) noexcept : most_(most) {}
    Quota(const Quota&) = delete;
    Quota& operator=(const Quota&) = delete;

    // False: that would be more than is allowed, and nothing was taken.
    bool take(uint64_t units) noexcept {
        uint64_t used = used_.load_relaxed();
        do {
            if (units > most_ || used > most_ - units) return false;
        } while (!used_.compare_exchange_acq_rel(used, used + units));
        return true;
    }
    void give_back(uint64_t units) noexcept { used_.fetch_sub_acq_rel(units); }

    uint64_t most() const noexcept { return most_; }
    uint64_t used() const noexcept { return used_.load_relaxed(); }
    // Before its first use.
    void set_most(uint64_t most) noexcept { most_ = most; }

  private:
    uint64_t most_;
    base::Atomic<uint64_t> used_{0};
};

struct Limits {
    Quota bounce_bytes{64 << 20};  // beyond it, requests that need a bounce buffer take turns (bounce.hh)
    Quota requests{uint64_t{1} << 20};  // in completion queues, not yet drained: more are refused
    Quota descriptors{UINT64_MAX};      // of files that nodes keep open: more are refused
};

}  // namespace engine::block
