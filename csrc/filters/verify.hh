// The verify filter: two children that are to hold the same, `file` and `reference`. Every change goes to
// both; what is read comes from both and is compared.
//
// Children agree only where both see changes in one order, and reads at one point between them. So each
// request is in a tree of the node's (block/track.hh, of which only the tree is used): it waits for older
// ones that overlap it, where one of the two is a change; the rest goes on side by side, on all contexts.
// Memory for what is compared is taken before the tree, as track.hh demands: who waits in the tree waits for
// requests that have all they need.
//
// The tree is guarded by its `reqs`; all else is the home thread's of the request's context.
#pragma once

#include <span>

#include "block/bounce.hh"
#include "block/node.hh"
#include "block/request_pool.hh"
#include "block/track.hh"
#include "coro/cancel.hh"

namespace engine::filters {

// In the order of the driver's roles.
constexpr size_t file_child = 0;
constexpr size_t reference_child = 1;
constexpr const char* child_roles[] = {"file", "reference"};

struct Verify {
    block::Tracking order;
    base::Atomic<uint64_t> differences{0};  // found, on all contexts
};
struct VerifyState {
    Verify* verify;
};

struct Work;

// What a child is asked in the course of a request; its error is kept apart until the other has answered.
struct Leg : block::Request {
    Work* work = nullptr;
    bool used = false;  // in this round
    bool under_way = false;
    engine_error trouble{};
};

class Round;

// A request that is served by a task.
struct Work : coro::Callback<int64_t>, base::Link {
    block::Request* request = nullptr;
    coro::CancelSource* source = nullptr;
    Round* round = nullptr;
    Leg legs[2];
};

struct VerifyChannel {
    block::RequestPool<Work> works;
    base::List<Work> under_way;
};

// Requests to the children side by side, one to each at most. Lives in the frame of the task that awaits it.
class Round {
  public:
    Round(block::Channel& channel, Work& work) noexcept
        : channel_(channel), work_(work), done_(channel.executor()) {
        work.round = this;
        for (Leg& leg : work.legs) leg.used = false;
    }
    Round(const Round&) = delete;
    Round& operator=(const Round&) = delete;
    ~Round() { ENGINE_CHECK(outstanding_ == 0); }

    // submit() follows.
    Leg& make(size_t child, block::Op op, uint64_t offset, uint64_t length) noexcept;
    void submit(Leg& leg) noexcept;

    // For co_await, once, after the last submit.
    bool await_ready() const noexcept { return outstanding_ == 0; }
    void await_suspend(std::coroutine_handle<> task) noexcept {
        waited_for_ = true;
        done_.await_suspend(task);
    }
    int await_resume() const noexcept { return 0; }

  private:
    static void completed(block::Request* request);

    block::Channel& channel_;
    Work& work_;
    coro::Completion<int> done_;
    unsigned outstanding_ = 0;
    bool waited_for_ = false;
};

// --- verify_io.cc
void verify_submit(block::Channel& channel, block::Request* request);
void verify_cancel(block::Channel& channel, block::Request* request);

// --- verify_report.cc: what goes wrong, in request.error, and -errno

// Of the last round: 0, or the failure of a child, of `file` where both have failed.
int64_t outcome(const Work& work) noexcept;
int64_t was_cancelled(const block::Request& request) noexcept;
int64_t no_memory(const block::Request& request) noexcept;
// That they differ at `at`, and what they have from there on. Also said in the log.
int64_t differ(Verify& verify, const block::Request& request, uint64_t at, std::span<const std::byte> file,
               std::span<const std::byte> reference) noexcept;
// `file` says that it reads as zeroes from `at` on.
int64_t not_zero(Verify& verify, const block::Request& request, uint64_t at,
                 std::span<const std::byte> reference) noexcept;

}  // namespace engine::filters
