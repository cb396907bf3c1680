// A context for what suspends, reduced to what a lock needs: the real executor and real tasks on a fiber, and
// a mailbox in place of the inbox. The mailbox is no subject here: seeded bugs leave it alone.
#pragma once

#include <functional>
#include <vector>

#include "coro/executor.hh"
#include "coro/task.hh"
#include "explorer.hh"

namespace explore {

namespace coro = engine::coro;

class Context final : public coro::Executor {
  public:
    int posted = 0;
    // Called by post(), on the thread that posts.
    std::function<void(coro::ReadyItem*)> look_at_posted;

    int post(coro::ReadyItem* item) noexcept override {
        if (look_at_posted) look_at_posted(item);
        order_.read_modify_write(Location::Change::add, 1, Order::acq_rel);
        mail_.push_back(item);
        posted++;
        event_.signal();
        return 0;
    }
    uint64_t now_ns() const noexcept override { return 1; }

    // Starts a task of this context, by its thread.
    void start(coro::Task<int64_t> task) {
        struct Started : coro::Callback<int64_t> {
            Context* context;
        };
        auto* started = new Started;
        started->context = this;
        started->completed = [](coro::Callback<int64_t>* callback, int64_t result) {
            auto* self = static_cast<Started*>(callback);
            require(result == 0, "a task failed");
            self->context->running_--;
            delete self;
        };
        running_++;
        coro::start(*this, std::move(task), static_cast<coro::Callback<int64_t>*>(started));
    }
    // The rest of the thread's body: until all of its tasks have ended.
    void run() {
        for (;;) {
            while (run_ready(100) != 0) {
            }
            if (running_ == 0) return;
            take_mail();
            if (!has_ready()) event_.wait();
        }
    }

  private:
    void take_mail() {
        order_.read_modify_write(Location::Change::add, 0, Order::acq_rel);
        for (coro::ReadyItem* item : std::exchange(mail_, {})) ready(item);
    }

    Location order_{0};
    Event event_;
    std::vector<coro::ReadyItem*> mail_;
    int running_ = 0;
};

// co_await hop: goes once through the ready queue, and lets others run.
class Hop : coro::ReadyItem {
  public:
    explicit Hop(coro::Executor& executor) : executor_(executor) {
        run = [](coro::ReadyItem* item) {
            auto* self = static_cast<Hop*>(item);
            point();
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

}  // namespace explore
