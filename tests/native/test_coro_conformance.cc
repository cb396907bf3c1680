// The conformance test of the coroutine dialect: what csrc/coro relies on, asked of the compiler at hand.
// Every test drives an executor by hand on one thread. dialect.sh runs it on each compiler and mode.
#include <engine/base.h>

#include <memory>
#include <vector>

#include "base/alloc.hh"
#include "check.hh"
#include "coro/completion.hh"
#include "coro/executor.hh"
#include "coro/task.hh"

namespace {

using engine::coro::Callback;
using engine::coro::Completion;
using engine::coro::Executor;
using engine::coro::ReadyItem;
using engine::coro::Task;
using engine::coro::TaskFailure;

void drain(Executor& executor) {
    while (executor.run_ready(64) != 0) {
    }
}

// An operation that completes later, out of the ready queue, with the value it was made with.
class Later : ReadyItem {
  public:
    Later(Executor& executor, int64_t value) : done(executor), value_(value) {
        run = [](ReadyItem* item) {
            Later* self = static_cast<Later*>(item);
            self->done.complete(self->value_);
        };
        executor.ready(this);
    }
    Completion<int64_t> done;

  private:
    int64_t value_;
};

// Keeps the result of a detached task.
template <class T = int64_t>
struct Outcome : Callback<T> {
    std::optional<T> result;
    int calls = 0;
    Outcome() {
        this->completed = [](Callback<T>* callback, T value) {
            Outcome* self = static_cast<Outcome*>(callback);
            self->result.emplace(std::move(value));
            self->calls++;
        };
    }
};

// Counts what happens to objects of it.
struct Counts {
    int made = 0, copied = 0, moved = 0, destroyed = 0;
    int alive() const { return made + copied + moved - destroyed; }
};
class Tracked {
  public:
    explicit Tracked(Counts& counts) : counts_(&counts), self_(this) { counts.made++; }
    Tracked(const Tracked& other) : counts_(other.counts_), self_(this) { counts_->copied++; }
    Tracked(Tracked&& other) noexcept : counts_(other.counts_), self_(this) { counts_->moved++; }
    Tracked& operator=(const Tracked&) = delete;
    ~Tracked() {
        counts_->destroyed++;
        if (self_ != this) abort();  // moved behind our back
        self_ = nullptr;
    }
    bool whole() const { return self_ == this; }

  private:
    Counts* counts_;
    const void* self_;
};

[[gnu::noinline]] uintptr_t stack_here() {
    return reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
}
size_t distance(uintptr_t a, uintptr_t b) {
    return a < b ? b - a : a - b;
}

// --- finishing at once, and later

Task<int64_t> at_once(Executor&, int64_t value) {
    co_return value;
}

Task<int64_t> later(Executor& executor, int64_t value) {
    Later operation(executor, value);
    int64_t result = co_await operation.done;
    co_return result;
}

Task<int64_t> twice_at_once(Executor& executor, int64_t value) {
    int64_t first = co_await at_once(executor, value);
    int64_t second = co_await at_once(executor, first);
    co_return first + second;
}

Task<int64_t> nested_at_once(Executor& executor) {
    int64_t a = co_await twice_at_once(executor, 3);
    int64_t b = co_await twice_at_once(executor, 4);
    co_return a* b;
}

TEST(what_finishes_at_once_suspends_nothing) {
    Executor executor;
    Task<int64_t> task = nested_at_once(executor);
    CHECK(task.done());
    CHECK(!executor.has_ready());
    CHECK_EQ(task.take(), 48);
}

Task<int64_t> add_later(Executor& executor, int64_t a, int64_t b) {
    int64_t x = co_await later(executor, a);
    int64_t y = co_await at_once(executor, b);
    co_return x + y;
}

Task<int64_t> chain_of_three(Executor& executor) {
    int64_t a = co_await add_later(executor, 1, 2);
    int64_t b = co_await add_later(executor, a, 10);
    int64_t c = co_await add_later(executor, b, 100);
    co_return c;
}

TEST(a_chain_of_three_resumes_each_awaiter) {
    Executor executor;
    Outcome<> outcome;
    Task<int64_t> task = chain_of_three(executor);
    CHECK(!task.done());
    start(executor, std::move(task), &outcome);
    CHECK_EQ(outcome.calls, 0);
    drain(executor);
    CHECK_EQ(outcome.calls, 1);
    CHECK_EQ(*outcome.result, 113);
    CHECK_EQ(executor.frames().in_use(), 0);
}

struct Depth {
    uintptr_t first = 0;
    size_t most = 0;
    void look() {
        uintptr_t here = stack_here();
        if (first == 0) first = here;
        size_t deep = distance(first, here);
        if (deep > most) most = deep;
    }
};

Task<int64_t> look_later(Executor& executor, Depth& depth) {
    depth.look();
    Later operation(executor, 1);
    int64_t result = co_await operation.done;
    depth.look();
    co_return result;
}

Task<int64_t> look_at_once(Executor&, Depth& depth) {
    depth.look();
    co_return 1;
}

Task<int64_t> many_awaits(Executor& executor, int count, bool suspend, Depth& depth) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) {
        if (suspend) {
            int64_t n = co_await look_later(executor, depth);
            sum += n;
        } else {
            int64_t n = co_await look_at_once(executor, depth);
            sum += n;
        }
        depth.look();
    }
    co_return sum;
}

