// Memory for coroutine frames: one free list for each size class, filled by base::allocate and never shrunk
// before the end. Home thread of the executor that owns it; no lock.
#pragma once

#include <cstddef>
#include <cstdint>

namespace engine::coro {

class FramePool {
  public:
    static constexpr size_t granule_bytes = 128;
    static constexpr size_t classes = 16;  // up to 2 KiB; what is larger is not kept

    FramePool() noexcept = default;
    FramePool(const FramePool&) = delete;
    FramePool& operator=(const FramePool&) = delete;
    // Every frame has been given back.
    ~FramePool();

    // Null when memory is short. The block knows its pool.
    void* allocate(size_t bytes) noexcept;
    static void deallocate(void* frame) noexcept;

    size_t in_use() const noexcept { return in_use_; }

  private:
    struct Block;
    Block* free_[classes] = {};
    size_t in_use_ = 0;
};

}  // namespace engine::coro
