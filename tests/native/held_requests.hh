// What tests of filters that hold requests back share: requests of a test's own, submitted on one context of
// a simulator, that note when and in which order they completed. One thread.
#pragma once

#include <memory>
#include <vector>

#include "api/handles.hh"
#include "sim_engine.hh"

namespace held {

using engine::block::Op;

class Requests;

struct Probe : engine::block::Request {
    Requests* all = nullptr;
    bool done = false;
    uint64_t began_ns = 0;
    uint64_t ended_ns = 0;
    unsigned place = 0;  // in the order of completion
    embedder::Error failure;
    std::vector<char> data;

    uint64_t took_ns() const { return ended_ns - began_ns; }
};

class Requests {
  public:
    Requests(sim::Engine& engine, engine_node_t* node, size_t context = 1)
        : engine_(engine), context_(engine.context(context)), user_(embedder::Engine::user(node, "probe")) {
        embedder::Error error;
        REQUIRE(engine::block::open_port(engine::api::unwrap(user_), &context_, &port_, &error) == 0);
    }
    ~Requests() {
        embedder::Error error;
        CHECK_EQ(engine_user_close(user_, &error), 0);
    }
    Requests(const Requests&) = delete;
    Requests& operator=(const Requests&) = delete;

    // All of them in one turn of the context, at one moment of its clock. Returns the first.
    Probe& submit(Op op, unsigned count = 1, uint64_t offset = 0, uint64_t length = 512) {
        size_t first = probes.size();
        for (unsigned i = 0; i < count; i++) {
            auto probe = std::make_unique<Probe>();
            probe->all = this;
            probe->op = op;
            probe->offset = op == Op::flush ? 0 : offset + i * length;
            probe->length = op == Op::flush ? 0 : length;
            probe->error = &probe->failure;
            probe->complete = completed;
            if (op == Op::read || op == Op::write) {
                probe->data.assign(length, 'n');
                probe->set_buffer(probe->data.data(), length);
            }
            if (op == Op::block_status) {
                probe->extents = &extent_;
                probe->extent_capacity = 1;
            }
            probes.push_back(std::move(probe));
        }
        on_home([&] {
            for (size_t i = first; i < probes.size(); i++) {
                probes[i]->began_ns = context_.now_ns();
                engine::block::submit(*port_, probes[i].get());
            }
        });
        return *probes[first];
    }
    template <class F>
    void on_home(F&& f) {
        CHECK_EQ(context_.call_and_wait(f), 0);
    }
    void cancel(Probe& probe) {
        on_home([&] { engine::block::cancel(*port_, &probe); });
    }
    // Lets time go on until all have completed. False: some never will.
    bool finish() {
        return engine_.simulator.run_until([this] { return ended == probes.size(); });
    }
    // … until so much time has passed.
    void pass(uint64_t ns) {
        uint64_t end_ns = engine_.simulator.now_ns() + ns;
        while (engine_.simulator.now_ns() < end_ns && engine_.simulator.step(end_ns)) {
        }
    }

    std::vector<std::unique_ptr<Probe>> probes;
    unsigned ended = 0;

  private:
    static void completed(engine::block::Request* request) {
        auto* self = static_cast<Probe*>(request);
        CHECK(!self->done);
        self->done = true;
        self->ended_ns = self->all->context_.now_ns();
        self->place = self->all->ended++;
    }

    sim::Engine& engine_;
    engine::aio::AioContext& context_;
    engine_user_t* user_;
    engine::block::Port* port_ = nullptr;
    engine_extent extent_{};
};

constexpr uint64_t ms = 1'000'000;
// What a turn of a context, and the disk below, take in virtual time.
constexpr uint64_t slack_ns = ms;

inline bool took(const Probe& probe, uint64_t low_ns, uint64_t high_ns) {
    return CHECK(probe.done && probe.took_ns() >= low_ns && probe.took_ns() <= high_ns + slack_ns);
}

}  // namespace held
