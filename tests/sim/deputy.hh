// A second caller of the engine in a simulation: a thread of its own, whose blocking calls wait while the
// first one lets the simulation go on. Never do both run: they hand over to each other at places that do not
// depend on the machine, so one seed stays one history.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "aio/sim.hh"

namespace lab {

class Deputy final : private engine::aio::Waiter {
  public:
    explicit Deputy(const engine::aio::Simulator& simulator);
    ~Deputy();  // idle

    // --- the thread of the simulation
    bool idle() const noexcept { return work_ == nullptr; }
    // Runs `work` there until it first waits, or is done. When idle.
    void begin(std::function<void()> work);
    // Whether what it waits for has come; it has then gone on.
    bool go_on();
    // When the time that it waits for is over; UINT64_MAX: there is none.
    uint64_t end_ns() const noexcept { return end_ns_; }

  private:
    bool wait(engine::aio::Signal& signal, uint64_t timeout_ns) noexcept override;
    void run();
    void hand_over();           // to the deputy, and wait until it hands back
    void hand_back() noexcept;  // … and wait for one's turn

    const engine::aio::Simulator& simulator_;
    // Who does not have the turn touches nothing but the three of these.
    std::mutex mutex_;
    std::condition_variable changed_;
    bool deputys_turn_ = false;

    std::function<void()> work_;
    engine::aio::Signal* signal_ = nullptr;  // that it waits for
    uint64_t end_ns_ = UINT64_MAX;
    bool over_ = false;
    std::thread thread_;
};

}  // namespace lab
