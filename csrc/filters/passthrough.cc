// The passthrough filter: hands every request on to its child and every answer back. The template for a
// filter. It has no state; limits are its child's.
#include "block/forward.hh"
#include "block/registry.hh"

namespace engine::block {

namespace {

int passthrough_open(Node& node, const OpenArguments& arguments) {
    const Node& child = *node.control->children[0].node;
    node.bytes.store_relaxed(child.bytes.load_relaxed());
    take_limits(node, child);
    if (!arguments.options.given("discard")) node.ignore_discard = false;  // that is for the child to say
    return 0;
}

void passthrough_done(Request* request) {
    const Channel& channel = take_back(request);
    if (ENGINE_UNLIKELY(request->op == Op::resize) && request->result >= 0) {
        channel.node->bytes.store_relaxed(channel.children[0]->node->bytes.load_relaxed());
    }
    finish(request, request->result);
}

void passthrough_submit(Channel& channel, Request* request) {
    forward(channel, 0, request, request->offset, passthrough_done);
}

const ChildDef children[] = {{"file", true}};

}  // namespace

const Driver passthrough_driver{
    .name = "passthrough",
    .layer = "filter",
    .text = "hands every request on, changes nothing",
    .options = {},
    .children = children,
    .state_size = 0,
    .channel_state_size = 0,
    .open = passthrough_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = passthrough_submit,
    .filter = true,
};

}  // namespace engine::block
