// Park and grace, on each context by one message there and one back. Thread of main; what says so runs on the
// context of a pause.
#include "block/quiesce.hh"

#include "base/clock.hh"
#include "base/error.hh"

namespace engine::block {

// What takes part on one context. Sent twice: to park, and to go on.
class Quiesced::Pause final : public Rally::Part {
  public:
    struct Mark : GraceMark {
        Pause* pause;
    };
    struct PortMove {
        Port* port;
        Channel* to;
    };
    struct ChildMove {
        Channel* parent;
        size_t index;
        Channel* to;
    };

    explicit Pause(aio::AioContext* on) noexcept { context = on; }
    ~Pause() override { ENGINE_CHECK(standing_ == 0); }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

    void work() noexcept override {
        if (going_on) {
            go_on();
        } else {
            begin();
        }
    }
    // The deadline has come, on the context: the marks are taken away, and who is late is written down.
    void expire() noexcept {
        if (answered_) return;
        for (size_t i = 0; i < channels.size(); i++) {
            look_for_late(channels[i]->requests, marks[2 * i]);
            look_for_late(channels[i]->serialising, marks[2 * i + 1]);
        }
        expired = true;
        answered_ = true;
        answer();
    }

    struct Late {
        uint64_t id = 0;
        uint64_t offset = 0;
        uint64_t length = 0;
        Op op = Op::read;
        const Node* node = nullptr;  // null: none was found
    };

    std::vector<Port*> ports;
    std::vector<Channel*> channels;
    std::vector<Channel*> hurried;
    std::unique_ptr<Mark[]> marks;  // two a channel
    std::vector<PortMove> port_moves;
    std::vector<ChildMove> child_moves;
    bool going_on = false;
    bool expired = false;
    Late late;

  private:
    static Late describe(const Request& request) noexcept {
        return {request.id, request.offset, request.length, request.op, request.channel->node};
    }
    void begin() noexcept {
        answered_ = false;
        if (!ENGINE_SEEDED_BUG(quiesce_parks_after_the_wait)) park_all();
        hurry(true);
        standing_ = 2 * channels.size();
        for (size_t i = 0; i < channels.size(); i++) {
            set(marks[2 * i], channels[i]->requests, *channels[i]);
            set(marks[2 * i + 1], channels[i]->serialising, *channels[i]);
        }
        if (standing_ == 0) finish_pause();
    }
    void set(Mark& mark, InFlightList& list, Channel& channel) noexcept {
        mark.pause = this;
        mark.run = [](coro::ReadyItem* item) {
            static_cast<Mark*>(static_cast<GraceMark*>(item))->pause->passed();
        };
        list.add_mark(&mark, channel.executor());
    }
    void look_for_late(InFlightList& list, Mark& mark) noexcept {
        if (ENGINE_SEEDED_BUG(quiesce_leaves_marks_standing) || !list.remove_mark(&mark)) return;
        standing_--;
        const Request* oldest = list.oldest();
        if (oldest != nullptr) late = describe(*oldest);
    }
    // What drivers hold back by choice must not hold this up: neither here nor below, where it belongs to
    // requests that are inside here.
    void hurry(bool on) noexcept {
        for (Channel* channel : hurried) channel->node->driver->hurry(*channel, on);
    }
    // A mark that had passed before the deadline may still have been on its way here. It comes before this
    // is told to go on, because what comes from elsewhere goes behind what is ready.
    void passed() noexcept {
        if (--standing_ == 0 && !answered_) finish_pause();
    }
    void finish_pause() noexcept {
        if (ENGINE_SEEDED_BUG(quiesce_parks_after_the_wait)) park_all();
        answered_ = true;
        answer();
    }
    void park_all() noexcept {
        for (Port* port : ports) port->park();
    }
    void unpark_all() noexcept {
        for (Port* port : ports) port->unpark();
    }
    void go_on() noexcept {
        if (ENGINE_SEEDED_BUG(quiesce_goes_on_before_the_change)) unpark_all();
        for (const PortMove& move : port_moves) move.port->channel = move.to;
        for (const ChildMove& move : child_moves) {
            ENGINE_CHECK(move.parent->empty());
            move.parent->children[move.index] = move.to;
        }
        hurry(false);
        if (!ENGINE_SEEDED_BUG(quiesce_goes_on_before_the_change)) unpark_all();
        answer();
    }

    size_t standing_ = 0;
    bool answered_ = false;
};

class Quiesced::Expiry final : public Rally::Part {
  public:
    explicit Expiry(Pause* of) noexcept : pause_(of) { context = of->context; }
    void work() noexcept override {
        pause_->expire();
        answer();
    }

