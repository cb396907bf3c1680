// Runs N requests of the load generator and ends: what callgrind and strace count. The difference between two
// lengths, divided by their difference in requests, leaves start and end out. One context; no lock.
//
// Under callgrind $NO_IO_URING must be set: valgrind 3.19 runs no other thread while one waits in
// io_uring_enter. The engine then falls back to its threads backend, which a null node never uses.
//
// usage: run_requests COUNT node|queue DEPTH [FILE | filters=N | trace=N | rate=N]
//        a null node without FILE; under N filters; one request in N traced; at N requests a second, an open
//        loop
#include <dlfcn.h>
#include <liburing.h>

#include "micro.hh"

// Stands before liburing's own.
extern "C" int io_uring_queue_init_params(unsigned entries, io_uring* ring, io_uring_params* params) {
    if (getenv("NO_IO_URING") != nullptr) return -ENOSYS;
    using Function = int (*)(unsigned, io_uring*, io_uring_params*);
    static auto next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "io_uring_queue_init_params"));
    return next(entries, ring, params);
}

int main(int argc, char** argv) {
    if (argc < 4 || argc > 5)
        micro::fail("usage", "run_requests COUNT node|queue DEPTH [FILE | filters=N | trace=N | rate=N]");
    uint64_t count = micro::number(argv[1], "COUNT");
    auto depth = static_cast<uint32_t>(micro::number(argv[3], "DEPTH"));
    // Without a file nothing reaches the backend; and valgrind's one lock is held by a thread that waits in
    // io_uring.
    const char* target = argc == 5 ? argv[4] : nullptr;
    uint64_t rate = 0;
    if (target != nullptr && strncmp(target, "rate=", 5) == 0) {
        rate = micro::number(target + 5, "rate");
        target = nullptr;
    }
    bool file = target != nullptr && strchr(target, '=') == nullptr;
    micro::Engine engine(file ? ENGINE_BACKEND_AUTO : ENGINE_BACKEND_THREADS);
    // It does not poll: how long it polls is chance, and would be counted.
    engine_context_t* context = engine.add_context("io0", -1, 0);
    micro::Load load(engine, context, target, micro::names_queue(argv[2]), depth, count, rate);
    engine_context_stats before{};
    engine_context_stats after{};
    before.size = after.size = sizeof after;
    micro::must(engine_context_get_stats(context, &before), "engine_context_get_stats");
    load.start();
    load.wait();
    micro::must(engine_context_get_stats(context, &after), "engine_context_get_stats");
    const engine_workload_result& result = load.result();
    if (result.requests[0] != count) micro::fail("workload", "not all requests completed");
    double seconds = static_cast<double>(result.ended_ns - result.started_ns) / 1e9;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f, \"system_calls\": %llu}\n",
           static_cast<unsigned long long>(count), seconds, static_cast<double>(count) / seconds,
           static_cast<unsigned long long>(after.system_calls - before.system_calls));
    return 0;
}