TEST(a_hundred_thousand_awaits_in_a_row_use_one_stack_frame) {
    for (bool suspend : {false, true}) {
        Executor executor;
        Depth depth;
        Outcome<> outcome;
        start(executor, many_awaits(executor, 100000, suspend, depth), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, 100000);
        CHECK(depth.most < 16384);
    }
}

// --- depth

Task<int64_t> level_above(Executor&, Task<int64_t> below) {
    int64_t n = co_await below;
    co_return n + 1;
}

TEST(ten_thousand_suspended_levels_unwind_on_one_stack_frame) {
    Executor executor;
    constexpr int levels = 10000;
    Outcome<> outcome;
    auto chain = std::make_unique<Task<int64_t>>(later(executor, 5));
    for (int i = 0; i < levels; i++) {
        chain = std::make_unique<Task<int64_t>>(level_above(executor, std::move(*chain)));
        REQUIRE(!chain->done());
    }
    start(executor, std::move(*chain), &outcome);
    drain(executor);
    CHECK_EQ(*outcome.result, 5 + levels);
    CHECK_EQ(executor.frames().in_use(), 0);
}

Task<int64_t> descend(Executor& executor, int levels, Depth& down, Depth& up) {
    down.look();
    int64_t n;
    if (levels == 0) {
        n = co_await later(executor, 7);
    } else {
        n = co_await descend(executor, levels - 1, down, up);
    }
    up.look();
    co_return n + 1;
}

// The way down is made of ordinary calls and takes stack; the way up takes none.
TEST(a_recursive_task_unwinds_through_the_trampoline) {
    Executor executor;
    Depth down, up;
    Outcome<> outcome;
    constexpr int levels = 5000;
    start(executor, descend(executor, levels, down, up), &outcome);
    CHECK(down.most > 0);
    drain(executor);
    CHECK_EQ(*outcome.result, 8 + levels);
    CHECK(up.most < 16384);
    printf("     stack on the way down: %zu bytes a level\n", down.most / levels);
}

// --- memory that runs out

struct FailAt {
    size_t countdown;
    size_t seen = 0;
    explicit FailAt(size_t n) : countdown(n) {
        engine_set_allocation_hook(
            [](size_t, void* opaque) {
                FailAt* self = static_cast<FailAt*>(opaque);
                return self->seen++ == self->countdown ? 1 : 0;
            },
            this);
    }
    ~FailAt() { engine_set_allocation_hook(nullptr, nullptr); }
    FailAt(const FailAt&) = delete;
    FailAt& operator=(const FailAt&) = delete;
};

Task<int64_t> padded_leaf(Executor& executor, Tracked by_value, bool suspend) {
    char padding[300] = {};  // a size class of its own
    if (suspend) {
        Later operation(executor, 2);
        int64_t n = co_await operation.done;
        padding[n] = 1;
    }
    co_return by_value.whole() ? 1 + padding[0] : -EIO;
}

