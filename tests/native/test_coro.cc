// The pieces under a task: allocation hook, frame pool, executor, completion, short lock. Each guard is made
// to fire.
#include <engine/base.h>

#include <thread>
#include <vector>

#include "base/alloc.hh"
#include "check.hh"
#include "coro/completion.hh"
#include "coro/executor.hh"
#include "coro/frame_pool.hh"
#include "coro/short_lock.hh"
#include "coro/task.hh"

namespace {

using namespace engine::coro;
namespace base = engine::base;

// --- base/alloc.hh

struct Hook {
    size_t calls = 0;
    size_t last_bytes = 0;
    bool refuse = false;
    Hook() {
        engine_set_allocation_hook(
            [](size_t bytes, void* opaque) {
                Hook* self = static_cast<Hook*>(opaque);
                self->calls++;
                self->last_bytes = bytes;
                return self->refuse ? 1 : 0;
            },
            this);
    }
    ~Hook() { engine_set_allocation_hook(nullptr, nullptr); }
    Hook(const Hook&) = delete;
    Hook& operator=(const Hook&) = delete;
};

TEST(allocate_keeps_its_alignment_and_is_never_null_for_nothing) {
    for (size_t align = 1; align <= 65536; align *= 2) {
        void* block = base::allocate(100, align);
        REQUIRE(block != nullptr);
        CHECK_EQ(reinterpret_cast<uintptr_t>(block) % align, 0);
        base::deallocate(block);
    }
    void* nothing = base::allocate(0);
    CHECK(nothing != nullptr);
    base::deallocate(nothing);
    base::deallocate(nullptr);
}

TEST(the_hook_sees_every_allocation_and_can_refuse) {
    {
        Hook hook;
        void* block = base::allocate(123);
        CHECK(block != nullptr);
        CHECK_EQ(hook.calls, 1);
        CHECK_EQ(hook.last_bytes, 123);
        base::deallocate(block);
        hook.refuse = true;
        CHECK(base::allocate(8) == nullptr);
        CHECK(base::make<int>(1) == nullptr);
        CHECK(base::make_array<int>(10) == nullptr);
        bool thrown = false;
        try {
            std::vector<int, base::Allocator<int>> items(10);
        } catch (const std::bad_alloc&) {
            thrown = true;
        }
        CHECK(thrown);
        CHECK_EQ(hook.calls, 5);
    }
    void* block = base::allocate(8);
    CHECK(block != nullptr);
    base::deallocate(block);
}

struct Base {
    virtual ~Base() = default;
    int a = 1;
};
struct Other {
    virtual ~Other() = default;
    int b = 2;
};
struct Both final : Base, Other {
    int* destroyed;
    explicit Both(int* count) : destroyed(count) {}
    ~Both() override { ++*destroyed; }
};
struct NeedsMore {
    std::vector<int, base::Allocator<int>> more;
    NeedsMore() : more(1000) {}
};

TEST(make_owns_what_it_made) {
    int destroyed = 0;
    {
        base::Owner<Both> both = base::make<Both>(&destroyed);
        CHECK_EQ(both->b, 2);
        base::Owner<Other> other = std::move(both);  // not at the start of the block
        CHECK(both == nullptr);
    }
    CHECK_EQ(destroyed, 1);
    struct alignas(256) Wide {
        char bytes[256];
    };
    base::Owner<Wide> wide = base::make<Wide>();
    CHECK_EQ(reinterpret_cast<uintptr_t>(wide.get()) % 256, 0);
    base::Owner<int[]> items = base::make_array<int>(100, 4096);
    CHECK_EQ(reinterpret_cast<uintptr_t>(items.get()) % 4096, 0);
    CHECK_EQ(items[99], 0);
    CHECK(base::make_array<uint64_t>(SIZE_MAX / 4) == nullptr);
}

TEST(make_is_null_when_the_constructor_finds_no_memory) {
    struct SecondFails {
        size_t calls = 0;
    } state;
    engine_set_allocation_hook(
        [](size_t, void* opaque) { return static_cast<SecondFails*>(opaque)->calls++ == 1 ? 1 : 0; }, &state);
    CHECK(base::make<NeedsMore>() == nullptr);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(state.calls, 2);
    CHECK_EQ(base::make<NeedsMore>()->more.size(), 1000);
}

TEST(the_hook_may_be_set_while_other_threads_allocate) {
    std::thread allocating([] {
        for (int i = 0; i < 20000; i++) base::deallocate(base::allocate(16));
    });
    size_t calls = 0;  // plain: once the hook is gone, no call of it can be under way
    for (int i = 0; i < 200; i++) {
        engine_set_allocation_hook(
            [](size_t, void* opaque) {
                ++*static_cast<size_t*>(opaque);
                return 0;
            },
            &calls);
        base::deallocate(base::allocate(1));
        engine_set_allocation_hook(nullptr, nullptr);
        calls++;
    }
    allocating.join();
    CHECK(calls >= 400);
}

// --- coro/frame_pool.hh

TEST(frames_of_a_size_class_are_used_again) {
    Hook hook;
    FramePool pool;
    void* a = pool.allocate(100);
    void* b = pool.allocate(100);
    CHECK(a != b);
    CHECK_EQ(pool.in_use(), 2);
    CHECK_EQ(reinterpret_cast<uintptr_t>(a) % alignof(std::max_align_t), 0);
    FramePool::deallocate(b);
    CHECK_EQ(pool.allocate(90), b);
    FramePool::deallocate(a);
    FramePool::deallocate(b);
    CHECK_EQ(hook.calls, 2);
    for (size_t bytes = 1; bytes < 5000; bytes += 13) {
        void* frame = pool.allocate(bytes);
        REQUIRE(frame != nullptr);
        memset(frame, 1, bytes);
        FramePool::deallocate(frame);
    }
    CHECK_EQ(pool.in_use(), 0);
    size_t before = hook.calls;
    FramePool::deallocate(pool.allocate(FramePool::granule_bytes * FramePool::classes));  // too large to keep
    FramePool::deallocate(pool.allocate(FramePool::granule_bytes * FramePool::classes));
    CHECK_EQ(hook.calls, before + 2);
    hook.refuse = true;
    CHECK(pool.allocate(100) != nullptr);
    CHECK(pool.allocate(100) != nullptr);
    CHECK(pool.allocate(100) == nullptr);
    CHECK_EQ(pool.in_use(), 2);
    FramePool::deallocate(a);
    FramePool::deallocate(b);
}

TEST(a_pool_outlived_by_a_frame_aborts) {
    CHECK_ABORTS("in_use_ == 0", {
        FramePool pool;
        (void)pool.allocate(10);
    });
}

// --- coro/executor.hh

struct Item : ReadyItem {
    Executor* executor = nullptr;
    std::vector<int>* order = nullptr;
    Item* then = nullptr;
    int name = 0;
    Item() {
        run = [](ReadyItem* item) {
            Item* self = static_cast<Item*>(item);
            self->order->push_back(self->name);
            if (self->then != nullptr) self->executor->ready(self->then);
        };
    }
};

TEST(ready_items_run_in_order_and_within_a_budget) {
    Executor executor;
    std::vector<int> order;
    Item items[4];
    for (int i = 0; i < 4; i++) {
        items[i].executor = &executor;
        items[i].order = &order;
        items[i].name = i;
    }
    items[0].then = &items[3];
    for (int i = 0; i < 3; i++) executor.ready(&items[i]);
    CHECK(order.empty());
    CHECK_EQ(executor.run_ready(2), 2);
    CHECK(executor.has_ready());
    CHECK_EQ(executor.run_ready(10), 2);
    CHECK(!executor.has_ready());
    CHECK(order == (std::vector<int>{0, 1, 2, 3}));
    CHECK_EQ(executor.run_ready(10), 0);
}

// --- coro/completion.hh and the guards of a task

Task<int64_t> waits(Executor&, Completion<int64_t>& done) {
    int64_t result = co_await done;
    co_return result;
}

Task<int64_t> waits_with_lock(Executor& executor, base::Mutex& mutex, Completion<int64_t>& done, bool child) {
    ShortLock lock(executor, mutex);
    int64_t result;
    if (child) {
        result = co_await waits(executor, done);
    } else {
        result = co_await done;
    }
    co_return result;
}

struct Kept : Callback<int64_t> {
    int64_t result = INT64_MIN;
    Kept() {
        completed = [](Callback* callback, int64_t value) { static_cast<Kept*>(callback)->result = value; };
    }
};

TEST(a_completion_that_came_first_suspends_nobody) {
    Executor executor;
    Completion<int64_t> done(executor);
    done.complete(3);
    Task<int64_t> task = waits(executor, done);
    CHECK(task.done());
    CHECK_EQ(task.take(), 3);
    CHECK(!executor.has_ready());
}

TEST(a_callback_is_never_called_inside_start) {
    Executor executor;
    Completion<int64_t> done(executor);
    done.complete(3);
    Kept kept;
    start(executor, waits(executor, done), &kept);
    CHECK_EQ(kept.result, INT64_MIN);
    executor.run_ready(1);
    CHECK_EQ(kept.result, 3);
}

TEST(a_completion_completes_once) {
    CHECK_ABORTS("!completed_", {
        Executor executor;
        Completion<int64_t> done(executor);
        done.complete(1);
        done.complete(2);
    });
}

TEST(a_completion_has_one_waiter) {
    CHECK_ABORTS("!waiter_", {
        Executor executor;
        Completion<int64_t> done(executor);
        Kept first, second;
        start(executor, waits(executor, done), &first);
        start(executor, waits(executor, done), &second);
    });
}

TEST(destroying_a_task_that_has_not_finished_aborts) {
    CHECK_ABORTS("handle_.done()", {
        Executor executor;
        Completion<int64_t> done(executor);
        {
            Task<int64_t> task = waits(executor, done);
        }
    });
}

TEST(a_result_is_taken_once) {
    CHECK_ABORTS("State::empty", {
        Executor executor;
        Completion<int64_t> done(executor);
        done.complete(1);
        Task<int64_t> task = waits(executor, done);
        (void)task.take();
        (void)task.take();
    });
}

TEST(suspending_with_a_short_lock_held_aborts) {
    for (bool child : {false, true}) {
        CHECK_ABORTS("short_locks_ == 0", {
            Executor executor;
            base::Mutex mutex;
            Completion<int64_t> done(executor);
            Kept kept;
            start(executor, waits_with_lock(executor, mutex, done, child), &kept);
        });
    }
}

TEST(a_short_lock_is_fine_where_nothing_suspends) {
    Executor executor;
    base::Mutex mutex;
    Completion<int64_t> done(executor);
    done.complete(4);
    Task<int64_t> task = waits_with_lock(executor, mutex, done, true);
    REQUIRE(task.done());
    CHECK_EQ(task.take(), 4);
    CHECK_EQ(mutex.acquisitions(), 1);
    executor.check_may_suspend();
}

TEST(resuming_inside_a_task_aborts) {
    CHECK_ABORTS("!resuming_", {
        Executor executor;
        Completion<int64_t> inner(executor);
        Completion<int64_t> outer(executor);
        // Runs the ready queue from within a resumed task: a nested event loop.
        struct Loop {
            static Task<int64_t> nested(Executor& e, Completion<int64_t>& wait, Completion<int64_t>& other) {
                int64_t n = co_await wait;
                other.complete(1);
                e.run_ready(10);
                co_return n;
            }
        };
        Kept a, b;
        start(executor, waits(executor, inner), &a);
        start(executor, Loop::nested(executor, outer, inner), &b);
        outer.complete(1);
        executor.run_ready(10);
    });
}

#ifndef NDEBUG
TEST(a_foreign_thread_aborts_in_debug_builds) {
    CHECK_ABORTS("on_home_thread()", {
        Executor executor;
        ReadyItem item;
        std::thread([&] { executor.ready(&item); }).join();
    });
}
#endif

TEST(an_executor_can_be_handed_to_its_thread) {
    Executor executor;
    int64_t result = 0;
    std::thread([&] {
        executor.bind_to_this_thread();
        Completion<int64_t> done(executor);
        Kept kept;
        start(executor, waits(executor, done), &kept);
        done.complete(9);
        executor.run_ready(10);
        result = kept.result;
    }).join();
    CHECK_EQ(result, 9);
}

}  // namespace
