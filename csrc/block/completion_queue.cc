// Completion queues, the side of those who submit and drain: any thread. What runs on a context's thread is
// in batch.cc.
#include "block/completion_queue.hh"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>

#include "base/clock.hh"
#include "base/error.hh"
#include "block/entry.hh"
#include "block/graph.hh"

namespace engine::block {

// --- the caller's array

engine_request RequestArray::operator[](size_t index) const noexcept {
    engine_request request{};
    memcpy(&request, first_ + index * stride_, stride_);
    return request;
}

int RequestArray::read(const engine_request* requests, size_t count, RequestArray* out,
                       engine_error* error) noexcept {
    constexpr size_t count_max = 1 << 20;
    auto invalid = [&](const char* field, const char* text, uint64_t value) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "submit", .field = field},
                          "requests: %s (%lu)", text, value);
    };
    if (count == 0) return 0;
    if (count > count_max) return invalid("count", "at most 1048576 at a time", count);
    out->first_ = reinterpret_cast<const std::byte*>(requests);
    out->stride_ = requests->size;
    if (out->stride_ < offsetof(engine_request, reserved) || out->stride_ > sizeof(engine_request)) {
        return invalid("size", "set `size` to sizeof(engine_request)", out->stride_);
    }
    for (size_t i = 0; i < count; i++) {
        engine_request request = (*out)[i];
        if (request.size != out->stride_) return invalid("size", "`size` is not that of the first", i);
        if (request.op == ENGINE_OP_COPY_RANGE) {
            return base::fail(error, ENGINE_ERROR_UNSUPPORTED, ENOTSUP,
                              {.operation = "copy-range", .field = "op"},
                              "a copy has two users: use engine_user_copy_range");
        }
        if (request.op == ENGINE_OP_RESIZE) {
            return base::fail(error, ENGINE_ERROR_UNSUPPORTED, ENOTSUP,
                              {.operation = "resize", .field = "op"},
                              "a resize waits until nothing is inside the node: use engine_user_io");
        }
        bool data = request.op == ENGINE_OP_READ || request.op == ENGINE_OP_WRITE;
        engine_iovec single{request.buffer, request.bytes};
        bool one = data && request.buffer != nullptr;
        if (one && request.iov_count != 0) return invalid("iov", "buffer and iov exclude each other, in", i);
        if (data && request.iov_count != 0 && request.iov == nullptr) return invalid("iov", "missing, in", i);
        if (request.extent_capacity != 0 && request.extents == nullptr) {
            return invalid("extents", "missing, in", i);
        }
        int result = check_entry(request.op, request.flags, one ? &single : request.iov,
                                 one ? 1 : request.iov_count, request.bytes, error);
        if (result != 0) return result;
    }
    out->count_ = count;
    return 0;
}

namespace {

void describe(AsyncRequest& to, const engine_request& from) noexcept {
    to.token = from.token;
    to.op = static_cast<Op>(from.op);
    to.flags = static_cast<uint8_t>(from.flags);
    to.offset = from.offset;
    to.length = from.bytes;
    to.iov = nullptr;
    to.iov_count = 0;
    to.extents = from.extents;
    to.extent_capacity = from.extent_capacity;
    if (to.op != Op::read && to.op != Op::write) return;
    if (from.buffer != nullptr) {
        to.set_buffer(from.buffer, from.bytes);
    } else {
        static_assert(sizeof(engine_iovec) == sizeof(iovec));
        to.iov = reinterpret_cast<const iovec*>(from.iov);
        to.iov_count = from.iov_count;
    }
}

int no_memory(engine_error* error) noexcept {
    return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "submit"}, "submit: out of memory");
}

}  // namespace

// --- making and closing

int CompletionQueue::create(Instance& engine, base::Owner<CompletionQueue>* out, engine_error* error) {
    base::Owner<CompletionQueue> made = base::make<CompletionQueue>(engine);
    if (made == nullptr) return no_memory(error);
    made->event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (made->event_fd_ < 0) {
        return base::fail_os(error, errno, {.operation = "create completion queue"},
                             "cannot make an eventfd");
    }
    base::Guard guard(made->mutex_);
    made->armed_ = made->done_.may_sleep();
    engine.completion_queues.fetch_add_acq_rel(1);
    *out = std::move(made);
    return 0;
}

CompletionQueue::~CompletionQueue() {
    if (event_fd_ < 0) return;
    engine_.limits.requests.give_back(stats_.submitted - stats_.drained);
    ::close(event_fd_);
    engine_.completion_queues.fetch_sub_acq_rel(1);
}

