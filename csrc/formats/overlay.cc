// The overlay driver: options, children, opening and closing. Control plane, but for the channels.
#include "formats/overlay.hh"

#include "base/error.hh"
#include "block/registry.hh"

namespace engine::formats {

using block::Channel;
using block::Node;
using block::OpenArguments;
using block::OptionBag;
using block::OptionDef;
using block::Options;
using block::OptionType;

Overlay::Overlay() noexcept : reclaim(formats::reclaim) {}

namespace {

constexpr uint64_t resize_timeout_ns = 30'000'000'000;
constexpr unsigned sub_bits_min = 9;

const OptionDef overlay_options[] = {
    {"data", OptionType::enumeration, "memory", "memory|file",
     "where what is written goes: memory, or an unnamed file in `directory`, of which a crash leaves "
     "nothing; "
     "without it `file` may be a node whose content is lost"},
    {"directory", OptionType::string, "/var/tmp", nullptr, "of the unnamed file; for data=file"},
    {"cluster-size", OptionType::size, "64k", "4k..512k",
     "bytes of the data node that are taken at a time; a power of two"},
    {"size", OptionType::size, nullptr, "0..8E",
     "size of the disk, bytes; default: that of what is below; beyond that it reads as zeroes"},
};

const block::ChildDef overlay_children[] = {{.role = "backing", .required = true, .read_only = true},
                                            {.role = "file", .required = true}};

int refuse_option(engine_error* error, const char* field, const char* text) {
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = field},
                      "overlay: option '%s': %s", field, text);
}

// The data node, where the caller says nothing of it.
int overlay_complete_child(Node& node, const block::ChildDef& def, const OptionBag& bag, OptionBag* nested,
                           engine_error* error) {
    if (bag.find("filename") != nullptr) {
        return refuse_option(
            error, "filename",
            "it could be either file: write backing.driver=…,backing.filename=… for what is below; "
            "what is written goes to memory, or with data=file to an unnamed file");
    }
    if (def.read_only || !nested->all().empty()) return 0;
    const std::string* data = bag.find("data");
    const std::string* directory = bag.find("directory");
    bool in_file = data != nullptr && *data == "file";
    node.state<OverlayState>().own_data = true;
    nested->set("driver", in_file ? "file" : "memory");
    nested->set("read-only", "off");
    nested->set("discard", "unmap");
    if (in_file) {
        nested->set("filename", directory != nullptr ? *directory : "/var/tmp");
        nested->set("unnamed", "on");
    } else {
        nested->set("size", "0");
    }
    return 0;
}

bool power_of_two(uint64_t n) noexcept {
    return n != 0 && (n & (n - 1)) == 0;
}
unsigned log2(uint64_t n) noexcept {
    return 63 - static_cast<unsigned>(__builtin_clzll(n));
}

// Which options go together, and the sizes that follow from them.
int find_layout(Node& node, const OpenArguments& arguments, Layout* layout) {
    const Options& given = arguments.options;
    const Node& backing = *node.control->children[backing_child].node;
    const Node& data = *node.control->children[data_child].node;
    bool own_data = node.state<OverlayState>().own_data;
    if (given.given("data") && !own_data)
        return refuse_option(arguments.error, "data",
                             "'file' says already where data goes: give one of the two");
    if (given.given("directory") && (!own_data || given.text("data") != "file"))
        return refuse_option(arguments.error, "directory",
                             "there is no unnamed file to put there: add data=file");
    uint64_t cluster = given.number("cluster-size");
    if (!power_of_two(cluster))
        return refuse_option(arguments.error, "cluster-size", "it must be a power of two");
    uint64_t sub =
        std::max({cluster / subs_max, uint64_t{1} << sub_bits_min, uint64_t{backing.best_request_alignment},
                  uint64_t{data.best_request_alignment}});
    if (sub > cluster)
        return refuse_option(arguments.error, "cluster-size",
                             "it must not be less than the alignment of a child");
    *layout = {
        .cluster_bits = log2(cluster), .sub_bits = log2(sub), .backing_bytes = backing.bytes.load_relaxed()};
    return 0;
}

// The size of the disk: whole sub-clusters.
int find_size(const OpenArguments& arguments, const Layout& layout, uint64_t* bytes) {
    bool given = arguments.options.has("size");
    uint64_t wanted = given ? arguments.options.number("size") : layout.backing_bytes;
    uint64_t most = clusters_max << layout.cluster_bits;
    if (wanted > most) {
        return base::fail(
            arguments.error, ENGINE_ERROR_LIMIT, EFBIG, {.operation = "open", .field = "size"},
            "overlay: a disk of %lu bytes is too large for clusters of %lu bytes, with which it "
            "may have %lu: give a larger cluster-size, or a smaller size",
            wanted, layout.cluster_bytes(), most);
    }
    uint64_t mask = (uint64_t{1} << layout.sub_bits) - 1;
    *bytes = (wanted + mask) & ~mask;
    return 0;
}

