// The request path of an overlay. What lies in one place is handed on without a task; the rest is tasks,
// which hold `meta` only to look up or to change the map. Home thread of the request's context.
#include "base/error.hh"
#include "block/forward.hh"
#include "formats/overlay.hh"

namespace engine::formats {

using block::Channel;
using block::ChildRequest;
using block::ChildRequests;
using block::MetaLock;
using block::Op;
using block::Request;
using block::SliceCursor;
using block::TracedWait;
using coro::LockChain;
using coro::Task;

namespace {

constexpr unsigned read_extents_max = 8;     // looked up for one hold of the lock
constexpr unsigned status_rounds_max = 256;  // for one answer
constexpr uint64_t clear_batches_a_turn = 64;

int64_t explain(Request& request, int errnum, const char* what) noexcept {
    const char* name = request.channel->node->control->name.c_str();
    base::fail(
        request.error, ENGINE_ERROR_LIMIT, errnum,
        {.node = name, .operation = op_name(request.op), .offset = request.offset, .request_id = request.id},
        "node %s: %s of %lu bytes at offset %lu: %s", name, op_name(request.op), request.length,
        request.offset, what);
    return -errnum;
}

int64_t no_memory(Request& request) noexcept {
    return explain(request, ENOMEM, "no memory for it: make more available and repeat the request");
}

int64_t no_place(Request& request, int error) noexcept {
    if (error == -ENOMEM) return no_memory(request);
    return explain(
        request, ENOSPC,
        "the data node has no free cluster: discard what is not needed, or open the overlay with a "
        "larger 'file'");
}

// Requests of the group that did not get as far as a child have no other voice.
int64_t outcome(Request& request, int64_t result, bool short_of_memory) noexcept {
    return short_of_memory ? no_memory(request) : result;
}

// --- without a task

void handed_on(Request* request) {
    take_back(request);
    finish(request, request->result);
}

// Is the whole range in one place? Then it goes there.
bool read_at_once(Channel& channel, const OverlayChannel& own, Request* request) noexcept {
    Extent extent;
    {
        LockChain chain(channel.executor());
        MetaLock::Shared guard = own.overlay->meta.try_lock_shared(chain, *own.slot);
        if (!guard) return false;
        extent = own.overlay->map.find(guard, request->offset, request->length);
    }
    if (extent.length != request->length) return false;
    switch (extent.source) {
        case Source::backing:
            forward(channel, backing_child, request, request->offset, handed_on);
            break;
        case Source::data:
            forward(channel, data_child, request, extent.host, handed_on);
            break;
        case Source::zero:
            SliceCursor(*request).clear(request->length);
            finish_later(request, 0);
            break;
    }
    return true;
}

// Nothing changes in the map where all of it is data already. One with flags would take them along.
bool write_at_once(Channel& channel, const OverlayChannel& own, Request* request) noexcept {
    if (request->flags != 0) return false;
    Extent extent;
    {
        LockChain chain(channel.executor());
        MetaLock::Shared guard = own.overlay->meta.try_lock_shared(chain, *own.slot);
        if (!guard) return false;
        extent = own.overlay->map.find(guard, request->offset, request->length);
    }
    if (extent.source != Source::data || extent.length != request->length) return false;
    forward(channel, data_child, request, extent.host, handed_on);
    return true;
}

// --- tasks

// Lets others of this context have their turn.
class [[nodiscard]] NextTurn : private coro::ReadyItem {
  public:
    explicit NextTurn(coro::Executor& executor) noexcept : executor_(executor) {
        run = [](coro::ReadyItem* item) {
            auto* self = static_cast<NextTurn*>(item);
            self->executor_.resume(self->task_);
        };
    }
    NextTurn(const NextTurn&) = delete;
    NextTurn& operator=(const NextTurn&) = delete;
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

struct Lookup {
    std::array<Extent, read_extents_max> extents;
    unsigned count = 0;
    uint64_t length = 0;
};

void look_up(const Map& map, const Held& meta, uint64_t offset, uint64_t length, Lookup* out) noexcept {
    while (out->count < read_extents_max && out->length < length) {
        Extent extent = map.find(meta, offset + out->length, length - out->length);
        out->extents[out->count++] = extent;
        out->length += extent.length;
    }
}

// Of a task: a part of its request goes to a child, in the order of the vector. False: no memory.
bool send_part(ChildRequests& parts, SliceCursor& cursor, const Request& request, size_t child,
               uint64_t offset, uint64_t length) noexcept {
    ChildRequest* part = parts.make(request.op, offset, length);
    if (part == nullptr) return false;
    if (!cursor.give(*part)) {
        parts.discard(part, -ENOMEM);
        return false;
    }
    parts.submit(part, child);
    return true;
}

Task<int64_t> read(Channel& channel, Request& request) {
    auto& own = channel.state<OverlayChannel>();
    SliceCursor cursor(request);
    for (uint64_t done = 0; done < request.length;) {
        Lookup found;
        LockChain chain(channel.executor());
        {
            TracedWait wait(request, ENGINE_WAIT_LOCK);
            MetaLock::Shared guard = co_await own.overlay->meta.lock_shared(chain, *own.slot);
            wait.over();
            look_up(own.overlay->map, guard, request.offset + done, request.length - done, &found);
        }
        chain.check_may_await("reads");
        ChildRequests parts(channel, own.parts, &request);
        bool sent = true;
        for (unsigned i = 0; i < found.count && sent; i++) {
            const Extent& extent = found.extents[i];
            if (extent.source == Source::zero) {
                cursor.clear(extent.length);
            } else if (extent.source == Source::data) {
                sent = send_part(parts, cursor, request, data_child, extent.host, extent.length);
            } else {
                sent = send_part(parts, cursor, request, backing_child, request.offset + done, extent.length);
            }
            done += extent.length;
        }
        int64_t result = co_await parts;
        if (result < 0 || !sent) co_return outcome(request, result, !sent);
    }
    co_return 0;
}

// The beginning of the rest of a write, where all of it is data already: nothing of the map changes. How many
// bytes; 0: it is not like that.
Task<int64_t> overwrite(Channel& channel, Request& request, SliceCursor& cursor, uint64_t done) {
    auto& own = channel.state<OverlayChannel>();
    Lookup found;
    LockChain chain(channel.executor());
    {
        TracedWait wait(request, ENGINE_WAIT_LOCK);
        MetaLock::Shared guard = co_await own.overlay->meta.lock_shared(chain, *own.slot);
        wait.over();
        look_up(own.overlay->map, guard, request.offset + done, request.length - done, &found);
    }
    for (unsigned i = 0; i < found.count; i++) {
        if (found.extents[i].source != Source::data) co_return 0;
    }
    chain.check_may_await("writes");
    ChildRequests parts(channel, own.parts, &request);
    bool sent = true;
    for (unsigned i = 0; i < found.count && sent; i++) {
        sent = send_part(parts, cursor, request, data_child, found.extents[i].host, found.extents[i].length);
    }
    int64_t result = co_await parts;
    if (result < 0) co_return outcome(request, result, !sent);
    co_return static_cast<int64_t>(found.length);
}

// FUA means nothing here: the overlay does not outlive the process.
Task<int64_t> write(Channel& channel, Request& request) {
    auto& own = channel.state<OverlayChannel>();
    Overlay& overlay = *own.overlay;
    SliceCursor cursor(request);
    for (uint64_t done = 0; done < request.length;) {
        int64_t over = co_await overwrite(channel, request, cursor, done);
        if (over < 0) co_return over;
        done += static_cast<uint64_t>(over);
        if (over > 0) continue;
        Places places;
        LockChain chain(channel.executor());
        {
            TracedWait wait(request, ENGINE_WAIT_LOCK);
            MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
            wait.over();
            overlay.map.reserve(guard, request.offset + done, request.length - done, &places);
        }
        if (places.length == 0) co_return no_place(request, places.error);
        chain.check_may_await("writes");
        const SliceCursor before = cursor;
        ChildRequests parts(channel, own.parts, &request);
        bool sent = true;
        for (unsigned i = 0; i < places.count && sent; i++) {
            const Extent& extent = places.extents[i];
            sent = send_part(parts, cursor, request, data_child, extent.host, extent.length);
        }
        int64_t result = co_await parts;
        Map::Committed committed;
        {
            TracedWait wait(request, ENGINE_WAIT_LOCK);
            MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
            wait.over();
            committed = overlay.map.commit(guard, request.offset + done, places, result >= 0);
        }
        if (committed.dropped) overlay.reclaim.kick();
        if (result < 0) co_return outcome(request, result, !sent);
        if (committed.again) {
            cursor = before;
        } else {
            done += places.length;
        }
    }
    co_return 0;
}

// A discard, too: what it hides must not come back.
Task<int64_t> write_zeroes(Channel& channel, Request& request) {
    auto& own = channel.state<OverlayChannel>();
    Overlay& overlay = *own.overlay;
    uint64_t batches = 0;
    for (uint64_t done = 0; done < request.length; batches++) {
        bool dropped = false;
        uint64_t cleared;
        {
            LockChain chain(channel.executor());
            TracedWait wait(request, ENGINE_WAIT_LOCK);
            MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
            wait.over();
            cleared = overlay.map.clear(guard, request.offset + done, request.length - done, &dropped);
        }
        if (dropped) overlay.reclaim.kick();
        if (cleared == 0) co_return no_memory(request);
        done += cleared;
        if (batches % clear_batches_a_turn == clear_batches_a_turn - 1) {
            NextTurn turn(channel.executor());
            co_await turn;
        }
    }
    co_return 0;
}

// --- block status

// The answer as it grows. What is alike becomes one extent.
class Answer {
  public:
    explicit Answer(Request& request) noexcept : request_(request) {}
    uint64_t length() const noexcept { return length_; }
    uint32_t count() const noexcept { return count_; }
    bool full() const noexcept { return count_ == request_.extent_capacity; }
    // False: there is no room.
    bool add(uint64_t length, uint32_t flags) noexcept {
        engine_extent* last = count_ == 0 ? nullptr : &request_.extents[count_ - 1];
        if (last != nullptr && last->flags == flags) {
            last->length += length;
        } else if (full()) {
            return false;
        } else {
            request_.extents[count_++] = {request_.offset + length_, length, flags, 0};
        }
        length_ += length;
        return true;
    }
    // A child answers behind what there is already.
    void ask(ChildRequest& part) const noexcept {
        part.extents = request_.extents + count_;
        part.extent_capacity = request_.extent_capacity - count_;
    }
    void take(int64_t extents, uint64_t most) noexcept {
        const engine_extent* first = request_.extents + count_;
        for (int64_t i = 0; i < extents && most != 0; i++) {
            engine_extent extent = first[i];
            add(std::min(extent.length, most), extent.flags);
            most -= std::min(extent.length, most);
        }
    }

