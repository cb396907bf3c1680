// Lanes.
#include "lanes.hh"

#include <algorithm>
#include <cstring>

#include "block/port.hh"

namespace lab {

using engine::api::unwrap;
using engine::block::Op;

// --- straight into a port

DirectLane::DirectLane(Director& director, std::string name, engine_user_t* user, engine_context_t* context,
                       unsigned depth, Grain grain)
    : Lane(director, std::move(name)), context_(context), grain_(grain) {
    embedder::Error error;
    REQUIRE(engine::block::open_port(unwrap(user), unwrap(context), &port_, &error) == 0);
    for (unsigned i = 0; i < depth; i++) {
        tickets_.push_back(std::make_unique<Ticket>());
        tickets_.back()->lane = this;
    }
}

void DirectLane::start() {
    running_ = static_cast<unsigned>(tickets_.size());
    REQUIRE(engine_schedule_oneshot(
                context_,
                [](void* opaque) {
                    auto* self = static_cast<DirectLane*>(opaque);
                    for (auto& ticket : self->tickets_) self->strike(*ticket);
                },
                this) == 0);
}

void DirectLane::strike(Ticket& ticket) {
    if (!director_.draw(ticket.job, grain_, name_)) {
        running_--;
        return;
    }
    Job& job = ticket.job;
    ticket.op = static_cast<Op>(job.op);
    ticket.flags = job.flags;
    ticket.offset = job.offset;
    ticket.length = job.length;
    ticket.error = &job.error;
    ticket.iov = nullptr;
    ticket.iov_count = 0;
    ticket.frame = nullptr;
    if (job.data != nullptr) {
        static_assert(sizeof(iovec) == sizeof(engine_iovec));
        ticket.iov = reinterpret_cast<const iovec*>(job.parts.data());
        ticket.iov_count = static_cast<uint32_t>(job.parts.size());
    }
    ticket.extents = job.extents.data();
    ticket.extent_capacity = static_cast<uint32_t>(job.extents.size());
    ticket.complete = [](engine::block::Request* request) {
        auto* self = static_cast<Ticket*>(request);
        self->lane->ended(*self);
    };
    ticket.in_flight = true;
    engine::block::submit(*port_, &ticket);
}

void DirectLane::ended(Ticket& ticket) {
    ticket.in_flight = false;
    Job& job = ticket.job;
    if (job.cancelled) director_.reach_cancelled(ticket.result == -ECANCELED);
    director_.ended(job, ticket.result, name_);
    if (director_.random().below(16) == 0) {
        Ticket& other = *tickets_[director_.random().below(tickets_.size())];
        if (other.in_flight && !other.job.cancelled) {
            other.job.cancelled = true;
            engine::block::cancel(*port_, &other);
        }
    }
    strike(ticket);
}

// --- arrays and a completion queue

AsyncLane::AsyncLane(Director& director, std::string name, engine_t* engine, engine_user_t* user,
                     engine_context_t* context, unsigned depth)
    : Lane(director, std::move(name)), user_(user), context_(context), depth_(depth) {
    embedder::Error error;
    REQUIRE(engine_cq_create(engine, &queue_, &error) == 0);
}

void AsyncLane::submit() {
    uint64_t room = depth_ - jobs_.size();
    uint64_t count = 1 + director_.random().below(room);
    std::vector<engine_request> requests;
    for (uint64_t i = 0; i < count; i++) {
        auto job = std::make_unique<Job>();
        if (!director_.draw(*job, Grain{}, name_)) {
            dry_ = true;
            break;
        }
        engine_request request{};
        request.size = sizeof request;
        request.op = job->op;
        request.flags = job->flags;
        request.token = reinterpret_cast<uint64_t>(job.get());
        request.offset = job->offset;
        request.bytes = job->length;
        if (job->data != nullptr && job->parts.size() == 1) {
            request.buffer = job->parts[0].base;
        } else if (job->data != nullptr) {
            request.iov = job->parts.data();
            request.iov_count = static_cast<uint32_t>(job->parts.size());
        }
        request.extents = job->extents.data();
        request.extent_capacity = static_cast<uint32_t>(job->extents.size());
        requests.push_back(request);
        jobs_.push_back(std::move(job));
    }
    if (requests.empty()) return;
    embedder::Error error;
    int result = engine_submit(queue_, user_, context_, requests.data(), requests.size(), &error);
    check::report(result == 0, __FILE__, __LINE__, std::string("engine_submit: ") + error.message);
    if (result != 0) throw check::Failure();
}

bool AsyncLane::pump() {
    if (running_ == 0) return false;
    engine_completion done[8];
    int64_t count = engine_cq_drain(queue_, done, 8);
    REQUIRE(count >= 0);
    for (int64_t i = 0; i < count; i++) {
        auto found = std::find_if(jobs_.begin(), jobs_.end(), [&](const std::unique_ptr<Job>& job) {
            return reinterpret_cast<uint64_t>(job.get()) == done[i].token;
        });
        REQUIRE(found != jobs_.end());  // completed once
        std::unique_ptr<Job> job = std::move(*found);
        jobs_.erase(found);
        if (done[i].error != nullptr) job->error = *done[i].error;
        if (job->cancelled) director_.reach_cancelled(done[i].result == -ECANCELED);
        director_.ended(*job, done[i].result, name_);
    }
    bool busy = count != 0;
    if (!dry_ && jobs_.size() < depth_ && director_.random().below(4) == 0) {
        submit();
        busy = true;
    }
    if (!jobs_.empty() && director_.random().below(400) == 0) {
        Job& job = *jobs_[director_.random().below(jobs_.size())];
        job.cancelled = true;
        REQUIRE(engine_cancel(queue_, reinterpret_cast<uint64_t>(&job)) >= 0);
        busy = true;
    }
    if (dry_ && jobs_.empty()) running_ = 0;
    return busy;
}

void AsyncLane::close() {
    embedder::Error error;
    CHECK_EQ(engine_cq_close(queue_, &error), 0);
}

// --- through a virtqueue

QueueLane::QueueLane(Director& director, std::string name, engine_queue_t* queue, engine_context_t* context,
                     unsigned depth, bool writethrough)
    : Lane(director, std::move(name)), context_(context), jobs_(depth) {
    grain_ = {
        .bytes = 512, .longest = bytes_each, .questions = false, .flags = false, .all_durable = writethrough};
    call_ = new engine::aio::BottomHalf(*unwrap(context), [](void*) {}, nullptr);
    engine::virtio::CallNotifier notifier{
        [](void* opaque) { static_cast<engine::aio::BottomHalf*>(opaque)->schedule(); }, call_};
    embedder::Error error;
    auto& device = *reinterpret_cast<engine::virtio::BlkQueue*>(queue);
    int result = driver_.attach(device, depth, bytes_each, notifier, &error);
    check::report(result == 0, __FILE__, __LINE__, std::string("attach: ") + error.message);
    if (result != 0) throw check::Failure();
}

void QueueLane::start() {
    running_ = static_cast<unsigned>(jobs_.size());
    REQUIRE(engine_schedule_oneshot(
                context_,
                [](void* opaque) {
                    auto* self = static_cast<QueueLane*>(opaque);
                    unwrap(self->context_)->add_poller(self);
                    for (uint32_t slot = 0; slot < self->jobs_.size(); slot++) self->issue(slot);
                    self->driver_.publish();
                },
                this) == 0);
}

void QueueLane::issue(uint32_t slot) {
    using namespace engine::virtio;
    Job& job = jobs_[slot];
    if (!director_.draw(job, grain_, name_)) {
        running_--;
        return;
    }
    BlkType type = job.op == ENGINE_OP_READ      ? blk_in
                   : job.op == ENGINE_OP_WRITE   ? blk_out
                   : job.op == ENGINE_OP_FLUSH   ? blk_flush
                   : job.op == ENGINE_OP_DISCARD ? blk_discard
                                                 : blk_write_zeroes;
    if (type == blk_out) memcpy(driver_.data(slot), job.data, job.length);
    uint32_t unmap = (job.flags & ENGINE_MAY_UNMAP) != 0 ? blk_range_unmap : 0;
    bool added = driver_.add(slot, type, job.offset, type == blk_flush ? 0 : job.length,
                             type == blk_write_zeroes ? unmap : 0);
    REQUIRE(added);
}

bool QueueLane::poll() {
    uint32_t slot;
    engine::virtio::BlkStatus status;
    bool progress = false;
    while (driver_.reap(&slot, &status)) {
        progress = true;
        Job& job = jobs_[slot];
        if (job.op == ENGINE_OP_READ) memcpy(job.data, driver_.data(slot), job.length);
        int64_t result = status == engine::virtio::blk_ok            ? 0
                         : status == engine::virtio::blk_unsupported ? -ENOTSUP
                                                                     : -EIO;
        director_.ended(job, result, name_);
        issue(slot);
    }
    driver_.publish();
    return progress;
}

void QueueLane::close() {
    // On its home: the context looks at it no more.
    CHECK_EQ(unwrap(context_)->call_and_wait([this] { unlink(); }), 0);
    driver_.detach();
    engine::aio::BottomHalf::destroy(call_);
}

}  // namespace lab
