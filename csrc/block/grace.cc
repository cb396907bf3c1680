// One message to each context that has a channel of the node, marks in its lists of requests, one message
// back.
#include "block/grace.hh"

#include "base/alloc.hh"
#include "block/graph_tasks.hh"
#include "coro/completion.hh"

namespace engine::block {

namespace {

struct Call {
    Call(aio::AioContext& on, Node& of, ChannelVisit what, GraceOver whom) noexcept
        : here(on), node(of), visit(what), over(whom), done(on) {}
    aio::AioContext& here;
    Node& node;
    ChannelVisit visit;
    GraceOver over;
    coro::Completion<int> done;
    size_t outstanding = 1;  // the caller's own, until all have been sent

    void answered() noexcept {
        if (--outstanding == 0) done.complete(0);
    }
};

// What goes to a context and comes back. Two marks: one for each list of the channel.
struct Part : aio::Message {
    struct Reply : aio::Message {
        Part* part = nullptr;
    };
    struct Mark : GraceMark {
        Part* part = nullptr;
    };
    Call* call = nullptr;
    aio::AioContext* context = nullptr;
    Reply reply;
    Mark marks[2];
    unsigned standing = 0;  // on the context

    void begin() noexcept {
        Channel* channel = find_channel(&call->node, context);
        if (channel != nullptr && call->visit.visit != nullptr) call->visit.visit(*channel);
        if (channel == nullptr || call->over == GraceOver::nothing ||
            ENGINE_SEEDED_BUG(grace_answers_before_the_marks)) {
            answer();
            return;
        }
        bool all = call->over == GraceOver::everything;
        standing = all ? 2 : 1;
        set(marks[0], channel->requests, *channel);
        if (all) set(marks[1], channel->serialising, *channel);
    }
    void set(Mark& mark, InFlightList& list, Channel& channel) noexcept {
        mark.part = this;
        mark.run = [](coro::ReadyItem* item) {
            Part* self = static_cast<Mark*>(static_cast<GraceMark*>(item))->part;
            if (--self->standing == 0) self->answer();
        };
        list.add_mark(&mark, channel.executor());
    }
    // Nothing here is touched afterwards.
    void answer() noexcept {
        reply.part = this;
        reply.run = [](aio::Message* message) { static_cast<Reply*>(message)->part->call->answered(); };
        call->here.send(&reply);  // open as long as there are tasks on it
    }
};

// The contexts that have a channel of the node. -ENOMEM.
int find_contexts(Node& node, base::Owner<Part[]>* out, size_t* count) noexcept {
    base::Guard guard(node.control->lists);
    *count = node.control->channels.size();
    *out = base::make_array<Part>(*count == 0 ? 1 : *count);
    if (*out == nullptr) return -ENOMEM;
    if (ENGINE_SEEDED_BUG(grace_asks_the_first_context_alone) && *count > 1) *count = 1;
    for (size_t i = 0; i < *count; i++) (*out)[i].context = node.control->channels[i]->context;
    return 0;
}

}  // namespace

coro::Task<int> grace(aio::AioContext& here, Node& node, ChannelVisit visit, GraceOver over) {
    Call call(here, node, visit, over);
    base::Owner<Part[]> parts;
    size_t count = 0;
    int result = find_contexts(node, &parts, &count);
    if (result != 0) co_return result;
    for (size_t i = 0; i < count; i++) {
        Part& part = parts[i];
        part.call = &call;
        part.run = [](aio::Message* message) { static_cast<Part*>(message)->begin(); };
        call.outstanding++;
        // Closed: then nothing of the node is left there.
        if (part.context->send(&part) != 0 && !ENGINE_SEEDED_BUG(grace_waits_for_a_closed_context))
            call.outstanding--;
    }
    call.answered();
    result = co_await call.done;
    co_return result;
}

}  // namespace engine::block
