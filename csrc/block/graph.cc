// Opening and closing nodes. What may block (a driver's open and close) runs on the foreign thread that
// asked; what changes the graph is a task on main, so that a slow open holds up nobody else.
#include "block/graph.hh"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "aio/caller.hh"
#include "base/clock.hh"
#include "base/error.hh"
#include "block/graph_tasks.hh"
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

void Instance::adopt_orphans() {
    std::lock_guard guard(control);
    for (const auto& context : contexts) context->adopt(nullptr);
}

void Instance::wait(aio::Signal& signal) {
    constexpr uint64_t patience_ns = 50'000'000;
    uint64_t named_ns = base::monotonic_ns();
    while (!signal.wait_for(patience_ns)) {
        adopt_orphans();
        uint64_t now_ns = base::monotonic_ns();
        if (now_ns - named_ns < aio::stall_limit_ns.load_relaxed()) continue;
        aio::name_stalled();
        named_ns = now_ns;
    }
}

namespace block {

namespace {

constexpr uint32_t child_permissions = ENGINE_PERM_ALL;
constexpr uint32_t child_read_permissions = ENGINE_PERM_CONSISTENT_READ;
constexpr uint32_t child_shared = ENGINE_PERM_CONSISTENT_READ | ENGINE_PERM_WRITE_UNCHANGED;

struct NodeDeleter {
    void operator()(Node* node) const { free_node(node); }
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

// On main, where nobody else looks at the edges of a node that is being opened, or holding those of its
// children. Takes no memory: closing must not stop half-way.
void forget_edges(Node& node) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    for (Child& child : node.control->children) {
        base::Guard guard(child.node->control->lists);
        std::erase(child.node->control->users, child.user);
    }
}

// Frees a node that nobody can find any more, with its edges forgotten, once no task on main waits for it
// either. Takes no memory.
void retire_node(Instance& engine, Node* node) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    for (Child& child : node->control->children) delete child.user;
    engine.main()->call_and_wait([&] {
        {
            std::lock_guard guard(engine.control);
            std::erase(engine.nodes, node);
        }
        node->control->closing = node->control->dead = true;
        if (node->control->pins == 0) free_node(node);
    });
}

// A node that could not be opened after all, or what was opened along with it: without users and channels it
// goes without taking memory. What somebody uses meanwhile stays, for the engine to close.
void abandon_node(Instance& engine, Node* node,
                  bool driver_opened) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if (driver_opened && node->driver->close != nullptr) node->driver->close(*node);
    engine.main()->call_and_wait([node] { forget_edges(*node); });
    for (Child& child : node->control->children) {
        if (child.owned) drop_unused_channels(engine, child.node);
        bool unused = false;
        engine.main()->call_and_wait([&] {
            base::Guard guard(child.node->control->lists);
            unused = child.node->control->users.empty() && child.node->control->channels.empty() &&
                     !child.node->control->working;
        });
        if (!child.owned) continue;
        if (unused) {
            abandon_node(engine, child.node, true);
        } else {
            close_node(child.node, nullptr);
        }
    }
    retire_node(engine, node);
}

// What the node is to open as its child; nothing where it can do without one.
int describe_child(Node& node, const ChildDef& def, OptionBag* bag, OptionBag* nested, engine_error* error) {
    bool is_file = std::strcmp(def.role, "file") == 0;
    if (node.driver->complete_child != nullptr) {
        int result = node.driver->complete_child(node, def, *bag, nested, error);
        if (result != 0) return result;
    }
    if (is_file) move_to_file(*node.driver, bag, nested);
    if (nested->all().empty()) {
        if (!def.required) return 0;
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = def.role},
                          "driver %s needs a '%s': give %s%s.driver=…, or the name of a node",
                          node.driver->name, def.role, is_file ? "filename=…, " : "", def.role);
    }
    if (def.read_only && nested->find("read-only") == nullptr) nested->set("read-only", "on");
    inherit(*bag, nested);
    return 0;
}

