// The one way to memory for the core: malloc behind a process-wide hook that tests can make fail. Any thread.
// With no hook set the price is one relaxed load.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace engine::base {

// `align` is a power of two. Null when memory is short or the hook says so.
[[nodiscard]] void* allocate(size_t bytes, size_t align = alignof(std::max_align_t)) noexcept;
void deallocate(void* block) noexcept;

template <class T>
struct Deleter {
    constexpr Deleter() noexcept = default;
    // Owner<Derived> becomes Owner<Base> where ~Base is virtual.
    template <class U>
        requires(std::is_convertible_v<U*, T*> && std::has_virtual_destructor_v<T>)
    // NOLINTNEXTLINE(google-explicit-constructor): unique_ptr converts by it
    constexpr Deleter(const Deleter<U>&) noexcept {}

    void operator()(T* object) const noexcept {
        void* block = const_cast<std::remove_cv_t<T>*>(object);
        // A base need not lie at the start of the block that was allocated.
        if constexpr (std::is_polymorphic_v<T>) block = const_cast<void*>(dynamic_cast<const void*>(object));
        object->~T();
        deallocate(block);
    }
};

template <class T>
struct Deleter<T[]> {
    static_assert(std::is_trivially_destructible_v<T>);
    void operator()(T* items) const noexcept { deallocate(static_cast<void*>(items)); }
};

template <class T>
using Owner = std::unique_ptr<T, Deleter<T>>;

// Null when memory is short, also for what the constructor needs beside the object itself.
template <class T, class... Args>
[[nodiscard]] Owner<T> make(Args&&... args) {
    void* block = allocate(sizeof(T), alignof(T));
    if (block == nullptr) return nullptr;
    if constexpr (std::is_nothrow_constructible_v<T, Args...>) {
        return Owner<T>(new (block) T(std::forward<Args>(args)...));
    } else {
        try {
            return Owner<T>(new (block) T(std::forward<Args>(args)...));
        } catch (const std::bad_alloc&) {
            deallocate(block);
            return nullptr;
        } catch (...) {
            deallocate(block);
            throw;
        }
    }
}

// `count` items, each value-initialised. Null when memory is short or the size overflows.
template <class T>
[[nodiscard]] Owner<T[]> make_array(size_t count, size_t align = alignof(T)) noexcept {
    static_assert(std::is_nothrow_default_constructible_v<T>);
    size_t bytes;
    // NOLINTNEXTLINE(bugprone-sizeof-expression): arrays of pointers are meant
    if (__builtin_mul_overflow(count, sizeof(T), &bytes)) return nullptr;
    void* block = allocate(bytes, align < alignof(T) ? alignof(T) : align);
    if (block == nullptr) return nullptr;
    T* items = static_cast<T*>(block);
    std::uninitialized_value_construct_n(items, count);
    return Owner<T[]>(items);
}

// For containers of the standard library, which report a failure by std::bad_alloc.
template <class T>
struct Allocator {
    using value_type = T;

    constexpr Allocator() noexcept = default;
    template <class U>
    // NOLINTNEXTLINE(google-explicit-constructor): containers convert by it
    constexpr Allocator(const Allocator<U>&) noexcept {}

    [[nodiscard]] T* allocate(size_t count) {
        size_t bytes;
        // NOLINTNEXTLINE(bugprone-sizeof-expression): arrays of pointers are meant
        if (__builtin_mul_overflow(count, sizeof(T), &bytes)) throw std::bad_array_new_length();
        void* block = base::allocate(bytes, alignof(T));
        if (block == nullptr) throw std::bad_alloc();
        return static_cast<T*>(block);
    }
    void deallocate(T* items, size_t) noexcept { base::deallocate(static_cast<void*>(items)); }

    template <class U>
    constexpr bool operator==(const Allocator<U>&) const noexcept {
        return true;
    }
};

}  // namespace engine::base
