// A small graph for the explorer: contexts that are fibers, nodes with a channel on each, ports, and lanes
// that send requests through them. The request layer, Rally and everything about channels are as shipped; the
// driver is one that looks on. What it notes is seen by all fibers at once, so that it orders nothing: only
// Plain data asks whether one thing happened before another. Include it in one file.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "block/graph.hh"
#include "block/graph_tasks.hh"
#include "block/track.hh"
#include "coro/task.hh"
#include "explored.hh"

// No scenario closes a node.
void engine::block::free_node(Node*) noexcept {
    explore::fail("a node was freed");
}

namespace explore {

namespace block = engine::block;
using engine::aio::AioContext;
using engine::coro::Task;

class World;

// Counts over all executions how often something happened, to show that what is claimed was put to the test.
class Happened {
  public:
    explicit Happened(const char* what) : what_(what) {}
    Happened(const Happened&) = delete;
    Happened& operator=(const Happened&) = delete;
    void operator++(int) { count_++; }
    // Once, at the end of a test.
    void check() {
        printf("     %llu times: %s\n", static_cast<unsigned long long>(count_), what_);
        CHECK(count_ != 0);
        count_ = 0;
    }

  private:
    const char* what_;
    uint64_t count_ = 0;
};

// A node; its driver is whoever derives from this.
class Disk {
  public:
    Disk(World& world, const char* name, uint64_t id);
    Disk(const Disk&) = delete;
    Disk& operator=(const Disk&) = delete;
    virtual ~Disk();

    // As make_channel() of the product, before any thread runs.
    block::Channel* add_channel(AioContext& context);
    // Home thread.
    virtual void submit(block::Channel& channel, block::Request* request) = 0;

    block::Node* node;

  private:
    static void submit_to(block::Channel& channel, block::Request* request) {
        channel.node->state<Disk*>()->submit(channel, request);
    }
    block::Driver driver_{};
    block::NodeControl control_;
    void* memory_;
};

// What all of it hangs on, made anew for every execution.
class World : public Ends {
  public:
    World();
    // Before any thread runs, or by one of them: so many more that must come to their ends, before all
    // contexts stop.
    void expect(int parties) { parties_ += parties; }
    void one_less() {
        if (--parties_ != 0) return;
        for (auto& context : engine.contexts) {
            if (context.get() != stopped_) context->stop();
        }
    }
    // A context that was stopped before.
    void has_stopped(AioContext& context) { stopped_ = &context; }
    // On the context: starts a task, which must succeed, one of those that are expected.
    void start(AioContext& on, Task<int> task);

    engine::Instance engine;
    AioContext& main;
    AioContext& a;
    AioContext& b;

  private:
    static AioContext& add_context(engine::Instance& engine, const char* name);
    int parties_ = 0;
    AioContext* stopped_ = nullptr;
};

// Its ports are made by whoever knows the channels.
class GraphUser : public block::User {
  public:
    GraphUser(World& world, Disk& disk)
        : User(&world.engine, disk.node, "user", ENGINE_PERM_ALL, ENGINE_PERM_ALL, block::ops_of_data,
               nullptr) {
        disk.node->control->users.push_back(this);
    }
    block::Port& add_port_on(AioContext& context, block::Channel& entry) {
        add_port(std::make_unique<block::Port>(&entry, &context, this, allowed_ops));
        return *find_port(&context);
    }
};

inline AioContext& World::add_context(engine::Instance& engine, const char* name) {
    engine.contexts.push_back(std::make_unique<AioContext>(name));
    AioContext& context = *engine.contexts.back();
    context.instance = &engine;
    if (engine.main_context == nullptr) engine.main_context = &context;
    return context;
}

inline World::World()
    : main(add_context(engine, "main")), a(add_context(engine, "a")), b(add_context(engine, "b")) {
    AioContext::begin_execution();
}

inline void World::start(AioContext& on, Task<int> task) {
    struct Over : engine::coro::Callback<int> {
        World* world;
    };
    auto* over = new Over;
    over->world = this;
    over->completed = [](engine::coro::Callback<int>* callback, int result) {
        World* world = static_cast<Over*>(callback)->world;
        delete static_cast<Over*>(callback);
        require(result == 0, "a task failed");
        world->one_less();
    };
    engine::coro::start(on, std::move(task), static_cast<engine::coro::Callback<int>*>(over));
}

inline Disk::Disk(World& world, const char* name, uint64_t id) {
    memory_ = aligned_alloc(alignof(block::Node), 512);
    driver_.name = "explored";
    driver_.submit = submit_to;
    node = new (memory_) block::Node;
    node->state<Disk*>() = this;
    node->driver = &driver_;
    node->control = &control_;
    node->native_ops = block::bit(block::Op::read) | block::bit(block::Op::write);
    node->bytes.store_relaxed(1 << 20);
    control_.engine = &world.engine;
    control_.id = id;
    control_.name = name;
    control_.home = world.engine.main();
}

inline Disk::~Disk() {
    control_.channels.clear();
    node->~Node();
    free(memory_);
}

inline block::Channel* Disk::add_channel(AioContext& context) {
    auto channel = std::make_unique<block::Channel>();
    channel->node = node;
    channel->context = &context;
    channel->set_tracked(false);
    control_.channels.push_back(std::move(channel));
    return control_.channels.back().get();
}

// --- requests that note where they are

class NotedDisk;

struct Sent : block::Request {
    class Lane* lane = nullptr;
    int number = 0;  // in its lane
    int entries = 0;
    int completions = 0;
    unsigned rests = 0;  // so often it goes through the ready queue, inside the node
    bool slow = false;   // each time after all others have gone as far as they can
    NotedDisk* inside = nullptr;
    Plain<int> note;  // written by the request before it leaves …
    Plain<int> word;  // … read when it enters, written by who changes the graph
};

// Its requests take some turns of their context each.
class NotedDisk final : public Disk {
  public:
    using Disk::Disk;
    void submit(block::Channel& channel, block::Request* request) override;

