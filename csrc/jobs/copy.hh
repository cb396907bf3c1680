// Copying one node to another: chunks in flight on one context, through the same entry as any queue's
// requests. It runs on its context's thread alone; progress may be read from anywhere.
#pragma once

#include <engine/job.h>

#include <memory>
#include <string>

#include "aio/context.hh"
#include "base/alloc.hh"
#include "block/graph.hh"

namespace engine::jobs {

class alignas(128) Copy {
  public:
    // Control plane.
    static int create(Instance& engine, const engine_copy_config& config, std::unique_ptr<Copy>* out,
                      engine_error* error);
    ~Copy();
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;

    Instance& engine() const noexcept { return engine_; }
    int start(engine_error* error);
    // See engine_copy_wait.
    int wait(uint64_t timeout_ns, engine_error* error) noexcept;
    // Any thread.
    void cancel() noexcept;
    void read_progress(engine_copy_progress* out) const noexcept;
    // Foreign threads. Cancels, waits, lets go of both nodes.
    void close() noexcept;

  private:
    enum class Stage : uint8_t { read, write, zero, flush };
    // One chunk on its way.
    struct Slot : block::Request {
        Copy* copy = nullptr;
        Slot* next_free = nullptr;
        std::byte* buffer = nullptr;
        Stage stage = Stage::read;
        engine_error told{};
    };
    // The one request that asks where data is.
    struct Scan : block::Request {
        Copy* copy = nullptr;
    };
    // The last that happens here: from the ready queue, because the waiter may destroy the copy at once.
    struct OverNote : aio::Message {
        Copy* copy = nullptr;
    };
    struct Piece {
        uint64_t length;
        bool zero;
    };
    enum State : uint32_t { made, started, over };
    static constexpr uint32_t extents_at_a_time = 128;
    static constexpr uint64_t zeroes_max = uint64_t{1} << 30;  // bytes a request, where the target can

    Copy(Instance& engine, const engine_copy_config& config, aio::AioContext& context);
    int check(const block::Node& source, const block::Node& target, engine_error* error);
    int attach(engine_error* error);
    void detach() noexcept;

    // --- home thread
    int begin_running() noexcept;
    void advance() noexcept;
    void scan() noexcept;
    void scanned() noexcept;
    bool known_at_position() noexcept;
    Piece next_piece() const noexcept;
    void begin(const Piece& piece) noexcept;
    void submit(Slot& slot, block::Op op, uint8_t flags) noexcept;
    void submit_zeroes(Slot& slot) noexcept;
    void completed(Slot& slot) noexcept;
    bool write_out(Slot& slot) noexcept;
    void failed(const block::Request& request, const engine_error& told) noexcept;
    void flush() noexcept;
    void end() noexcept;

    // --- constant while it runs
    Instance& engine_;
    const engine_copy_config config_;
    aio::AioContext& context_;
    const std::string source_, target_;  // names: the users may be moved to other nodes meanwhile
    uint64_t alignment_ = 1;             // bytes: of both
    size_t memory_alignment_ = 4096;     // bytes: of the buffers
    uint64_t chunk_ = 0;                 // bytes a read or write
    uint64_t zeroes_ = 0;                // bytes a write of zeroes
    uint64_t end_ = 0;
    block::User* reader_ = nullptr;
    block::User* writer_ = nullptr;
    block::Port* source_port_ = nullptr;
    block::Port* target_port_ = nullptr;
    bool held_ = false;  // the context
    // --- home thread
    base::Owner<Slot[]> slots_;
    base::Owner<std::byte[]> buffers_;
    Slot* free_ = nullptr;
    uint32_t in_flight_ = 0;
    uint64_t position_ = 0;  // up to here everything has been begun
    Scan scan_;
    engine_error scan_error_{};
    engine_extent extents_[extents_at_a_time];
    uint32_t extent_ = 0;  // the one that position_ is in
    uint32_t extent_count_ = 0;
    bool can_scan_ = false;
    bool scanning_ = false;
    bool stopping_ = false;
    bool flushed_ = false;
    OverNote over_note_;
    // --- written on the home thread before `over_`, read after it
    int result_ = 0;
    engine_error error_{};
    // --- any thread
    base::Atomic<uint32_t> state_{made};
    base::Atomic<uint32_t> cancelled_{0};
    aio::Signal over_;
    base::Counter total_, data_bytes_, zero_bytes_, started_ns_, ended_ns_;
};

}  // namespace engine::jobs
