// Bounce buffers: memory that satisfies a driver where the caller's does not. One for each request, taken
// once, for as long as the request lasts. Where the engine's limit is reached, or memory is short, the
// requests of a channel take turns at a buffer that was set aside when the channel was made: each of them
// comes to its end. Home thread of the channel's context.
#pragma once

#include <memory>
#include <utility>

#include "base/alloc.hh"
#include "block/limits.hh"
#include "coro/cancel.hh"
#include "coro/semaphore.hh"
#include "coro/task.hh"

namespace engine::block {

class Channel;
class Node;

class BounceReserve {
  public:
    // For a channel whose node is particular about offsets or addresses, or whose driver takes such memory
    // itself; null for others. bad_alloc.
    static std::unique_ptr<BounceReserve> make(const Node& node, coro::Executor& executor);
    explicit BounceReserve(coro::Executor& executor) noexcept : turn(executor, 1) {}

    coro::Semaphore turn;
    base::Owner<std::byte[]> memory;
    size_t bytes = 0;
};

class Bounce {
  public:
    Bounce() noexcept = default;
    Bounce(const Bounce&) = delete;
    Bounce& operator=(const Bounce&) = delete;
    ~Bounce();

    // At least one block of the node, at most `wanted` rounded up to blocks. -ENOMEM: no frame. -ECANCELED:
    // while it waited for its turn.
    static coro::Task<int> take(Channel& channel, uint64_t wanted, Bounce& out, coro::CancelToken token = {});

    std::byte* data() const noexcept { return data_; }
    size_t bytes() const noexcept { return bytes_; }

  private:
    bool take_from(Quota& quota, size_t bytes, size_t alignment) noexcept;

    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
    Quota* quota_ = nullptr;            // it is from there …
    BounceReserve* reserve_ = nullptr;  // … or from here
    base::Owner<std::byte[]> memory_;
};

}  // namespace engine::block
