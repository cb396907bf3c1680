// Passes of background work: kicked from anywhere, run on the home.
#include "block/home_work.hh"

#include <utility>

namespace engine::block {

HomeWork::HomeWork(Pass pass) noexcept : pass_(pass) {
    kick_.work = this;
    kick_.run = [](aio::Message* message) { static_cast<Kick*>(message)->work->go_on(0); };
    pass_end_.work = this;
    pass_end_.completed = [](coro::Callback<int>* callback, int result) {
        static_cast<PassEnd*>(callback)->work->go_on(result);
    };
}

// The context is open for as long as it is the home.
void HomeWork::send() noexcept {
    active_ = home_->context->send(&kick_) == 0;
}

void HomeWork::kick() noexcept {
    base::Guard guard(mutex_);
    wanted_ = true;
    if (home_ != nullptr && !active_) send();
}

void HomeWork::start(Channel& home) noexcept {
    base::Guard guard(mutex_);
    ENGINE_CHECK(home_ == nullptr && !active_);
    home_ = &home;
    if (wanted_) send();
}

// On the home: after the kick, or a pass that ended with `result`.
void HomeWork::go_on(int result) noexcept {
    Channel* home = nullptr;
    {
        base::Guard guard(mutex_);
        if (result < 0) wanted_ = true;
        if (result >= 0 && wanted_) home = home_;
        (home != nullptr ? wanted_ : active_) = false;
    }
    if (home != nullptr) {
        coro::start(home->executor(), pass_(*home), static_cast<coro::Callback<int>*>(&pass_end_));
    } else if (coro::Completion<int>* waiter = std::exchange(waiter_, nullptr)) {
        waiter->complete(0);
    }
}

coro::Task<int> HomeWork::stop(Channel& home) {
    bool busy;
    {
        base::Guard guard(mutex_);
        home_ = nullptr;
        busy = active_;
    }
    if (busy) {
        coro::Completion<int> rest(home.executor());
        ENGINE_CHECK(std::exchange(waiter_, &rest) == nullptr);
        co_await rest;
    }
    co_return 0;
}

// May the caller run a pass of its own? Then end_turn() follows.
HomeWork::Turn HomeWork::take_turn() noexcept {
    base::Guard guard(mutex_);
    if (active_) return Turn::busy;
    if (!wanted_) return Turn::idle;
    wanted_ = false;
    active_ = true;
    return Turn::mine;
}

void HomeWork::end_turn(int result) noexcept {
    base::Guard guard(mutex_);
    active_ = false;
    if (result < 0) wanted_ = true;
}

coro::Task<int> HomeWork::settle(Channel& home) {
    for (;;) {
        Turn turn = take_turn();
        if (turn == Turn::idle) co_return 0;
        if (turn == Turn::mine) {
            int result = co_await pass_(home);
            end_turn(result);
            if (result < 0) co_return result;
        } else {
            coro::Completion<int> rest(home.executor());
            ENGINE_CHECK(std::exchange(waiter_, &rest) == nullptr);
            co_await rest;
        }
    }
}

}  // namespace engine::block
