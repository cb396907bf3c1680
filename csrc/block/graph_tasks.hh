// What changes of the graph are made of: tasks on the context `main`, which lock the `edges` of the nodes
// that they look at, send work to other contexts and wait for the answers. The lists of nodes, users and
// channels change on the thread of main alone, so between two suspensions what a task has looked at stays so;
// across them the locked edges see to that.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "base/error.hh"
#include "block/graph.hh"
#include "coro/completion.hh"
#include "coro/task.hh"

namespace engine::block {

using coro::Task;

// Runs make() -> Task<int> on main and waits for its result. Foreign threads only: -EDEADLK on a context's.
template <class F>
int on_main(Instance& engine, F&& make) {
    if (aio::AioContext::current() != nullptr) return -EDEADLK;
    struct Call : aio::Message {
        struct Over : coro::Callback<int> {
            Call* call;
        };
        std::remove_reference_t<F>* make;
        aio::AioContext* main;
        Over over;
        int result = 0;
        aio::Signal done;
    } call;
    call.make = &make;
    call.main = engine.main();
    call.over.call = &call;
    call.over.completed = [](coro::Callback<int>* callback, int result) {
        Call* self = static_cast<typename Call::Over*>(callback)->call;
        self->result = result;
        self->done.set();
    };
    call.run = [](aio::Message* message) {
        auto* self = static_cast<Call*>(message);
        coro::start(*self->main, (*self->make)(), static_cast<coro::Callback<int>*>(&self->over));
    };
    engine.adopt_orphans();
    int result = engine.main()->send(&call);
    if (result != 0) return result;
    engine.wait(call.done);
    return call.result;
}

// … and says so where memory was short.
template <class F>
int on_main(Instance& engine, engine_error* error, const char* operation, F&& make) {
    int result = on_main(engine, make);
    if (result == -ENOMEM && error != nullptr && error->kind == ENGINE_ERROR_NONE) {
        base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = operation}, "%s: out of memory",
                   operation);
    }
    return result;
}

// Work for other contexts, from a task on main: each part runs on its context, which answers once, then or
// later; the task waits for all answers. The parts live until then.
class Rally {
  public:
    class Part : private aio::Message {
      public:
        virtual ~Part() = default;
        // On the context. Ends with answer(), in here or later.
        virtual void work() noexcept = 0;

        aio::AioContext* context = nullptr;

      protected:
        // On the context, once for each time it was sent. Nothing of the part is touched afterwards.
        void answer() noexcept;

      private:
        friend class Rally;
        struct Reply : aio::Message {
            Part* part;
        } reply_;
        Rally* rally_ = nullptr;
    };

    explicit Rally(Instance& engine) noexcept : engine_(engine), done_(engine.executor()) {}
    ~Rally() { ENGINE_CHECK(outstanding_ == 0); }
    Rally(const Rally&) = delete;
    Rally& operator=(const Rally&) = delete;

    // On main. A context that is closed has no thread any more: the work is done here instead.
    void send(Part* part) noexcept;
    bool over() const noexcept { return outstanding_ == 0; }
    // co_await, once, after the last send: until all have answered.
    bool await_ready() const noexcept { return outstanding_ == 0; }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
        waited_for_ = true;
        done_.await_suspend(waiter);
    }
    int await_resume() const noexcept { return 0; }

  private:
    Instance& engine_;
    coro::Completion<int> done_;
    unsigned outstanding_ = 0;
    bool waited_for_ = false;
};

// Runs f() on a context and waits for it.
template <class F>
class Errand final : public Rally::Part {
  public:
    Errand(aio::AioContext* on, F f) noexcept : f_(std::move(f)) { context = on; }
    void work() noexcept override {
        f_();
        answer();
    }

  private:
    F f_;
};

template <class F>
Task<int> errand(Instance& engine, aio::AioContext* context, F f) {
    Rally rally(engine);
    Errand<F> part(context, std::move(f));
    rally.send(&part);
    int result = co_await rally;
    co_return result;
}

