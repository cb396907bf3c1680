// The passthrough filter: hands every request on to its child and every answer back. The template for a
// filter. It has no state; limits are its child's.
#include "block/registry.hh"
#include "filters/filter.hh"

namespace engine::block {

namespace {

int passthrough_open(Node& node, const OpenArguments& arguments) {
    filters::open_above_child(node, arguments);
    return 0;
}

void passthrough_submit(Channel& channel, Request* request) {
    filters::pass(channel, request);
}

Location passthrough_locate(Channel& channel, uint64_t offset) {
    return {channel.children[0], offset};
}

const ChildDef passthrough_children[] = {{"file", true}};

}  // namespace

const Driver passthrough_driver{
    .name = "passthrough",
    .layer = "filter",
    .text = "hands every request on, changes nothing",
    .options = {},
    .children = passthrough_children,
    .state_size = 0,
    .channel_state_size = 0,
    .open = passthrough_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = passthrough_submit,
    .filter = true,
    .locate = passthrough_locate,
};

}  // namespace engine::block
