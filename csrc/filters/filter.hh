// What filters have in common that leave requests and data as they are: limits, handing on, and the end of a
// request that was cancelled while the filter held it. Home thread of the request's context, but for
// open_above_child().
#pragma once

#include <cerrno>

#include "block/forward.hh"

namespace engine::filters {

// For Driver::open: size and limits are the child's, and so is what a discard does unless it was said here.
inline void open_above_child(block::Node& node, const block::OpenArguments& arguments) {
    const block::Node& child = *node.control->children[0].node;
    node.bytes.store_relaxed(child.bytes.load_relaxed());
    take_limits(node, child);
    if (!arguments.options.given("discard")) node.ignore_discard = false;
}

inline void pass_back(block::Request* request) {
    const block::Channel& channel = take_back(request);
    if (ENGINE_UNLIKELY(request->op == block::Op::resize) && request->result >= 0) {
        channel.node->bytes.store_relaxed(channel.children[0]->node->bytes.load_relaxed());
    }
    finish(request, request->result);
}

inline void pass(block::Channel& channel, block::Request* request) noexcept {
    forward(channel, 0, request, request->offset, pass_back);
}

// For Driver::cancel: `while_what` it was held.
inline void fail_cancelled(block::Request* request, const char* while_what) noexcept {
    fail_later(request, ENGINE_ERROR_OS, ECANCELED,
               "node %s: %s of %lu bytes at offset %lu was cancelled while %s",
               request->channel->node->control->name.c_str(), op_name(request->op), request->length,
               request->offset, while_what);
}

}  // namespace engine::filters
