// The rules of a fault node: which requests fail, wait or tear. What a rule says is constant; what it has
// done, and the node's state, are atomics that the contexts share without a lock.
//
// A text of rules, separated by ';' (one may end it), each a list of key=value, separated by ','. A request
// meets them in order, and the first that fires decides:
//
//   op=read            read, write, flush, discard, write-zeroes, block-status, several joined by '+', or
//                      any, which is all of these (default). A resize meets no rule.
//   offset=4k-1M       requests that touch bytes from the first to below the second (default: all). A flush
//                      has no place, so it meets no such rule.
//   state=2            while the node is in this state (default: in any). It opens in state 1.
//   skip=3             not the first three that meet all of the above
//   count=1            so often at most (default: without limit)
//   probability=0.1    of those that are left this part, by chance (default: 1)
//   new-state=2        the node's state from then on
// and one action, or new-state alone, which lets the request pass:
//   errno=EIO          it fails: a name or a number
//   torn=on            with errno, a write: before it fails some of its sectors are written, by chance
//   delay=10ms         it waits
//   pause              it waits until engine_fault_resume(), or until the node must come to rest
#pragma once

#include <engine/base.h>

#include <array>
#include <string_view>

#include "base/atomic.hh"
#include "base/random.hh"
#include "block/request.hh"

namespace engine::filters {

enum class FaultAction : uint8_t { none, fail, delay, pause };

struct FaultRule {
    uint32_t number = 0;  // counted from 1
    uint32_t ops = 0;     // bit(Op)
    uint64_t start = 0;   // bytes
    uint64_t end = UINT64_MAX;
    uint32_t state = 0;  // 0: in any
    uint32_t new_state = 0;
    uint64_t skip = 0;
    uint64_t count = UINT64_MAX;
    uint64_t chance = certain;  // of `certain`
    FaultAction action = FaultAction::none;
    bool torn = false;    // of fail
    bool paused = false;  // `pause` was given
    int errnum = 0;
    uint64_t delay_ns = 0;

    static constexpr unsigned chance_bits = 53;  // as many as a double has
    static constexpr uint64_t certain = uint64_t{1} << chance_bits;
};

class FaultRules {
  public:
    static constexpr unsigned most = 64;

    // Replaces nothing: for one that has no rules yet. Errors name the rule and the key.
    int parse(std::string_view text, uint64_t seed, engine_error* error);

    // Does any rule name this operation? The one question for requests that none is about.
    bool concern(block::Op op) const noexcept { return by_op_[static_cast<unsigned>(op)] != 0; }
    // The rule that fires for this request, and has been counted; or null. Any thread.
    const FaultRule* fire(const block::Request& request) noexcept;
    // For the sectors that a torn write leaves. Any thread.
    base::Random tear() noexcept { return base::Random(draw(tears_, 0)); }

  private:
    // On lines of its own: other contexts write it while the rules are read.
    struct alignas(128) Tally {
        base::Atomic<uint64_t> met;
        base::Atomic<uint64_t> fired;
        base::Atomic<uint64_t> draws;
    };
    bool fires(const FaultRule& rule, Tally& tally) noexcept;
    uint64_t draw(base::Atomic<uint64_t>& draws, unsigned stream) const noexcept;

    std::array<FaultRule, most> rules_;
    unsigned size_ = 0;
    std::array<uint64_t, block::op_count> by_op_{};  // bit i: rules_[i]
    uint64_t seed_ = 0;
    alignas(128) base::Atomic<uint32_t> state_{1};
    base::Atomic<uint64_t> tears_;
    std::array<Tally, most> tallies_;
};

}  // namespace engine::filters