Task<int64_t> grow(Executor& executor, Counts& counts, bool suspend) {
    std::vector<Tracked, engine::base::Allocator<Tracked>> items;
    for (int i = 0; i < 3; i++) {
        items.emplace_back(counts);  // std::bad_alloc becomes the task's -ENOMEM
        Tracked local(counts);
        int64_t n = co_await padded_leaf(executor, local, suspend);
        if (n < 0) co_return n;
    }
    co_return static_cast<int64_t>(items.size());
}

Task<int64_t> grow_twice(Executor& executor, Counts& counts, bool suspend) {
    Tracked guard(counts);
    int64_t a = co_await grow(executor, counts, suspend);
    if (a < 0) co_return a;
    Task<int64_t> second = grow(executor, counts, suspend);
    int64_t b = co_await second;
    if (b < 0) co_return b;
    co_return a + b;
}

TEST(a_failed_allocation_anywhere_is_enomem_and_leaks_nothing) {
    for (bool suspend : {false, true}) {
        size_t k = 0;
        for (;; k++) {
            Counts counts;
            Executor executor;
            Outcome<> outcome;
            FailAt fail(k);
            start(executor, grow_twice(executor, counts, suspend), &outcome);
            drain(executor);
            CHECK_EQ(outcome.calls, 1);
            CHECK_EQ(counts.alive(), 0);
            CHECK_EQ(executor.frames().in_use(), 0);
            if (fail.seen <= k) {
                CHECK_EQ(*outcome.result, 6);
                break;
            }
            REQUIRE(*outcome.result == -ENOMEM);
        }
        CHECK(k >= 3 + 2 * 3);  // frames of three sizes, and each vector grew three times
    }
}

Task<int64_t> throws(Executor& executor, Counts& counts, bool suspend, bool other) {
    Tracked local(counts);
    if (suspend) {
        int64_t n = co_await later(executor, 1);
        if (n != 1) co_return -EIO;
    }
    if (other) throw 42;
    throw std::bad_alloc();
}

Task<int64_t> awaits_one_that_throws(Executor& executor, Counts& counts, bool suspend) {
    Tracked local(counts);
    int64_t n = co_await throws(executor, counts, suspend, false);
    co_return n;
}

TEST(bad_alloc_becomes_enomem) {
    for (bool suspend : {false, true}) {
        Counts counts;
        Executor executor;
        Outcome<> outcome;
        start(executor, awaits_one_that_throws(executor, counts, suspend), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, -ENOMEM);
        CHECK_EQ(counts.alive(), 0);
        CHECK_EQ(counts.made, 2);
    }
}

TEST(any_other_exception_aborts) {
    for (bool suspend : {false, true}) {
        CHECK_ABORTS("terminate", {
            Counts counts;
            Executor executor;
            Outcome<> outcome;
            start(executor, throws(executor, counts, suspend, true), &outcome);
            drain(executor);
        });
    }
}

// --- the life of objects

Task<int64_t> with_locals(Executor& executor, Counts& counts, bool suspend, bool early) {
    Tracked a(counts);
    const Tracked* where = &a;
    for (int i = 0; i < 2; i++) {
        Tracked b(counts);
        int64_t n = suspend ? 1 : 0;
        if (suspend) n = co_await later(executor, n);
        if (early && i == 1) co_return n;
        Tracked c(b);
        if (!b.whole() || !c.whole()) co_return -EIO;
    }
    co_return where == &a&& a.whole() ? 2 : -EIO;
}

TEST(locals_are_destroyed_exactly_once) {
    for (int choice = 0; choice < 4; choice++) {
        bool suspend = (choice & 1) != 0;
        bool early = (choice & 2) != 0;
        Counts counts;
        Executor executor;
        Outcome<> outcome;
        start(executor, with_locals(executor, counts, suspend, early), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, early ? (suspend ? 1 : 0) : 2);
        CHECK_EQ(counts.made, 3);
        CHECK_EQ(counts.copied, early ? 1 : 2);
        CHECK_EQ(counts.moved, 0);
        CHECK_EQ(counts.alive(), 0);
    }
}

Task<int64_t> by_value(Executor& executor, Tracked tracked, std::unique_ptr<int64_t> owned, bool suspend) {
    int64_t n = 1;
    if (suspend) n = co_await later(executor, n);
    co_return tracked.whole() ? n + *owned : -EIO;
}

Task<int64_t> passes_by_value(Executor& executor, Counts& counts, bool suspend) {
    Tracked tracked(counts);
    auto owned = std::make_unique<int64_t>(41);
    int64_t n = co_await by_value(executor, std::move(tracked), std::move(owned), suspend);
    co_return n;
}

