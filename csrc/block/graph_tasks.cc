// Tasks on main: locking edges, sending work to contexts, channels, homes. Thread of main.
#include "block/graph_tasks.hh"

#include "base/error.hh"
#include "block/track.hh"

namespace engine::block {

// --- Rally

void Rally::send(Part* part) noexcept {
    ENGINE_ASSERT(engine_.main()->on_home());
    part->rally_ = this;
    part->run = [](aio::Message* message) { static_cast<Part*>(message)->work(); };
    part->reply_.part = part;
    part->reply_.run = [](aio::Message* message) {
        Rally* rally = static_cast<Part::Reply*>(message)->part->rally_;
        if (--rally->outstanding_ == 0 && rally->waited_for_) rally->done_.complete(0);
    };
    outstanding_++;
    if (part->context->send(part) != 0) part->work();
}

void Rally::Part::answer() noexcept {
    rally_->engine_.main()->send(&reply_);  // main is open as long as there are tasks on it
}

// --- EdgeLocks

void order_nodes(std::vector<Node*>& nodes) {
    std::sort(nodes.begin(), nodes.end(),
              [](const Node* a, const Node* b) { return a->control->id < b->control->id; });
    nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
}

void EdgeLocks::take(std::vector<Node*> nodes) {
    guards_.reserve(nodes.size());
    nodes_ = std::move(nodes);
    for (Node* node : nodes_) node->control->pins++;
}

bool EdgeLocks::closing() const {
    return std::any_of(nodes_.begin(), nodes_.end(), [](const Node* node) { return node->control->closing; });
}

void EdgeLocks::release() noexcept {
    while (!guards_.empty()) guards_.pop_back();
    for (Node* node : nodes_) {
        if (--node->control->pins == 0 && node->control->dead) free_node(node);
    }
    nodes_.clear();
}

// --- sets

void add_subtree(Node* node, std::vector<Node*>& nodes) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if (std::find(nodes.begin(), nodes.end(), node) != nodes.end()) return;
    nodes.push_back(node);
    for (const Child& child : node->control->children) add_subtree(child.node, nodes);
}

void add_subtrees(const std::vector<Node*>& of, std::vector<Node*>& nodes) {
    for (Node* node : of) add_subtree(node, nodes);
}

void add_ancestors(Node* node, std::vector<Node*>& nodes) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if (std::find(nodes.begin(), nodes.end(), node) != nodes.end()) return;
    nodes.push_back(node);
    for (const User* user : node->control->users) {
        if (user->parent != nullptr) add_ancestors(user->parent, nodes);
    }
}

// --- channels

Channel* find_channel(Node* node, const aio::AioContext* context) {
    base::Guard guard(node->control->lists);
    for (auto& channel : node->control->channels) {
        if (channel->context == context) return channel.get();
    }
    return nullptr;
}

namespace {

// On the context's home thread, so that memory is first touched where it will be used. The task on main that
// waits for it holds the edges.
int make_channel(Node* node, aio::AioContext* context, Channel** out) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    if ((*out = find_channel(node, context)) != nullptr) return 0;
    NodeControl& control = *node->control;
    auto channel = std::make_unique<Channel>();
    channel->node = node;
    channel->context = context;
    channel->children.reserve(control.children.size());
    for (const Child& child : control.children) {
        Channel* below = nullptr;
        int result = make_channel(child.node, context, &below);
        if (result != 0) return result;
        channel->children.push_back(below);
    }
    if (node->driver->channel_state_size != 0) {
        channel->state_memory = std::make_unique<std::byte[]>(node->driver->channel_state_size);
    }
    channel->reserve = BounceReserve::make(*node, *context);
    base::Guard guard(control.lists);
    channel->set_tracked(control.tracking->active());
    control.channels.reserve(control.channels.size() + 1);
    if (node->driver->open_channel != nullptr) {
        int result = node->driver->open_channel(*channel);
        if (result != 0) return result;
    }
    *out = channel.get();
    control.channels.push_back(std::move(channel));
    return 0;
}

struct MakeChannel final : Rally::Part {
    Node* node = nullptr;
    int result = 0;

    void work() noexcept override {
        Channel* channel = nullptr;
        try {
            result = context->winding_up() ? -ESHUTDOWN : make_channel(node, context, &channel);
        } catch (const std::bad_alloc&) {
            result = -ENOMEM;
        }
        answer();
    }
};

// With nothing in flight, on its context; or anywhere, once that has closed: it touches no channel any more.
void end_channel(std::unique_ptr<Channel> channel) noexcept {
    ENGINE_CHECK(channel->in_flight.get() == 0 && channel->empty());
    if (channel->node->driver->close_channel != nullptr) channel->node->driver->close_channel(*channel);
}

struct DestroyChannel final : Rally::Part {
    std::unique_ptr<Channel> channel;

