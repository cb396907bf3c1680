// Users of nodes and their permissions. A conflict names both sides. Under the node's `edges`.
#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/graph.hh"

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
        ops |= bit(Op::write) | bit(Op::discard) | bit(Op::write_zeroes);
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

int create_user(Node* node, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error) {
    NodeControl& control = *node->control;
    base::Where where{.node = control.name.c_str(), .operation = "attach", .field = "permissions"};
    if ((permissions & ~uint32_t{ENGINE_PERM_ALL}) != 0 || (shared & ~uint32_t{ENGINE_PERM_ALL}) != 0) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "permissions 0x%x, shared 0x%x: unknown bits", permissions, shared);
    }
    constexpr uint32_t changes = ENGINE_PERM_WRITE | ENGINE_PERM_RESIZE;
    if (node->read_only && (permissions & changes) != 0) {
        return base::fail(error, ENGINE_ERROR_REFUSED, EROFS, where,
                          "node %s is read-only: user '%s' cannot have %s", control.name.c_str(), name,
                          permission_names(permissions & changes).c_str());
    }
    auto user = std::make_unique<User>();
    user->node = node;
    user->name = name;
    user->permissions = permissions;
    user->shared = shared;
    user->allowed_ops = ops_of(permissions);
    base::Guard guard(control.edges);
    for (const User* other : control.users) {
        if (uint32_t bits = permissions & ~other->shared; bits != 0) {
            return conflict(error, node, name, *other, "wanted by the first, not shared by the second", bits);
        }
        if (uint32_t bits = other->permissions & ~shared; bits != 0) {
            return conflict(error, node, name, *other, "held by the second, not shared by the first", bits);
        }
    }
    control.users.push_back(user.get());
    *out = user.release();
    return 0;
}

int close_user(User* user, engine_error* error) {
    NodeControl& control = *user->node->control;
    if (uint32_t references = user->references.load_acquire(); references != 0) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY,
                          {.node = control.name.c_str(), .operation = "detach"},
                          "user '%s' of node %s is in use by %u workloads, disks or calls: close them first",
                          user->name.c_str(), control.name.c_str(), references);
    }
    {
        base::Guard guard(control.edges);
        std::erase(control.users, user);
    }
    delete user;
    return 0;
}

}  // namespace engine::block
