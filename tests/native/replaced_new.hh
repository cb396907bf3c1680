// Memory that is short on purpose. What the core takes by `new`, in its containers and strings, comes from
// where the hook is as well: this replaces the operators, for one test program. With clang's address
// sanitizer that takes a link with -z muldefs; under its thread sanitizer, whose own come first, only what
// asks the hook by itself fails. The hook's calls are serialised by the core.
#pragma once

#include <engine/base.h>

#include <new>

#include "base/alloc.hh"
#include "check.hh"

#if defined(__clang__)
#if __has_feature(thread_sanitizer)
#define NEW_IS_TAKEN 1
#endif
#endif

#ifdef NEW_IS_TAKEN
constexpr bool new_is_replaced = false;
#else
constexpr bool new_is_replaced = true;

void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
    return engine::base::allocate(bytes);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
    return engine::base::allocate(bytes);
}
void* operator new(size_t bytes) {
    void* block = engine::base::allocate(bytes);
    if (block == nullptr) throw std::bad_alloc();
    return block;
}
void* operator new(size_t bytes, std::align_val_t align) {
    void* block = engine::base::allocate(bytes, static_cast<size_t>(align));
    if (block == nullptr) throw std::bad_alloc();
    return block;
}
void* operator new[](size_t bytes) {
    return operator new(bytes);
}
void operator delete(void* block) noexcept {
    engine::base::deallocate(block);
}
void operator delete(void* block, size_t) noexcept {
    engine::base::deallocate(block);
}
void operator delete(void* block, std::align_val_t) noexcept {
    engine::base::deallocate(block);
}
void operator delete(void* block, size_t, std::align_val_t) noexcept {
    engine::base::deallocate(block);
}
void operator delete[](void* block) noexcept {
    engine::base::deallocate(block);
}
void operator delete[](void* block, size_t) noexcept {
    engine::base::deallocate(block);
}
#endif

// Between begin() and end() allocation number k fails, counted from 0; `lasting`: and all after it.
struct Shortage {
    int64_t k;
    bool lasting;
    int64_t seen = 0;
    bool struck = false;

    void begin() { engine_set_allocation_hook(refuse, this); }
    void end() { engine_set_allocation_hook(nullptr, nullptr); }
    static int refuse(size_t, void* opaque) {
        auto* self = static_cast<Shortage*>(opaque);
        int64_t number = self->seen++;
        bool fails = self->lasting ? number >= self->k : number == self->k;
        self->struck |= fails;
        return fails ? 1 : 0;
    }
};
