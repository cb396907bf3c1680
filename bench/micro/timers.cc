// Timers of one context: what arming and cancelling cost, on its own thread and from another one, with all of
// them armed, and how late they fire, with the context polling and with it asleep between them. Marks are
// written on the context's thread alone; the main thread reads them after it has seen the count.
//
// usage: timers COUNT SECONDS CPU    (the timers of each run are spread evenly over so many seconds)
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <memory>
#include <vector>

#include "micro.hh"

namespace {

constexpr uint64_t second_ns = 1'000'000'000;

struct Bench;
struct Mark {
    Bench* bench;
    uint64_t deadline_ns;
    uint64_t late_ns;
    engine_timer_t* timer;
};

struct Bench {
    uint64_t count;
    std::unique_ptr<Mark[]> marks;
    std::vector<uint64_t> order;  // a permutation: neither arming nor cancelling goes in order
    std::atomic<uint64_t> fired{0};
    std::atomic<uint64_t> cancelled{0};
};

void done(void* opaque, int fired) {
    auto* mark = static_cast<Mark*>(opaque);
    if (fired != 0) {
        mark->late_ns = engine_now_ns() - mark->deadline_ns;
        mark->bench->fired.fetch_add(1, std::memory_order_release);
    } else {
        mark->bench->cancelled.fetch_add(1, std::memory_order_release);
    }
}

void pause_ms(long ms) {
    timespec pause{ms / 1000, ms % 1000 * 1'000'000};
    nanosleep(&pause, nullptr);
}

// Runs f on the context's thread and waits for it, asleep.
template <class F>
void run_on(engine_context_t* context, F f) {
    struct Piece {
        F f;
        std::atomic<bool> over{false};
    } piece{std::move(f)};
    micro::must(engine_schedule_oneshot(
                    context,
                    [](void* opaque) {
                        auto* self = static_cast<Piece*>(opaque);
                        self->f();
                        self->over.store(true, std::memory_order_release);
                    },
                    &piece),
                "engine_schedule_oneshot");
    while (!piece.over.load(std::memory_order_acquire)) pause_ms(1);
}

template <class F>
double each_ns(Bench& bench, F f) {
    uint64_t start_ns = engine_now_ns();
    for (uint64_t i : bench.order) f(bench.marks[i]);
    return static_cast<double>(engine_now_ns() - start_ns) / static_cast<double>(bench.count);
}

void arm(Mark& mark) {
    micro::must(engine_timer_arm(mark.timer, mark.deadline_ns), "engine_timer_arm");
}
void cancel(Mark& mark) {
    micro::must(engine_timer_cancel(mark.timer), "engine_timer_cancel");
}

void spread(Bench& bench, uint64_t from_ns, uint64_t length_ns) {
    for (uint64_t i = 0; i < bench.count; i++) {
        bench.marks[i].deadline_ns = from_ns + i * length_ns / bench.count;
    }
}

void print_lateness(Bench& bench, engine_context_t* context, const char* name, int64_t poll_max_ns,
                    uint64_t length_ns) {
    micro::must(engine_context_set_poll(context, poll_max_ns), "engine_context_set_poll");
    engine_context_stats before{}, after{};
    before.size = after.size = sizeof before;
    bench.fired.store(0);
    run_on(context, [&] {
        spread(bench, engine_now_ns() + second_ns / 2, length_ns);
        each_ns(bench, arm);
    });
    micro::must(engine_context_get_stats(context, &before), "engine_context_get_stats");
    while (bench.fired.load(std::memory_order_acquire) != bench.count) pause_ms(50);
    micro::must(engine_context_get_stats(context, &after), "engine_context_get_stats");
    std::vector<uint64_t> late(bench.count);
    for (uint64_t i = 0; i < bench.count; i++) late[i] = bench.marks[i].late_ns;
    std::sort(late.begin(), late.end());
    printf(", \"%s\": {\"p50_ns\": %llu, \"p99_ns\": %llu, \"max_ns\": %llu, \"sleeps\": %llu}", name,
           static_cast<unsigned long long>(late[bench.count / 2]),
           static_cast<unsigned long long>(late[bench.count * 99 / 100]),
           static_cast<unsigned long long>(late.back()),
           static_cast<unsigned long long>(after.sleeps - before.sleeps));
}

void print_costs(Bench& bench, engine_context_t* context) {
    double arm_ns = 0, move_ns = 0, cancel_ns = 0;
    run_on(context, [&] {
        spread(bench, engine_now_ns() + 3600 * second_ns, second_ns);
        each_ns(bench, arm);  // the heap has its size after this one
        each_ns(bench, cancel);
        arm_ns = each_ns(bench, arm);
        std::reverse(bench.order.begin(), bench.order.end());
        spread(bench, engine_now_ns() + 7200 * second_ns, second_ns);
        move_ns = each_ns(bench, arm);
        cancel_ns = each_ns(bench, cancel);
    });
    bench.cancelled.store(0);
    double foreign_arm_ns = each_ns(bench, arm);
    run_on(context, [] {});
    double foreign_cancel_ns = each_ns(bench, cancel);
    while (bench.cancelled.load(std::memory_order_acquire) != bench.count) pause_ms(1);
    printf(
        "{\"timers\": %llu, \"arm_ns\": %.1f, \"move_ns\": %.1f, \"cancel_ns\": %.1f, \"foreign_arm_ns\": "
        "%.1f, "
        "\"foreign_cancel_ns\": %.1f",
        static_cast<unsigned long long>(bench.count), arm_ns, move_ns, cancel_ns, foreign_arm_ns,
        foreign_cancel_ns);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) micro::fail("usage", "timers COUNT SECONDS CPU");
    Bench bench{};
    bench.count = micro::number(argv[1], "COUNT");
    uint64_t length_ns = micro::number(argv[2], "SECONDS") * second_ns;
    if (bench.count == 0 || length_ns == 0) micro::fail("usage", "COUNT and SECONDS must be 1 or more");
    micro::Engine engine;
    engine_context_t* context =
        engine.add_context("timers", static_cast<int32_t>(micro::number(argv[3], "CPU")), 0);
    bench.marks = std::make_unique<Mark[]>(bench.count);
    for (uint64_t i = 0; i < bench.count; i++) {
        bench.marks[i] = {&bench, 0, 0, engine_timer_new(context, done, &bench.marks[i])};
        if (bench.marks[i].timer == nullptr) micro::fail("engine_timer_new", "no memory");
        bench.order.push_back(i);
    }
    uint64_t state = 1;
    for (uint64_t i = bench.count; i > 1; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(bench.order[i - 1], bench.order[(state >> 33) % i]);
    }
    print_costs(bench, context);
    print_lateness(bench, context, "asleep", 0, length_ns);
    print_lateness(bench, context, "polling", second_ns, length_ns);
    printf("}\n");
    for (uint64_t i = 0; i < bench.count; i++) engine_timer_delete(bench.marks[i].timer);
    return 0;
}
