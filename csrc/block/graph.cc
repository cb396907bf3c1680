// Opening and closing nodes; making channels. Control plane: foreign threads, serialised by Instance::control
// for the registry alone, so that a slow open holds up nobody else.
#include "block/graph.hh"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/registry.hh"

namespace engine {

int Instance::check(engine_error* error, const char* operation, bool blocks) const {
    if (getpid() != pid) {
        return base::fail(
            error, ENGINE_ERROR_CLOSED, EBADF, {.operation = operation},
            "this engine belongs to process %d and cannot be used after fork(): make a new one in the "
            "child",
            pid);
    }
    const aio::AioContext* current = aio::AioContext::current();
    if (blocks && current != nullptr) {
        return base::fail(
            error, ENGINE_ERROR_INVALID, EDEADLK, {.operation = operation},
            "%s would block context %s, on whose own thread it was called: call it from another thread",
            operation, current->name().c_str());
    }
    return 0;
}

namespace block {

namespace {

constexpr uint32_t child_permissions = ENGINE_PERM_ALL;
constexpr uint32_t child_read_permissions = ENGINE_PERM_CONSISTENT_READ;
constexpr uint32_t child_shared = ENGINE_PERM_CONSISTENT_READ | ENGINE_PERM_WRITE_UNCHANGED;

struct NodeDeleter {
    void operator()(Node* node) const {
        delete node->control;
        size_t bytes = node->mapped_bytes;
        node->~Node();
        munmap(node, bytes);
    }
};
using NodeOwner = std::unique_ptr<Node, NodeDeleter>;

NodeOwner allocate_node(const Driver& driver) {
    auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t bytes = (Node::state_offset + driver.state_size + page - 1) / page * page;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    NodeOwner node(new (memory) Node);
    node->mapped_bytes = bytes;
    node->driver = &driver;
    node->control = new NodeControl;
    return node;
}

bool knows(std::span<const OptionDef> table, const std::string& key) {
    return std::any_of(table.begin(), table.end(), [&](const OptionDef& def) { return key == def.key; });
}

// A format given `filename` has a file node below it; what only the file driver knows goes there too.
void move_to_file(const Driver& driver, OptionBag* bag, OptionBag* nested) {
    for (const OptionDef& def : file_driver.options) {
        const std::string* value = bag->find(def.key);
        if (value == nullptr || knows(driver.options, def.key)) continue;
        if (nested->find(def.key) == nullptr) nested->set(def.key, *value);
        bag->erase(def.key);
    }
    if (!nested->all().empty() && nested->find("driver") == nullptr) nested->set("driver", file_driver.name);
}

// What a child made on the way takes over from its parent unless told otherwise.
void inherit(const OptionBag& bag, OptionBag* nested) {
    for (const char* key : {"read-only", "cache.no-flush", "discard"}) {
        const std::string* value = bag.find(key);
        if (value != nullptr && nested->find(key) == nullptr) nested->set(key, *value);
    }
}

int find_named(Instance& engine, const std::string& name, Node** out, const char* role, engine_error* error) {
    *out = find_node(engine, name);
    if (*out != nullptr) return 0;
    return base::fail(error, ENGINE_ERROR_INVALID, ENOENT, {.operation = "open", .field = role},
                      "option '%s': there is no node '%s'; for a file write %s.driver=file,%s.filename=…",
                      role, name.c_str(), role, role);
}

void close_children(NodeControl& control) {
    for (Child& child : control.children) {
        if (child.user != nullptr) close_user(child.user, nullptr);
        if (child.owned) close_node(child.node, nullptr);
    }
    control.children.clear();
}

int open_child(Instance& engine, Node& node, const ChildDef& def, OptionBag* bag, engine_error* error) {
    std::string user_name =
        "node " + node.control->name;  // first: once the child is there nothing may fail unseen
    OptionBag nested = bag->take(def.role);
    const std::string* reference = bag->find(def.role);
    Child child{.role = def.role, .node = nullptr, .user = nullptr, .owned = false};
    int result = 0;
    if (reference != nullptr) {
        if (!nested.all().empty()) {
            return base::fail(
                error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = def.role},
                "option '%s' names node '%s', and '%s.%s' describes a new one: give one of the two", def.role,
                reference->c_str(), def.role, nested.all().begin()->first.c_str());
        }
        result = find_named(engine, *reference, &child.node, def.role, error);
        bag->erase(def.role);
    } else {
        if (std::strcmp(def.role, "file") == 0) move_to_file(*node.driver, bag, &nested);
        if (nested.all().empty()) {
            if (!def.required) return 0;
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = def.role},
                              "driver %s needs a '%s': give filename=…, %s.driver=…, or the name of a node",
                              node.driver->name, def.role, def.role);
        }
        inherit(*bag, &nested);
        result = open_node(engine, std::move(nested), &child.node, error);
        child.owned = result == 0;
    }
    if (result != 0) return result;
    node.control->children.push_back(std::move(child));  // there is room, see set_up
    Child& kept = node.control->children.back();
    return create_user(kept.node, user_name.c_str(),
                       node.read_only ? child_read_permissions : child_permissions, child_shared, &kept.user,
                       error);
}

