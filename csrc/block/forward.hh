// Handing a request on to a child as it is, without a child request: what this level must have back is kept
// in a small frame of its channel's pool, and the frames of one request form a stack. Home thread of the
// request's context only.
//
//   void submit(Channel& channel, Request* request) { forward(channel, 0, request, request->offset, done); }
//   void done(Request* request) { take_back(request); finish(request, request->result); }
#pragma once

#include "block/node.hh"

namespace engine::block {

// For a filter or a format that leaves the data alone: it can what its child can. What the child demands of
// requests is seen to there.
inline void take_limits(Node& node, const Node& child) noexcept {
    node.best_request_alignment = child.best_request_alignment;
    node.best_memory_alignment = child.best_memory_alignment;
    node.native_ops = child.native_ops;
    node.native_write_flags = child.native_write_flags;
    node.holes = child.holes;
}

// Gives the request to a child's channel, `offset` bytes into it. It comes back to `done`, on the same thread
// and not from in here, which calls take_back() first. Until then this level owns nothing of it, its scratch
// included. Where there is no memory for a frame the request fails, and `done` is not called.
inline void forward(Channel& channel, size_t child, Request* request, uint64_t offset,
                    void (*done)(Request*)) noexcept {
    ENGINE_ASSERT(request->channel == &channel);
    ForwardFrame* frame = channel.frames.get();
    if (ENGINE_UNLIKELY(frame == nullptr)) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    frame->next = request->frame;
    frame->channel = &channel;
    frame->complete = request->complete;
    frame->offset = request->offset;
    request->frame = frame;
    request->complete = done;
    request->offset = offset;
    submit_child(*channel.children[child], request);
}

// The request is again what it was before forward(), but for what it came back with. Returns its channel.
inline Channel& take_back(Request* request) noexcept {
    ForwardFrame* frame = request->frame;
    Channel& channel = *frame->channel;
    request->frame = frame->next;
    request->channel = &channel;
    request->complete = frame->complete;
    request->offset = frame->offset;
    channel.frames.put(frame);
    return channel;
}

}  // namespace engine::block
