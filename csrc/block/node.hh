// Block nodes, their channels, and drivers.
//
// Node: what every context reads on the request path. It and the driver's state lie on pages of their own,
// and nothing there is written once the node is open (resize alone stores `bytes`): tests make the pages
// read-only under load. What changes is in NodeControl, which the request path never touches.
// Channel: the pair node x context. Written by its context alone; holds its children's channels in that
// context, which change only while nothing is inside the node: a driver keeps no copy of them.
#pragma once

#include <engine/block.h>

#include <memory>
#include <string>
#include <vector>

#include "aio/context.hh"
#include "base/assert.hh"
#include "base/atomic.hh"
#include "base/mutex.hh"
#include "block/bounce.hh"
#include "block/in_flight.hh"
#include "block/options.hh"
#include "block/port.hh"
#include "block/request.hh"
#include "block/request_pool.hh"
#include "block/trace.hh"
#include "coro/mutex.hh"
#include "coro/task.hh"

namespace engine {
struct Instance;  // engine_t
}

namespace engine::block {

class MetaLock;
class Node;
class Tracking;
class User;
struct NodeControl;

constexpr uint32_t alignment_max = 1 << 20;  // that a driver may demand, bytes
enum class DetectZeroes : uint8_t { off, on, unmap };

struct ChildDef {
    const char* role;  // also the option's key
    bool required;
    bool read_only = false;  // only ever read, so that others may share it; opened read-only with the node
};

// What a driver gets to open itself with. It sets the node's limits and fills its state.
struct OpenArguments {
    const Options& options;
    bool read_only;
    engine_error* error;
};

// One driver: a folder, and a line in the registry (block/registry.cc).
struct Driver {
    const char* name;
    const char* layer;  // "protocol", "format", "filter"
    const char* text;
    std::span<const OptionDef> options;
    std::span<const ChildDef> children;
    size_t state_size;          // of the node's state, zeroed, beside the node
    size_t channel_state_size;  // of each channel's state, zeroed
    // Control plane, any foreign thread. Children are open already. May block.
    int (*open)(Node& node, const OpenArguments& arguments);
    void (*close)(Node& node);
    // Home thread of the channel's context. May be null.
    int (*open_channel)(Channel& channel);
    void (*close_channel)(Channel& channel);
    // Home thread. The request has been checked against the node's limits; ends with finish(), not from in
    // here.
    void (*submit)(Channel& channel, Request* request);
    // Options of a child that is opened along with the node: completes what the caller gave, in `nested`, of
    // which `bag` holds the rest. The node's state is zeroed. May be null.
    int (*complete_child)(Node& node, const ChildDef& def, const OptionBag& bag, OptionBag* nested,
                          engine_error* error) = nullptr;
    // Passes on what it gets to its first child, `file`: may be inserted above a node and removed under load.
    // What other children it has are given by its options then, too.
    bool filter = false;
    // It takes bounce memory itself (block/bounce.hh), so that its channels have a reserve.
    bool bounces = false;
    // A resize to any size will do: it makes it a multiple of request_alignment.
    bool rounds_size = false;
    // Background work of a node, on its home context: the channel is that of the home. May be null.
    // Afterwards such work may run; -errno leaves the node closed.
    int (*start_home)(Channel& home) = nullptr;
    // Ends when nothing of it runs and nothing will.
    coro::Task<int> (*stop_home)(Channel& home) = nullptr;
    // With nothing inside the node: whatever still depends on the children as they are is brought to its end.
    coro::Task<int> (*settle)(Channel& home) = nullptr;
    // Home thread, may be null. `on`: the node or one above is to become idle, so what it holds back by
    // choice goes on at once, and whatever comes until this is called with false. Not counted.
    void (*hurry)(Channel& channel, bool on) = nullptr;
    // Home thread, may be null. Where the driver itself holds this request back, it fails with -ECANCELED,
    // not from in here; one that it does not know is nothing to it.
    void (*cancel)(Channel& channel, Request* request) = nullptr;
    // Home thread, may be null. Where what lies at an offset of the disk lies as it is, one level down; of a
    // driver that keeps it itself: here.
    Location (*locate)(Channel& channel, uint64_t offset) = nullptr;
};

class Node {
  public:
    // --- constant while the node is open
    const Driver* driver = nullptr;
    NodeControl* control = nullptr;
    // What the driver demands of its requests; the request layer sees to it. The size of the disk is a
    // multiple of request_alignment.
    uint32_t request_alignment = 1;      // bytes, a power of two
    uint32_t memory_alignment = 1;       // bytes, a power of two
    uint64_t max_transfer = UINT64_MAX;  // bytes a read or write; UINT64_MAX: no limit
    // What spares that work, here and below. For who chooses its requests.
    uint32_t best_request_alignment = 1;
    uint32_t best_memory_alignment = 1;
    uint32_t native_ops = 0;         // bit(Op): what the driver does itself
    uint8_t native_write_flags = 0;  // engine_request_flags that its write, write_zeroes honour
    bool read_only = false;
    bool holes = false;          // block_status tells data from holes
    bool no_flush = false;       // cache.no-flush: a flush does nothing
    bool ignore_discard = true;  // discard=ignore
    DetectZeroes detect_zeroes = DetectZeroes::off;
    // --- stored by resize, loaded by every request
    base::Atomic<uint64_t> bytes{0};

