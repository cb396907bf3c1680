// Four load generators on two contexts, over two throttle nodes of one group: how many requests they do
// together, and how evenly. Two contexts, no lock of its own.
//
// usage: shared_throttle IOPS SECONDS
#include <array>
#include <string>

#include "micro.hh"

namespace {

constexpr unsigned nodes = 2;
constexpr unsigned loads = 4;

engine_node_t* open_throttle(micro::Engine& engine, const char* iops, unsigned index) {
    std::string name = "t" + std::to_string(index);
    const engine_option options[] = {{"driver", "throttle"},  {"node-name", name.c_str()},
                                     {"throttle-group", "g"}, {"limits.iops-total", iops},
                                     {"file.driver", "null"}, {"file.size", "1G"}};
    return engine.open(options, sizeof options / sizeof options[0]);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) micro::fail("usage", "shared_throttle IOPS SECONDS");
    uint64_t seconds = micro::number(argv[2], "SECONDS");
    micro::Engine engine;
    engine_error error = micro::make_error();
    std::array<engine_context_t*, 2> contexts = {engine.add_context("io0", 0, -1),
                                                 engine.add_context("io1", 1, -1)};
    std::array<engine_node_t*, nodes> throttles;
    std::array<engine_user_t*, nodes> users{};
    std::array<engine_workload_t*, loads> workloads{};
    for (unsigned i = 0; i < nodes; i++) {
        throttles[i] = open_throttle(engine, argv[1], i);
        micro::must(engine_user_create(throttles[i], "load", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL,
                                       &users[i], &error),
                    "engine_user_create", error);
    }
    for (unsigned i = 0; i < loads; i++) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.pattern = ENGINE_RANDOM;
        config.read_percent = 100;
        config.block_size = 4096;
        config.iodepth = 16;
        config.runtime_ns = seconds * 1'000'000'000;
        config.seed = i;
        config.user = users[i / 2];
        config.context = contexts[i % 2];
        micro::must(engine_workload_create(engine.get(), &config, &workloads[i], &error),
                    "engine_workload_create", error);
    }
    uint64_t start_ns = engine_now_ns();
    for (engine_workload_t* workload : workloads)
        micro::must(engine_workload_start(workload, &error), "engine_workload_start", error);
    for (engine_workload_t* workload : workloads)
        micro::must(engine_workload_wait(workload, UINT64_MAX), "engine_workload_wait");
    std::array<uint64_t, loads> done{};
    uint64_t sum = 0;
    uint64_t end_ns = start_ns;
    static engine_workload_result result;
    for (unsigned i = 0; i < loads; i++) {
        result.size = sizeof result;
        micro::must(engine_workload_get_result(workloads[i], &result), "engine_workload_get_result");
        sum += done[i] = result.requests[0];
        if (result.ended_ns > end_ns) end_ns = result.ended_ns;
        micro::must(engine_workload_close(workloads[i]), "engine_workload_close");
    }
    for (unsigned i = 0; i < nodes; i++) {
        micro::must(engine_user_close(users[i], &error), "engine_user_close", error);
        micro::must(engine_node_close(throttles[i], &error), "engine_node_close", error);
    }
    double elapsed = static_cast<double>(end_ns - start_ns) / 1e9;
    printf("{\"requests\": %llu, \"iops\": %.1f, \"seconds\": %.3f, \"each\": [%llu, %llu, %llu, %llu]}\n",
           static_cast<unsigned long long>(sum), static_cast<double>(sum) / elapsed, elapsed,
           static_cast<unsigned long long>(done[0]), static_cast<unsigned long long>(done[1]),
           static_cast<unsigned long long>(done[2]), static_cast<unsigned long long>(done[3]));
    return 0;
}
