// What a channel needs for each request in flight (child requests, frames): taken and given back without
// allocating once the pool has grown to what was in flight at most. Home thread of the channel's context
// only.
#pragma once

#include <array>

#include "base/alloc.hh"
#include "base/assert.hh"

namespace engine::block {

// T is linked through its `next`, as every Request is. What get() returns still holds what its last user left
// in it: set what matters.
template <class T>
class RequestPool {
  public:
    RequestPool() noexcept = default;
    RequestPool(const RequestPool&) = delete;
    RequestPool& operator=(const RequestPool&) = delete;
    // With all requests given back.
    ~RequestPool() {
        while (chunks_ != nullptr) {
            base::Owner<Chunk> chunk(chunks_);
            chunks_ = chunk->next;
        }
    }

    // Null when memory is short.
    T* get() noexcept {
        if (ENGINE_UNLIKELY(free_ == nullptr) && !grow()) return nullptr;
        T* request = free_;
        free_ = static_cast<T*>(request->next);
        return request;
    }
    void put(T* request) noexcept {
        request->next = free_;
        free_ = request;
    }

  private:
    static constexpr unsigned chunk_requests = 32;
    struct Chunk {
        Chunk() noexcept {}  // NOLINT(modernize-use-equals-default): that one would zero all of it first
        Chunk* next = nullptr;
        std::array<T, chunk_requests> requests;
    };

    [[gnu::noinline]] bool grow() noexcept {
        base::Owner<Chunk> chunk = base::make<Chunk>();
        if (chunk == nullptr) return false;
        // The first of the chunk is the first to be taken.
        for (unsigned i = chunk_requests; i-- != 0;) put(&chunk->requests[i]);
        chunk->next = chunks_;
        chunks_ = chunk.release();
        return true;
    }

    T* free_ = nullptr;
    Chunk* chunks_ = nullptr;
};

}  // namespace engine::block