    template <class T>
    T& state() noexcept {
        return *static_cast<T*>(static_cast<void*>(reinterpret_cast<std::byte*>(this) + state_offset));
    }
    static constexpr size_t state_offset = 256;
    size_t mapped_bytes = 0;  // of the pages that hold node and state
};
static_assert(sizeof(Node) <= Node::state_offset);

struct OpCounters {
    base::Counter requests, bytes, errors;
};

class alignas(128) Channel {
  public:
    Node* node;
    aio::AioContext* context;
    InFlightList requests;  // inside the node on this context, but for …
    base::Counter in_flight;
    uint32_t plain_ops = 0;    // bit(Op) of read and write where the driver gets those that suit it at once
    bool tracked = false;      // every change is in the node's tree (block/track.hh)
    InFlightList serialising;  // … those that must not overlap another change
    OpCounters op[op_count];
    std::vector<Channel*> children;  // in the driver's order of roles
    std::unique_ptr<std::byte[]> state_memory;
    RequestPool<ForwardFrame> frames;        // of requests handed on from here
    std::unique_ptr<BounceReserve> reserve;  // null where nobody takes bounce memory

    coro::Executor& executor() noexcept { return *context; }
    void set_tracked(bool on) noexcept {
        bool changes = !on && !node->read_only && node->detect_zeroes == DetectZeroes::off;
        tracked = on;
        plain_ops = bit(Op::read) | (changes ? bit(Op::write) : 0);
    }
    bool empty() const noexcept { return requests.empty() && serialising.empty(); }

    template <class T>
    T& state() noexcept {
        return *reinterpret_cast<T*>(state_memory.get());
    }
};

struct Child {
    std::string role;
    Node* node;
    User* user;  // by which this node holds its permissions on the child
    bool owned;  // opened with this node, and closed with it
};

// Everything about a node that the request path does not need. The lists change on the thread of `main`
// alone, by tasks that hold `edges` from their first look to their last change; `lists` is for those
// elsewhere who read, and for the moment of the change.
struct NodeControl {
    NodeControl();
    ~NodeControl();
    NodeControl(const NodeControl&) = delete;
    NodeControl& operator=(const NodeControl&) = delete;
    Instance* engine = nullptr;
    uint64_t id = 0;  // in order of making: the order in which several `edges` are locked
    std::string name;
    std::string filename;
    aio::AioContext* home = nullptr;  // changes on the thread of main, under `edges`
    bool open = false;     // guarded by Instance::control: until then it has its name, and nobody finds it
    bool working = false;  // start_home has succeeded; on the thread of main
    unsigned pins = 0;     // tasks on main that wait for `edges`
    bool closing = false;  // no attaching any more; on the thread of main, under `edges`
    bool dead = false;     // freed with the last pin
    coro::Mutex edges;     // rank 1
    base::Mutex lists;     // short
    std::unique_ptr<Tracking> tracking;
    const MetaLock* meta = nullptr;  // rank 2, of a driver with tables; guarded by Instance::control
    std::vector<Child> children ENGINE_GUARDED_BY(lists);
    std::vector<User*> users ENGINE_GUARDED_BY(lists);
    std::vector<std::unique_ptr<Channel>> channels ENGINE_GUARDED_BY(lists);
};

// Who does I/O on a node, with what permissions. Names itself in conflicts.
class User {
  public:
    Instance* const engine;
    const std::string name;
    const uint32_t permissions;
    const uint32_t shared;
    const uint32_t allowed_ops;  // bit(Op), from the permissions
    Node* const parent;          // an edge: the node above, which uses this one by a role; else null
    base::Atomic<uint32_t> references{0};  // workloads, disks, calls under way
    bool retiring = false;  // the edge of a filter that nobody uses any more; on the thread of main

