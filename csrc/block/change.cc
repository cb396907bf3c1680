// Changes of the graph under load: users move from one node to another while it is at rest. Tasks on main;
// the entries are for foreign threads.
#include "base/error.hh"
#include "block/graph_tasks.hh"
#include "block/quiesce.hh"

namespace engine::block {

namespace {

bool contains(const std::vector<Node*>& nodes, const Node* node) {
    return std::find(nodes.begin(), nodes.end(), node) != nodes.end();
}

size_t index_of(const Node& parent, const User* edge) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    const auto& children = parent.control->children;
    for (size_t i = 0; i < children.size(); i++) {
        if (children[i].user == edge) return i;
    }
    ENGINE_CHECK(false);
    return 0;
}

enum class Change : uint8_t {
    insert,   // `to` is a filter, opened above `from`; its edge is no user of `from` yet
    remove,   // `to` is below `from`, a filter that is about to be closed
    replace,  // both are any, and stay
};

// Who moves: all users but edges that would close a circle, and those of nodes that are being opened just
// now.
struct Move {
    Change change;
    Node* from;
    Node* to;
    std::vector<User*> users;
    User* opening = nullptr;    // of a node that is being opened on `from`: it cannot move yet
    User* edge_up = nullptr;    // inserting: by which `to` uses `from`
    User* edge_down = nullptr;  // removing: by which `from`, about to be closed, uses `to`
    std::vector<aio::AioContext*> contexts;
};

void find_users(Instance& engine, Move& move) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    std::vector<Node*> below;
    add_subtree(move.to, below);
    std::lock_guard guard(engine.control);  // for `open`
    for (User* user : move.from->control->users) {
        if (user->parent == nullptr) {
            move.users.push_back(user);
        } else if (!user->parent->control->open) {
            move.opening = user;
        } else if (!contains(below, user->parent)) {
            move.users.push_back(user);
        }
    }
    for (Child& child : move.from->control->children) {
        if (move.change == Change::remove && child.node == move.to) move.edge_down = child.user;
    }
    for (Child& child : move.to->control->children) {
        if (move.change == Change::insert && child.node == move.from) move.edge_up = child.user;
    }
    auto add = [&](aio::AioContext* context) {
        if (std::find(move.contexts.begin(), move.contexts.end(), context) == move.contexts.end())
            move.contexts.push_back(context);
    };
    for (User* user : move.users) {
        user->for_each_port([&](Port& port) { add(port.context); });
        if (user->parent == nullptr) continue;
        for (auto& channel : user->parent->control->channels) add(channel->context);
    }
}

// A filter with several children has looked at their sizes when it was opened.
int check_children(const Move& move, engine_error* error) {
    uint64_t opened = move.to->bytes.load_relaxed(), now = move.from->bytes.load_relaxed();
    bool several = move.to->driver->filter && move.to->driver->children.size() > 1;
    if (!several || opened == now) return 0;
    const char* name = move.from->control->name.c_str();
    return base::fail(
        error, ENGINE_ERROR_CONFLICT, EBUSY, {.node = name, .operation = "insert"},
        "node %s was resized from %lu to %lu bytes while driver %s was opened above it: try again", name,
        opened, now, move.to->driver->name);
}

int check_move(const Move& move, engine_error* error) {
    if (move.change == Change::insert) {  // alone with `from`, once the others have gone
        int result = check_children(move, error);
        if (result != 0) return result;
        return check_user(move.from, *move.edge_up, move.users, error);
    }
    const char* from = move.from->control->name.c_str();
    const char* to = move.to->control->name.c_str();
    if (move.change == Change::remove && move.opening != nullptr) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, {.node = from, .operation = "remove"},
                          "%s is being opened on node %s just now: try again", move.opening->name.c_str(),
                          from);
    }
    uint64_t has = move.to->bytes.load_relaxed(), needed = move.from->bytes.load_relaxed();
    if (has < needed && move.change == Change::replace) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.node = to, .operation = "replace"},
                          "node %s has %lu bytes, node %s, which it is to stand in for, %lu: resize it first",
                          to, has, from, needed);
    }
    std::vector<User*> gone;
    if (move.edge_down != nullptr) gone.push_back(move.edge_down);
    for (const User* user : move.users) {
        int result = check_user(move.to, *user, gone, error);
        if (result != 0) return result;
    }
    return 0;
}