  private:
    Request& request_;
    uint64_t length_ = 0;
    uint32_t count_ = 0;
};

// What the backing node says of a range. One that cannot say has data.
Task<int64_t> ask_backing(Channel& channel, Request& request, Answer& answer, uint64_t length) {
    ChildRequests parts(channel, channel.state<OverlayChannel>().parts, &request);
    ChildRequest* part = parts.make(Op::block_status, request.offset + answer.length(), length);
    if (part == nullptr) co_return no_memory(request);
    answer.ask(*part);
    parts.submit(part, backing_child);
    int64_t result = co_await parts;
    if (result > 0) {
        answer.take(result, length);
    } else if (result == 0 || result == -ENOTSUP) {
        base::clear(request.error);
        answer.add(length, ENGINE_EXTENT_DATA);
        result = 0;
    }
    co_return result;
}

Task<int64_t> block_status(Channel& channel, Request& request) {
    auto& own = channel.state<OverlayChannel>();
    Answer answer(request);
    for (unsigned round = 0; round < status_rounds_max && answer.length() < request.length; round++) {
        Extent extent;
        {
            LockChain chain(channel.executor());
            TracedWait wait(request, ENGINE_WAIT_LOCK);
            MetaLock::Shared guard = co_await own.overlay->meta.lock_shared(chain, *own.slot);
            wait.over();
            extent = own.overlay->map.find(guard, request.offset + answer.length(),
                                           request.length - answer.length());
        }
        if (extent.source == Source::backing) {
            if (answer.full()) break;
            int64_t result = co_await ask_backing(channel, request, answer, extent.length);
            if (result < 0) co_return result;
        } else {
            bool zero = extent.source == Source::zero;
            if (!answer.add(extent.length, zero ? ENGINE_EXTENT_ZERO : ENGINE_EXTENT_DATA)) break;
        }
    }
    co_return answer.count();
}

// The request is served by a task of its own.
void begin(Channel& channel, OverlayChannel& own, Request* request,
           Task<int64_t> (*serve)(Channel&, Request&)) noexcept {
    Work* work = own.works.get();
    if (ENGINE_UNLIKELY(work == nullptr)) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    work->request = request;
    work->completed = [](coro::Callback<int64_t>* callback, int64_t result) {
        auto* self = static_cast<Work*>(callback);
        Request* served = self->request;
        served->channel->state<OverlayChannel>().works.put(self);
        finish(served, result);
    };
    coro::start(channel.executor(), serve(channel, *request), static_cast<coro::Callback<int64_t>*>(work));
}

void refuse_resize(Request* request) noexcept {
    fail_later(request, ENGINE_ERROR_UNSUPPORTED, ENOTSUP,
               "node %s: an overlay keeps the size that it was opened with: open one with the wanted 'size'",
               request->channel->node->control->name.c_str());
}

}  // namespace

void overlay_submit(Channel& channel, Request* request) {
    auto& own = channel.state<OverlayChannel>();
    switch (request->op) {
        case Op::read:
            if (!read_at_once(channel, own, request)) begin(channel, own, request, read);
            break;
        case Op::write:
            if (!write_at_once(channel, own, request)) begin(channel, own, request, write);
            break;
        case Op::discard:
        case Op::write_zeroes:
            begin(channel, own, request, write_zeroes);
            break;
        case Op::block_status:
            begin(channel, own, request, block_status);
            break;
        case Op::flush:
            finish_later(request, 0);
            break;
        case Op::resize:
            refuse_resize(request);
            break;
        case Op::copy_range:  // none of its operations
            finish_later(request, -ENOTSUP);
            break;
    }
}

}  // namespace engine::formats