int name_node(Instance& engine, Node& node, const OptionBag& bag, engine_error* error) {
    const std::string* wanted = bag.find("node-name");
    base::Where where{.operation = "open", .field = "node-name"};
    std::lock_guard guard(engine.control);
    std::string name = wanted != nullptr ? *wanted : "#block" + std::to_string(engine.next_name++);
    if (name.empty() || name.size() > 63) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "node name '%s': 1 to 63 bytes are allowed", name.c_str());
    }
    for (const Node* other : engine.nodes) {
        if (other->control->name == name) {
            return base::fail(error, ENGINE_ERROR_CONFLICT, EEXIST, where, "there is a node '%s' already",
                              name.c_str());
        }
    }
    node.control->name = std::move(name);
    engine.nodes.push_back(&node);  // taken from here on; nobody can attach before open_node returns it
    return 0;
}

void forget_node(Instance& engine, Node& node) {
    std::lock_guard guard(engine.control);
    std::erase(engine.nodes, &node);
}

int set_up(Instance& engine, Node& node, OptionBag& bag, engine_error* error) {
    const std::string* read_only = bag.find("read-only");
    node.read_only = read_only != nullptr &&
                     (*read_only == "on" || *read_only == "true" || *read_only == "yes" || *read_only == "1");
    node.control->children.reserve(node.driver->children.size());
    for (const ChildDef& def : node.driver->children) {
        int result = open_child(engine, node, def, &bag, error);
        if (result != 0) return result;
    }
    Options options;
    int result = options.parse(bag, node.driver->name, node.driver->options, error);
    if (result != 0) return result;
    node.read_only = options.boolean("read-only");
    node.no_flush = options.boolean("cache.no-flush");
    node.ignore_discard = options.text("discard") == "ignore";
    result = node.driver->open(node, {options, node.read_only, error});
    if (result != 0 && error != nullptr && error->node[0] == '\0') {
        base::copy_text(error->node, node.control->name.c_str());
    }
    return result;
}

// No longer found by a closing context, and not in its hands either.
void retire_node(Instance& engine, Node& node) {
    forget_node(engine, node);
    std::lock_guard guard(engine.dropping);
}

}  // namespace

Node* find_node(Instance& engine, std::string_view name) {
    std::lock_guard guard(engine.control);
    for (Node* node : engine.nodes) {
        if (node->control->open && node->control->name == name) return node;
    }
    return nullptr;
}

int open_node(Instance& engine, OptionBag bag, Node** out, engine_error* error) {
    const std::string* name = bag.find("driver");
    const Driver* driver = name == nullptr ? nullptr : find_driver(*name);
    if (driver == nullptr) {
        std::string known;
        for (const Driver* d : drivers()) known += std::string(known.empty() ? "" : ", ") + d->name;
        return base::fail(error, ENGINE_ERROR_INVALID, name == nullptr ? EINVAL : ENOENT,
                          {.operation = "open", .field = "driver"}, "%s%s%s; there are: %s",
                          name == nullptr ? "option 'driver' is missing" : "there is no driver '",
                          name == nullptr ? "" : name->c_str(), name == nullptr ? "" : "'", known.c_str());
    }
    return open_node(engine, *driver, std::move(bag), out, error);
}

int open_node(Instance& engine, const Driver& driver, OptionBag bag, Node** out, engine_error* error) {
    if (bag.find("driver") == nullptr) bag.set("driver", driver.name);
    NodeOwner node = allocate_node(driver);
    if (node == nullptr) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"}, "no memory for a node");
    }
    node->control->engine = &engine;
    if (engine.lock_profile) node->control->edges.enable_profile();
    int result = name_node(engine, *node, bag, error);
    if (result != 0) return result;
    try {
        result = set_up(engine, *node, bag, error);
    } catch (const std::bad_alloc&) {
        result = base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"}, "open: out of memory");
    }
    if (result != 0) {
        close_children(*node->control);
        retire_node(engine, *node);
        return result;
    }
    std::lock_guard guard(engine.control);
    node->control->open = true;
    *out = node.release();
    return 0;
}