void CompletionQueue::close() noexcept {
    while (wait(nullptr, nullptr, close_patience_ns, nullptr) != 0) {
        on_each_lane([this](const Lane* lane) { let_go(lane); });
    }
    // The last completion of a batch comes after it is over, and then the notice: both on the context's
    // thread before it looks at this message. A context that has closed meanwhile has run all of it.
    on_each_lane([](const Lane*) {});
}

// On its context's thread.
template <class F>
void CompletionQueue::on_each_lane(F f) noexcept {
    for (size_t i = 0;; i++) {
        const Lane* lane = nullptr;
        {
            base::Guard guard(mutex_);
            if (i == lanes_.size()) return;
            lane = lanes_[i].get();
        }
        (void)lane->context->call_and_wait([&f, lane] { f(lane); });
    }
}

// Home thread of the lane. Nothing completes in here, so batches that are not over stay so.
void CompletionQueue::let_go(const Lane* lane) noexcept {
    base::Guard guard(mutex_);
    active_.for_each([lane](Batch* batch) {
        if (batch->lane == lane && batch->left != 0) let_go_below(*batch->port);
    });
}

// --- submitting

Lane* CompletionQueue::lane_on(aio::AioContext* context) {
    for (auto& lane : lanes_) {
        if (lane->context == context) return lane.get();
    }
    base::Owner<Lane> lane = base::make<Lane>();
    if (lane == nullptr) throw std::bad_alloc();
    lane->queue = this;
    lane->context = context;
    lane->notice.lane = lane.get();
    lane->notice.run = notify;
    lanes_.push_back(std::move(lane));
    return lanes_.back().get();
}

Batch* CompletionQueue::take_batch() {
    for (Batch* batch = ending_.front(); batch != nullptr;) {
        Batch* next = ending_.after(batch);
        // NOLINTNEXTLINE(bugprone-unchecked-optional-access): it holds one while it is in use
        if (batch->over->is_set()) {
            batch->unlink();
            free_batches_.push(batch);
        }
        batch = next;
    }
    if (auto* batch = static_cast<Batch*>(free_batches_.pop())) return batch;
    base::Owner<Batch> batch = base::make<Batch>();
    if (batch == nullptr) throw std::bad_alloc();
    batch->queue = this;
    batches_.push_back(std::move(batch));
    return batches_.back().get();
}

// The requests of a batch, chained. -ENOMEM: none was taken.
int CompletionQueue::take_locked(Batch* batch, size_t count) noexcept {
    if (!tokens_.reserve(count)) return -ENOMEM;
    batch->first = nullptr;
    for (size_t i = 0; i < count; i++) {
        AsyncRequest* request = requests_.get();
        if (request == nullptr) {
            while ((request = batch->first) != nullptr) {
                batch->first = request->sibling;
                requests_.put(request);
            }
            return -ENOMEM;
        }
        request->batch = batch;
        request->many = nullptr;
        request->failed = false;
        request->complete = complete;
        request->error = &request->failure;
        request->failure.size = sizeof request->failure;
        request->failure.kind = ENGINE_ERROR_NONE;
        request->cancelled.store_relaxed(false);
        request->under_way = false;
        request->sibling = batch->first;
        batch->first = request;
    }
    batch->left = batch->undrained = count;
    return 0;
}

// Everything that may fail, but for the send.
int CompletionQueue::begin_batch(User* user, aio::AioContext* context, size_t count, Batch** out,
                                 engine_error* error) {
    int result = engine_.check(error, "submit", false);
    if (result != 0) return result;
    Quota& limit = engine_.limits.requests;
    if (!limit.take(count)) {
        base::fail(error, ENGINE_ERROR_LIMIT, EAGAIN, {.operation = "submit", .field = "max_requests"},
                   "submit: %zu more requests are over the engine's limit of %lu (%lu are not drained): "
                   "drain some, or raise max_requests",
                   count, limit.most(), limit.used());
        return -EAGAIN;
    }
    Port* port = nullptr;
    result = begin_use(engine_, user, context, "submit", &port, error);
    if (result != 0) {
        limit.give_back(count);
        return result;
    }
    Batch* batch = nullptr;
    {
        base::Guard guard(mutex_);
        try {
            Lane* lane = lane_on(context);
            batch = take_batch();
            batch->lane = lane;
        } catch (const std::bad_alloc&) {
            result = -ENOMEM;
        }
        if (batch != nullptr && (result = take_locked(batch, count)) != 0) free_batches_.push(batch);
    }
    if (result != 0) {
        end_use(user, context);
        limit.give_back(count);
        return no_memory(error);
    }
    batch->user = user;
    batch->port = port;
    batch->over.emplace();
    batch->run = submit_batch;
    *out = batch;
    return 0;
}

