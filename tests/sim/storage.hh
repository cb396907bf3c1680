// A simulated disk. Its fault model, in prose:
//
//   Sectors of 512 bytes are written whole or not at all. What is written goes to a volatile cache, which
//   reads see at once. A sync that succeeds makes durable whatever had been written when it was *submitted*;
//   what comes while it is under way may or may not be covered. A write with RWF_DSYNC is durable itself when
//   it completes. An operation takes effect in one piece: at its completion, or (a write, every other time)
//   at once.
//
//   When power is lost each sector keeps what was durable, or any of the contents written to it since, each
//   sector for itself: writes are lost, torn and reordered. A write under way may have been done in part, a
//   sync under way in full. Nothing that is submitted afterwards has an effect, and all of it fails.
//   The size is written like a sector: durable by a sync, old or new after a power loss.
//
//   A read that fails leaves garbage in its buffer. A write that fails has been done in any of its sectors.
//   Of a sync that fails the writes before it may be lost for good, although reads still see them: no later
//   sync makes them durable (Linux does so). No space, and interruptions, leave nothing behind. A transfer
//   may be cut short, between blocks. Now and then an operation takes a hundred times as long.
//
//   One file may be misdirected: then a read or a write goes to another place, whole, and is said to have
//   succeeded. Who has no second copy cannot know.
//
// One thread: that of the simulation.
#pragma once

#include <array>
#include <vector>

#include "aio/sim.hh"
#include "coverage.hh"

namespace lab {

using engine::aio::IoOp;
using engine::base::Random;

constexpr uint64_t sector_bytes = 512;

// Each happens to one of so many operations; 0: never.
struct Faults {
    uint32_t read_error = 0;
    uint32_t write_error = 0;
    uint32_t sync_error = 0;
    uint32_t no_space = 0;
    uint32_t transient = 0;
    uint32_t short_transfer = 0;
    uint32_t slow = 0;
    uint32_t misdirected = 0;      // of the file that may be
    uint64_t unit = sector_bytes;  // a transfer that is cut short has a multiple of it
};

class Storage final : public engine::aio::SimHandler {
  public:
    Storage(uint64_t seed, Coverage& coverage) : random_(seed), coverage_(coverage) {}

    Faults faults;
    int misdirected_fd = -1;     // none
    bool volatile_cache = true;  // false: power is never lost here, and nothing is kept for it

    int add(uint64_t bytes);
    std::vector<std::byte>& bytes(int fd) noexcept { return file(fd).cache; }
    // What is there is durable.
    void settle(int fd);
    void resize(int fd, uint64_t bytes);
    // A write that comes another way.
    void put_bytes(int fd, uint64_t offset, std::vector<std::byte>& data);

    // Power goes with the operation of that number, counted from 1 in order of their ends.
    void cut_at(uint64_t operation) noexcept { cut_at_ = operation; }
    void (*on_cut)(void* opaque) = nullptr;
    void* opaque = nullptr;
    bool powered() const noexcept { return powered_; }
    uint64_t operations() const noexcept { return operations_; }
    // Since power was there. A read that was is written back by whoever completes a block of it.
    uint64_t misdirected() const noexcept { return misdirected_; }
    void cut_power();
    // Power is back: what has survived is there, and durable. Nothing is under way.
    void restore_power();

    uint64_t latency_ns(const IoOp& op, Random& random) override;
    int64_t perform(IoOp& op) override;

  private:
    struct Version {
        uint64_t order;  // of the write
        bool lost;       // to a sync that failed
        std::array<std::byte, sector_bytes> data;
    };
    struct File {
        std::vector<std::byte> cache, durable;
        std::vector<std::vector<Version>> versions;  // of each sector, since it was durable
        std::vector<uint64_t> dirty;                 // sectors that have some
        uint64_t durable_size = 0;
        std::vector<std::pair<uint64_t, uint64_t>> sizes;  // (order, size) since then
    };
    // An operation that is under way.
    struct Flight {
        const IoOp* op;
        uint64_t order;  // of the writes before it
        int64_t result;  // of one that is done already
        bool early;
        bool cut;  // power was lost meanwhile
    };

    File& file(int fd) noexcept { return files_[static_cast<size_t>(fd - engine::aio::SimFiles::first_fd)]; }
    bool one_in(uint32_t n) noexcept { return n != 0 && random_.below(n) == 0; }
    Flight take(const IoOp& op);
    // Where it goes.
    uint64_t place(const IoOp& op);
    int64_t read(IoOp& op);
    int64_t write(const IoOp& op);
    int64_t sync(IoOp& op, const Flight& flight);
    int64_t zero(const IoOp& op);
    int64_t after_cut(IoOp& op, const Flight& flight);
    // Of `length` bytes; each sector with a chance of one half where it is torn.
    void put(File& file, uint64_t offset, const IoOp& op, uint64_t length, bool torn, bool durable);
    void keep_version(File& file, uint64_t sector);
    void commit(File& file, uint64_t up_to);
    void survive(File& file);

    std::vector<File> files_;
    std::vector<Flight> flights_;
    Random random_;
    Coverage& coverage_;
    uint64_t order_ = 0;
    uint64_t operations_ = 0;
    uint64_t misdirected_ = 0;
    uint64_t cut_at_ = 0;
    bool powered_ = true;
};

}  // namespace lab