int open_child(Instance& engine, Node& node, const ChildDef& def, OptionBag* bag, bool inserting,
               engine_error* error) {
    std::string user_name = "node " + node.control->name;
    OptionBag nested = bag->take(def.role);
    const std::string* reference = bag->find(def.role);
    std::string referred;
    Node* opened = nullptr;
    int result = 0;
    if (reference != nullptr) {
        if (!nested.all().empty()) {
            return base::fail(
                error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = def.role},
                "option '%s' names node '%s', and '%s.%s' describes a new one: give one of the two", def.role,
                reference->c_str(), def.role, nested.all().begin()->first.c_str());
        }
        Node* found = nullptr;
        result = find_named(engine, *reference, &found, def.role, error);
        referred = *reference;
        bag->erase(def.role);
    } else {
        result = describe_child(node, def, bag, &nested, error);
        if (result != 0 || nested.all().empty()) return result;
        result = open_node(engine, std::move(nested), &opened, error);
    }
    if (result != 0) return result;
    Edge edge{.engine = &engine,
              .parent = &node,
              .role = def.role,
              .node = opened,
              .name = opened == nullptr ? &referred : nullptr,
              .owned = opened != nullptr,
              .inserting = inserting};
    User* user = nullptr;
    bool reads = node.read_only || def.read_only;
    try {
        result = create_edge(edge, user_name.c_str(), reads ? child_read_permissions : child_permissions,
                             child_shared, &user, error);
    } catch (const std::bad_alloc&) {
        result = base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"}, "open: out of memory");
    }
    if (result != 0 && opened != nullptr) abandon_node(engine, opened, true);
    return result;
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
    node.control->id = ++engine.last_node_id;
    node.control->edges.set_label({.name = "edges",
                                   .owner = node.control->name.c_str(),
                                   .rank = coro::LockRank::edges,
                                   .id = node.control->id});
    engine.nodes.push_back(&node);  // taken from here on; nobody can attach before open_node returns it
    return 0;
}

int find_home(Instance& engine, Node& node, const Options& options, engine_error* error) {
    const std::string& name = options.text("context");
    aio::AioContext* home = find_context(engine, name);
    if (home == nullptr || !home->hold()) {
        return base::fail(error, ENGINE_ERROR_INVALID, ENOENT, {.operation = "open", .field = "context"},
                          "option 'context': there is no context '%s'", name.c_str());
    }
    node.control->home = home;
    return 0;
}

int set_detect_zeroes(Node& node, const Options& options, engine_error* error) {
    const std::string& wish = options.text("detect-zeroes");
    node.detect_zeroes = wish == "on"      ? DetectZeroes::on
                         : wish == "unmap" ? DetectZeroes::unmap
                                           : DetectZeroes::off;
    if (node.detect_zeroes != DetectZeroes::unmap || !node.ignore_discard) return 0;
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = "detect-zeroes"},
                      "option 'detect-zeroes': unmap gives space back, which discard=ignore forbids: set "
                      "discard=unmap too, or detect-zeroes=on");
}

// `held`: the home, which stays until the node is open.
int set_up(Instance& engine, Node& node, OptionBag& bag, bool inserting, aio::AioContext** held,
           engine_error* error) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    const std::string* read_only = bag.find("read-only");
    node.read_only = read_only != nullptr &&
                     (*read_only == "on" || *read_only == "true" || *read_only == "yes" || *read_only == "1");
    node.control->children.reserve(node.driver->children.size());
    for (const ChildDef& def : node.driver->children) {
        bool moves =
            inserting && &def == node.driver->children.data();  // above the node that it is inserted at
        int result = open_child(engine, node, def, &bag, moves, error);
        if (result != 0) return result;
    }
    Options options;
    int result = options.parse(bag, node.driver->name, node.driver->options, error);
    if (result != 0) return result;
    node.read_only = options.boolean("read-only");
    node.no_flush = options.boolean("cache.no-flush");
    node.ignore_discard = options.text("discard") == "ignore";
    result = set_detect_zeroes(node, options, error);
    if (result == 0) result = find_home(engine, node, options, error);
    if (result != 0) return result;
    *held = node.control->home;
    result = node.driver->open(node, {options, node.read_only, error});
    node.best_request_alignment = std::max(node.best_request_alignment, node.request_alignment);
    node.best_memory_alignment = std::max(node.best_memory_alignment, node.memory_alignment);
    if (result != 0 && error != nullptr && error->node[0] == '\0') {
        base::copy_text(error->node, node.control->name.c_str());
    }
    return result;
}

Task<int> start_work(Instance& engine, Node* node, engine_error* error) {
    EdgeLocks locks(engine);
    int result =
        co_await lock_edges(engine, locks, [node](std::vector<Node*>& wanted) { add_subtree(node, wanted); });
    if (result == 0) result = co_await start_home(engine, node, error);
    co_return result;
}

}  // namespace

Node* find_node(Instance& engine, std::string_view name) {
    std::lock_guard guard(engine.control);
    for (Node* node : engine.nodes) {
        if (node->control->open && node->control->name == name) return node;
    }
    return nullptr;
}

int find_driver(const OptionBag& bag, const Driver** out, engine_error* error) {
    const std::string* name = bag.find("driver");
    *out = name == nullptr ? nullptr : find_driver(*name);
    if (*out != nullptr) return 0;
    std::string known;
    for (const Driver* d : drivers()) known += std::string(known.empty() ? "" : ", ") + d->name;
    return base::fail(error, ENGINE_ERROR_INVALID, name == nullptr ? EINVAL : ENOENT,
                      {.operation = "open", .field = "driver"}, "%s%s%s; there are: %s",
                      name == nullptr ? "option 'driver' is missing" : "there is no driver '",
                      name == nullptr ? "" : name->c_str(), name == nullptr ? "" : "'", known.c_str());
}

