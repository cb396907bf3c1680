// A timer: what is armed on a context, by the layers above it and by what suspends below it. Home thread
// only.
#pragma once

#include <cstdint>

namespace engine::base {

struct Timer {
    static constexpr uint32_t not_armed = UINT32_MAX;
    uint64_t deadline_ns = 0;
    uint32_t index = not_armed;  // in the heap
    void (*fire)(Timer*) = nullptr;
    void (*abandon)(Timer*) = nullptr;  // instead of fire, when the context closes; null: nobody minds
    bool reserved = false;              // it has a place in the heap, armed or not

    bool armed() const noexcept { return index != not_armed; }
};

}  // namespace engine::base
