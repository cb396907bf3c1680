// What the tests of caller-driven contexts share: one that is driven here, and loops that know nothing but
// its descriptor.
#pragma once

#include <poll.h>

#include "embedder.hh"

namespace caller {

using embedder::Engine;
using embedder::Error;

inline engine_context_t* caller_driven(Engine& engine, const char* name, uint32_t backend) {
    engine_context_config config = Engine::context_config(name, backend);
    config.caller_driven = 1;
    return engine.context(config);
}

inline int run_once(engine_context_t* context, int64_t timeout_ns = 0) {
    Error error;
    int result = engine_context_run_once(context, timeout_ns, &error);
    check::report(result >= 0, __FILE__, __LINE__, std::string("run_once: ") + error.message);
    return result;
}

// A loop that knows nothing but the descriptor: it runs the context when that is readable, and sleeps else.
template <class F>
inline bool poll_until(engine_context_t* context, F&& condition) {
    double end = check::seconds() + 40;
    while (!condition()) {
        pollfd wanted{engine_context_fileno(context), POLLIN, 0};
        if (check::seconds() > end || poll(&wanted, 1, 40000) != 1) return false;  // a wake-up was lost
        run_once(context);
    }
    return true;
}

inline bool readable(engine_context_t* context) {
    pollfd wanted{engine_context_fileno(context), POLLIN, 0};
    return poll(&wanted, 1, 0) == 1;
}

// Until nothing is left to do, and the descriptor says so.
inline void settle(engine_context_t* context) {
    for (int i = 0; i < 1000 && readable(context); i++) run_once(context);
    CHECK(!readable(context));
}

// A thread beside the loop, which must hear when it is over.
class Beside {
  public:
    template <class F>
    Beside(engine_context_t* context, F f)
        : thread_([this, context, f] {
              f();
              over_ = true;
              engine_context_wake(context);
          }) {}
    ~Beside() { thread_.join(); }
    bool over() const { return over_; }

  private:
    std::atomic<bool> over_{false};
    std::thread thread_;
};

struct Count {
    std::atomic<unsigned> runs{0};
    static void run(void* opaque) { static_cast<Count*>(opaque)->runs.fetch_add(1); }
    static void fired(void* opaque, int fired) {
        if (fired != 0) run(opaque);
    }
};

inline void write_and_read(engine_user_t* user, engine_context_t* context) {
    char out[4096];
    char in[4096] = {};
    memset(out, 'w', sizeof out);
    Error error;
    for (uint64_t at = 0; at < 65536; at += sizeof out) {
        CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE, out, at, sizeof out, ENGINE_FUA, &error, context), 4096);
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, in, at, sizeof in, 0, &error, context), 4096);
        CHECK(memcmp(in, out, sizeof in) == 0);
    }
}

}  // namespace caller
