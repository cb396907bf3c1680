// What one more context costs: creating it, asking about it, closing it, what it keeps resident, and the
// round trip of a bottom half between two of them while the others sleep. No lock: shared state is atomic.
//
// usage: contexts MOST ROUNDS    (1, 2, 4 … MOST contexts beside main; ROUNDS round trips each)
#include <atomic>
#include <ctime>
#include <string>
#include <vector>

#include "micro.hh"

namespace {

uint64_t resident_kib() {
    FILE* file = fopen("/proc/self/smaps_rollup", "re");
    if (file == nullptr) micro::fail("/proc/self/smaps_rollup", strerror(errno));
    char line[256];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, file) != nullptr) {
        if (sscanf(line, "Rss: %llu kB", &kib) == 1) break;
    }
    fclose(file);
    if (kib == 0) micro::fail("/proc/self/smaps_rollup", "has no Rss");
    return kib;
}

void pause_ms(long ms) {
    timespec pause{ms / 1000, ms % 1000 * 1'000'000};
    nanosleep(&pause, nullptr);
}

struct Player {
    engine_bh_t* other = nullptr;
    uint64_t left = 0;
    std::atomic<uint64_t> ended_ns{0};
};

void hit(void* opaque) {
    auto* player = static_cast<Player*>(opaque);
    if (player->left == 0) {
        player->ended_ns.store(engine_now_ns(), std::memory_order_release);
        return;
    }
    player->left--;
    micro::must(engine_bh_schedule(player->other), "engine_bh_schedule");
}

double round_trip_ns(engine_context_t* const (&contexts)[2], uint64_t rounds, int64_t poll_max_ns) {
    Player players[2];
    engine_bh_t* halves[2];
    for (unsigned i = 0; i < 2; i++) {
        micro::must(engine_context_set_poll(contexts[i], poll_max_ns), "engine_context_set_poll");
        halves[i] = engine_bh_new(contexts[i], hit, &players[i]);
        if (halves[i] == nullptr) micro::fail("engine_bh_new", "no memory");
    }
    players[0].other = halves[1];
    players[1].other = halves[0];
    players[0].left = rounds;
    players[1].left = rounds + 1;  // the first player ends the game
    uint64_t start_ns = engine_now_ns();
    micro::must(engine_bh_schedule(halves[0]), "engine_bh_schedule");
    uint64_t ended_ns;
    while ((ended_ns = players[0].ended_ns.load(std::memory_order_acquire)) == 0) pause_ms(1);
    for (unsigned i = 0; i < 2; i++) {
        engine_bh_delete(halves[i]);
        micro::must(engine_context_set_poll(contexts[i], 0), "engine_context_set_poll");
    }
    return static_cast<double>(ended_ns - start_ns) / static_cast<double>(rounds);
}

// Microseconds a context of what f does to each.
template <class F>
double each_us(std::vector<engine_context_t*>& contexts, F f) {
    uint64_t start_ns = engine_now_ns();
    for (engine_context_t*& context : contexts) f(context);
    return static_cast<double>(engine_now_ns() - start_ns) / 1e3 / static_cast<double>(contexts.size());
}

void measure(uint64_t count, uint64_t rounds, bool first) {
    micro::Engine engine;
    engine_context_t* main = engine_context_find(engine.get(), "main");
    pause_ms(50);
    uint64_t before_kib = resident_kib();
    std::vector<engine_context_t*> contexts(count);
    unsigned number = 0;
    double create_us = each_us(contexts, [&](engine_context_t*& context) {
        context = engine.add_context(("io" + std::to_string(number++)).c_str(), -1, 0);
    });
    pause_ms(50);  // until they sleep
    double resident_kib_each =
        (static_cast<double>(resident_kib()) - static_cast<double>(before_kib)) / static_cast<double>(count);
    engine_error error = micro::make_error();
    double info_us = each_us(contexts, [&](engine_context_t* context) {
        engine_context_info info{};
        info.size = sizeof info;
        micro::must(engine_context_get_info(context, &info, &error), "engine_context_get_info", error);
    });
    double stats_us = each_us(contexts, [](engine_context_t* context) {
        engine_context_stats stats{};
        stats.size = sizeof stats;
        micro::must(engine_context_get_stats(context, &stats), "engine_context_get_stats");
    });
    engine_context_t* const pair[2] = {contexts[0], count > 1 ? contexts[1] : main};
    double asleep_ns = round_trip_ns(pair, rounds / 10 + 1, 0);
    double polling_ns = round_trip_ns(pair, rounds, 1'000'000'000);
    double close_us = each_us(contexts, [&](engine_context_t* context) {
        micro::must(engine_context_close(context, &error), "engine_context_close", error);
    });
    printf(
        "%s{\"contexts\": %llu, \"create_us\": %.1f, \"info_us\": %.1f, \"stats_us\": %.3f, \"close_us\": "
        "%.1f, "
        "\"resident_kib_each\": %.1f, \"round_trip_polling_ns\": %.0f, \"round_trip_asleep_ns\": %.0f}",
        first ? "" : ",\n ", static_cast<unsigned long long>(count), create_us, info_us, stats_us, close_us,
        resident_kib_each, polling_ns, asleep_ns);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) micro::fail("usage", "contexts MOST ROUNDS");
    uint64_t most = micro::number(argv[1], "MOST");
    uint64_t rounds = micro::number(argv[2], "ROUNDS");
    if (most == 0 || most > 200 || rounds == 0) micro::fail("usage", "MOST from 1 to 200, ROUNDS 1 or more");
    printf("[");
    for (uint64_t count = 1; count <= most; count *= 2) measure(count, rounds, count == 1);
    printf("]\n");
    return 0;
}