// The edges of a set of nodes, held. Given back, and the nodes unpinned, on main.
class EdgeLocks {
  public:
    explicit EdgeLocks(Instance& engine) noexcept : chain_(engine.executor()) {}
    ~EdgeLocks() { release(); }
    EdgeLocks(const EdgeLocks&) = delete;
    EdgeLocks& operator=(const EdgeLocks&) = delete;
    void release() noexcept;

    const std::vector<Node*>& nodes() const noexcept { return nodes_; }

  private:
    template <class Compute>
    friend Task<int> lock_edges(Instance& engine, EdgeLocks& locks, Compute compute);
    void take(std::vector<Node*> nodes);  // pins them, in the order of their ids
    bool same(const std::vector<Node*>& now) const { return now == nodes_; }
    bool closing() const;
    coro::LockChain chain_;
    std::vector<Node*> nodes_;
    std::vector<coro::Mutex::Guard> guards_;
};

void order_nodes(std::vector<Node*>& nodes);

// Locks the edges of all that compute(std::vector<Node*>&) names, by ascending id, and computes again: if the
// set has changed meanwhile, lets go and tries anew. -ENOENT: one of them was closed.
template <class Compute>
Task<int> lock_edges(Instance& engine, EdgeLocks& locks, Compute compute) {
    ENGINE_ASSERT(engine.main()->on_home());
    for (;;) {
        std::vector<Node*> wanted;
        compute(wanted);
        order_nodes(wanted);
        locks.take(std::move(wanted));
        for (size_t i = 0; i < locks.nodes_.size(); i++) {
            coro::Mutex::Guard guard = co_await locks.nodes_[i]->control->edges.lock(locks.chain_);
            locks.guards_.push_back(std::move(guard));
        }
        std::vector<Node*> now;
        compute(now);
        order_nodes(now);
        bool same = locks.same(now);
        bool closing = locks.closing();
        if (same && !closing) co_return 0;
        locks.release();
        if (same) co_return -ENOENT;
    }
}

// --- sets of nodes, on main
void add_subtree(Node* node, std::vector<Node*>& nodes);  // it and all below
void add_subtrees(const std::vector<Node*>& of, std::vector<Node*>& nodes);
void add_ancestors(Node* node, std::vector<Node*>& nodes);  // it and all above

// --- channels; on main, the edges of the node and of all below it held
Task<int> make_channels(Instance& engine, Node* node, const std::vector<aio::AioContext*>& contexts);
Channel* find_channel(Node* node, const aio::AioContext* context);
// Those on one context, or all (null), with nothing in flight.
Task<int> drop_channels_of(Instance& engine, Node* node, const aio::AioContext* only);
Task<int> drop_channels(Instance& engine, const std::vector<Node*>& nodes,
                        const aio::AioContext* only = nullptr);
// Those of a node that is not to stay open, where nobody uses it. Takes no memory. Foreign threads.
void drop_unused_channels(Instance& engine, Node* node) noexcept;
// Closes a node that nobody was told of yet, where close_node() found no memory; one that somebody uses, or
// that has background work, stays for the engine to close. Foreign threads.
void discard_node(Instance& engine, Node* node) noexcept;

// --- users; on main, the node's edges held. permissions.cc
int check_user(Node* node, const User& user, std::span<User* const> leaving, engine_error* error);
struct Edge {
    Instance* engine;
    Node* parent = nullptr;             // null: no node's, a front end's
    const char* role = nullptr;         // under the parent, whose child it becomes
    Node* node = nullptr;               // what it uses, or …
    const std::string* name = nullptr;  // … the name of that
    bool owned = false;                 // closed with the parent
    bool inserting = false;             // it is no user yet: it becomes one when the others move
};
// Foreign threads.
int create_edge(const Edge& edge, const char* name, uint32_t permissions, uint32_t shared, User** out,
                engine_error* error);
// The driver that the options name.
int find_driver(const OptionBag& bag, const Driver** out, engine_error* error);
int open_node(Instance& engine, const Driver& driver, OptionBag bag, bool inserting, Node** out,
              engine_error* error);

// --- background work of a node; on main, its edges held
Task<int> start_home(Instance& engine, Node* node, engine_error* error);
Task<int> stop_home(Instance& engine, Node* node);
Task<int> run_at_home(Instance& engine, Node* node, Task<int> (*task)(Channel&));

}  // namespace engine::block
