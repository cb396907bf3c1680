// The overlay in the simulator: two contexts over the same clusters, each seed another history.
#include "overlay_lanes.hh"
#include "sim_engine.hh"

namespace {

using embedder::Error;

constexpr unsigned seeds = 30;
constexpr unsigned rounds = 120;
constexpr uint64_t bytes = 128 << 10;

uint64_t live(uint64_t seed) {
    sim::Engine engine(seed);
    engine_node_t* base = engine.open({{"driver", "memory"}, {"node-name", "base"}, {"size", "96k"}});
    engine_node_info info{};
    info.size = sizeof info;
    engine_node_t* data = engine.open_disk(engine.simulator.files().add(2 * bytes), 2 * bytes);
    CHECK_EQ(engine_node_get_info(data, &info), 0);
    overlay_lanes::View view;
    view.node = engine.open({{"driver", "overlay"},
                             {"backing", "base"},
                             {"file", info.name},
                             {"size", "128k"},
                             {"cluster-size", "4k"}});
    view.user = embedder::Engine::user(view.node, "test");
    overlay_lanes::Lanes lanes(rounds);
    lanes.begin(view, {engine.context_handle(1), engine.context_handle(2)}, 7);
    REQUIRE(engine.simulator.run_until([&] { return lanes.done(); }));
    lanes.check(view);
    CHECK(!engine.simulator.run_until([] { return false; }));  // the home's work comes to its end
    Error error;
    for (engine_node_t* node : {view.node, data, base}) {
        if (node == view.node) CHECK_EQ(engine_user_close(view.user, &error), 0);
        CHECK_EQ(engine_node_close(node, &error), 0);
    }
    return engine.simulator.trace_hash();
}

TEST(each_seed_is_another_history) {
    for (uint64_t seed = 0; seed < seeds; seed++) {
        uint64_t history = live(seed);
        if (seed % 10 == 0) CHECK_EQ(live(seed), history);
        REQUIRE(check::failures == 0);
    }
}

}  // namespace