// What still depends on the children as they are comes to its end.
Task<int> settle_all(Instance& engine, std::vector<Node*> nodes, const Node* except) {
    int result = 0;
    for (size_t i = 0; i < nodes.size() && result >= 0; i++) {
        if (nodes[i] == except || nodes[i]->driver->settle == nullptr || !nodes[i]->control->working)
            continue;
        result = co_await run_at_home(engine, nodes[i], nodes[i]->driver->settle);
    }
    co_return result;
}

void change_lists(const Move& move, User* user) noexcept {
    {
        base::Guard guard(move.from->control->lists);
        std::erase(move.from->control->users, user);
    }
    {
        base::Guard guard(move.to->control->lists);
        move.to->control->users.push_back(user);  // there is room
    }
    user->move_to(move.to);
}

// The lists, and what each context is to change before it goes on. Finds all memory that it needs.
void commit(Move& move, Quiesced& rest) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if (move.edge_up != nullptr) {
        base::Guard guard(move.from->control->lists);
        move.from->control->users.push_back(move.edge_up);  // there is room
        // A resize may have come between its opening and now.
        move.to->bytes.store_relaxed(move.from->bytes.load_relaxed());
    }
    if (move.edge_down != nullptr) move.edge_down->retiring = true;
    for (User* user : move.users) {
        change_lists(move, user);
        user->for_each_port([&](Port& port) { rest.move_port(port, find_channel(move.to, port.context)); });
        if (user->parent == nullptr) continue;
        NodeControl& parent = *user->parent->control;
        size_t index = index_of(*user->parent, user);
        for (auto& channel : parent.channels) {
            rest.move_child(*channel, index, find_channel(move.to, channel->context));
        }
        base::Guard guard(parent.lists);
        parent.children[index].node = move.to;
    }
}

// Who closes what: the place that a node had under a parent that owned it goes to who stands between; of two
// nodes that stay, both are their opener's. True: the node below has no owner any more.
bool pass_ownership(Move& move) noexcept ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    bool inserting = move.edge_up != nullptr;
    Node* upper = inserting ? move.to : move.from;
    User* edge = inserting ? move.edge_up : move.edge_down;
    Child* below = edge == nullptr ? nullptr : &upper->control->children[index_of(*upper, edge)];
    bool owner_is_below = !inserting && below != nullptr && below->owned;
    if (owner_is_below) below->owned = false;
    for (User* user : move.users) {
        if (user->parent == nullptr) continue;
        Child& child = user->parent->control->children[index_of(*user->parent, user)];
        if (inserting && child.owned) {
            below->owned = true;
            child.owned = false;
        } else if (owner_is_below) {
            child.owned = true;
            owner_is_below = false;
        } else if (move.change == Change::replace) {
            child.owned = false;
        }
    }
    return owner_is_below;
}

// On main. What is below a filter now: it may change until its edges are locked.
Node* below(const Node* filter) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    return filter->control->children[0].node;
}

// Removing, `to` is null and `freed` what is below, where it has no owner.
Task<int> move_users(Instance& engine, Change change, Node* from, Node* to, uint64_t timeout_ns, Node** freed,
                     engine_error* error) {
    EdgeLocks locks(engine);
    int result = co_await lock_edges(engine, locks, [from, to](std::vector<Node*>& wanted) {
        std::vector<Node*> above;
        add_ancestors(from, above);
        add_subtrees(above, wanted);
        if (to != nullptr) add_subtree(to, wanted);
    });
    if (change == Change::remove) to = below(from);
    if (result == -ENOENT) {
        base::fail(error, ENGINE_ERROR_CLOSED, ENOENT, {.operation = "change"},
                   "a node was closed meanwhile");
    }
    if (result != 0) co_return result;
    Move move{.change = change, .from = from, .to = to, .users = {}, .contexts = {}};
    find_users(engine, move);
    result = check_move(move, error);
    if (result != 0) co_return result;
    result = co_await make_channels(engine, to, move.contexts);
    if (result != 0) co_return result;
    {
        base::Guard guard(to->control->lists);
        to->control->users.reserve(to->control->users.size() + move.users.size());
    }
    {
        base::Guard guard(from->control->lists);
        from->control->users.reserve(from->control->users.size() + 1);
    }
    std::vector<Node*> above;
    add_ancestors(from, above);
    Quiesced rest;
    result = co_await quiesce(engine, above, timeout_ns, rest, error);
    if (result != 0) co_return result;
    result = co_await settle_all(engine, std::move(above), to);  // a copy might not be had
    if (result >= 0) {
        commit(move, rest);
        bool ownerless = pass_ownership(move);
        if (freed != nullptr && ownerless) *freed = to;
    } else {
        base::fail_os(error, -result, {.node = from->control->name.c_str(), .operation = "settle"},
                      "node %s: what was pending could not be completed; nothing was changed",
                      from->control->name.c_str());
    }
    Resume going_on(engine, rest);
    co_await going_on;
    co_return result < 0 ? result : 0;
}

