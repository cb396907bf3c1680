// The log hook and the log queue. All state is guarded by `mutex`, the hook's calls included; whether anybody
// listens at all is a flag beside it, so that a program without a log pays a load.
#include "base/log.hh"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include "base/atomic.hh"

namespace engine::base {

namespace {

struct LogState {
    std::mutex mutex;
    std::condition_variable arrived;
    engine_log_hook* hook = nullptr;
    void* opaque = nullptr;
    uint32_t opened = 0;  // calls of engine_log_open() without their close
    uint32_t first = 0;   // of the ring
    uint32_t count = 0;
    uint64_t dropped = 0;
    bool woken = false;
    engine_log_record ring[ENGINE_LOG_QUEUE];
};

LogState& log_state() noexcept;

// A fork while another thread has the mutex would leave it locked in the child for ever. What waits is the
// parent's to tell, and so are the threads that wait for it.
void lock_for_fork() noexcept {
    log_state().mutex.lock();
}
void unlock_after_fork() noexcept {
    log_state().mutex.unlock();
}
void reset_after_fork() noexcept {
    LogState& state = log_state();
    new (&state.arrived) std::condition_variable;
    state.count = 0;
    state.dropped = 0;
    state.mutex.unlock();
}

// Never destroyed: threads may outlive the statics of the process.
LogState& log_state() noexcept {
    alignas(LogState) static std::byte memory[sizeof(LogState)];
    static LogState* state = [] {
        auto* made = new (memory) LogState;
        pthread_atfork(lock_for_fork, unlock_after_fork, reset_after_fork);
        return made;
    }();
    return *state;
}
constinit Atomic<bool> listened{false};

uint64_t wall_clock_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

void append(LogState& state, const engine_log_record& record) noexcept {
    if (state.count == ENGINE_LOG_QUEUE) {
        state.dropped++;
        return;
    }
    state.ring[(state.first + state.count++) % ENGINE_LOG_QUEUE] = record;
    state.arrived.notify_one();
}

engine_log_record pop(LogState& state) noexcept {
    engine_log_record record = state.ring[state.first];
    state.first = (state.first + 1) % ENGINE_LOG_QUEUE;
    state.count--;
    if (state.dropped != 0) {
        engine_log_record lost{
            .size = sizeof lost, .level = ENGINE_LOG_WARNING, .time_ns = wall_clock_ns(), .message = {}};
        snprintf(lost.message, sizeof lost.message, "%lu log records were dropped: nobody took them in time",
                 state.dropped);
        state.dropped = 0;
        append(state, lost);
    }
    return record;
}

}  // namespace

bool log(engine_log_level level, const char* format, ...) noexcept {
    if (!listened.load_acquire()) return false;
    engine_log_record record{
        .size = sizeof record, .level = level, .time_ns = wall_clock_ns(), .message = {}};
    va_list args;
    va_start(args, format);
    vsnprintf(record.message, sizeof record.message, format, args);
    va_end(args);
    std::replace(record.message, record.message + strlen(record.message), '\n', ' ');
    LogState& state = log_state();
    std::lock_guard guard(state.mutex);
    if (state.hook != nullptr) state.hook(&record, state.opaque);
    if (state.opened != 0) append(state, record);
    return state.hook != nullptr || state.opened != 0;
}

}  // namespace engine::base

using engine::base::listened;
using engine::base::log_state;

extern "C" {

void engine_set_log_hook(engine_log_hook* hook, void* opaque) {
    auto& state = log_state();
    std::lock_guard guard(state.mutex);
    state.hook = hook;
    state.opaque = opaque;
    listened.store_release(hook != nullptr || state.opened != 0);
}

void engine_log_open(void) {
    auto& state = log_state();
    std::lock_guard guard(state.mutex);
    state.opened++;
    listened.store_release(true);
}

void engine_log_close(void) {
    auto& state = log_state();
    std::lock_guard guard(state.mutex);
    if (state.opened == 0) return;
    state.opened--;
    if (state.opened != 0) return;
    state.count = 0;
    state.dropped = 0;
    state.woken = false;
    listened.store_release(state.hook != nullptr);
}

int engine_log_take(engine_log_record* out, uint64_t timeout_ns) {
    auto& state = log_state();
    std::unique_lock lock(state.mutex);
    auto ready = [&] { return state.count != 0 || state.woken; };
    if (timeout_ns == UINT64_MAX) {
        state.arrived.wait(lock, ready);
    } else if (timeout_ns != 0) {
        constexpr uint64_t longest = uint64_t{1} << 60;  // what a time point can hold
        state.arrived.wait_for(lock, std::chrono::nanoseconds(std::min(timeout_ns, longest)), ready);
    }
    if (state.count == 0) {
        state.woken = false;
        return 0;
    }
    engine_log_record record = engine::base::pop(state);
    uint32_t size = std::min<uint32_t>(out->size, sizeof record);
    memcpy(out, &record, size);
    out->size = size;
    return 1;
}

void engine_log_wake(void) {
    auto& state = log_state();
    std::lock_guard guard(state.mutex);
    state.woken = true;
    state.arrived.notify_all();
}

}  // extern "C"
