// Requests that a task makes of its node's children, side by side, and slices of a vector for them. They come
// from a pool of the channel; home thread of its context.
//
//   good: ChildRequests parts(channel, pool, &request);
//         ChildRequest* part = parts.make(Op::read, offset, length);
//         if (part != nullptr && cursor.give(*part)) parts.submit(part, child);
//         int64_t result = co_await parts;      once, in any case, after the last submit: the first failure
#pragma once

#include "block/node.hh"
#include "block/request_pool.hh"
#include "block/vector.hh"
#include "coro/completion.hh"

namespace engine::block {

class ChildRequests;

struct ChildRequest : Request {
    ChildRequests* group = nullptr;
    base::Owner<iovec[]> vector;  // of a slice that is in several parts
};

class ChildRequests {
  public:
    using Pool = RequestPool<ChildRequest>;

    // `origin`: for whom; null where it is the node itself.
    ChildRequests(Channel& channel, Pool& pool, const Request* origin) noexcept
        : channel_(channel), pool_(pool), origin_(origin), done_(channel.executor()) {}
    ChildRequests(const ChildRequests&) = delete;
    ChildRequests& operator=(const ChildRequests&) = delete;
    ~ChildRequests() { ENGINE_CHECK(outstanding_ == 0); }

    // Null when memory is short, which is a failure of the group. Else submit() or discard() follows.
    ChildRequest* make(Op op, uint64_t offset, uint64_t length) noexcept {
        ChildRequest* part = pool_.get();
        if (part == nullptr) {
            fail(-ENOMEM);
            return nullptr;
        }
        part->group = this;
        part->complete = completed;
        part->op = op;
        part->offset = offset;
        part->length = length;
        part->iov = nullptr;
        part->iov_count = 0;
        part->flags = 0;
        part->frame = nullptr;
        part->extents = nullptr;
        part->extent_capacity = 0;
        part->id = origin_ != nullptr ? origin_->id : channel_.context->next_request_id();
        part->trace = origin_ != nullptr ? origin_->trace : nullptr;
        part->error = origin_ != nullptr ? origin_->error : nullptr;
        return part;
    }
    void submit(ChildRequest* part, size_t child) noexcept {
        outstanding_++;
        submit_child(*channel_.children[child], part);
    }
    // Was made, and is not to be submitted after all.
    void discard(ChildRequest* part, int64_t result) noexcept {
        fail(result);
        give_back(part);
    }
    void fail(int64_t result) noexcept {
        if (result_ >= 0) result_ = result;
    }

    // For co_await.
    bool await_ready() const noexcept { return outstanding_ == 0; }
    void await_suspend(std::coroutine_handle<> task) noexcept {
        waited_for_ = true;
        done_.await_suspend(task);
    }
    // That of the last one to complete, or the first failure.
    int64_t await_resume() const noexcept { return result_; }

  private:
    static void completed(Request* request) {
        auto* part = static_cast<ChildRequest*>(request);
        ChildRequests& group = *part->group;
        if (group.result_ >= 0) group.result_ = part->result;
        group.give_back(part);
        if (--group.outstanding_ == 0 && group.waited_for_) group.done_.complete(0);
    }
    void give_back(ChildRequest* part) noexcept {
        part->vector.reset();
        pool_.put(part);
    }

    Channel& channel_;
    Pool& pool_;
    const Request* origin_;
    coro::Completion<int> done_;
    int64_t result_ = 0;
    unsigned outstanding_ = 0;
    bool waited_for_ = false;
};

// A place in a request's vector, of which child requests get slices.
class SliceCursor : public VectorCursor {
  public:
    explicit SliceCursor(const Request& request) noexcept : VectorCursor(request.iov, request.iov_count) {}

    // The next part.length bytes become the buffer of `part`. False: no memory.
    bool give(ChildRequest& part) noexcept {
        iovec one{};
        uint64_t bytes = 0;
        slice(part.length, std::span(&one, 1), &bytes);
        if (bytes == part.length) {
            part.set_buffer(one.iov_base, one.iov_len);
        } else {
            size_t count = parts(part.length);
            part.vector = base::make_array<iovec>(count);
            if (part.vector == nullptr) return false;
            part.iov = part.vector.get();
            part.iov_count = slice(part.length, std::span(part.vector.get(), count), &bytes);
        }
        advance(bytes);
        return true;
    }
};

}  // namespace engine::block
