// What the locks that suspend cost where nobody waits: acquire and release, nanoseconds, of one thread. The
// loop and the guard are included. It looks inside the core, so it is built with its sources and not over the
// C interface:
//
//   g++ -std=c++20 -O2 -DNDEBUG -pthread -Icsrc -Icsrc/include -o build/lock_cost bench/micro/lock_cost.cc
//       csrc/coro/frame_pool.cc csrc/base/alloc.cc csrc/base/clock.cc csrc/base/error.cc
//
// usage: lock_cost [ROUNDS]
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <shared_mutex>

#include "base/clock.hh"
#include "base/mutex.hh"
#include "coro/mutex.hh"
#include "coro/rwlock.hh"
#include "coro/task.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;

// The best of many short runs: what disturbs only adds.
template <class F>
void measure(const char* what, uint64_t rounds, F&& once) {
    double best_ns = 1e9;
    for (int run = 0; run < 200; run++) {
        uint64_t start_ns = base::now_ns();
        for (uint64_t i = 0; i < rounds; i++) once();
        double ns = static_cast<double>(base::now_ns() - start_ns) / static_cast<double>(rounds);
        if (ns < best_ns) best_ns = ns;
    }
    printf("%-44s %7.2f ns\n", what, best_ns);
}

Task<int64_t> lock_in_task(Executor& executor, RwLock& lock, RwLock::ReaderSlot& slot, uint64_t rounds) {
    LockChain chain(executor);
    for (uint64_t i = 0; i < rounds; i++) {
        RwLock::SharedGuard guard = co_await lock.lock_shared(chain, slot);
        if (!guard) co_return -EIO;
    }
    co_return 0;
}

void run(uint64_t rounds, bool profile) {
    Executor executor;
    Mutex mutex;
    RwLock lock;
    if (profile) {
        mutex.enable_profile();
        lock.enable_profile();
    }
    RwLock::ReaderSlot slot(executor);
    lock.add(slot);
    LockChain chain(executor);
    printf("profile %s\n", profile ? "on" : "off");
    measure("RwLock, shared, try", rounds, [&] { (void)lock.try_lock_shared(chain, slot); });
    measure("1000 times RwLock, shared, co_await", rounds / 1000, [&] {
        Task<int64_t> task = lock_in_task(executor, lock, slot, 1000);
        if (task.take() != 0) abort();
    });
    measure("RwLock, exclusive, try, one slot", rounds, [&] { (void)lock.try_lock_exclusive(chain); });
    measure("Mutex, try", rounds, [&] { (void)mutex.try_lock(chain); });
    RwLock::ExclusiveGuard guard = lock.try_lock_exclusive(chain);
    lock.remove(guard, slot);
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t rounds = argc > 1 ? strtoull(argv[1], nullptr, 10) : 100'000;
    base::clock_scale();
    run(rounds, false);
    run(rounds, true);
    base::Mutex short_mutex;
    std::shared_mutex shared;
    measure("base::Mutex", rounds, [&] { base::Guard guard(short_mutex); });
    measure("std::shared_mutex, shared", rounds, [&] {
        shared.lock_shared();
        shared.unlock_shared();
    });
    return 0;
}