// Room for each cluster of the disk twice, so that one is free while others are on their way back. It is
// sparse. A data node that is the caller's stays as it is.
int size_data(Node& node, const Layout& layout, uint64_t bytes, uint32_t* host_clusters,
              engine_error* error) {
    const block::Child& data = node.control->children[data_child];
    uint64_t clusters = (bytes + layout.cluster_bytes() - 1) >> layout.cluster_bits;
    uint64_t wanted = 2 * clusters;
    if (node.state<OverlayState>().own_data && !node.read_only) {
        int result = block::resize_node(data.user, node.control->engine->main(),
                                        wanted << layout.cluster_bits, resize_timeout_ns, error);
        if (result < 0) return result;
    }
    uint64_t has = data.node->bytes.load_relaxed() >> layout.cluster_bits;
    *host_clusters = static_cast<uint32_t>(std::min(wanted, has));
    return 0;
}

void set_limits(Node& node, const Layout& layout, uint64_t bytes) {
    const Node& backing = *node.control->children[backing_child].node;
    const Node& data = *node.control->children[data_child].node;
    node.request_alignment = 1u << layout.sub_bits;
    node.best_memory_alignment = std::max(backing.best_memory_alignment, data.best_memory_alignment);
    node.native_ops = block::ops_of_data;
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    node.holes = true;
    node.bytes.store_relaxed(bytes);
}

int overlay_open(Node& node, const OpenArguments& arguments) {
    Layout layout{};
    uint64_t bytes = 0;
    uint32_t host_clusters = 0;
    int result = find_layout(node, arguments, &layout);
    if (result == 0) result = find_size(arguments, layout, &bytes);
    if (result == 0) result = size_data(node, layout, bytes, &host_clusters, arguments.error);
    if (result != 0) return result;
    base::Owner<Overlay> overlay = base::make<Overlay>();
    if (overlay == nullptr || !overlay->map.init(layout, bytes, host_clusters)) {
        return base::fail(arguments.error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"},
                          "overlay: no memory for the table of %lu bytes", bytes);
    }
    overlay->meta.set_up(node);
    set_limits(node, layout, bytes);
    // It gives the space of its own node back, whatever becomes of discards elsewhere.
    if (!arguments.options.given("discard")) node.ignore_discard = false;
    node.state<OverlayState>().overlay = overlay.release();
    return 0;
}

void overlay_close(Node& node) {
    base::Owner<Overlay> overlay(node.state<OverlayState>().overlay);
    overlay->meta.close(node);
}

int overlay_open_channel(Channel& channel) {
    Overlay* overlay = channel.node->state<OverlayState>().overlay;
    block::MetaLock::Slot* slot = overlay->meta.slot_of(*channel.context);
    if (slot == nullptr) return -ENOMEM;
    new (channel.state_memory.get()) OverlayChannel{overlay, slot, {}, {}};
    return 0;
}

void overlay_close_channel(Channel& channel) {
    channel.state<OverlayChannel>().~OverlayChannel();
}

int overlay_start_home(Channel& home) {
    home.state<OverlayChannel>().overlay->reclaim.start(home);
    return 0;
}

coro::Task<int> overlay_stop_home(Channel& home) {
    int result = co_await home.state<OverlayChannel>().overlay->reclaim.stop(home);
    co_return result;
}

coro::Task<int> overlay_settle(Channel& home) {
    int result = co_await home.state<OverlayChannel>().overlay->reclaim.settle(home);
    co_return result;
}

}  // namespace

}  // namespace engine::formats

namespace engine::block {

const Driver overlay_driver{
    .name = "overlay",
    .layer = "format",
    .text = "a temporary disk over any node: what is written goes elsewhere, and is gone when it is closed",
    .options = formats::overlay_options,
    .children = formats::overlay_children,
    .state_size = sizeof(formats::OverlayState),
    .channel_state_size = sizeof(formats::OverlayChannel),
    .open = formats::overlay_open,
    .close = formats::overlay_close,
    .open_channel = formats::overlay_open_channel,
    .close_channel = formats::overlay_close_channel,
    .submit = formats::overlay_submit,
    .complete_child = formats::overlay_complete_child,
    .start_home = formats::overlay_start_home,
    .stop_home = formats::overlay_stop_home,
    .settle = formats::overlay_settle,
};

}  // namespace engine::block
