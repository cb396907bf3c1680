// Tracking (block/track.cc, and block/emulate.cc as its user), as shipped, under the interleaving explorer: a
// write of part of a block, which reads and writes back the whole of it, against writes of whole blocks by
// other contexts.
//
//   1. What another wrote is not lost: nobody writes between such a read and its write, neither who came
//      before the node was tracked nor who came after.
//   2. One sees what the other wrote: the disk's memory is plain data.
//   3. Everything ends, also where several switch the node at once, and where it is switched back meanwhile.
//   4. A channel that is made during the switch is tracked.
//
// Then the same with bugs put in: each must be found.
#include "block/track.hh"

#include <array>
#include <memory>
#include <vector>

#include "explore/graph.hh"

namespace {

namespace block = engine::block;
using engine::aio::AioContext;
using explore::GraphUser;
using explore::Happened;
using explore::Mutation;
using explore::Program;
using explore::Scenario;
using explore::Task;
using explore::World;

Happened tracked{"a write of whole blocks waited its turn"};
Happened untracked{"a write of whole blocks went straight to the disk"};
Happened switched_back{"the node was tracked no more, and writes came after that"};
Happened made_tracked{"a channel was tracked from the start"};

constexpr uint64_t block_bytes = 512;

// One block. Each transfer is one step, some time after it was submitted.
class SmallDisk final : public explore::Disk {
  public:
    explicit SmallDisk(World& world) : Disk(world, "disk", 1) {
        node->request_alignment = block_bytes;
        node->best_request_alignment = block_bytes;
        node->bytes.store_relaxed(block_bytes);
    }
    void submit(block::Channel& channel, block::Request* request) override {
        request->run = [](engine::aio::Message* message) {
            auto* self = static_cast<block::Request*>(message);
            explore::point();
            static_cast<SmallDisk*>(self->channel->node->state<Disk*>())->transfer(*self);
            block::finish(self, 0);
        };
        channel.context->ready(request);
    }
    std::array<char, block_bytes> bytes{};

  private:
    void transfer(const block::Request& request) {
        explore::require(request.offset == 0 && request.length == block_bytes && request.iov_count == 1,
                         "part of a block");
        if (request.op == block::Op::read) {
            (void)access_.get();
            memcpy(request.iov[0].iov_base, bytes.data(), block_bytes);
        } else {
            access_.set(1);
            memcpy(bytes.data(), request.iov[0].iov_base, block_bytes);
        }
    }
    explore::Plain<int> access_;
};

class Writer;

struct Write : block::Request {
    Writer* writer = nullptr;
    std::array<char, block_bytes> data{};
};

// Writes of one context, one after the other.
class Writer {
  public:
    explicit Writer(World& world) : world_(world) { world.expect(1); }
    void add(uint64_t at, uint64_t count, char value) {
        writes_.push_back(std::make_unique<Write>());
        Write& write = *writes_.back();
        write.writer = this;
        write.op = block::Op::write;
        write.offset = at;
        write.length = count;
        write.data.fill(value);
        write.set_buffer(write.data.data(), count);
        write.complete = [](block::Request* request) {
            explore::require(request->result == 0, "a write failed");
            static_cast<Write*>(request)->writer->submit_next();
        };
    }
    void start(block::Port& port) {
        port_ = &port;
        submit_next();
    }
    bool done() const { return next_ > writes_.size(); }

  private:
    void submit_next() {
        if (next_++ == writes_.size()) {
            world_.one_less();
            return;
        }
        Write& write = *writes_[next_ - 1];
        if (write.length == block_bytes) {
            bool waits = port_->channel->tracked;
            waits ? tracked++ : untracked++;
            if (was_tracked_ && !waits) switched_back++;
            was_tracked_ = waits;
        }
        block::submit(*port_, &write);
    }

    World& world_;
    block::Port* port_ = nullptr;
    std::vector<std::unique_ptr<Write>> writes_;
    size_t next_ = 0;
    bool was_tracked_ = false;
};

struct State : World {
    SmallDisk disk{*this};
    GraphUser user{*this, disk};
    std::vector<std::unique_ptr<Writer>> writers;

