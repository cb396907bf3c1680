// Quiescing a part of the graph: requests park where they enter it, and those inside leave. Tasks on main,
// which hold the edges of all nodes that take part. Explored as shipped by tests/native/explore_quiesce.cc.
#pragma once

#include "block/graph_tasks.hh"

namespace engine::block {

// A part of the graph at rest. What is to be changed meanwhile is noted here and done by Resume, on each
// context before its requests go on.
class Quiesced {
  public:
    Quiesced() noexcept = default;
    ~Quiesced() { ENGINE_CHECK(pauses_.empty()); }
    Quiesced(const Quiesced&) = delete;
    Quiesced& operator=(const Quiesced&) = delete;

    // Must find room: `extra` changes on each context were asked for.
    void move_port(Port& port, Channel* to) noexcept;
    void move_child(Channel& parent, size_t index, Channel* to) noexcept;

  private:
    friend Task<int> quiesce(Instance&, const std::vector<Node*>&, uint64_t, Quiesced&, engine_error*);
    friend class Resume;
    class Pause;
    class Expiry;
    struct Deadline;
    struct Deleter {
        void operator()(Pause* pause) const noexcept;
    };
    void prepare(const std::vector<Node*>& nodes);
    Pause& on(aio::AioContext* context);
    std::vector<std::unique_ptr<Pause, Deleter>> pauses_;
};

// `nodes`: with each node all above it; the edges of all below them are held as well. Parks every port that
// leads to them, and waits until what was inside has left. -ETIMEDOUT after `timeout_ns`: everything goes on,
// and the error names node, context and request.
Task<int> quiesce(Instance& engine, const std::vector<Node*>& nodes, uint64_t timeout_ns, Quiesced& out,
                  engine_error* error);
// Makes the changes and lets the requests go on; once. Not a task: it lies in its caller's frame, because
// without memory for another one everything would stay parked.
//   Resume going_on(engine, rest);
//   co_await going_on;
class [[nodiscard]] Resume : public Rally {
  public:
    Resume(Instance& engine, Quiesced& quiesced) noexcept;
    void await_resume() const noexcept;

  private:
    Quiesced& quiesced_;
};

}  // namespace engine::block
