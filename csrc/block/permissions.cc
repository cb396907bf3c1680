// Users of nodes and their permissions. A conflict names both sides. Under the node's `edges`.
#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/graph_tasks.hh"

namespace engine::block {

std::string permission_names(uint32_t permissions) {
    static const struct {
        uint32_t bit;
        const char* name;
    } names[] = {{ENGINE_PERM_CONSISTENT_READ, "consistent read"},
                 {ENGINE_PERM_WRITE, "write"},
                 {ENGINE_PERM_WRITE_UNCHANGED, "write unchanged"},
                 {ENGINE_PERM_RESIZE, "resize"}};
    std::string text;
    for (const auto& entry : names) {
        if ((permissions & entry.bit) == 0) continue;
        if (!text.empty()) text += ", ";
        text += entry.name;
    }
    return text.empty() ? "nothing" : text;
}

namespace {

uint32_t ops_of(uint32_t permissions) {
    uint32_t ops = bit(Op::flush);
    if ((permissions & ENGINE_PERM_CONSISTENT_READ) != 0) ops |= bit(Op::read) | bit(Op::block_status);
    if ((permissions & ENGINE_PERM_WRITE) != 0)
        ops |= bit(Op::write) | bit(Op::discard) | bit(Op::write_zeroes) | bit(Op::copy_range);
    if ((permissions & ENGINE_PERM_RESIZE) != 0) ops |= bit(Op::resize);
    return ops;
}

int conflict(engine_error* error, const Node* node, const char* wants, const User& other, const char* verb,
             uint32_t permissions) {
    const char* name = node->control->name.c_str();
    return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, {.node = name, .operation = "attach"},
                      "user '%s' cannot use node %s: it conflicts with user '%s' over: %s (%s)", wants, name,
                      other.name.c_str(), permission_names(permissions).c_str(), verb);
}

}  // namespace

// Among users of one node: what does not go together, or 0.
int check_user(Node* node, const User& user, std::span<User* const> leaving,
               engine_error* error) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    const char* name = user.name.c_str();
    constexpr uint32_t changes = ENGINE_PERM_WRITE | ENGINE_PERM_RESIZE;
    if (node->read_only && (user.permissions & changes) != 0) {
        return base::fail(
            error, ENGINE_ERROR_REFUSED, EROFS,
            {.node = node->control->name.c_str(), .operation = "attach", .field = "permissions"},
            "node %s is read-only: user '%s' cannot have %s", node->control->name.c_str(), name,
            permission_names(user.permissions & changes).c_str());
    }
    for (const User* other : node->control->users) {
        if (other == &user || std::find(leaving.begin(), leaving.end(), other) != leaving.end()) continue;
        if (other->retiring) continue;
        if (uint32_t bits = user.permissions & ~other->shared; bits != 0) {
            return conflict(error, node, name, *other, "wanted by the first, not shared by the second", bits);
        }
        if (uint32_t bits = other->permissions & ~user.shared; bits != 0) {
            return conflict(error, node, name, *other, "held by the second, not shared by the first", bits);
        }
    }
    return 0;
}

namespace {

// A filter that has been taken out and is about to be closed.
bool is_retiring(const Node* node) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    const auto& children = node->control->children;
    return std::any_of(children.begin(), children.end(),
                       [](const Child& child) { return child.user->retiring; });
}

// `name`: the node is looked up here, where nobody can close it between that and the lock.
Task<int> attach(Instance& engine, const Edge& edge, User* user, engine_error* error) {
    const std::string* name = edge.name;
    if (name != nullptr) user->move_to(find_node(engine, *name));
    Node* node = user->node();
    if (node == nullptr) {
        co_return base::fail(error, ENGINE_ERROR_INVALID, ENOENT, {.operation = "attach"},
                             "user '%s': there is no node '%s'", user->name.c_str(),
                             name == nullptr ? "?" : name->c_str());
    }
    EdgeLocks locks(engine);
    int result =
        co_await lock_edges(engine, locks, [node](std::vector<Node*>& wanted) { wanted.push_back(node); });
    if (result == 0 && is_retiring(node)) result = -ENOENT;
    if (result == -ENOENT) {
        result = base::fail(error, ENGINE_ERROR_CLOSED, ENOENT, {.operation = "attach"},
                            "user '%s': the node was closed meanwhile", user->name.c_str());
    }
    if (result == 0 && !edge.inserting) result = check_user(node, *user, {}, error);
    if (result != 0) co_return result;
    if (!edge.inserting) {
        base::Guard guard(node->control->lists);
        node->control->users.push_back(user);
    }
    if (edge.parent != nullptr) {
        base::Guard guard(edge.parent->control->lists);
        // There is room: the driver says how many there can be.
        edge.parent->control->children.push_back({edge.role, node, user, edge.owned});
    }
    co_return 0;
}