    Writer* add_writer() {
        writers.push_back(std::make_unique<Writer>(*this));
        return writers.back().get();
    }
    block::Port* add_port(AioContext& context) {
        return &user.add_port_on(context, *disk.add_channel(context));
    }
    // From `first` on, where only whole blocks were written, last of all this.
    void finish(size_t first, char last) {
        bool good = true;
        for (auto& writer : writers) good = good && writer->done();
        explore::require(good, "a writer did not come to its end");
        for (size_t i = first; i < block_bytes; i++) good = good && disk.bytes[i] == last;
        ended = good && disk.node->control->channels[0]->empty();
        explore::require(ended, "a write was lost");
    }
};

void run_writer(Program& program, const char* name, AioContext& context, Writer* writer, block::Port* port) {
    AioContext* on = &context;
    program.thread(name, [=] {
        on->run([=] {
            if (writer != nullptr) writer->start(*port);
        });
    });
}

void part_against_whole(Program& program) {
    auto state = explore::make_state<State>();
    Writer* part = state->add_writer();
    part->add(0, 1, 'a');
    Writer* whole = state->add_writer();
    for (char value : {'b', 'c', 'd'}) whole->add(0, block_bytes, value);
    run_writer(program, "a", state->a, part, state->add_port(state->a));
    run_writer(program, "b", state->b, whole, state->add_port(state->b));
    program.thread("main", [=] { state->main.run(); });
    program.at_end([=] { state->finish(1, 'd'); });
}

// Two switch at the same time; each keeps what the other wrote.
void two_parts(Program& program) {
    auto state = explore::make_state<State>();
    Writer* first = state->add_writer();
    first->add(0, 1, 'a');
    Writer* second = state->add_writer();
    second->add(1, 1, 'b');
    Writer* whole = state->add_writer();
    for (char value : {'c', 'd', 'e'}) whole->add(0, block_bytes, value);
    run_writer(program, "a", state->a, first, state->add_port(state->a));
    run_writer(program, "b", state->b, second, state->add_port(state->b));
    run_writer(program, "main", state->main, whole, state->add_port(state->main));
    program.at_end([=] { state->finish(2, 'e'); });
}

// Time passes, so that a later write finds the node idle and switches it back, while another part comes.
void back_and_forth(Program& program) {
    auto state = explore::make_state<State>();
    Writer* part = state->add_writer();
    part->add(0, 1, 'a');
    part->add(1, 1, 'b');
    Writer* whole = state->add_writer();
    for (char value : {'c', 'd', 'e', 'f', 'g'}) whole->add(0, block_bytes, value);
    run_writer(program, "a", state->a, part, state->add_port(state->a));
    run_writer(program, "b", state->b, whole, state->add_port(state->b));
    program.thread("main", [=] { state->main.run(); });
    program.thread("clock", [=] { state->main.advance_clock(1'000'000'000); });
    program.at_end([=] { state->finish(2, 'g'); });
}

Task<int> add_b(AioContext& here, State& state, Writer& whole) {
    std::vector<AioContext*> contexts{&state.b};
    int result = co_await block::make_channels(*here.instance, state.disk.node, contexts);
    if (result != 0) co_return result;
    block::Channel* channel = block::find_channel(state.disk.node, &state.b);
    block::Port* port = &state.user.add_port_on(state.b, *channel);
    Writer* writer = &whole;
    result = co_await block::errand(*here.instance, &state.b, [writer, port] {
        if (port->channel->tracked) made_tracked++;
        writer->start(*port);
    });
    co_return result;
}

void a_context_comes(Program& program) {
    auto state = explore::make_state<State>();
    state->expect(1);
    Writer* part = state->add_writer();
    part->add(0, 1, 'a');
    Writer* whole = state->add_writer();
    whole->add(0, block_bytes, 'b');
    run_writer(program, "a", state->a, part, state->add_port(state->a));
    run_writer(program, "b", state->b, nullptr, nullptr);
    program.thread("main", [=] {
        state->main.run([=] { state->start(state->main, add_b(state->main, *state, *whole)); });
    });
    program.at_end([=] { state->finish(1, 'b'); });
}

TEST(a_part_against_whole_blocks) {
    explore::must_hold(part_against_whole, {1, 0, 2});
    tracked.check();
    untracked.check();
}
TEST(two_switch_at_the_same_time) {
    explore::must_hold(two_parts, {1, 0, 1});
    tracked.check();
    untracked.check();
}
TEST(the_node_is_switched_back_meanwhile) {
    explore::must_hold(back_and_forth, {1, 0, 1});
    switched_back.check();
}
TEST(a_context_is_added_meanwhile) {
    explore::must_hold(a_context_comes, {1, 0, 2});
    made_tracked.check();
}

const explore::Bounds bounds{.preemptions = 1, .stale_reads = 0, .detours = 2};

TEST(bug_who_was_inside_is_not_waited_for) {
    for (void (*scenario)(Program&) : {part_against_whole, back_and_forth}) {
        explore::must_be_found(Mutation::tracking_waits_for_nobody, {scenario}, "", bounds);
    }
}
TEST(bug_the_tree_holds_up_nobody) {
    for (void (*scenario)(Program&) : {part_against_whole, two_parts}) {
        explore::must_be_found(Mutation::tracking_finds_nobody_older, {scenario}, "", bounds);
    }
}
TEST(bug_the_node_is_tracked_before_all_have_left) {
    explore::must_be_found(Mutation::tracking_is_on_at_once, {two_parts}, "", bounds);
}
TEST(bug_a_new_channel_is_not_told) {
    explore::must_be_found(Mutation::tracking_tells_no_new_channel, {a_context_comes}, "", bounds);
}
TEST(bug_the_inbox_is_taken_without_acquiring) {
    explore::must_be_found(Mutation::exchange_acq_rel_is_relaxed, {a_context_comes, two_parts}, "data race",
                           bounds);
}

}  // namespace
