// Bottom halves between threads. `storm`: a foreign thread schedules distinct one-shots on a context as fast
// as it can, a bounded number ahead; each must run exactly once. `ping-pong`: a bottom half of each of two
// polling contexts schedules the other's. Shared state is atomic; the marks are written on the context's
// thread alone.
//
// usage: bh_storm storm|ping-pong COUNT CPU CPU
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <new>

#include "micro.hh"

namespace {

constexpr uint64_t ahead_max = 65536;  // one-shots that may wait: memory, not speed, bounds it
constexpr int64_t poll_ns = 1'000'000'000;

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<unsigned>(cpu), &set);
    micro::must(pthread_setaffinity_np(pthread_self(), sizeof set, &set), "pin");
}

struct Storm;

struct Shot {
    Storm* storm;
    uint32_t runs;
};

struct Storm {
    std::unique_ptr<Shot[]> shots;
    alignas(64) std::atomic<uint64_t> ran{0};
};

void run_shot(void* opaque) {
    auto* shot = static_cast<Shot*>(opaque);
    shot->runs++;
    Storm* storm = shot->storm;
    // Home only writes it: a plain add would do, were it not read by the sender.
    storm->ran.store(storm->ran.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

void storm(uint64_t count, int context_cpu, int sender_cpu) {
    Storm storm;
    storm.shots = std::make_unique<Shot[]>(count);
    for (uint64_t i = 0; i < count; i++) storm.shots[i] = {&storm, 0};
    uint64_t seconds_ns = 0;
    engine_context_stats stats{};
    {
        micro::Engine engine;
        engine_context_t* context = engine.add_context("io0", context_cpu, poll_ns);
        pin(sender_cpu);
        uint64_t start = engine_now_ns();
        for (uint64_t i = 0; i < count; i++) {
            while (i - storm.ran.load(std::memory_order_acquire) >= ahead_max) sched_yield();
            micro::must(engine_schedule_oneshot(context, run_shot, &storm.shots[i]),
                        "engine_schedule_oneshot");
        }
        while (storm.ran.load(std::memory_order_acquire) < count) sched_yield();
        seconds_ns = engine_now_ns() - start;
        stats.size = sizeof stats;
        micro::must(engine_context_get_stats(context, &stats), "engine_context_get_stats");
    }
    for (uint64_t i = 0; i < count; i++) {
        if (storm.shots[i].runs != 1) micro::fail("storm", "a one-shot did not run exactly once");
    }
    double seconds = static_cast<double>(seconds_ns) / 1e9;
    printf(
        "{\"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f, \"wakeups\": %llu, \"exactly_once\": "
        "true}\n",
        static_cast<unsigned long long>(count), seconds, static_cast<double>(count) / seconds,
        static_cast<unsigned long long>(stats.wakeups));
}

struct Player {
    engine_bh_t* other = nullptr;  // the opposite player's bottom half
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

void ping_pong(uint64_t count, int cpu0, int cpu1) {
    Player players[2];
    micro::Engine engine;
    engine_bh_t* halves[2] = {
        engine_bh_new(engine.add_context("io0", cpu0, poll_ns), hit, &players[0]),
        engine_bh_new(engine.add_context("io1", cpu1, poll_ns), hit, &players[1]),
    };
    if (halves[0] == nullptr || halves[1] == nullptr) micro::fail("engine_bh_new", "no memory");
    players[0].other = halves[1];
    players[1].other = halves[0];
    players[0].left = count;
    players[1].left = count + 1;  // the first player ends the game
    uint64_t start = engine_now_ns();
    micro::must(engine_bh_schedule(halves[0]), "engine_bh_schedule");
    uint64_t ended = 0;
    // This thread must not take CPU time from the players.
    for (timespec pause{0, 1'000'000}; (ended = players[0].ended_ns.load(std::memory_order_acquire)) == 0;) {
        nanosleep(&pause, nullptr);
    }
    for (engine_bh_t* half : halves) engine_bh_delete(half);
    double nanoseconds = static_cast<double>(ended - start);
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f, \"latency_ns\": %.1f}\n",
           static_cast<unsigned long long>(count), nanoseconds / 1e9,
           static_cast<double>(count) * 1e9 / nanoseconds, nanoseconds / static_cast<double>(count));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) micro::fail("usage", "bh_storm storm|ping-pong COUNT CPU CPU");
    uint64_t count = micro::number(argv[2], "COUNT");
    int cpu0 = static_cast<int>(micro::number(argv[3], "CPU"));
    int cpu1 = static_cast<int>(micro::number(argv[4], "CPU"));
    if (count == 0) micro::fail("COUNT", "must be 1 or more");
    if (strcmp(argv[1], "storm") == 0) {
        storm(count, cpu0, cpu1);
    } else if (strcmp(argv[1], "ping-pong") == 0) {
        ping_pong(count, cpu0, cpu1);
    } else {
        micro::fail(argv[1], "neither storm nor ping-pong");
    }
    return 0;
}