Task<int> detach(Instance& engine, User* user, engine_error* error) {
    EdgeLocks locks(engine);
    int result = co_await lock_edges(engine, locks,
                                     [user](std::vector<Node*>& wanted) { wanted.push_back(user->node()); });
    if (result != 0) co_return result;
    NodeControl& control = *user->node()->control;
    if (uint32_t references = user->references.load_acquire(); references != 0) {
        co_return base::fail(
            error, ENGINE_ERROR_CONFLICT, EBUSY, {.node = control.name.c_str(), .operation = "detach"},
            "user '%s' of node %s is in use by %u workloads, disks or calls: close them first",
            user->name.c_str(), control.name.c_str(), references);
    }
    {
        base::Guard guard(control.lists);
        std::erase(control.users, user);
    }
    delete user;
    co_return 0;
}

}  // namespace

int create_edge(const Edge& edge, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error) {
    Instance& engine = *edge.engine;
    if ((permissions & ~uint32_t{ENGINE_PERM_ALL}) != 0 || (shared & ~uint32_t{ENGINE_PERM_ALL}) != 0) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "attach", .field = "permissions"},
                          "permissions 0x%x, shared 0x%x: unknown bits", permissions, shared);
    }
    auto user = std::make_unique<User>(&engine, edge.node, name, permissions, shared, ops_of(permissions),
                                       edge.parent);
    int result = on_main(engine, error, "attach", [&] { return attach(engine, edge, user.get(), error); });
    if (result == 0) *out = user.release();
    return result;
}

int create_user(Node* node, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error) {
    return create_edge({.engine = node->control->engine, .node = node}, name, permissions, shared, out,
                       error);
}

int close_user(User* user, engine_error* error) {
    return on_main(*user->engine, error, "detach", [&] { return detach(*user->engine, user, error); });
}

namespace {

Task<int> make_port(Instance& engine, User* user, aio::AioContext* context, Port** out) {
    EdgeLocks locks(engine);
    int result = co_await lock_edges(
        engine, locks, [user](std::vector<Node*>& wanted) { add_subtree(user->node(), wanted); });
    if (result != 0) co_return result;
    *out = user->find_port(context);
    if (*out != nullptr) co_return 0;  // another thread was first
    std::vector<aio::AioContext*> on{context};
    result = co_await make_channels(engine, user->node(), on);
    if (result != 0) co_return result;
    auto port = std::make_unique<Port>(find_channel(user->node(), context), context, user, user->allowed_ops);
    Port* made = port.get();
    user->add_port(std::move(port));
    *out = made;
    co_return 0;
}

Task<int> look(Instance& engine, User* user, Attached* out) {
    (void)engine;  // whose task it is
    out->name = user->node()->control->name;
    out->bytes = user->node()->bytes.load_relaxed();
    co_return 0;
}

}  // namespace

int open_port(User* user, aio::AioContext* context, Port** out, engine_error* error) {
    *out = user->find_port(context);
    if (*out != nullptr) return 0;
    Instance& engine = *user->engine;
    int result = on_main(engine, [&] { return make_port(engine, user, context, out); });
    if (result == 0) return 0;
    return base::fail_os(error, -result, {.operation = "attach"},
                         "user '%s': cannot make a channel of its node on context %s", user->name.c_str(),
                         context->name().c_str());
}

int attached_to(User* user, Attached* out, engine_error* error) {
    return on_main(*user->engine, error, "look up", [&] { return look(*user->engine, user, out); });
}

}  // namespace engine::block
