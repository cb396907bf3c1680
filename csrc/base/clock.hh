// The engine's clock: monotonic nanoseconds. From the time stamp counter where the kernel itself trusts it
// (13 ns a reading against 35 for clock_gettime on the machine this was written on), else from clock_gettime.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace engine::base {

struct ClockScale {
    uint64_t base_ticks;
    uint64_t base_ns;
    uint64_t mult;  // nanoseconds a tick, 32 bits of fraction
    bool tsc;
};

uint64_t monotonic_ns() noexcept;
// Calibrated once, before the first context starts. Constant afterwards.
const ClockScale& clock_scale() noexcept;
extern ClockScale clock_scale_value;

// After clock_scale() has been called once: a stamp in nanoseconds, comparable between threads.
inline uint64_t now_ns() noexcept {
    const ClockScale& scale = clock_scale_value;
#if defined(__x86_64__)
    if (__builtin_expect(scale.tsc, 1)) {
        uint64_t ticks = __rdtsc() - scale.base_ticks;
        return scale.base_ns +
               static_cast<uint64_t>((static_cast<unsigned __int128>(ticks) * scale.mult) >> 32);
    }
#endif
    return monotonic_ns();
}

}  // namespace engine::base