    void work() noexcept override {
        end_channel(std::move(channel));
        answer();
    }
};

// Takes a channel out of the node's hands: that on a context, or any. Null: there is none.
std::unique_ptr<Channel> take_channel(Node* node, const aio::AioContext* only) noexcept {
    base::Guard guard(node->control->lists);
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

}  // namespace

Task<int> make_channels(Instance& engine, Node* node, const std::vector<aio::AioContext*>& contexts) {
    Rally rally(engine);
    std::vector<std::unique_ptr<MakeChannel>> parts;
    parts.reserve(contexts.size());
    for (aio::AioContext* context : contexts) {
        if (find_channel(node, context) != nullptr) continue;
        parts.push_back(std::make_unique<MakeChannel>());
        parts.back()->context = context;
        parts.back()->node = node;
    }
    for (auto& part : parts) rally.send(part.get());
    int result = co_await rally;
    for (auto& part : parts) {
        if (part->result != 0) result = part->result;
    }
    co_return result;
}

Task<int> drop_channels_of(Instance& engine, Node* node, const aio::AioContext* only) {
    std::vector<Node*> nodes{node};
    int result = co_await drop_channels(engine, nodes, only);
    co_return result;
}

// All memory comes first: closing must not stop half-way.
Task<int> drop_channels(Instance& engine, const std::vector<Node*>& nodes,
                        const aio::AioContext* only) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    size_t count = 0;
    for (Node* node : nodes) count += node->control->channels.size();
    if (count == 0) co_return 0;
    auto parts = std::make_unique<DestroyChannel[]>(count);
    Rally rally(engine);
    size_t next = 0;
    for (Node* node : nodes) {
        while (std::unique_ptr<Channel> channel = take_channel(node, only)) {
            parts[next].context = channel->context;
            parts[next].channel = std::move(channel);
            rally.send(&parts[next++]);
        }
    }
    co_await rally;
    co_return 0;
}

void drop_unused_channels(Instance& engine, Node* node) noexcept {
    for (;;) {
        std::unique_ptr<Channel> channel;
        engine.main()->call_and_wait([&] {
            bool used;
            {
                base::Guard guard(node->control->lists);
                used = !node->control->users.empty();
            }
            if (!used && !node->control->working) channel = take_channel(node, nullptr);
        });
        if (channel == nullptr) return;
        Channel* gone = channel.release();
        auto end = [gone] { end_channel(std::unique_ptr<Channel>(gone)); };
        if (gone->context->call_and_wait(end) != 0) end();
    }
}

// --- homes

namespace {

// Runs a driver's task on the home of its node, and waits for it.
struct HomeTask final : Rally::Part {
    struct Over : coro::Callback<int> {
        HomeTask* part;
    };
    coro::Task<int> (*task)(Channel&) = nullptr;
    Channel* channel = nullptr;
    int result = 0;
    Over over;

    void work() noexcept override {
        over.part = this;
        over.completed = [](coro::Callback<int>* callback, int answer_value) {
            HomeTask* self = static_cast<Over*>(callback)->part;
            self->result = answer_value;
            self->answer();
        };
        coro::start(channel->executor(), task(*channel), static_cast<coro::Callback<int>*>(&over));
    }
};

}  // namespace

Task<int> run_at_home(Instance& engine, Node* node, Task<int> (*task)(Channel&)) {
    std::vector<aio::AioContext*> home{node->control->home};
    int result = co_await make_channels(engine, node, home);
    if (result != 0) co_return result;
    HomeTask part;
    part.context = node->control->home;
    part.task = task;
    part.channel = find_channel(node, node->control->home);
    Rally rally(engine);
    rally.send(&part);
    co_await rally;
    co_return part.result;
}

Task<int> start_home(Instance& engine, Node* node, engine_error* error) {
    NodeControl& control = *node->control;
    if (node->driver->start_home == nullptr) co_return 0;
    std::vector<aio::AioContext*> home{control.home};
    int result = co_await make_channels(engine, node, home);
    if (result == 0) {
        Channel* channel = find_channel(node, control.home);
        int started = 0;
        result = co_await errand(engine, control.home, [&started, channel] {
            started = channel->node->driver->start_home(*channel);
        });
        if (result == 0) result = started;
    }
    if (result != 0) {
        base::fail_os(error, -result, {.node = control.name.c_str(), .operation = "open", .field = "context"},
                      "node %s: cannot start its background work on context %s", control.name.c_str(),
                      control.home->name().c_str());
        co_return result;
    }
    control.working = true;
    co_return 0;
}

Task<int> stop_home(Instance& engine, Node* node) {
    if (!node->control->working) co_return 0;
    node->control->working = false;
    int result = 0;
    if (node->driver->stop_home != nullptr)
        result = co_await run_at_home(engine, node, node->driver->stop_home);
    co_return result;
}

}  // namespace engine::block
