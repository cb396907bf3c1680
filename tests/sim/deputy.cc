// Handing the turn to and fro.
#include "deputy.hh"

#include "base/assert.hh"

namespace lab {

Deputy::Deputy(const engine::aio::Simulator& simulator) : simulator_(simulator) {
    thread_ = std::thread([this] { run(); });
}

Deputy::~Deputy() {
    ENGINE_CHECK(idle());
    over_ = true;
    hand_over();
    thread_.join();
}

void Deputy::begin(std::function<void()> work) {
    ENGINE_CHECK(idle());
    work_ = std::move(work);
    hand_over();
}

bool Deputy::go_on() {
    if (signal_ == nullptr || (!signal_->is_set() && simulator_.now_ns() < end_ns_)) return false;
    hand_over();
    return true;
}

void Deputy::hand_over() {
    std::unique_lock lock(mutex_);
    deputys_turn_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !deputys_turn_; });
}

void Deputy::hand_back() noexcept {
    std::unique_lock lock(mutex_);
    deputys_turn_ = false;
    changed_.notify_all();
    changed_.wait(lock, [this] { return deputys_turn_; });
}

bool Deputy::wait(engine::aio::Signal& signal, uint64_t timeout_ns) noexcept {
    if (signal.is_set()) return true;
    signal_ = &signal;
    if (__builtin_add_overflow(simulator_.now_ns(), timeout_ns, &end_ns_)) end_ns_ = UINT64_MAX;
    hand_back();
    signal_ = nullptr;
    end_ns_ = UINT64_MAX;
    return signal.is_set();
}

void Deputy::run() {
    Waiter::here() = this;
    {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return deputys_turn_; });
    }
    while (!over_) {
        work_();
        work_ = nullptr;
        hand_back();
    }
    std::unique_lock lock(mutex_);
    deputys_turn_ = false;
    changed_.notify_all();
}

}  // namespace lab