namespace {

// On the channel's home thread, with nothing in flight.
void destroy_channel(Channel& channel) {
    ENGINE_CHECK(channel.in_flight.get() == 0);
    if (channel.node->driver->close_channel != nullptr) channel.node->driver->close_channel(channel);
    channel.state_memory.reset();
}

// Takes a channel out of the node's hands: that on a context, or any. Null: there is none.
std::unique_ptr<Channel> take_channel(Node* node, const aio::AioContext* only) noexcept {
    base::Guard guard(node->control->edges);
    auto& channels = node->control->channels;
    for (auto& channel : channels) {
        if (only != nullptr && channel->context != only) continue;
        std::swap(channel, channels.back());
        std::unique_ptr<Channel> taken = std::move(channels.back());
        channels.pop_back();
        return taken;
    }
    return nullptr;
}

// Needs no memory: closing must not stop half-way.
void drop_channels_of(Node* node, const aio::AioContext* only) noexcept {
    while (std::unique_ptr<Channel> channel = take_channel(node, only)) {
        Channel* raw = channel.get();
        // A context that has closed meanwhile touches no channel any more.
        if (raw->context->call_and_wait([raw] { destroy_channel(*raw); }) != 0) destroy_channel(*raw);
    }
}

Channel* find_channel(Node* node, const aio::AioContext* context) {
    base::Guard guard(node->control->edges);
    for (auto& channel : node->control->channels) {
        if (channel->context == context) return channel.get();
    }
    return nullptr;
}

// On the context's home thread: memory is first touched where it will be used.
int make_channel(Node* node, aio::AioContext* context, Channel** out) {
    if ((*out = find_channel(node, context)) != nullptr) return 0;
    auto channel = std::make_unique<Channel>();
    channel->node = node;
    channel->context = context;
    channel->children.reserve(node->control->children.size());
    for (const Child& child : node->control->children) {
        Channel* below = nullptr;
        int result = make_channel(child.node, context, &below);
        if (result != 0) return result;
        channel->children.push_back(below);
    }
    if (node->driver->channel_state_size != 0) {
        channel->state_memory = std::make_unique<std::byte[]>(node->driver->channel_state_size);
    }
    base::Guard guard(node->control->edges);
    node->control->channels.reserve(node->control->channels.size() + 1);
    if (node->driver->open_channel != nullptr) {
        int result = node->driver->open_channel(*channel);
        if (result != 0) return result;
    }
    *out = channel.get();
    node->control->channels.push_back(std::move(channel));
    return 0;
}

}  // namespace

int close_node(Node* node, engine_error* error) {
    NodeControl& control = *node->control;
    {
        base::Guard guard(control.edges);
        if (!control.users.empty()) {
            std::string names;
            for (const User* user : control.users) names += (names.empty() ? "'" : ", '") + user->name + "'";
            return base::fail(
                error, ENGINE_ERROR_CONFLICT, EBUSY, {.node = control.name.c_str(), .operation = "close"},
                "node %s is in use by %s: close them first", control.name.c_str(), names.c_str());
        }
    }
    drop_channels_of(node, nullptr);
    retire_node(*control.engine, *node);
    if (node->driver->close != nullptr) node->driver->close(*node);
    close_children(control);
    NodeOwner owner(node);
    return 0;
}

void drop_channels(Instance& engine, aio::AioContext* context) {
    std::lock_guard one_at_a_time(engine.dropping);
    std::vector<Node*> nodes;
    {
        std::lock_guard guard(engine.control);
        nodes = engine.nodes;
    }
    for (Node* node : nodes) drop_channels_of(node, context);
}

int open_port(User* user, aio::AioContext* context, Port* out, engine_error* error) {
    Channel* channel = find_channel(user->node, context);
    if (channel == nullptr) {
        int made = 0;
        int result = context->call_and_wait([&] {
            try {
                made = make_channel(user->node, context, &channel);
            } catch (const std::bad_alloc&) {
                made = -ENOMEM;
            }
        });
        if (result == 0) result = made;
        if (result != 0) {
            return base::fail_os(error, -result,
                                 {.node = user->node->control->name.c_str(), .operation = "attach"},
                                 "node %s: cannot make a channel on context %s",
                                 user->node->control->name.c_str(), context->name().c_str());
        }
    }
    *out = {channel, user, user->allowed_ops};
    return 0;
}

}  // namespace block
}  // namespace engine
