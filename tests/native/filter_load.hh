// What tests of filters share: statistics of a node, the node below, and a workload that closes itself. Any
// thread.
#pragma once

#include <memory>

#include "embedder.hh"

namespace filter_load {

inline engine_node_stats stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}

inline engine_node_t* child_of(engine_node_t* node) {
    char role[16];
    return engine_node_get_child(node, 0, role, sizeof role);
}

struct Load {
    engine_workload_t* workload = nullptr;
    Load(engine_t* engine, engine_user_t* user, engine_context_t* context, uint64_t count,
         uint32_t read_percent = 100, uint32_t iodepth = 16) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.pattern = ENGINE_RANDOM;
        config.read_percent = read_percent;
        config.block_size = 4096;
        config.iodepth = iodepth;
        config.count = count;
        config.seed = 5;
        config.user = user;
        config.context = context;
        embedder::Error error;
        REQUIRE(engine_workload_create(engine, &config, &workload, &error) == 0);
        CHECK_EQ(engine_workload_start(workload, &error), 0);
    }
    ~Load() { CHECK_EQ(engine_workload_close(workload), 0); }
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;
    std::unique_ptr<engine_workload_result> result() const {
        auto result = std::make_unique<engine_workload_result>();
        result->size = sizeof *result;
        CHECK_EQ(engine_workload_get_result(workload, result.get()), 0);
        return result;
    }
    std::unique_ptr<engine_workload_result> wait() const {
        CHECK_EQ(engine_workload_wait(workload, 60'000'000'000), 0);
        return result();
    }
};

}  // namespace filter_load
