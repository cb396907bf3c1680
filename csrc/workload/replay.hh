// A recorded list of operations, and how far a generator has come in it. Read on the generator's home thread;
// made ready by the control plane before that. The list is the caller's, and may be shared.
#pragma once

#include <engine/workload.h>

#include "base/error.hh"

namespace engine::workload {

struct Ticket;

class Replay {
  public:
    // What the configuration says of it alone.
    static int check(const engine_workload_config& config, engine_error* error);

    // Control plane: each operation against the node of `bytes`, in units of `unit`. Sets `block_size` to
    // what a buffer must hold.
    int prepare(engine_workload_config* config, uint64_t bytes, uint32_t unit, base::Where where,
                engine_error* error);

    bool on() const noexcept { return ops_ != nullptr; }
    // At the recorded times; otherwise one after the other, as fast as they are answered.
    bool timed() const noexcept { return speed_ppm_ != 0; }
    // Operations that are its own.
    uint64_t own() const noexcept { return at_ < count_ ? (count_ - at_ - 1) / stride_ + 1 : 0; }
    // When the next one is to start, in ns since the beginning. There must be one.
    uint64_t due_ns() const noexcept {
        uint64_t time_ns = ops_[at_].time_ns > latest_ns_ ? ops_[at_].time_ns : latest_ns_;
        return at_recorded_speed_ ? time_ns : scaled(time_ns, speed_ppm_);
    }
    // The next one.
    void take(Ticket& ticket) noexcept;

  private:
    static uint64_t scaled(uint64_t time_ns, uint64_t speed_ppm) noexcept {
        unsigned __int128 due = static_cast<unsigned __int128>(time_ns) * 1000000u / speed_ppm;
        return due > UINT64_MAX ? UINT64_MAX : static_cast<uint64_t>(due);
    }
    int check_operation(uint64_t index, uint32_t unit, base::Where where, engine_error* error) const;

    const engine_replay_op* ops_ = nullptr;
    uint64_t count_ = 0;
    uint64_t at_ = 0;
    uint64_t latest_ns_ = 0;  // of those before it: a time that goes back starts with them
    uint64_t stride_ = 1;
    uint64_t speed_ppm_ = 0;
    uint64_t base_ = 0;  // of the range that it is replayed onto
    uint64_t span_ = 0;
    bool at_recorded_speed_ = false;
    bool wrap_ = false;
};

}  // namespace engine::workload
