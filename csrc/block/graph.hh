// The control plane of the graph: opening and closing nodes, users and permissions, channels. Foreign threads
// only, but for what says otherwise.
#pragma once

#include <engine/block.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block/limits.hh"
#include "block/node.hh"

namespace engine {

// engine_t. `control` guards the registries; nothing on the request path takes it. `nodes` shrinks on the
// thread of main alone.
struct Instance {
    int pid = 0;
    uint32_t locking = ENGINE_LOCKING_PER_NODE;
    bool lock_profile = false;
    base::Mutex turn_mutex;  // global mode
    std::mutex control;
    std::vector<std::unique_ptr<aio::AioContext>> contexts;  // contexts[0] is main
    std::vector<std::unique_ptr<aio::AioContext>>
        retired;                      // stopped; kept for those who may still send to them
    std::vector<block::Node*> nodes;  // in order of their ids
    uint64_t next_name = 0;
    uint64_t last_node_id = 0;
    block::Limits limits;
    base::Atomic<uint32_t> completion_queues{0};  // open ones: they keep the engine from closing
    // What nodes share by name, such as throttle groups; the nodes own it. Guarded by control.
    std::map<std::string, std::weak_ptr<void>, std::less<>> shared_by_name;

    aio::AioContext* main_context = nullptr;  // contexts[0], which stays; the vector may grow meanwhile

    aio::AioContext* main() noexcept { return main_context; }
    coro::Executor& executor() noexcept { return *main_context; }
    // Caller-driven contexts whose thread has ended are driven by the calling one while it waits: a task on
    // main may need them.
    void adopt_orphans();
    // Blocks until then, and does so where it takes long. Foreign threads.
    void wait(aio::Signal& signal);
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
// An open context of that name, or null. Any thread.
aio::AioContext* find_context(Instance& engine, std::string_view name);
// Its memory. On main, or where nobody else can know it.
void free_node(Node* node) noexcept;
int close_node(Node* node, engine_error* error);
int create_user(Node* node, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error);
// -EBUSY while workloads, disks or calls use it.
int close_user(User* user, engine_error* error);
// The entry for a user on a context, which the caller holds; makes the channels there, on that context's
// thread. Blocks. The port stays until the user is closed, or the context is.
int open_port(User* user, aio::AioContext* context, Port** out, engine_error* error);
// The node that a user is attached to now. Blocks.
struct Attached {
    std::string name = "?";
    uint64_t bytes = 0;
};
int attached_to(User* user, Attached* out, engine_error* error);

// --- changes under load. Each parks the requests that enter above the place of the change, waits until those
// inside have left, at most `timeout_ns`, and lets them go on through the new graph; -ETIMEDOUT changes
// nothing.

// Opens a filter above a node and moves all users of the node to it.
int insert_filter(Node* below, OptionBag bag, uint64_t timeout_ns, Node** out, engine_error* error);
// … the same with a driver that need not be in the registry.
int insert_filter(Node* below, const Driver& driver, OptionBag bag, uint64_t timeout_ns, Node** out,
                  engine_error* error);
// Moves all users of a filter to what is below it, and closes it. `freed`: what was opened along with the
// filter and is the caller's now; null where it has another owner.
int remove_filter(Node* filter, uint64_t timeout_ns, Node** freed, engine_error* error);
// Moves all users of a node to another.
int replace_node(Node* from, Node* to, uint64_t timeout_ns, engine_error* error);
// Resizes what a user is attached to, with nothing inside it.
int resize_node(User* user, aio::AioContext* context, uint64_t bytes, uint64_t timeout_ns,
                engine_error* error);
// Drops every channel and port that lives on a context (it is about to close), and moves homes off it.
int leave_context(Instance& engine, aio::AioContext* context, engine_error* error);

// For names of permissions in messages: "write, resize".
std::string permission_names(uint32_t permissions);

}  // namespace block
}  // namespace engine
