// malloc and the allocation hook. The hook runs under `mutex`: its calls are serialised, and once it has been
// replaced no call of the old one is under way. So it must not allocate from the core itself.
#include "base/alloc.hh"

#include <engine/base.h>

#include <cstdlib>
#include <mutex>

#include "base/assert.hh"
#include "base/atomic.hh"

namespace engine::base {

namespace {

struct HookState {
    std::mutex mutex;
    engine_allocation_hook* hook = nullptr;
    void* opaque = nullptr;
};
constinit HookState hook_state;
// Only a hint that hook_state is worth a look; a thread that races with setting the hook may miss it.
constinit Atomic<bool> hooked{false};

[[gnu::cold, gnu::noinline]] bool refused(size_t bytes) noexcept {
    std::lock_guard guard(hook_state.mutex);
    return hook_state.hook != nullptr && hook_state.hook(bytes, hook_state.opaque) != 0;
}

}  // namespace

void* allocate(size_t bytes, size_t align) noexcept {
    ENGINE_ASSERT(align != 0 && (align & (align - 1)) == 0);
    if (ENGINE_UNLIKELY(hooked.load_relaxed()) && refused(bytes)) return nullptr;
    if (bytes == 0) bytes = 1;  // null means failure, nothing else
    if (align <= alignof(std::max_align_t)) return malloc(bytes);
    void* block = nullptr;
    return posix_memalign(&block, align, bytes) == 0 ? block : nullptr;
}

void deallocate(void* block) noexcept {
    free(block);
}

}  // namespace engine::base

extern "C" void engine_set_allocation_hook(engine_allocation_hook* hook, void* opaque) {
    using namespace engine::base;
    std::lock_guard guard(hook_state.mutex);
    hook_state.hook = hook;
    hook_state.opaque = opaque;
    hooked.store_relaxed(hook != nullptr);
}