int open_node(Instance& engine, OptionBag bag, Node** out, engine_error* error) {
    const Driver* driver = nullptr;
    int result = find_driver(bag, &driver, error);
    if (result != 0 || driver == nullptr) return result;
    return open_node(engine, *driver, std::move(bag), out, error);
}

aio::AioContext* find_context(Instance& engine, std::string_view name) {
    std::lock_guard guard(engine.control);
    for (const auto& context : engine.contexts) {
        if (context->name() == name) return context.get();
    }
    return nullptr;
}

void free_node(Node* node) noexcept {
    delete node->control;
    size_t bytes = node->mapped_bytes;
    node->~Node();
    munmap(node, bytes);
}

int open_node(Instance& engine, const Driver& driver, OptionBag bag, Node** out, engine_error* error) {
    return open_node(engine, driver, std::move(bag), false, out, error);
}

int open_node(Instance& engine, const Driver& driver, OptionBag bag, bool inserting, Node** out,
              engine_error* error) {
    if (bag.find("driver") == nullptr) bag.set("driver", driver.name);
    NodeOwner node = allocate_node(driver);
    if (node == nullptr) {
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"}, "no memory for a node");
    }
    node->control->engine = &engine;
    node->control->home = engine.main();
    if (engine.lock_profile) node->control->edges.enable_profile();
    int result = name_node(engine, *node, bag, error);
    if (result != 0) return result;
    bool driver_opened = false;
    aio::AioContext* held = nullptr;
    try {
        result = set_up(engine, *node, bag, inserting, &held, error);
        driver_opened = result == 0;
        if (result == 0 && driver.start_home != nullptr) {
            result = on_main(engine, error, "open", [&] { return start_work(engine, node.get(), error); });
        }
    } catch (const std::bad_alloc&) {
        result = base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"}, "open: out of memory");
    }
    if (result != 0) {
        drop_unused_channels(engine, node.get());
        abandon_node(engine, node.release(), driver_opened);
    }
    if (held != nullptr) held->let_go();
    if (result != 0) return result;
    std::lock_guard guard(engine.control);
    node->control->open = true;
    *out = node.release();
    return 0;
}

void discard_node(Instance& engine, Node* node) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    bool unused = false;
    engine.main()->call_and_wait([&] {
        std::lock_guard guard(engine.control);
        unused = node->control->users.empty() && !node->control->working;
        if (unused) node->control->open = false;
    });
    if (!unused) return;
    drop_unused_channels(engine, node);
    abandon_node(engine, node, true);
}

namespace {

int in_use(Node* node, engine_error* error) {
    NodeControl& control = *node->control;
    base::Guard guard(control.lists);
    if (control.users.empty()) return 0;
    std::string names;
    for (const User* user : control.users) names += (names.empty() ? "'" : ", '") + user->name + "'";
    return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY,
                      {.node = control.name.c_str(), .operation = "close"},
                      "node %s is in use by %s: close them first", control.name.c_str(), names.c_str());
}

// A node and, below it, what was opened along with it and has no other user; parents first.
void find_doomed(Node* node, std::vector<Node*>& doomed) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    doomed.push_back(node);
    for (Child& child : node->control->children) {
        if (child.owned && child.node->control->users.size() == 1) find_doomed(child.node, doomed);
    }
}

// What of closing a node concerns the graph. Afterwards nobody can find those that are doomed, or attach to
// them.
Task<int> detach_nodes(Instance& engine, Node* node, std::vector<Node*>* doomed, engine_error* error) {
    EdgeLocks locks(engine);
    int result =
        co_await lock_edges(engine, locks, [node](std::vector<Node*>& wanted) { add_subtree(node, wanted); });
    if (result == 0) result = in_use(node, error);
    if (result != 0) co_return result;
    find_doomed(node, *doomed);
    for (size_t i = 0; i < doomed->size(); i++) {
        result = co_await stop_home(engine, (*doomed)[i]);
        if (result < 0) co_return result;
    }
    result = co_await drop_channels(engine, *doomed);
    if (result != 0) co_return result;
    for (Node* gone : *doomed) {
        gone->control->closing = true;
        forget_edges(*gone);
    }
    std::lock_guard guard(engine.control);
    for (Node* gone : *doomed) gone->control->open = false;
    co_return 0;
}

}  // namespace

int close_node(Node* node, engine_error* error) {
    Instance& engine = *node->control->engine;
    std::vector<Node*> doomed;
    int result = on_main(engine, error, "close", [&] { return detach_nodes(engine, node, &doomed, error); });
    if (result != 0) return result;
    for (Node* gone : doomed) {
        if (gone->driver->close != nullptr) gone->driver->close(*gone);
        retire_node(engine, gone);
    }
    return 0;
}

}  // namespace block
}  // namespace engine
