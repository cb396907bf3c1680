// What a node costs: opens so many null nodes, asks each for its figures, reads 4 KiB from each, closes them;
// for 10, 100 … up to COUNT, so that the slope shows. Resident bytes are those of the process.
//
// usage: many_nodes COUNT
#include <unistd.h>

#include <vector>

#include "micro.hh"

namespace {

uint64_t resident_bytes() {
    FILE* file = fopen("/proc/self/statm", "re");
    unsigned long total = 0, resident = 0;
    if (file == nullptr || fscanf(file, "%lu %lu", &total, &resident) != 2)
        micro::fail("statm", "not readable");
    fclose(file);
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

struct Step {
    uint64_t nodes = 0;
    double open_us = 0, query_us = 0, io_us = 0, close_us = 0;  // a node
    uint64_t bytes = 0;                                         // a node
    double seconds = 0;
};

Step measure(uint64_t count) {
    micro::Engine engine;
    engine_error error = micro::make_error();
    std::vector<engine_node_t*> nodes;
    std::vector<engine_user_t*> users;
    nodes.reserve(count);
    users.reserve(count);
    uint64_t before = resident_bytes();
    uint64_t start = engine_now_ns();
    for (uint64_t i = 0; i < count; i++) {
        const engine_option options[] = {{"driver", "null"}, {"size", "1M"}};
        nodes.push_back(engine.open(options, 2));
    }
    uint64_t opened = engine_now_ns();
    for (engine_node_t* node : nodes) {
        engine_node_info info{};
        info.size = sizeof info;
        engine_node_stats stats{};
        stats.size = sizeof stats;
        micro::must(engine_node_get_info(node, &info), "engine_node_get_info");
        micro::must(engine_node_get_stats(node, nullptr, &stats), "engine_node_get_stats");
        if (engine_node_find(engine.get(), info.name) != node) micro::fail(info.name, "not found");
    }
    uint64_t queried = engine_now_ns();
    static char buffer[4096];
    for (engine_node_t* node : nodes) {
        engine_user_t* user = nullptr;
        engine_iovec part{buffer, sizeof buffer};
        micro::must(
            engine_user_create(node, "one", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL, &user, &error),
            "engine_user_create", error);
        int64_t result = engine_user_io(user, nullptr, ENGINE_OP_READ, &part, 1, 0, sizeof buffer, 0, &error);
        if (result != sizeof buffer) micro::fail("read", error.message);
        users.push_back(user);
    }
    uint64_t read = engine_now_ns();
    uint64_t after = resident_bytes();
    for (engine_user_t* user : users)
        micro::must(engine_user_close(user, &error), "engine_user_close", error);
    for (engine_node_t* node : nodes)
        micro::must(engine_node_close(node, &error), "engine_node_close", error);
    uint64_t closed = engine_now_ns();
    auto each = [count](uint64_t from, uint64_t to) {
        return static_cast<double>(to - from) / 1e3 / static_cast<double>(count);
    };
    Step step;
    step.nodes = count;
    step.open_us = each(start, opened);
    step.query_us = each(opened, queried);
    step.io_us = each(queried, read);
    step.close_us = each(read, closed);
    step.bytes = (after > before ? after - before : 0) / count;
    step.seconds = static_cast<double>(closed - start) / 1e9;
    return step;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) micro::fail("usage", "many_nodes COUNT");
    uint64_t most = micro::number(argv[1], "COUNT");
    if (most == 0) micro::fail("COUNT", "must be 1 or more");
    printf("{\"steps\": [");
    Step step;
    bool first = true;
    for (uint64_t count = most < 10 ? most : 10;; count = count * 10 < most ? count * 10 : most) {
        step = measure(count);
        printf(
            "%s{\"nodes\": %llu, \"open_us\": %.2f, \"query_us\": %.2f, \"io_us\": %.2f, \"close_us\": %.2f, "
            "\"bytes_a_node\": %llu, \"seconds\": %.3f}",
            first ? "" : ", ", static_cast<unsigned long long>(step.nodes), step.open_us, step.query_us,
            step.io_us, step.close_us, static_cast<unsigned long long>(step.bytes), step.seconds);
        first = false;
        if (count == most) break;
    }
    printf("], \"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f}\n",
           static_cast<unsigned long long>(most), step.seconds, static_cast<double>(most) / step.seconds);
    return 0;
}