    std::vector<Sent*> inside;
    bool at_rest = false;  // nobody may enter
    int entries = 0;

  private:
    void go_on(Sent* sent);
    void finish_one(Sent* sent);
};

// A user's requests on one context: `depth` at a time, in order.
class Lane {
  public:
    Lane(World& world, block::Port& entry, int count, int depth, unsigned rests)
        : port(entry), world_(world), depth_(depth) {
        for (int i = 0; i < count; i++) {
            requests.push_back(std::make_unique<Sent>());
            Sent& sent = *requests.back();
            sent.lane = this;
            sent.number = i;
            sent.rests = rests;
            sent.op = block::Op::read;
            sent.length = 512;
            sent.complete = [](block::Request* request) {
                auto* self = static_cast<Sent*>(request);
                self->lane->completed(self);
            };
        }
        world.expect(1);
    }
    // On the context.
    void start() {
        for (int i = 0; i < depth_; i++) submit_next();
    }
    bool all_ran_once() const {
        return std::all_of(requests.begin(), requests.end(),
                           [](const auto& sent) { return sent->entries == 1 && sent->completions == 1; });
    }

    block::Port& port;
    std::vector<std::unique_ptr<Sent>> requests;
    int entered = 0;  // so many, in order

  private:
    void submit_next() {
        if (next_ == requests.size()) return;
        block::submit(port, requests[next_++].get());
    }
    void completed(Sent* sent) {
        require(++sent->completions == 1, "a request completed twice");
        require(sent->result == 0, "a request failed");
        submit_next();
        if (++done_ == requests.size()) world_.one_less();
    }

    World& world_;
    int depth_;
    size_t next_ = 0;
    size_t done_ = 0;
};

inline void NotedDisk::submit(block::Channel& channel, block::Request* request) {
    auto* sent = static_cast<Sent*>(request);
    require(!at_rest, "a request entered a node at rest");
    require(++sent->entries == 1, "a request entered twice");
    require(sent->lane->entered++ == sent->number, "requests entered out of order");
    require(channel.context == sent->lane->port.context, "a request is on another context's channel");
    entries++;
    (void)sent->word.get();
    sent->inside = this;
    inside.push_back(sent);
    go_on(sent);
}

inline void NotedDisk::go_on(Sent* sent) {
    sent->run = [](engine::aio::Message* message) {
        auto* self = static_cast<Sent*>(static_cast<block::Request*>(message));
        if (self->slow) pause();
        point();
        if (self->rests == 0) {
            self->inside->finish_one(self);
        } else {
            self->rests--;
            self->inside->go_on(self);
        }
    };
    sent->channel->context->ready(sent);
}

inline void NotedDisk::finish_one(Sent* sent) {
    sent->note.set(sent->number + 1);
    std::erase(inside, sent);
    sent->inside = nullptr;
    block::finish(sent, 0);
}

}  // namespace explore