int not_a_filter(const Node& node, const char* operation, engine_error* error) {
    return base::fail(error, ENGINE_ERROR_INVALID, EINVAL,
                      {.node = node.control->name.c_str(), .operation = operation, .field = "driver"},
                      "node %s: driver %s is no filter, so it cannot be inserted or removed under load",
                      node.control->name.c_str(), node.driver->name);
}

// A resize inside a graph at rest: straight to the channel, past the parked port.
class ResizePart final : public Rally::Part {
    struct Mine : Request {
        ResizePart* owner;
    };

  public:
    ResizePart(Channel* channel, uint64_t bytes, engine_error* error) noexcept : channel_(channel) {
        context = channel->context;
        request_.op = Op::resize;
        request_.offset = bytes;
        request_.error = error;
        request_.owner = this;
        request_.complete = [](Request* request) {
            ResizePart* self = static_cast<Mine*>(request)->owner;
            self->result = request->result;
            self->answer();
        };
    }
    void work() noexcept override {
        request_.id = context->next_request_id();
        submit_child(*channel_, &request_);
    }
    int64_t result = 0;

  private:
    Channel* channel_;
    Mine request_;
};

Task<int> resize_at_rest(Instance& engine, User* user, aio::AioContext* context, uint64_t bytes,
                         uint64_t timeout_ns, engine_error* error) {
    EdgeLocks locks(engine);
    std::vector<Node*> nodes;
    auto compute = [user, &nodes](std::vector<Node*>& wanted) {
        std::vector<Node*> below;
        add_subtree(user->node(), below);
        nodes.clear();
        for (Node* node : below) add_ancestors(node, nodes);
        add_subtrees(nodes, wanted);
    };
    int result = co_await lock_edges(engine, locks, compute);
    if (result != 0) co_return result;
    std::vector<aio::AioContext*> on{context};
    result = co_await make_channels(engine, user->node(), on);
    if (result != 0) co_return result;
    Quiesced rest;
    result = co_await quiesce(engine, nodes, timeout_ns, rest, error);
    if (result != 0) co_return result;
    ResizePart part(find_channel(user->node(), context), bytes, error);
    Rally rally(engine);
    rally.send(&part);
    co_await rally;
    Resume going_on(engine, rest);
    co_await going_on;
    co_return static_cast<int>(part.result);
}

// --- a context goes

bool involved(Node* node, const aio::AioContext* context) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if (node->control->home == context || find_channel(node, context) != nullptr) return true;
    const auto& users = node->control->users;
    return std::any_of(users.begin(), users.end(),
                       [context](User* user) { return user->find_port(context) != nullptr; });
}

// The next node that has to do with a context, by ascending id; null: none is left.
Node* next_involved(Instance& engine, const aio::AioContext* context, uint64_t from_id) {
    std::lock_guard guard(engine.control);
    for (Node* node : engine.nodes) {
        if (node->control->id >= from_id && involved(node, context)) return node;
    }
    return nullptr;
}

// Nothing is in flight on the context: nobody holds it.
Task<int> leave_node(Instance& engine, Node* node, aio::AioContext* context,
                     engine_error* error) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    EdgeLocks locks(engine);
    int result =
        co_await lock_edges(engine, locks, [node](std::vector<Node*>& wanted) { add_subtree(node, wanted); });
    if (result == -ENOENT) co_return 0;  // closed meanwhile
    if (result != 0) co_return result;
    if (node->control->home == context) {
        bool was_working = node->control->working;
        result = co_await stop_home(engine, node);
        node->control->home = engine.main();
        if (was_working && result >= 0) result = co_await start_home(engine, node, error);
        if (result < 0) co_return result;
    }
    for (User* user : node->control->users) {
        std::unique_ptr<Port> port = user->take_port(context);
    }
    result = co_await drop_channels_of(engine, node, context);
    co_return result;
}

