// The control plane of the graph: opening and closing nodes, users and permissions, channels. Foreign threads
// only, but for what says otherwise.
#pragma once

#include <engine/block.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block/node.hh"

namespace engine {

// engine_t. `control` guards the registries; nothing on the request path takes it.
struct Instance {
    int pid = 0;
    uint32_t locking = ENGINE_LOCKING_PER_NODE;
    bool lock_profile = false;
    base::Mutex turn_mutex;  // global mode
    std::mutex control;
    std::vector<std::unique_ptr<aio::AioContext>> contexts;  // contexts[0] is main
    std::vector<std::unique_ptr<aio::AioContext>>
        retired;  // stopped; kept for those who may still send to them
    std::vector<block::Node*> nodes;
    uint64_t next_name = 0;
    // Held while a closing context drops its channels, and passed through by who is about to free a node that
    // is no longer in `nodes`. Before `control`.
    std::mutex dropping;

    aio::AioContext* main() noexcept { return contexts[0].get(); }
    // Refuses a child of a fork, and a caller on a context's own thread where the call blocks.
    int check(engine_error* error, const char* operation, bool blocks = true) const;
};

namespace block {

std::span<const Driver* const> drivers() noexcept;
const Driver* find_driver(std::string_view name) noexcept;

// The driver is named in the options …
int open_node(Instance& engine, OptionBag bag, Node** out, engine_error* error);
// … or it is given: one that need not be in the registry.
int open_node(Instance& engine, const Driver& driver, OptionBag bag, Node** out, engine_error* error);
// An open node of that name, or null. Any thread.
Node* find_node(Instance& engine, std::string_view name);
int close_node(Node* node, engine_error* error);
int create_user(Node* node, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error);
int close_user(User* user, engine_error* error);
// The entry for a user on a context; makes the channels there, on that context's thread. Blocks.
int open_port(User* user, aio::AioContext* context, Port* out, engine_error* error);
// Drops every channel that lives on a context (it is about to close).
void drop_channels(Instance& engine, aio::AioContext* context);

// For names of permissions in messages: "write, resize".
std::string permission_names(uint32_t permissions);

}  // namespace block
}  // namespace engine
