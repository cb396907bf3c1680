// What a lock tells about itself: acquisitions and contended ones always, histograms of wait and hold when
// profiling is on. Written by the one who has just taken the lock, or is about to let it go; any thread
// reads.
#pragma once

#include <new>

#include "base/alloc.hh"
#include "base/histogram.hh"

namespace engine::base {

class LockProfile {
  public:
    // Before the lock's first use. Throws std::bad_alloc.
    void enable() {
        histograms_ = make<Histograms>();
        if (histograms_ == nullptr) throw std::bad_alloc();
    }
    // Only then is a clock to be read for an acquisition without contention, and for a release.
    bool enabled() const noexcept { return histograms_ != nullptr; }

    // 0: it was free.
    void acquired(uint64_t waited_ns) noexcept {
        acquisitions_.increment();
        if (waited_ns != 0) contended_.increment();
        if (histograms_ != nullptr) histograms_->wait.record(waited_ns);
    }
    void released(uint64_t held_ns) noexcept {
        if (histograms_ != nullptr) histograms_->hold.record(held_ns);
    }

    // What another one counted until its end becomes this one's.
    void absorb(const LockProfile& other) noexcept {
        acquisitions_.add(other.acquisitions());
        contended_.add(other.contended());
        if (histograms_ == nullptr || other.histograms_ == nullptr) return;
        histograms_->wait.absorb(other.histograms_->wait);
        histograms_->hold.absorb(other.histograms_->hold);
    }

    uint64_t acquisitions() const noexcept { return acquisitions_.get(); }
    uint64_t contended() const noexcept { return contended_.get(); }
    // Adds to both; nothing where profiling is off.
    void add_to(engine_histogram* wait, engine_histogram* hold) const noexcept {
        if (histograms_ == nullptr) return;
        histograms_->wait.add_to(wait);
        histograms_->hold.add_to(hold);
    }

  private:
    struct Histograms {
        Histogram wait, hold;
    };
    Counter acquisitions_, contended_;
    Owner<Histograms> histograms_;
};

}  // namespace engine::base