// Until a whole pass finds nothing: a user with a port there may move to a node that was left already.
Task<int> leave_all(Instance& engine, aio::AioContext* context, engine_error* error) {
    for (;;) {
        uint64_t id = 0;
        Node* node = next_involved(engine, context, id);
        if (node == nullptr) co_return 0;
        for (; node != nullptr; node = next_involved(engine, context, id)) {
            id = node->control->id + 1;
            int result = co_await leave_node(engine, node, context, error);
            if (result != 0) co_return result;
        }
    }
}

}  // namespace

int insert_filter(Node* below, OptionBag bag, uint64_t timeout_ns, Node** out, engine_error* error) {
    const Driver* driver = nullptr;
    int result = find_driver(bag, &driver, error);
    if (result != 0 || driver == nullptr) return result;
    return insert_filter(below, *driver, std::move(bag), timeout_ns, out, error);
}

int insert_filter(Node* below, const Driver& driver, OptionBag bag, uint64_t timeout_ns, Node** out,
                  engine_error* error) {
    Instance& engine = *below->control->engine;
    base::Where where{.node = below->control->name.c_str(), .operation = "insert", .field = "driver"};
    if (!driver.filter) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "driver %s is no filter: only filters can be inserted above node %s", driver.name,
                          below->control->name.c_str());
    }
    if (bag.find("file") != nullptr || !OptionBag(bag).take("file").all().empty()) {
        where.field = "file";
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "option 'file': what is below an inserted filter is node %s: leave it out",
                          below->control->name.c_str());
    }
    bag.set("file", below->control->name);
    if (below->read_only && bag.find("read-only") == nullptr) bag.set("read-only", "on");
    Node* filter = nullptr;
    int result = open_node(engine, driver, std::move(bag), true, &filter, error);
    if (result != 0) return result;
    result = on_main(engine, error, "insert", [&] {
        return move_users(engine, Change::insert, below, filter, timeout_ns, nullptr, error);
    });
    if (result != 0) {
        if (close_node(filter, nullptr) != 0) discard_node(engine, filter);
        return result;
    }
    *out = filter;
    return 0;
}

int remove_filter(Node* filter, uint64_t timeout_ns, Node** freed, engine_error* error) {
    Instance& engine = *filter->control->engine;
    *freed = nullptr;
    if (!filter->driver->filter) return not_a_filter(*filter, "remove", error);
    Node* ownerless = nullptr;
    int result = on_main(engine, error, "remove", [&] {
        return move_users(engine, Change::remove, filter, nullptr, timeout_ns, &ownerless, error);
    });
    if (result == 0) result = close_node(filter, error);
    if (result == 0) *freed = ownerless;
    return result;
}

int replace_node(Node* from, Node* to, uint64_t timeout_ns, engine_error* error) {
    Instance& engine = *from->control->engine;
    if (to->control->engine != &engine) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "replace"},
                          "nodes %s and %s belong to different engines", from->control->name.c_str(),
                          to->control->name.c_str());
    }
    if (from == to) return 0;
    int result = on_main(engine, error, "replace", [&] {
        return move_users(engine, Change::replace, from, to, timeout_ns, nullptr, error);
    });
    return result;
}

int resize_node(User* user, aio::AioContext* context, uint64_t bytes, uint64_t timeout_ns,
                engine_error* error) {
    Instance& engine = *user->engine;
    if ((user->allowed_ops & bit(Op::resize)) == 0) {
        Attached target;
        int found = attached_to(user, &target, error);
        if (found != 0) return found;
        const std::string& name = target.name;
        return base::fail(error, ENGINE_ERROR_REFUSED, EPERM,
                          {.node = name.c_str(), .operation = "resize", .offset = bytes},
                          "user %s holds no permission to resize on node %s", user->name.c_str(),
                          name.c_str());
    }
    int result = on_main(engine, error, "resize",
                         [&] { return resize_at_rest(engine, user, context, bytes, timeout_ns, error); });
    return result;
}

int leave_context(Instance& engine, aio::AioContext* context, engine_error* error) {
    int result = on_main(engine, error, "close context", [&] { return leave_all(engine, context, error); });
    return result;
}

}  // namespace engine::block
