// A filter comes and goes above a node that two pinned contexts work on, as often as it can; a third workload
// on a node of its own, on the first context, must not pause. Everything is verified where the node stores
// data. The requests' own time stands in the workloads' histograms, the time that they were held back in the
// pause statistics of their user.
//
// usage: graph_changes DRIVER SECONDS CPU CPU        DRIVER: memory (verified) or null
#include "micro.hh"

namespace {

struct Load {
    engine_workload_t* handle = nullptr;
    engine_workload_result result{};
};

Load start(engine_t* engine, engine_user_t* user, engine_context_t* context, bool verify, uint64_t offset,
           uint64_t length) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 32;
    config.flags = verify ? ENGINE_WORKLOAD_VERIFY : 0;
    config.runtime_ns = UINT64_C(3600) * 1'000'000'000;
    config.seed = offset + 1;
    config.offset = offset;
    config.length = length;
    config.user = user;
    config.context = context;
    Load load;
    engine_error error = micro::make_error();
    micro::must(engine_workload_create(engine, &config, &load.handle, &error), "workload", error);
    micro::must(engine_workload_start(load.handle, &error), "workload", error);
    return load;
}

void end(Load& load) {
    engine_workload_stop(load.handle);
    micro::must(engine_workload_wait(load.handle, UINT64_MAX), "engine_workload_wait");
    load.result.size = sizeof load.result;
    micro::must(engine_workload_get_result(load.handle, &load.result), "engine_workload_get_result");
    engine_workload_close(load.handle);
    if (load.result.errors != 0) micro::fail("workload", "requests failed");
    if (load.result.verify_errors != 0) micro::fail("workload", "data was lost");
}

engine_pause_stats pauses_of(engine_user_t* user) {
    engine_pause_stats stats{};
    stats.size = sizeof stats;
    micro::must(engine_user_get_pauses(user, &stats), "engine_user_get_pauses");
    return stats;
}

engine_user_t* use(engine_node_t* node, const char* name) {
    engine_user_t* user = nullptr;
    engine_error error = micro::make_error();
    micro::must(engine_user_create(node, name, ENGINE_PERM_ALL, ENGINE_PERM_ALL, &user, &error), name, error);
    return user;
}

engine_node_t* open(micro::Engine& engine, const char* driver, const char* name) {
    const engine_option options[] = {{"driver", driver}, {"node-name", name}, {"size", "16M"}};
    return engine.open(options, 3);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) micro::fail("usage", "graph_changes memory|null SECONDS CPU CPU");
    bool verify = strcmp(argv[1], "memory") == 0;
    uint64_t seconds = micro::number(argv[2], "SECONDS");
    micro::Engine engine;
    engine_context_t* io0 = engine.add_context("io0", static_cast<int>(micro::number(argv[3], "CPU")), -1);
    engine_context_t* io1 = engine.add_context("io1", static_cast<int>(micro::number(argv[4], "CPU")), -1);
    engine_node_t* disk = open(engine, argv[1], "disk");
    engine_node_t* other = open(engine, argv[1], "elsewhere");
    engine_user_t* user = use(disk, "load");
    engine_user_t* bystander = use(other, "bystander");
    uint64_t half = 8 << 20;
    Load loads[] = {
        start(engine.get(), user, io0, verify, 0, half),
        start(engine.get(), user, io1, verify, half, half),
        start(engine.get(), bystander, io0, verify, 0, half),
    };
    engine_error error = micro::make_error();
    uint64_t changes = 0, longest_change_ns = 0;
    uint64_t began = engine_now_ns(), now = began;
    while (now - began < seconds * 1'000'000'000) {
        engine_option options[] = {{"driver", "passthrough"}, {"node-name", "filter"}};
        engine_node_t* filter = nullptr;
        micro::must(engine_node_insert_filter(disk, options, 2, 0, &filter, &error), "insert", error);
        micro::must(engine_node_remove_filter(filter, 0, nullptr, &error), "remove", error);
        changes += 2;
        uint64_t then = now;
        now = engine_now_ns();
        if (now - then > longest_change_ns) longest_change_ns = now - then;
    }
    for (Load& load : loads) end(load);
    engine_pause_stats pauses = pauses_of(user);
    if (pauses.count != 2 * changes) micro::fail("pauses", "a change did not hold up both contexts");
    if (pauses_of(bystander).count != 0) micro::fail("pauses", "a user elsewhere was held up");
    double elapsed = static_cast<double>(now - began) / 1e9;
    uint64_t requests = 0;
    for (const Load& load : loads) requests += load.result.requests[0] + load.result.requests[1];
    printf(
        "{\"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f, \"changes\": %llu, \"changes_per_second\": "
        "%.1f, "
        "\"mean_pause_ns\": %.1f, \"longest_pause_ns\": %llu, \"longest_pair_ns\": %llu, \"verified\": %s, "
        "\"request_rate\": %.1f, \"bystander_p999_ns\": %llu}\n",
        static_cast<unsigned long long>(changes), elapsed, static_cast<double>(changes) / elapsed,
        static_cast<unsigned long long>(changes), static_cast<double>(changes) / elapsed,
        static_cast<double>(pauses.total_ns) / static_cast<double>(pauses.count),
        static_cast<unsigned long long>(pauses.longest_ns),
        static_cast<unsigned long long>(longest_change_ns), verify ? "true" : "false",
        static_cast<double>(requests) / elapsed,
        static_cast<unsigned long long>(engine_histogram_percentile(&loads[2].result.latency_ns[0], 0.999)));
    engine_user_close(user, &error);
    engine_user_close(bystander, &error);
    return 0;
}
