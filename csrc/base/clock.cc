// Calibration of the time stamp counter against CLOCK_MONOTONIC. Written once under a magic static.
#include "base/clock.hh"

#include <engine/base.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cstring>

namespace engine::base {

ClockScale clock_scale_value{0, 0, 0, false};

uint64_t monotonic_ns() noexcept {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<uint64_t>(ts.tv_sec) * 1000000000u + static_cast<uint64_t>(ts.tv_nsec);
}

namespace {

#if defined(__x86_64__)
// The kernel keeps its own clock on the counter only while it is invariant and in step on all CPUs.
bool kernel_trusts_tsc() {
    int fd = open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    char text[32] = {};
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    // kvm-clock is derived from the counter; whether it is in step is then said by constant_tsc +
    // nonstop_tsc.
    return n > 0 && (strncmp(text, "tsc", 3) == 0 || strncmp(text, "kvm-clock", 9) == 0);
}

bool invariant_tsc() {
    uint32_t eax, ebx, ecx, edx;
    __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x80000000u), "c"(0));
    if (eax < 0x80000007u) return false;
    __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x80000007u), "c"(0));
    return (edx & (1u << 8)) != 0;
}

// A pair of readings taken close together: the tightest of some tries.
void read_pair(uint64_t* ticks, uint64_t* ns) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        uint64_t before = __rdtsc();
        uint64_t time = monotonic_ns();
        uint64_t after = __rdtsc();
        if (after - before < best) {
            best = after - before;
            *ticks = before + (after - before) / 2;
            *ns = time;
        }
    }
}
#endif

ClockScale calibrate() {
    ClockScale scale{0, 0, 0, false};
#if defined(__x86_64__)
    if (!invariant_tsc() || !kernel_trusts_tsc()) return scale;
    uint64_t ticks0 = 0, ns0 = 0, ticks1 = 0, ns1 = 0;
    read_pair(&ticks0, &ns0);
    do {  // 5 ms with stamps good to some 50 ns: an error of about ten in a million
        read_pair(&ticks1, &ns1);
    } while (ns1 - ns0 < 5000000);
    scale.mult = static_cast<uint64_t>((static_cast<unsigned __int128>(ns1 - ns0) << 32) / (ticks1 - ticks0));
    scale.base_ticks = ticks1;
    scale.base_ns = ns1;
    scale.tsc = true;
#endif
    return scale;
}

}  // namespace

const ClockScale& clock_scale() noexcept {
    static const bool done = [] {
        clock_scale_value = calibrate();
        return true;
    }();
    (void)done;
    return clock_scale_value;
}

}  // namespace engine::base

extern "C" {
uint64_t engine_now_ns(void) {
    engine::base::clock_scale();
    return engine::base::now_ns();
}
const char* engine_clock_name(void) {
    return engine::base::clock_scale().tsc ? "tsc" : "clock_gettime";
}
}
