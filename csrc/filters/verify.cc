// The verify driver: its children, opening and closing. Control plane, but for the channels.
#include "filters/verify.hh"

#include <algorithm>

#include "base/error.hh"
#include "block/registry.hh"
#include "filters/filter.hh"

namespace engine::filters {

using block::bit;
using block::Channel;
using block::Node;
using block::Op;
using block::OpenArguments;

namespace {

const block::ChildDef verify_children[] = {{child_roles[file_child], true},
                                           {child_roles[reference_child], true}};

int refuse_children(engine_error* error, const char* format, const char* a, const char* b) {
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = "reference"},
                      format, a, b);
}

int check_children(const Node& node, const OpenArguments& arguments) {
    const Node& file = *node.control->children[file_child].node;
    const Node& reference = *node.control->children[reference_child].node;
    const char* file_name = file.control->name.c_str();
    const char* reference_name = reference.control->name.c_str();
    if (&file == &reference) {
        return refuse_children(
            arguments.error,
            "verify: option 'reference': it is node %s, as 'file' is, which cannot differ from "
            "itself: name another%s",
            file_name, "");
    }
    uint64_t file_bytes = file.bytes.load_relaxed(), reference_bytes = reference.bytes.load_relaxed();
    if (file_bytes != reference_bytes) {
        return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "open", .field = "reference"},
                          "verify: 'file' (node %s) has %lu bytes, 'reference' (node %s) %lu: give them the "
                          "same size",
                          file_name, file_bytes, reference_name, reference_bytes);
    }
    for (Op op : {Op::read, Op::write}) {
        bool wanted = (file.native_ops & bit(op)) != 0 && (op == Op::read || !arguments.read_only);
        if (!wanted || (reference.native_ops & bit(op)) != 0) continue;
        return refuse_children(
            arguments.error, "verify: option 'reference': driver %s cannot %s: give a node of another driver",
            reference.driver->name, op_name(op));
    }
    return 0;
}

int verify_open(Node& node, const OpenArguments& arguments) {
    int result = check_children(node, arguments);
    if (result != 0) return result;
    const Node& file = *node.control->children[file_child].node;
    const Node& reference = *node.control->children[reference_child].node;
    open_above_child(node, arguments);
    node.best_request_alignment = std::max(file.best_request_alignment, reference.best_request_alignment);
    node.best_memory_alignment = std::max(file.best_memory_alignment, reference.best_memory_alignment);
    node.native_ops = file.native_ops & (block::ops_of_data & ~bit(Op::discard));
    // A discard becomes zeroes in both (verify_io.cc).
    if ((file.native_ops & bit(Op::write_zeroes)) != 0) node.native_ops |= bit(Op::discard);
    node.native_write_flags =
        ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;  // each child sees to its own
    base::Owner<Verify> verify = base::make<Verify>();
    if (verify == nullptr) throw std::bad_alloc();
    node.state<VerifyState>().verify = verify.release();
    return 0;
}

void verify_close(Node& node) {
    base::Owner<Verify> verify(node.state<VerifyState>().verify);
}

int verify_open_channel(Channel& channel) {
    new (channel.state_memory.get()) VerifyChannel;
    return 0;
}

void verify_close_channel(Channel& channel) {
    auto& own = channel.state<VerifyChannel>();
    ENGINE_CHECK(own.under_way.empty());
    own.~VerifyChannel();
}

}  // namespace

}  // namespace engine::filters

namespace engine::block {

const Driver verify_driver{
    .name = "verify",
    .layer = "filter",
    .text = "keeps a reference beside its child: changes go to both, and what is read must be the same",
    .options = {},
    .children = filters::verify_children,
    .state_size = sizeof(filters::VerifyState),
    .channel_state_size = sizeof(filters::VerifyChannel),
    .open = filters::verify_open,
    .close = filters::verify_close,
    .open_channel = filters::verify_open_channel,
    .close_channel = filters::verify_close_channel,
    .submit = filters::verify_submit,
    .filter = true,
    .bounces = true,
    .cancel = filters::verify_cancel,
};

}  // namespace engine::block
