// The request path of verify: tasks that ask both children and compare. Home thread of the request's context.
//
// A write that fails leaves what lies there to chance: where one child alone has failed, the two differ until
// it is written again. So one that has begun is not cancelled. A discard would leave it to chance as well: it
// becomes zeroes in both, or nothing at all.
#include <algorithm>

#include "base/error.hh"
#include "block/vector.hh"
#include "coro/task.hh"
#include "filters/verify.hh"

namespace engine::filters {

using block::bit;
using block::Bounce;
using block::Channel;
using block::Node;
using block::Op;
using block::Request;
using block::Tracking;
using block::VectorCursor;
using coro::CancelToken;
using coro::Task;

Leg& Round::make(size_t child, Op op, uint64_t offset, uint64_t length) noexcept {
    const Request& origin = *work_.request;
    Leg& leg = work_.legs[child];
    leg.work = &work_;
    leg.used = true;
    leg.complete = completed;
    leg.op = op;
    leg.offset = offset;
    leg.length = length;
    leg.iov = nullptr;
    leg.iov_count = 0;
    leg.flags = 0;
    leg.frame = nullptr;
    leg.extents = nullptr;
    leg.extent_capacity = 0;
    leg.id = origin.id;
    leg.trace = origin.trace;
    leg.error = nullptr;
    if (origin.error != nullptr) {
        leg.trouble.size = sizeof leg.trouble;
        base::clear(&leg.trouble);
        leg.error = &leg.trouble;
    }
    return leg;
}

void Round::submit(Leg& leg) noexcept {
    outstanding_++;
    leg.under_way = true;
    submit_child(*channel_.children[&leg == &work_.legs[file_child] ? file_child : reference_child], &leg);
}

void Round::completed(Request* request) {
    auto* leg = static_cast<Leg*>(request);
    Round& round = *leg->work->round;
    leg->under_way = false;
    if (--round.outstanding_ == 0 && round.waited_for_) round.done_.complete(0);
}

namespace {

constexpr unsigned status_steps_max = 32;  // to the reference, for one answer

uint64_t end_of(const Request& request) noexcept {
    return request.offset + request.length;
}

Verify& verify_of(const Channel& channel) noexcept {
    return *channel.node->state<VerifyState>().verify;
}

void take_data(Leg& leg, const Request& origin) noexcept {
    leg.iov = origin.iov;
    leg.iov_count = origin.iov_count;
}

// The same operation on both children, and the worse of the answers.
Task<int64_t> in_both(Channel& channel, Work& work) {
    const Request& request = *work.request;
    Round round(channel, work);
    for (size_t child : {file_child, reference_child}) {
        // What has no flush keeps nothing back.
        bool flushes = (channel.children[child]->node->native_ops & bit(Op::flush)) != 0;
        if (request.op == Op::flush && !flushes) continue;
        Leg& leg = round.make(child, request.op, request.offset, request.length);
        leg.flags = request.flags;
        take_data(leg, request);
        round.submit(leg);
    }
    co_await round;
    co_return outcome(work);
}

// Zeroes that `file` may refuse to make (ENGINE_NO_FALLBACK): then there are none in the reference either.
Task<int64_t> zeroes_if_cheap(Channel& channel, Work& work, uint64_t offset, uint64_t length, uint8_t flags) {
    {
        Round round(channel, work);
        Leg& leg = round.make(file_child, Op::write_zeroes, offset, length);
        leg.flags = flags;
        round.submit(leg);
        co_await round;
        if (leg.result < 0) co_return outcome(work);
    }
    Round round(channel, work);
    Leg& leg = round.make(reference_child, Op::write_zeroes, offset, length);
    leg.flags = static_cast<uint8_t>(flags & ~ENGINE_NO_FALLBACK);
    round.submit(leg);
    co_await round;
    co_return outcome(work);
}

// Of whole blocks: what lies beside them stays in any case.
Task<int64_t> discard(Channel& channel, Work& work) {
    const Request& request = *work.request;
    uint64_t mask = channel.node->best_request_alignment - 1;
    uint64_t from = (request.offset + mask) & ~mask, to = end_of(request) & ~mask;
    if (from >= to) co_return 0;
    int64_t result =
        co_await zeroes_if_cheap(channel, work, from, to - from, ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK);
    if (result == -ENOTSUP && work.legs[file_child].used) {
        base::clear(request.error);  // it was advice
        result = 0;
    }
    co_return result;
}

// `file` straight into the caller's buffer, and the reference, piece by piece, into the bounce buffer.
Task<int64_t> read(Channel& channel, Work& work, Bounce& bounce, CancelToken token) {
    const Request& request = *work.request;
    VectorCursor cursor(request.iov, request.iov_count);
    for (uint64_t done = 0; done < request.length;) {
        uint64_t at = request.offset + done;
        uint64_t bytes = std::min<uint64_t>(request.length - done, bounce.bytes());
        Round round(channel, work);
        if (done == 0) {
            Leg& leg = round.make(file_child, Op::read, request.offset, request.length);
            take_data(leg, request);
            round.submit(leg);
        }
        Leg& leg = round.make(reference_child, Op::read, at, bytes);
        leg.set_buffer(bounce.data(), static_cast<size_t>(bytes));
        round.submit(leg);
        co_await round;
        int64_t result = outcome(work);
        if (token.cancelled() && done + bytes < request.length) result = -ECANCELED;
        if (result < 0) co_return result;
        uint64_t same = cursor.same_as(bounce.data(), bytes);
        cursor.advance(same);
        if (same < bytes) {
            std::byte has[8];
            size_t count = static_cast<size_t>(std::min<uint64_t>(bytes - same, sizeof has));
            cursor.copy_to(has, count);
            co_return differ(verify_of(channel), request, at + same, std::span(has, count),
                             std::span(bounce.data() + same, count));
        }
        done += bytes;
    }
    co_return 0;
}

// --- block status: that of `file`. Where it says zero, the reference must have zeroes.

// Does the reference itself say that the beginning of a range, `length` bytes, is zero? 1: yes. 0: that is to
// be seen.
Task<int64_t> reference_zeroes(Channel& channel, Work& work, uint64_t from, uint64_t to, uint64_t* length) {
    *length = to - from;
    if ((channel.children[reference_child]->node->native_ops & bit(Op::block_status)) == 0) co_return 0;
    engine_extent extent{};
    Round round(channel, work);
    Leg& leg = round.make(reference_child, Op::block_status, from, to - from);
    leg.extents = &extent;
    leg.extent_capacity = 1;
    round.submit(leg);
    co_await round;
    if (leg.result == -ENOTSUP || leg.result == 0) co_return 0;
    if (leg.result < 0) co_return outcome(work);
    *length = std::min(to - from, extent.length);
    co_return (extent.flags & ENGINE_EXTENT_ZERO) != 0 ? 1 : 0;
}

// How much of a range, from its beginning, is zero in the reference as well; the end, or as far as the steps
// that are left reach.
Task<int64_t> check_zeroes(Channel& channel, Work& work, Bounce& bounce, uint64_t from, uint64_t to,
                           unsigned* steps) {
    uint64_t at = from;
    for (; at < to && *steps != 0; (*steps)--) {
        uint64_t length = 0;
        int64_t zero = co_await reference_zeroes(channel, work, at, to, &length);
        if (zero < 0) co_return zero;
        if (zero == 0) {
            length = std::min<uint64_t>(length, bounce.bytes());
            Round round(channel, work);
            Leg& leg = round.make(reference_child, Op::read, at, length);
            leg.set_buffer(bounce.data(), static_cast<size_t>(length));
            round.submit(leg);
            co_await round;
            int64_t result = outcome(work);
            if (result < 0) co_return result;
            const std::byte* first = bounce.data();
            const std::byte* end = first + length;
            const std::byte* odd =
                std::find_if(first, end, [](std::byte byte) { return byte != std::byte{0}; });
            if (odd != end) {
                co_return not_zero(verify_of(channel), *work.request, at + static_cast<uint64_t>(odd - first),
                                   std::span(odd, end));
            }
        }
        at += length;
    }
    co_return static_cast<int64_t>(at - from);
}

// The answer ends where the steps do: whoever asks goes on from there.
Task<int64_t> block_status(Channel& channel, Work& work, Bounce& bounce, CancelToken token) {
    const Request& request = *work.request;
    {
        Round round(channel, work);
        Leg& leg = round.make(file_child, Op::block_status, request.offset, request.length);
        leg.extents = request.extents;
        leg.extent_capacity = request.extent_capacity;
        round.submit(leg);
        co_await round;
        int64_t result = outcome(work);
        if (result < 0) co_return result;
    }
    int64_t count = work.legs[file_child].result;
    unsigned steps = status_steps_max;
    for (int64_t i = 0; i < count; i++) {
        engine_extent& extent = request.extents[i];
        if ((extent.flags & ENGINE_EXTENT_ZERO) == 0) continue;
        if (token.cancelled()) co_return -ECANCELED;
        uint64_t to = std::min(extent.offset + extent.length, end_of(request));
        int64_t checked = co_await check_zeroes(channel, work, bounce, extent.offset, to, &steps);
        if (checked < 0) co_return checked;
        if (extent.offset + static_cast<uint64_t>(checked) == to) continue;
        extent.length = static_cast<uint64_t>(checked);
        co_return checked == 0 ? i : i + 1;
    }
    co_return count;
}

// --- resize, with nothing else inside

Task<int64_t> resize_one(Channel& channel, Work& work, size_t child, uint64_t bytes) {
    Round round(channel, work);
    round.submit(round.make(child, Op::resize, bytes, 0));
    co_await round;
    co_return outcome(work);
}

// The reference first: where it cannot, nothing has changed. A size that suits both, since one child might
// round it, and the other not.
Task<int64_t> resize(Channel& channel, Work& work) {
    Node& node = *channel.node;
    uint64_t before = node.bytes.load_relaxed();
    uint64_t mask = node.best_request_alignment - 1;
    uint64_t bytes = work.request->offset;
    if (bytes <= UINT64_MAX - mask) bytes = (bytes + mask) & ~mask;
    int64_t result = co_await resize_one(channel, work, reference_child, bytes);
    if (result < 0) co_return result;
    result = co_await resize_one(channel, work, file_child, bytes);
    if (result >= 0) {
        node.bytes.store_relaxed(bytes);
        co_return 0;
    }
    // Its failure is what is told, even where the reference cannot go back: then requests there will say so.
    Round round(channel, work);
    Leg& leg = round.make(reference_child, Op::resize, before, 0);
    leg.error = nullptr;
    round.submit(leg);
    co_await round;
    co_return result;
}

// --- the whole

bool changes(Op op) noexcept {
    return (bit(op) & (bit(Op::write) | bit(Op::write_zeroes) | bit(Op::discard))) != 0;
}

Task<int64_t> carry_out(Channel& channel, Work& work, Bounce& bounce, CancelToken token) {
    const Request& request = *work.request;
    int64_t result = 0;
    switch (request.op) {
        case Op::read:
            result = co_await read(channel, work, bounce, token);
            break;
        case Op::block_status:
            result = co_await block_status(channel, work, bounce, token);
            break;
        case Op::discard:
            result = co_await discard(channel, work);
            break;
        case Op::write_zeroes:
            if ((request.flags & ENGINE_NO_FALLBACK) != 0) {
                result =
                    co_await zeroes_if_cheap(channel, work, request.offset, request.length, request.flags);
                break;
            }
            [[fallthrough]];
        case Op::write:
        case Op::flush:
            result = co_await in_both(channel, work);
            break;
        case Op::resize:
            result = co_await resize(channel, work);
            break;
        case Op::copy_range:  // none of its operations
            result = -ENOTSUP;
            break;
    }
    co_return result;
}

Task<int64_t> in_order(Channel& channel, Work& work, CancelToken token) {
    const Request& request = *work.request;
    Tracking& order = verify_of(channel).order;
    bool compares = request.op == Op::read || request.op == Op::block_status;
    Bounce bounce;
    Tracking::Entry entry;
    entry.serialises = changes(request.op);
    entry.start = request.offset;
    entry.end = end_of(request);
    bool ordered = compares || entry.serialises;
    int step = 0;
    if (compares) {
        block::TracedWait wait(request, ENGINE_WAIT_MEMORY);
        step = co_await Bounce::take(channel, request.length, bounce, token);
    }
    if (step == 0 && ordered) {
        block::TracedWait wait(request, ENGINE_WAIT_OVERLAP);
        step = co_await order.enter(channel, entry, token);
    }
    if (step != 0) co_return step;
    int64_t result = co_await carry_out(channel, work, bounce, token);
    if (ordered) order.leave(channel, entry);
    co_return result;
}

Task<int64_t> serve(Channel& channel, Work& work) {
    coro::CancelSource source;
    work.source = &source;
    int64_t result = co_await in_order(channel, work, source.token());
    work.source = nullptr;
    if (result == -ECANCELED && source.cancelled()) result = was_cancelled(*work.request);
    co_return result;
}

void over(coro::Callback<int64_t>* callback, int64_t result) {
    auto* work = static_cast<Work*>(callback);
    Request* request = work->request;
    const engine_error* error = request->error;
    if (result == -ENOMEM && error != nullptr && error->kind == ENGINE_ERROR_NONE)
        result = no_memory(*request);
    work->unlink();
    request->channel->state<VerifyChannel>().works.put(work);
    finish(request, result);
}

}  // namespace

void verify_submit(Channel& channel, Request* request) {
    auto& own = channel.state<VerifyChannel>();
    Work* work = own.works.get();
    if (ENGINE_UNLIKELY(work == nullptr)) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    work->request = request;
    work->completed = over;
    own.under_way.push_back(work);
    coro::start(channel.executor(), serve(channel, *work), static_cast<coro::Callback<int64_t>*>(work));
}

void verify_cancel(Channel& channel, Request* request) {
    auto& under_way = channel.state<VerifyChannel>().under_way;
    Work* work = under_way.front();
    while (work != nullptr && work->request != request) work = under_way.after(work);
    if (work == nullptr || work->source == nullptr) return;
    work->source->cancel();
    if (changes(request->op) || request->op == Op::resize) return;
    for (Leg& leg : work->legs) {
        if (leg.under_way) cancel_child(&leg);
    }
}

}  // namespace engine::filters
