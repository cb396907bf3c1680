// One message to each context that has a channel of the node, a mark in its list of requests, one message
// back.
#include "block/grace.hh"

#include "base/alloc.hh"
#include "block/graph_tasks.hh"
#include "coro/completion.hh"

namespace engine::block {

namespace {

struct Call {
    Call(aio::AioContext& on, Node& of, ChannelVisit what) noexcept
        : here(on), node(of), visit(what), done(on) {}
    aio::AioContext& here;
    Node& node;
    ChannelVisit visit;
    coro::Completion<int> done;
    size_t outstanding = 1;  // the caller's own, until all have been sent

    void answered() noexcept {
        if (--outstanding == 0) done.complete(0);
    }
};

// What goes to a context and comes back.
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
    Mark mark;

    void begin() noexcept {
        Channel* channel = find_channel(&call->node, context);
        if (channel == nullptr) {
            answer();
            return;
        }
        if (call->visit.visit != nullptr) call->visit.visit(*channel);
        mark.part = this;
        mark.run = [](coro::ReadyItem* item) {
            static_cast<Mark*>(static_cast<GraceMark*>(item))->part->answer();
        };
        channel->requests.add_mark(&mark, channel->executor());
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
    for (size_t i = 0; i < *count; i++) (*out)[i].context = node.control->channels[i]->context;
    return 0;
}

}  // namespace

coro::Task<int> grace(aio::AioContext& here, Node& node, ChannelVisit visit) {
    Call call(here, node, visit);
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
        if (part.context->send(&part) != 0) call.outstanding--;
    }
    call.answered();
    result = co_await call.done;
    co_return result;
}

}  // namespace engine::block
