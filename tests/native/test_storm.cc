// A storm over contexts: foreign threads schedule one-shots and reusable bottom halves, arm, cancel and
// delete timers, and have descriptors watched, while the contexts under them close. What was accepted happens
// exactly once, what was refused never. The figures are atomic; each thread marks its own entries.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <deque>
#include <memory>
#include <thread>

#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;

constexpr unsigned contexts_count = 3;
constexpr unsigned threads_count = 3;

struct Shot {
    std::atomic<uint32_t> runs{0};
    bool accepted = false;
    static void run(void* opaque) {
        static_cast<Shot*>(opaque)->runs.fetch_add(1, std::memory_order_relaxed);
    }
};

struct Alarm {
    std::atomic<uint32_t> outcomes{0};
    uint32_t armings = 0;
    static void done(void* opaque, int) {
        static_cast<Alarm*>(opaque)->outcomes.fetch_add(1, std::memory_order_relaxed);
    }
};

class Worker {
  public:
    Worker(engine_context_t* const* contexts, unsigned seed) : contexts_(contexts), state_(seed * 7919 + 1) {}

    void work(const std::atomic<bool>& over) {
        while (!over.load(std::memory_order_relaxed)) step();
        // The contexts that are gone refuse; those that are left still work.
        for (int i = 0; i < 200; i++) step();
    }
    void check() const {
        uint32_t accepted = 0;
        for (const Shot& shot : shots_) {
            accepted += shot.accepted ? 1 : 0;
            CHECK_EQ(shot.runs.load(), shot.accepted ? 1u : 0u);
        }
        CHECK(accepted > 0);
        for (const Alarm& alarm : alarms_) {
            CHECK(alarm.outcomes.load() <= alarm.armings);
            CHECK_EQ(alarm.outcomes.load() != 0, alarm.armings != 0);
        }
        for (const Shot& reused : reused_) CHECK(reused.accepted || reused.runs.load() == 0);
    }

  private:
    unsigned below(unsigned bound) {
        state_ = state_ * 6364136223846793005 + 1442695040888963407;
        return static_cast<unsigned>((state_ >> 33) % bound);
    }
    void step() {
        engine_context_t* context = contexts_[below(contexts_count)];
        switch (below(16)) {
            case 0:
                timer(context);
                break;
            case 1:
                descriptor(context);
                break;
            case 2:
                bottom_half(context);
                break;
            default:
                one_shot(context);
                break;
        }
    }
    void one_shot(engine_context_t* context) {
        if (shots_.size() >= 50000) return;
        Shot& shot = shots_.emplace_back();
        int result = engine_schedule_oneshot(context, Shot::run, &shot);
        CHECK(result == 0 || result == -ESHUTDOWN);
        shot.accepted = result == 0;
    }
    // Several schedules of one that waits are one run: at most as many runs as schedules that were accepted.
    void bottom_half(engine_context_t* context) {
        if (reused_.size() >= 5000) return;
        Shot& shot = reused_.emplace_back();
        engine_bh_t* bh = engine_bh_new(context, Shot::run, &shot);
        REQUIRE(bh != nullptr);
        for (unsigned i = below(5); i-- != 0;) {
            shot.accepted |= engine_bh_schedule(bh) == 0;
            if (below(4) == 0) engine_bh_cancel(bh);
        }
        engine_bh_delete(bh);
    }
    void timer(engine_context_t* context) {
        if (alarms_.size() >= 5000) return;
        Alarm& alarm = alarms_.emplace_back();
        engine_timer_t* timer = engine_timer_new(context, Alarm::done, &alarm);
        REQUIRE(timer != nullptr);
        for (unsigned i = below(4); i-- != 0;) {
            int result = engine_timer_arm(timer, engine_now_ns() + below(50000));
            CHECK(result == 0 || result == -ESHUTDOWN);
            alarm.armings += result == 0 ? 1 : 0;
            if (below(2) == 0) engine_timer_cancel(timer);
        }
        engine_timer_delete(timer);
    }
    // Once it is deleted no callback runs: what it uses may go at once.
    void descriptor(engine_context_t* context) {
        int fd = eventfd(below(2), EFD_CLOEXEC | EFD_NONBLOCK);
        auto calls = std::make_unique<std::atomic<uint32_t>>(0);
        engine_fd_handler_t* handler = nullptr;
        Error error;
        auto count = [](void* opaque) { static_cast<std::atomic<uint32_t>*>(opaque)->fetch_add(1); };
        auto look = [](void*) { return 0; };
        int result = engine_fd_handler_new(context, fd, count, nullptr, below(2) == 0 ? +look : nullptr,
                                           calls.get(), &handler, &error);
        CHECK(result == 0 || result == -ESHUTDOWN);
        if (result == 0) engine_fd_handler_delete(handler);
        calls.reset();
        close(fd);
    }

    engine_context_t* const* contexts_;
    uint64_t state_;
    std::deque<Shot> shots_;
    std::deque<Shot> reused_;
    std::deque<Alarm> alarms_;
};

void storm(uint32_t locking, uint32_t backend, int64_t poll_max_ns) {
    std::deque<Worker> workers;
    {
        Engine engine(locking);
        engine_context_t* contexts[contexts_count];
        const char* const names[] = {"io0", "io1", "io2"};
        for (unsigned i = 0; i < contexts_count; i++)
            contexts[i] = engine.context(names[i], backend, poll_max_ns);
        std::atomic<bool> over{false};
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < threads_count; i++) {
            Worker& worker = workers.emplace_back(contexts, i);
            threads.emplace_back([&worker, &over] { worker.work(over); });
        }
        for (unsigned i = 0; i + 1 < contexts_count; i++) {  // the last one lives on
            usleep(20000);
            Error error;
            CHECK_EQ(engine_context_close(contexts[i], &error), 0);
        }
        usleep(20000);
        over = true;
        for (std::thread& thread : threads) thread.join();
    }
    for (const Worker& worker : workers) worker.check();
}

TEST(storm_over_io_uring) {
    for (int i = 0; i < 5; i++)
        storm(ENGINE_LOCKING_PER_NODE, ENGINE_BACKEND_IO_URING, i % 2 == 0 ? 0 : 50000);
}
TEST(storm_over_threads) {
    for (int i = 0; i < 5; i++)
        storm(ENGINE_LOCKING_PER_NODE, ENGINE_BACKEND_THREADS, i % 2 == 0 ? 0 : 50000);
}
TEST(storm_under_the_global_lock) {
    for (uint32_t backend : both_backends) storm(ENGINE_LOCKING_GLOBAL, backend, 0);
}

}  // namespace
