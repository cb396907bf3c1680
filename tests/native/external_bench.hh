// What the tests of the external driver share: a program that serves a disk from memory, requests by threads
// of their own, an engine with such a node. Each belongs to the test's own thread.
#pragma once

#include <mutex>
#include <thread>

#include "embedder.hh"

namespace external_bench {

using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::io;

constexpr uint64_t disk_bytes = 1 << 20;
constexpr uint64_t second_ns = 1000000000;
constexpr uint64_t for_ever = UINT64_MAX;

inline engine_external_stats stats_of(engine_external_t* external) {
    engine_external_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_external_get_stats(external, &stats), 0);
    return stats;
}

inline engine_external_t* attach(engine_node_t* node, const char* program = "the test") {
    engine_external_t* external = nullptr;
    Error error;
    int result = engine_external_attach(node, program, &external, &error);
    check::report(result == 0, __FILE__, __LINE__, std::string("engine_external_attach: ") + error.message);
    if (result != 0) throw check::Failure();
    return external;
}

// One request of the program's, as it comes.
inline engine_external_request take_one(engine_external_t* external) {
    engine_external_request request{};
    REQUIRE(engine_external_take(external, &request, 1, 40 * second_ns) == 1);
    return request;
}

inline int64_t complete_one(engine_external_t* external, uint64_t id, int64_t result,
                            const char* message = nullptr, uint32_t flags = 0) {
    engine_external_completion done{
        .id = id, .result = result, .message = message, .flags = flags, .reserved = 0};
    return engine_external_complete(external, &done, 1);
}

// A request by a thread of its own, which waits for it.
class Asking {
  public:
    Asking(engine_user_t* user, uint32_t op, void* buffer, uint64_t offset, uint64_t bytes,
           uint32_t flags = 0, engine_context_t* context = nullptr)
        : thread_([=, this] {
              result_ = io(user, op, buffer, offset, bytes, flags, &error, context);
              done_.store(true, std::memory_order_release);
          }) {}
    ~Asking() {
        if (thread_.joinable()) thread_.join();
    }
    int64_t result() {
        thread_.join();
        return result_;
    }
    bool done() const { return done_.load(std::memory_order_acquire); }
    Error error;

  private:
    int64_t result_ = 0;
    std::atomic<bool> done_{false};
    std::thread thread_;
};

// A request of a node with a short time-out, as long as it may be had: on a busy machine its time may run out
// before it is taken.
inline bool take_in_time(engine_external_t* external, const Asking& asking,
                         engine_external_request* request) {
    while (!asking.done()) {
        if (engine_external_take(external, request, 1, 1000000) == 1) return true;
    }
    return engine_external_take(external, request, 1, 0) == 1;
}

// One that the program took, and that failed by time afterwards.
inline engine_external_request let_expire(engine_external_t* external, engine_user_t* user, uint32_t op,
                                          void* buffer, uint64_t bytes, const char* text) {
    for (;;) {
        Asking asking(user, op, buffer, 0, bytes);
        engine_external_request request{};
        bool taken = take_in_time(external, asking, &request);
        CHECK_EQ(asking.result(), -ETIMEDOUT);
        if (!taken) continue;
        CHECK(asking.error.says(text));
        return request;
    }
}

// Serves a node from memory, until the node closes or it is stopped.
class Ram {
  public:
    Ram(engine_node_t* node, unsigned threads = 1, uint32_t batch = 16)
        : external(attach(node, "ram")), data_(disk_bytes) {
        for (unsigned i = 0; i < threads; i++) threads_.emplace_back([this, batch] { serve(batch); });
    }
    ~Ram() {
        CHECK_EQ(engine_external_stop(external), 0);
        for (std::thread& thread : threads_) thread.join();
        CHECK_EQ(engine_external_close(external), 0);
    }
    engine_external_t* external;
    std::atomic<uint64_t> flushes{0};

  private:
    void serve(uint32_t batch) {
        std::vector<engine_external_request> requests(batch);
        std::vector<engine_external_completion> done(batch);
        for (;;) {
            int64_t count = engine_external_take(external, requests.data(), batch, for_ever);
            if (count == -ESHUTDOWN) return;
            REQUIRE(count > 0);
            for (int64_t i = 0; i < count; i++) {
                const engine_external_request& request = requests[static_cast<size_t>(i)];
                done[static_cast<size_t>(i)] = {.id = request.id,
                                                .result = perform(request),
                                                .message = nullptr,
                                                .flags = 0,
                                                .reserved = 0};
            }
            CHECK_EQ(engine_external_complete(external, done.data(), static_cast<uint32_t>(count)), count);
        }
    }
    int64_t perform(const engine_external_request& request) {
        if (request.op == ENGINE_OP_FLUSH) {
            flushes++;
            return 0;
        }
        if (request.op == ENGINE_OP_BLOCK_STATUS) {
            uint64_t half = request.length / 2;
            request.extents[0] = {request.offset, half, ENGINE_EXTENT_DATA, 0};
            request.extents[1] = {request.offset + half, request.length - half, ENGINE_EXTENT_ZERO, 0};
            return 2;
        }
        std::lock_guard guard(mutex_);
        uint64_t at = request.offset;
        for (uint32_t i = 0; i < request.iov_count; i++) {
            const engine_iovec& part = request.iov[i];
            if (request.op == ENGINE_OP_READ) memcpy(part.base, &data_[at], part.length);
            if (request.op == ENGINE_OP_WRITE) memcpy(&data_[at], part.base, part.length);
            at += part.length;
        }
        return 0;
    }
    std::mutex mutex_;
    std::vector<char> data_;
    std::vector<std::thread> threads_;
};

// An engine with an external node, and a user of it.
struct Served {
    Engine engine;
    engine_node_t* node;
    engine_user_t* user;
    Error error;

    explicit Served(const char* ops = "read,write,flush,block-status", const char* timeout = "60s")
        : node(engine.open({{"driver", "external"},
                            {"node-name", "disk"},
                            {"size", "1M"},
                            {"ops", ops},
                            {"timeout", timeout}})),
          user(Engine::user(node, "test")) {}
    ~Served() {
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
        CHECK_EQ(stats.in_flight, 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
};

}  // namespace external_bench