TEST(a_parameter_by_value_is_moved_into_the_frame_once) {
    for (bool suspend : {false, true}) {
        Counts counts;
        Executor executor;
        Outcome<> outcome;
        start(executor, passes_by_value(executor, counts, suspend), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, 42);
        CHECK_EQ(counts.made, 1);
        CHECK_EQ(counts.copied, 0);
        CHECK_EQ(counts.moved, 2);  // into the parameter, from there into the frame
        CHECK_EQ(counts.alive(), 0);
    }
}

Task<int64_t> by_reference(Executor& executor, Tracked& tracked, const Tracked& same, Tracked&& also) {
    int64_t n = co_await later(executor, 1);
    co_return &tracked == &same && &tracked == &also&& tracked.whole() ? n : -EIO;
}

Task<int64_t> passes_by_reference(Executor& executor, Counts& counts) {
    Tracked tracked(counts);
    int64_t n = co_await by_reference(executor, tracked, tracked, std::move(tracked));
    co_return n;
}

TEST(a_parameter_by_reference_is_not_copied) {
    Counts counts;
    Executor executor;
    Outcome<> outcome;
    start(executor, passes_by_reference(executor, counts), &outcome);
    drain(executor);
    CHECK_EQ(*outcome.result, 1);
    CHECK_EQ(counts.made, 1);
    CHECK_EQ(counts.copied + counts.moved, 0);
    CHECK_EQ(counts.alive(), 0);
}

// --- results

struct Mapping {
    int64_t status = 0;
    std::unique_ptr<Tracked> owned;
    const int* entry = nullptr;

    Mapping() = default;
    explicit Mapping(TaskFailure failure) noexcept : status(failure.error) {}
};

Task<Mapping> look_up(Executor& executor, Counts& counts, const std::vector<int>& table, bool suspend) {
    Mapping mapping;
    mapping.owned = std::make_unique<Tracked>(counts);
    if (suspend) mapping.status = co_await later(executor, 3);
    mapping.entry = &table[2];
    co_return mapping;
}

Task<int64_t> uses_mapping(Executor& executor, Counts& counts, bool suspend) {
    std::vector<int> table{1, 2, 3};
    Mapping mapping = co_await look_up(executor, counts, table, suspend);
    const Mapping& reference = mapping;
    int64_t n = co_await later(executor, mapping.status);
    if (reference.entry != &table[2] || !reference.owned->whole()) co_return -EIO;
    co_return n + *mapping.entry;
}

TEST(a_result_may_be_a_struct_that_moves_only) {
    for (bool suspend : {false, true}) {
        Counts counts;
        Executor executor;
        Outcome<> outcome;
        start(executor, uses_mapping(executor, counts, suspend), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, suspend ? 6 : 3);
        CHECK_EQ(counts.made, 1);
        CHECK_EQ(counts.copied + counts.moved, 0);
        CHECK_EQ(counts.alive(), 0);
    }
}

TEST(a_struct_says_that_there_was_no_frame) {
    Counts counts;
    Executor executor;
    std::vector<int> table{1, 2, 3};
    FailAt fail(0);
    Task<Mapping> task = look_up(executor, counts, table, false);
    CHECK(task.done());
    CHECK_EQ(task.take().status, -ENOMEM);
    CHECK_EQ(counts.made, 0);
}

// --- members: the executor of the object

class Driver {
  public:
    explicit Driver(Executor& executor) : executor_(executor) {}
    virtual ~Driver() = default;
    Executor& executor() noexcept { return executor_; }
    virtual Task<int64_t> read(int64_t offset, std::unique_ptr<int64_t> bytes) = 0;
    Task<int64_t> read_twice(int64_t offset) {
        int64_t a = co_await read(offset, std::make_unique<int64_t>(1));
        int64_t b = co_await read(a, std::make_unique<int64_t>(2));
        co_return base_ + b;
    }

  protected:
    int64_t base_ = 1000;

