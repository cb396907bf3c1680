// Free lists of coroutine frames. Under the address sanitizer a free frame is poisoned, so that the pool
// hides no use after free.
#include "coro/frame_pool.hh"

#include "base/alloc.hh"
#include "base/assert.hh"

#if defined(__SANITIZE_ADDRESS__)
#define ENGINE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ENGINE_ASAN 1
#endif
#endif
#ifdef ENGINE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace engine::coro {

// Stands before every frame. The link of the free list is here and not in the frame, which stays poisoned.
struct alignas(std::max_align_t) FramePool::Block {
    union {
        FramePool* pool;  // while in use
        Block* next;      // while free
    };
    size_t size_class;

    void* frame() noexcept { return this + 1; }
    size_t frame_bytes() const noexcept { return (size_class + 1) * granule_bytes - sizeof(Block); }
};

FramePool::~FramePool() {
    ENGINE_CHECK(in_use_ == 0);
    for (Block*& list : free_) {
        while (list != nullptr) {
            Block* block = list;
            list = block->next;
            ASAN_UNPOISON_MEMORY_REGION(block->frame(), block->frame_bytes());
            base::deallocate(block);
        }
    }
}

void* FramePool::allocate(size_t bytes) noexcept {
    size_t size_class = (bytes + sizeof(Block) - 1) / granule_bytes;
    Block* block;
    if (ENGINE_LIKELY(size_class < classes && free_[size_class] != nullptr)) {
        block = free_[size_class];
        free_[size_class] = block->next;
        ASAN_UNPOISON_MEMORY_REGION(block->frame(), block->frame_bytes());
    } else {
        block = static_cast<Block*>(base::allocate((size_class + 1) * granule_bytes));
        if (block == nullptr) return nullptr;
        block->size_class = size_class;
    }
    block->pool = this;
    in_use_++;
    return block->frame();
}

void FramePool::deallocate(void* frame) noexcept {
    Block* block = static_cast<Block*>(frame) - 1;
    FramePool* pool = block->pool;
    pool->in_use_--;
    if (ENGINE_UNLIKELY(block->size_class >= classes)) {
        base::deallocate(block);
        return;
    }
    ASAN_POISON_MEMORY_REGION(block->frame(), block->frame_bytes());
    block->next = pool->free_[block->size_class];
    pool->free_[block->size_class] = block;
}

}  // namespace engine::coro
