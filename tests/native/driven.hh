// Executors for the tests of what suspends: one driven by hand, with a clock that the test sets, and real
// contexts that run tasks. What a test shares with context threads is atomic or guarded by what is tested.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "aio/context.hh"
#include "aio/timer.hh"
#include "check.hh"
#include "coro/executor.hh"
#include "coro/task.hh"

namespace driven {

namespace coro = engine::coro;

// Driven by hand. What is posted waits for the next drain().
class Executor final : public coro::Executor {
  public:
    uint64_t clock_ns = 1000;
    unsigned posted = 0;
    bool refuses = false;
    int arming_answers = 0;  // -errno: no timer is to be had
    engine::aio::TimerHeap timers;

    int post(coro::ReadyItem* item) noexcept override {
        std::lock_guard guard(mutex_);
        if (refuses) return -ESHUTDOWN;
        posted++;
        inbox_.push(item);
        return 0;
    }
    uint64_t now_ns() const noexcept override { return clock_ns; }
    int arm(engine::base::Timer* timer, uint64_t deadline_ns) noexcept override {
        return arming_answers == 0 ? timers.arm(timer, deadline_ns) : arming_answers;
    }
    void disarm(engine::base::Timer* timer) noexcept override { timers.cancel(timer); }

    // The clock goes on, timers fire, and everything runs.
    void advance_to(uint64_t ns) {
        clock_ns = ns;
        timers.run_due(ns, 1000);
        drain();
    }

    // Runs everything, what comes meanwhile included, and returns how many items.
    unsigned drain() {
        unsigned count = 0;
        for (;;) {
            {
                std::lock_guard guard(mutex_);
                while (coro::ReadyItem* item = inbox_.pop()) ready(item);
            }
            unsigned ran = run_ready(1000);
            if (ran == 0) return count;
            count += ran;
        }
    }

  private:
    std::mutex mutex_;
    engine::base::Queue<coro::ReadyItem> inbox_;
};

// Keeps the result of a detached task.
template <class T = int64_t>
struct Outcome : coro::Callback<T> {
    std::optional<T> result;
    Outcome() {
        this->completed = [](coro::Callback<T>* callback, T value) {
            static_cast<Outcome*>(callback)->result.emplace(std::move(value));
        };
    }
    bool done() const { return result.has_value(); }
};

// co_await hop: goes once through the ready queue.
class Hop : coro::ReadyItem {
  public:
    explicit Hop(coro::Executor& executor) : executor_(executor) {
        run = [](coro::ReadyItem* item) {
            auto* self = static_cast<Hop*>(item);
            self->executor_.resume(self->task_);
        };
    }
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> task) noexcept {
        task_ = task;
        executor_.ready(this);
    }
    void await_resume() const noexcept {}

  private:
    coro::Executor& executor_;
    std::coroutine_handle<> task_;
};

// Real contexts, closed in the end.
class Contexts {
  public:
    explicit Contexts(unsigned count) {
        for (unsigned i = 0; i < count; i++) {
            engine::aio::ContextConfig config;
            config.name = "io" + std::to_string(i);
            config.poll_max_ns = 0;
            std::unique_ptr<engine::aio::AioContext> context;
            REQUIRE(engine::aio::AioContext::create(std::move(config), &context, nullptr) == 0);
            contexts_.push_back(std::move(context));
        }
    }
    ~Contexts() {
        for (auto& context : contexts_) context->stop();
    }
    Contexts(const Contexts&) = delete;
    Contexts& operator=(const Contexts&) = delete;

    engine::aio::AioContext& operator[](unsigned i) { return *contexts_[i]; }
    unsigned size() const { return static_cast<unsigned>(contexts_.size()); }

    // Starts task(context, i) `tasks` times on each context, i counting through all of them, and waits for
    // the results, the sum of which it returns.
    template <class F>
    int64_t run(unsigned tasks, F&& task) {
        struct Started : coro::Callback<int64_t> {
            engine::aio::Signal over;
            int64_t result = 0;
        };
        std::vector<std::unique_ptr<Started>> all;
        for (unsigned i = 0; i < tasks * size(); i++) {
            auto& started = all.emplace_back(std::make_unique<Started>());
            started->completed = [](coro::Callback<int64_t>* callback, int64_t value) {
                auto* self = static_cast<Started*>(callback);
                self->result = value;
                self->over.set();
            };
        }
        for (unsigned c = 0; c < size(); c++) {
            (*this)[c].call_and_wait([&] {
                for (unsigned i = c; i < all.size(); i += size()) {
                    coro::start((*this)[c], task((*this)[c], i),
                                static_cast<coro::Callback<int64_t>*>(all[i].get()));
                }
            });
        }
        int64_t sum = 0;
        for (auto& started : all) {
            started->over.wait();
            sum += started->result;
        }
        return sum;
    }

  private:
    std::vector<std::unique_ptr<engine::aio::AioContext>> contexts_;
};

}  // namespace driven