  private:
    Pause* pause_;
};

struct Quiesced::Deadline : aio::Timer {
    Rally* rally;
    std::vector<std::unique_ptr<Expiry>> expiries;
};

void Quiesced::Deleter::operator()(Pause* pause) const noexcept {
    delete pause;
}

Quiesced::Pause& Quiesced::on(aio::AioContext* context) {
    for (auto& pause : pauses_) {
        if (pause->context == context) return *pause;
    }
    std::unique_ptr<Pause, Deleter> made(new Pause(context));  // its own before the vector grows
    pauses_.push_back(std::move(made));
    return *pauses_.back();
}

void Quiesced::prepare(const std::vector<Node*>& nodes) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    size_t ports = 0, channels = 0;
    for (Node* node : nodes) {
        for (auto& channel : node->control->channels) {
            on(channel->context).channels.push_back(channel.get());
            channels += 1 + channel->children.size();
        }
        for (User* user : node->control->users) {
            if (user->parent != nullptr) continue;
            user->for_each_port([&](Port& port) {
                on(port.context).ports.push_back(&port);
                ports++;
            });
        }
    }
    std::vector<Node*> all;
    add_subtrees(nodes, all);
    for (auto& pause : pauses_) {
        for (Node* node : all) {
            Channel* channel = find_channel(node, pause->context);
            if (channel != nullptr && node->driver->hurry != nullptr) pause->hurried.push_back(channel);
        }
        pause->marks = std::make_unique<Pause::Mark[]>(2 * pause->channels.size());
        pause->port_moves.reserve(ports);
        pause->child_moves.reserve(channels);
    }
}

void Quiesced::move_port(Port& port, Channel* to) noexcept {
    on(port.context).port_moves.push_back({&port, to});
}

void Quiesced::move_child(Channel& parent, size_t index, Channel* to) noexcept {
    on(parent.context).child_moves.push_back({&parent, index, to});
}

Task<int> quiesce(Instance& engine, const std::vector<Node*>& nodes, uint64_t timeout_ns, Quiesced& out,
                  engine_error* error) {
    Quiesced::Deadline deadline;
    Rally rally(engine);
    try {
        out.prepare(nodes);
        deadline.rally = &rally;
        for (auto& pause : out.pauses_) {
            deadline.expiries.push_back(std::make_unique<Quiesced::Expiry>(pause.get()));
        }
        deadline.fire = [](aio::Timer* timer) {
            auto* self = static_cast<Quiesced::Deadline*>(timer);
            if (self->rally->over()) return;
            for (auto& expiry : self->expiries) self->rally->send(expiry.get());
        };
        if (engine.main()->arm(&deadline, engine.main()->now_ns() + timeout_ns) != 0) throw std::bad_alloc();
    } catch (const std::bad_alloc&) {
        out.pauses_.clear();
        co_return -ENOMEM;
    }
    for (auto& pause : out.pauses_) rally.send(pause.get());
    co_await rally;
    engine.main()->timers().cancel(&deadline);
    const Quiesced::Pause* late = nullptr;
    for (auto& pause : out.pauses_) {
        if (pause->expired && (late == nullptr || pause->late.node != nullptr)) late = pause.get();
    }
    if (late == nullptr || ENGINE_SEEDED_BUG(quiesce_takes_the_deadline_for_rest)) co_return 0;
    const Quiesced::Pause::Late& request = late->late;
    if (request.node != nullptr) {
        const char* name = request.node->control->name.c_str();
        base::fail(
            error, ENGINE_ERROR_LIMIT, ETIMEDOUT,
            {.node = name, .operation = "quiesce", .offset = request.offset, .request_id = request.id},
            "node %s did not come to rest within %lu ms: on context %s request %lu (%s of %lu bytes at "
            "offset %lu) is still inside; nothing was changed and everything goes on",
            name, timeout_ns / 1000000, late->context->name().c_str(), request.id, op_name(request.op),
            request.length, request.offset);
    } else {
        base::fail(error, ENGINE_ERROR_LIMIT, ETIMEDOUT, {.operation = "quiesce"},
                   "context %s did not answer within %lu ms; nothing was changed and everything goes on",
                   late->context->name().c_str(), timeout_ns / 1000000);
    }
    Resume going_on(engine, out);
    co_await going_on;
    co_return -ETIMEDOUT;
}

Resume::Resume(Instance& engine, Quiesced& quiesced) noexcept : Rally(engine), quiesced_(quiesced) {
    for (auto& pause : quiesced_.pauses_) {
        pause->going_on = true;
        send(pause.get());
    }
}

void Resume::await_resume() const noexcept {
    quiesced_.pauses_.clear();
}

}  // namespace engine::block