// Nothing of the batch may be looked at once it is sent: it may have been completed, drained and used again.
int CompletionQueue::send(Batch* batch, engine_error* error) noexcept {
    aio::AioContext* context = batch->lane->context;
    {
        base::Guard guard(mutex_);
        for (AsyncRequest* request = batch->first; request != nullptr; request = request->sibling) {
            tokens_.insert(request);
        }
        active_.push_back(batch);
        batch->serial = ++stats_.batches;
        stats_.submitted += batch->undrained;
    }
    int result = context->send(batch);
    if (result == 0) return 0;
    give_up(batch);
    return base::fail(error, ENGINE_ERROR_CLOSED, -result, {.operation = "submit"}, "context %s is closed",
                      context->name().c_str());
}

// A context that takes nothing any more was held by us, so nobody closed it: this process is a fork's child,
// or the engine is going under its user.
void CompletionQueue::give_up(Batch* batch) noexcept {
    end_use(batch->user, batch->lane->context);
    // NOLINTNEXTLINE(bugprone-unchecked-optional-access): it holds one while it is in use
    batch->over->set();
    base::Guard guard(mutex_);
    while (AsyncRequest* request = batch->first) {
        batch->first = request->sibling;
        tokens_.remove(request);
        requests_.put(request);
    }
    stats_.drained += batch->undrained;
    engine_.limits.requests.give_back(batch->undrained);
    batch->undrained = 0;
    retire(batch);
}

int CompletionQueue::submit(User* user, aio::AioContext* context, const RequestArray& requests,
                            engine_error* error) {
    if (requests.count() == 0) return engine_.check(error, "submit", false);
    Batch* batch = nullptr;
    if (context == nullptr) context = engine_.main();
    int result = begin_batch(user, context, requests.count(), &batch, error);
    if (result != 0) return result;
    size_t i = 0;
    for (AsyncRequest* request = batch->first; request != nullptr; request = request->sibling) {
        describe(*request, requests[i++]);
    }
    return send(batch, error);
}

int CompletionQueue::submit_many(User* user, aio::AioContext* context, const engine_many& what,
                                 uint64_t token, engine_error* error) {
    int result = Many::check(what, error);
    if (result != 0) return result;
    Batch* batch = nullptr;
    if (context == nullptr) context = engine_.main();
    result = begin_batch(user, context, 1, &batch, error);
    if (result != 0) return result;
    if (batch->many == nullptr) batch->many = base::make<BatchedMany>();
    if (batch->many == nullptr || batch->many->prepare(what, *batch->port) != 0) {
        base::Guard guard(mutex_);
        end_use(user, context);
        engine_.limits.requests.give_back(1);
        requests_.put(batch->first);
        free_batches_.push(batch);
        return no_memory(error);
    }
    AsyncRequest* request = batch->first;
    request->token = token;
    request->op = static_cast<Op>(what.op);
    request->many = batch->many.get();
    batch->many->batch = batch;
    batch->many->error = &request->failure;
    batch->many->finished = [](Many* many) {
        AsyncRequest* self = static_cast<BatchedMany*>(many)->batch->first;
        self->outcome = many->result();
        self->failed = many->failed();
        finish(self);
    };
    batch->run = [](aio::Message* message) { static_cast<Batch*>(message)->many->begin(); };
    return send(batch, error);
}

// One that has not been begun is not begun; one that is under way is looked for on its context, unless there
// is no memory for a note. A vector looks before each of its parts.
int64_t CompletionQueue::cancel(uint64_t token) noexcept {
    int64_t found = 0;
    base::Guard guard(mutex_);
    for (auto& lane : lanes_) lane->cancels = false;
    tokens_.for_each(token, [&](AsyncRequest* request) {
        request->cancelled.store_release(true);  // pairs with submit_batch()
        if (request->many != nullptr) {
            request->many->cancel();
        } else {
            request->batch->lane->cancels = true;
        }
        found++;
    });
    stats_.cancels += static_cast<uint64_t>(found);
    for (auto& lane : lanes_) {
        if (lane->cancels) tell_lane(lane.get(), token);
    }
    return found;
}

// A context that is closed has completed everything.
void CompletionQueue::tell_lane(Lane* lane, uint64_t token) noexcept {
    base::Owner<CancelNote> note = base::make<CancelNote>();
    if (note == nullptr) return;
    note->lane = lane;
    note->token = token;
    note->run = [](aio::Message* message) {
        base::Owner<CancelNote> self(static_cast<CancelNote*>(message));
        self->lane->queue->stop(self->token, self->lane->context);
    };
    if (lane->context->send(note.get()) == 0) (void)note.release();
}

// --- waiting and draining

