// Completion queues, the side of the contexts: batches are submitted and completed here, on the home thread
// of their context. No lock.
#include <cerrno>
#include <utility>

#include "base/error.hh"
#include "block/completion_queue.hh"
#include "block/entry.hh"

namespace engine::block {

namespace {

constexpr unsigned submit_budget = 256;  // requests of one batch in a row, so that others get their turn

// One that was asked to stop before it was begun.
void describe_cancelled(AsyncRequest& request) noexcept {
    const char* name = request.batch->port->channel->node->control->name.c_str();
    base::fail(&request.failure, ENGINE_ERROR_OS, ECANCELED,
               {.node = name, .operation = op_name(request.op), .offset = request.offset},
               "node %s: %s of %lu bytes at offset %lu was cancelled before it was begun", name,
               op_name(request.op), request.length, request.offset);
    request.outcome = -ECANCELED;
    request.failed = true;
}

}  // namespace

void CompletionQueue::submit_batch(aio::Message* message) noexcept {
    auto* batch = static_cast<Batch*>(message);
    aio::AioContext* context = batch->lane->context;
    for (unsigned budget = submit_budget;; budget--) {
        if (budget == 0) {
            context->ready(batch);
            return;
        }
        AsyncRequest* request = batch->first;
        batch->first = request->sibling;
        bool last = batch->first == nullptr;
        if (ENGINE_UNLIKELY(request->cancelled.load_acquire())) {
            describe_cancelled(*request);
            request->run = [](aio::Message* self) { finish(static_cast<AsyncRequest*>(self)); };
            context->ready(request);
        } else {
            request->under_way = true;
            block::submit(*batch->port, request);
        }
        if (last) return;
    }
}

void CompletionQueue::complete(Request* request) noexcept {
    auto* self = static_cast<AsyncRequest*>(request);
    bool data = self->op == Op::read || self->op == Op::write;
    if (ENGINE_LIKELY(self->result >= 0)) {
        self->outcome = data ? static_cast<int64_t>(self->length) : self->result;
    } else {
        self->outcome = self->result;
        self->failed = true;
        describe_failure(&self->failure, *self, static_cast<int>(-self->result));
    }
    finish(self);
}

// What the batch holds is let go before the last push, so that who drained it may close its user; it is over
// after it, so that who waited for it finds all of it in the queue. Until it is over nobody uses the batch
// again; the request belongs to whoever drains from its push on.
void CompletionQueue::finish(AsyncRequest* request) noexcept {
    request->under_way = false;
    Batch* batch = request->batch;
    Lane* lane = batch->lane;
    bool last = --batch->left == 0;
    if (last) end_use(batch->user, lane->context);
    bool wake = lane->queue->done_.push(request) == aio::Push::wake;
    if (last && batch->over.has_value()) batch->over->set();
    if (wake && lane->owed++ == 0) lane->context->ready(&lane->notice);
}

// Home thread. What has completed may wait to be drained: it keeps its token until then. Nothing completes in
// here, so the table stays as it is.
void CompletionQueue::stop(uint64_t token, const aio::AioContext* here) noexcept {
    base::Guard guard(mutex_);
    tokens_.for_each(token, [&](AsyncRequest* request) {
        if (request->batch->lane->context == here && request->under_way) {
            block::cancel(*request->batch->port, request);
        }
    });
}

// Behind all that was ready when the first of them completed: one write for them all.
void CompletionQueue::notify(aio::Message* message) noexcept {
    Lane* lane = static_cast<Lane::Notice*>(message)->lane;
    lane->notifications.increment();
    lane->queue->write_descriptor(std::exchange(lane->owed, 0));
}

}  // namespace engine::block