  private:
    Executor& executor_;
};
class SlowDriver final : public Driver {
  public:
    using Driver::Driver;
    Task<int64_t> read(int64_t offset, std::unique_ptr<int64_t> bytes) override {
        int64_t n = co_await later(executor(), offset);
        co_return n + *bytes + base_;
    }
};
Task<int64_t> through_pointer(Driver* driver, int64_t offset) {
    int64_t n = co_await driver->read_twice(offset);
    co_return n;
}

TEST(members_and_virtual_members_may_be_tasks) {
    Executor executor;
    SlowDriver driver(executor);
    Outcome<> outcome;
    start(executor, through_pointer(&driver, 5), &outcome);
    drain(executor);
    CHECK_EQ(*outcome.result, 5 + 1 + 2 + 3000);
    CHECK_EQ(executor.frames().in_use(), 0);
}

// --- order

Task<int64_t> waits(Executor&, Completion<int64_t>& done, std::vector<int>& order, int name) {
    int64_t result = co_await done;
    order.push_back(name);
    co_return result;
}

TEST(waiters_resume_in_the_order_of_completion) {
    Executor executor;
    std::vector<int> order;
    Completion<int64_t> a(executor), b(executor), c(executor);
    Outcome<> outcomes[3];
    start(executor, waits(executor, a, order, 0), &outcomes[0]);
    start(executor, waits(executor, b, order, 1), &outcomes[1]);
    start(executor, waits(executor, c, order, 2), &outcomes[2]);
    c.complete(10);
    a.complete(11);
    CHECK(order.empty());  // never inside complete()
    drain(executor);
    b.complete(12);
    drain(executor);
    CHECK(order == (std::vector<int>{2, 0, 1}));
    CHECK_EQ(*outcomes[0].result, 11);
    CHECK_EQ(*outcomes[1].result, 12);
    CHECK_EQ(*outcomes[2].result, 10);
}

Task<int64_t> several_at_once(Executor& executor, Completion<int64_t>& slow) {
    std::vector<int> order;
    Task<int64_t> a = waits(executor, slow, order, 0);
    Task<int64_t> b = later(executor, 20);
    Task<int64_t> c = at_once(executor, 3);
    int64_t third = co_await c;
    int64_t second = co_await b;
    slow.complete(100);
    int64_t first = co_await a;
    co_return first + second + third;
}

TEST(children_may_run_side_by_side) {
    Executor executor;
    Completion<int64_t> slow(executor);
    Outcome<> outcome;
    start(executor, several_at_once(executor, slow), &outcome);
    drain(executor);
    CHECK_EQ(*outcome.result, 123);
    CHECK_EQ(executor.frames().in_use(), 0);
}

Task<int64_t> every_statement(Executor& executor, int choice) {
    int64_t sum = 0;
    switch (choice) {
        case 0: {
            int64_t n = co_await later(executor, 1);
            sum += n;
            break;
        }
        case 1: {
            int64_t n = co_await at_once(executor, 2);
            sum += n;
            [[fallthrough]];
        }
        default: {
            int i = 0;
            while (true) {
                int64_t n = co_await later(executor, i);
                if (n == 2) sum += 100;
                if (n == 4) break;
                i++;
            }
            do {
                int64_t n = co_await at_once(executor, --i);
                sum += n;
            } while (i > 0);
        }
    }
    for (int64_t item : {10, 20, 30}) {
        if (item == 20) continue;
        int64_t n = co_await later(executor, item);
        sum += n;
    }
    co_return sum;
}

TEST(an_await_may_stand_in_any_statement) {
    const int64_t expected[] = {41, 148, 146};
    for (int choice = 0; choice < 3; choice++) {
        Executor executor;
        Outcome<> outcome;
        start(executor, every_statement(executor, choice), &outcome);
        drain(executor);
        CHECK_EQ(*outcome.result, expected[choice]);
    }
}

// --- no allocation once warm

TEST(frames_come_from_the_pool_once_warm) {
    Executor executor;
    Depth depth;
    size_t allocations[2];
    for (size_t& count : allocations) {
        FailAt counting(SIZE_MAX);
        for (int i = 0; i < 100; i++) {
            Outcome<> outcome;
            start(executor, many_awaits(executor, 10, true, depth), &outcome);
            drain(executor);
            CHECK_EQ(*outcome.result, 10);
        }
        count = counting.seen;
    }
    CHECK(allocations[0] > 0);
    CHECK_EQ(allocations[1], 0);
}

}  // namespace