    User(Instance* owner, Node* target, const char* title, uint32_t wants, uint32_t shares, uint32_t ops,
         Node* above)
        : engine(owner),
          name(title),
          permissions(wants),
          shared(shares),
          allowed_ops(ops),
          parent(above),
          node_(target) {}
    // On the thread of main: the node that it is attached to now.
    Node* node() const noexcept { return node_; }
    void move_to(Node* node) noexcept { node_ = node; }
    // Any thread. Null: there is none yet.
    Port* find_port(const aio::AioContext* context) noexcept {
        base::Guard guard(lists_);
        for (auto& port : ports_) {
            if (port->context == context) return port.get();
        }
        return nullptr;
    }
    // On the thread of main, under the node's edges.
    void add_port(std::unique_ptr<Port> port) {
        base::Guard guard(lists_);
        ports_.push_back(std::move(port));
    }
    // What find_port() gave for that context is gone.
    std::unique_ptr<Port> take_port(const aio::AioContext* context) noexcept {
        base::Guard guard(lists_);
        for (auto& port : ports_) {
            if (port->context != context) continue;
            std::swap(port, ports_.back());
            std::unique_ptr<Port> taken = std::move(ports_.back());
            ports_.pop_back();
            return taken;
        }
        return nullptr;
    }
    // What `f` throws goes on: it may need memory.
    template <class F>
    void for_each_port(F&& f) {
        base::Guard guard(lists_);
        for (auto& port : ports_) f(*port);
    }

  private:
    Node* node_;
    base::Mutex lists_;  // short
    std::vector<std::unique_ptr<Port>> ports_ ENGINE_GUARDED_BY(lists_);
};

// --- the request path, home thread only

// Counts a request in, for a driver that gets it without the request layer. The caller marks its trace.
inline void enter_unmarked(Channel& channel, Request* request) noexcept {
    request->channel = &channel;
    channel.in_flight.add(1);
    channel.requests.enter(request->link(), request);
}
inline void enter(Channel& channel, Request* request) noexcept {
    enter_unmarked(channel, request);
    mark(*request, ENGINE_MARK_ENTERED);
}
// From a parent to its child's channel: the edge holds the permissions.
void submit_child(Channel& channel, Request* request) noexcept;
// Where one that a parent has submitted so is held back by choice, now, it fails with -ECANCELED; not from in
// here.
void cancel_child(Request* request) noexcept;
// Where a range lies, through all levels below. False: out of bounds, or it is not known.
bool locate(Channel& channel, uint64_t offset, uint64_t length, Location* out) noexcept;
// The same, as far as can be seen, and through filters whatever they do to requests: ranges of two users who
// reach the same bytes lie in the same node.
Location trace_down(Channel& channel, uint64_t offset) noexcept;
// One that entered, and is not to be counted.
inline void leave(Request* request) noexcept {
    Channel& channel = *request->channel;
    channel.in_flight.subtract(1);
    channel.requests.leave(request->link(), channel.executor());
}
// The rest of finish() for one that failed.
void count_failure(OpCounters& counters, const Request& request) noexcept;
inline void finish_unmarked(Request* request, int64_t result) noexcept {
    Channel& channel = *request->channel;
    OpCounters& counters = channel.op[static_cast<unsigned>(request->op)];
    request->result = result;
    leave(request);
    counters.requests.increment();
    if (ENGINE_LIKELY(result >= 0)) {
        counters.bytes.add(request->length);
    } else {
        count_failure(counters, *request);
    }
    request->complete(request);
}
// finish() of one that is traced. A tail call, so that others pay for a look at the pointer alone.
[[gnu::cold, gnu::noinline]] void finish_traced(Request* request, int64_t result) noexcept;
// A driver is done with a request. Not from inside its own submit().
inline void finish(Request* request, int64_t result) noexcept {
    if (ENGINE_UNLIKELY(request->trace != nullptr)) {
        finish_traced(request, result);
    } else {
        finish_unmarked(request, result);
    }
}
// The same from inside submit(): the completion goes through the ready queue.
void finish_later(Request* request, int64_t result) noexcept;
// Fails a request later, with the reason in request->error where there is one.
void fail_later(Request* request, engine_error_kind kind, int errnum, const char* format, ...) noexcept
    __attribute__((format(printf, 4, 5)));

}  // namespace engine::block