int CompletionQueue::wait(const User* user, const aio::AioContext* context, uint64_t timeout_ns,
                          engine_error* error) noexcept {
    uint64_t end_ns = timeout_ns == UINT64_MAX ? UINT64_MAX : base::monotonic_ns() + timeout_ns;
    uint64_t newest = UINT64_MAX;
    for (;;) {
        Batch* found = nullptr;
        {
            base::Guard guard(mutex_);
            if (newest == UINT64_MAX) newest = stats_.batches;
            active_.for_each([&](Batch* batch) {
                bool asked = (user == nullptr || batch->user == user) &&
                             (context == nullptr || batch->lane->context == context);
                if (found == nullptr && asked && batch->serial <= newest && !batch->over->is_set())
                    found = batch;
            });
            if (found == nullptr) return 0;
            found->waiters++;  // so that it is not used again meanwhile
        }
        uint64_t now_ns = end_ns == UINT64_MAX ? 0 : base::monotonic_ns();
        uint64_t left_ns = end_ns == UINT64_MAX ? UINT64_MAX : now_ns < end_ns ? end_ns - now_ns : 0;
        // NOLINTNEXTLINE(bugprone-unchecked-optional-access): it holds one while it is in use
        bool over = found->over->wait_for(left_ns);
        base::Guard guard(mutex_);
        found->waiters--;
        retire(found);
        if (!over) {
            return base::fail(error, ENGINE_ERROR_OS, ETIMEDOUT, {.operation = "wait"},
                              "requests are still in flight");
        }
    }
}

// Unless somebody has business with it still. The context may be about to say that it is over.
void CompletionQueue::retire(Batch* batch) noexcept {
    if (batch->undrained != 0 || batch->waiters != 0) return;
    batch->unlink();
    // NOLINTNEXTLINE(bugprone-unchecked-optional-access): it holds one while it is in use
    if (batch->over->is_set()) {
        free_batches_.push(batch);
    } else {
        ending_.push_back(batch);
    }
}

void CompletionQueue::read_descriptor() noexcept {
    uint64_t writes = 0;
    // NOLINTNEXTLINE(clang-analyzer-unix.BlockInCriticalSection): an eventfd that never blocks
    if (read(event_fd_, &writes, sizeof writes) != sizeof writes) return;
    unread_ = writes < unread_ ? unread_ - writes : 0;
}

void CompletionQueue::write_descriptor(uint64_t writes) noexcept {
    while (write(event_fd_, &writes, sizeof writes) < 0 && errno == EINTR) {
    }
}

// As much as there is, or as fits.
void CompletionQueue::collect(std::span<engine_completion> out, size_t* count) noexcept {
    while (*count < out.size()) {
        if (fetched_ == nullptr) fetched_ = done_.take_all();
        if (fetched_ == nullptr) return;
        auto* request = static_cast<AsyncRequest*>(fetched_);
        fetched_ = request->next;
        bool failed = request->failed;
        out[(*count)++] = {request->token, request->outcome, failed ? &request->failure : nullptr};
        tokens_.remove(request);
        Batch* batch = request->batch;
        batch->undrained--;
        retire(batch);
        if (failed) {
            request->sibling = shown_;
            shown_ = request;
        } else {
            requests_.put(request);
        }
    }
}

// The descriptor is read before the list is taken, and the list looked at again once the next push is to
// write: so it stays readable for as long as something is left here, and a write that nobody expected (by a
// context that was slow to do what it owed) is taken by the first drain that finds nothing.
size_t CompletionQueue::drain(std::span<engine_completion> out) noexcept {
    base::Guard guard(mutex_);
    stats_.drains++;
    while (AsyncRequest* request = shown_) {
        shown_ = request->sibling;
        requests_.put(request);
    }
    if (armed_ && done_.woke_up()) unread_++;
    armed_ = false;
    bool reset = unread_ != 0;
    if (reset) read_descriptor();
    size_t count = 0;
    for (;;) {
        collect(out, &count);
        if (fetched_ != nullptr) break;
        if (count == 0 && !reset) {
            reset = true;
            read_descriptor();
            continue;
        }
        armed_ = done_.may_sleep();
        if (armed_ || count == out.size()) break;
    }
    stats_.drained += count;
    engine_.limits.requests.give_back(count);
    if (!armed_) {
        unread_++;
        write_descriptor(1);
    }
    return count;
}

void CompletionQueue::read_stats(engine_cq_stats* out) noexcept {
    base::Guard guard(mutex_);
    *out = stats_;
    out->in_flight = tokens_.size();
    for (const auto& lane : lanes_) out->notifications += lane->notifications.get();
}

}  // namespace engine::block
