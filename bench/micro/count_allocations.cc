// Counts the allocations of a running load: this executable's malloc and its relatives stand before the C
// library's, for the core and for libstdc++ alike. After a warm-up, a window of N requests is watched; the
// count is atomic, so that every thread may allocate.
//
// usage: count_allocations COUNT node|queue DEPTH [FILE]      no FILE: a null node
#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>

#include "micro.hh"

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {

std::atomic<uint64_t> allocations{0};         // of all threads
std::atomic<uint64_t> others_allocations{0};  // of all but the observer
thread_local bool observer = false;

void count_one() {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (!observer) others_allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// operator new ends here, too: libstdc++ calls malloc and aligned_alloc.
extern "C" {
void* malloc(size_t bytes) {
    count_one();
    return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
    count_one();
    return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
    count_one();
    return __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
    count_one();
    return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
    count_one();
    return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) {
    count_one();
    *out = __libc_memalign(alignment, bytes);
    return *out != nullptr ? 0 : ENOMEM;
}
void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
    using Function = void* (*)(void*, size_t, int, int, int, off_t);
    static auto next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "mmap"));
    count_one();
    return next(address, length, protection, flags, fd, offset);
}
}

namespace {

uint64_t done(micro::Load& load) {
    return load.result().requests[0];
}

// Waits until so many requests are done; returns how many really are.
uint64_t wait_for(micro::Load& load, uint64_t requests) {
    for (;;) {
        uint64_t now = done(load);
        if (now >= requests) return now;
        if (load.result().running == 0) micro::fail("workload", "over before the window was");
        sched_yield();
    }
}

// The counter must count: an executable whose malloc nobody calls would find every engine perfect.
void check_counter() {
    uint64_t before = allocations.load();
    void* (*volatile allocate)(size_t) = ::operator new;
    ::operator delete(allocate(64));
    if (allocations.load() == before) micro::fail("count_allocations", "operator new is not seen");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4 || argc > 5) micro::fail("usage", "count_allocations COUNT node|queue DEPTH [FILE]");
    observer = true;
    check_counter();
    uint64_t count = micro::number(argv[1], "COUNT");
    auto depth = static_cast<uint32_t>(micro::number(argv[3], "DEPTH"));
    uint64_t at_start = allocations.load();
    micro::Engine engine;
    engine_context_t* context = engine.add_context("io0", -1, 0);
    micro::Load load(engine, context, argc == 5 ? argv[4] : nullptr, micro::names_queue(argv[2]), depth, 0);
    load.start();
    if (allocations.load() == at_start || others_allocations.load() == 0)
        micro::fail("count_allocations", "the core's allocations are not seen");
    uint64_t first = wait_for(load, count / 10);
    uint64_t before = others_allocations.load();
    uint64_t last = wait_for(load, first + count);
    uint64_t after = others_allocations.load();
    load.stop();
    load.wait();
    printf("{\"requests\": %llu, \"allocations\": %llu}\n", static_cast<unsigned long long>(last - first),
           static_cast<unsigned long long>(after - before));
    return 0;
}
