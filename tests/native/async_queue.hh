// What the tests of asynchronous requests share: a completion queue that closes itself, and waiting for
// completions by its descriptor. One thread.
#pragma once

#include <poll.h>

#include <map>

#include "embedder.hh"

namespace embedder {

inline engine_request request_of(uint32_t op, uint64_t token, void* buffer, uint64_t offset, uint64_t bytes) {
    engine_request request{};
    request.size = sizeof request;
    request.op = op;
    request.token = token;
    request.buffer = buffer;
    request.offset = offset;
    request.bytes = bytes;
    return request;
}

struct Completed {
    int64_t result = 0;
    std::string text;
    unsigned times = 0;
};

class Queue {
  public:
    explicit Queue(engine_t* engine) {
        Error error;
        int result = engine_cq_create(engine, &queue_, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_cq_create: ") + error.message);
        if (result != 0) throw check::Failure();
    }
    ~Queue() { close(); }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    void close() {
        if (queue_ == nullptr) return;
        Error error;
        CHECK_EQ(engine_cq_close(queue_, &error), 0);
        queue_ = nullptr;
    }
    engine_cq_t* get() const { return queue_; }
    operator engine_cq_t*() const { return queue_; }

    int submit(engine_user_t* user, engine_context_t* context, const std::vector<engine_request>& requests) {
        Error error;
        int result = engine_submit(queue_, user, context, requests.data(), requests.size(), &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_submit: ") + error.message);
        return result;
    }
    bool readable(int timeout_ms = 0) const {
        pollfd descriptor{engine_cq_fileno(queue_), POLLIN, 0};
        return poll(&descriptor, 1, timeout_ms) == 1;
    }
    // One drain; returns how many it gave.
    size_t drain(size_t capacity = 64) {
        std::vector<engine_completion> out(capacity);
        int64_t count = engine_cq_drain(queue_, out.data(), capacity);
        REQUIRE(count >= 0 && static_cast<size_t>(count) <= capacity);
        for (int64_t i = 0; i < count; i++) {
            const engine_completion& completion = out[static_cast<size_t>(i)];
            Completed& entry = completed[completion.token];
            entry.times++;
            entry.result = completion.result;
            entry.text = completion.error == nullptr ? "" : completion.error->message;
            CHECK(completion.error != nullptr || completion.result >= 0);
        }
        total += static_cast<size_t>(count);
        return static_cast<size_t>(count);
    }
    // Sleeps on the descriptor until so many have come, all drains together.
    bool wait_for(size_t wanted, size_t capacity = 64) {
        while (total < wanted) {
            if (!readable(40000)) return false;
            drain(capacity);
        }
        return true;
    }
    engine_cq_stats stats() const {
        engine_cq_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_cq_get_stats(queue_, &stats), 0);
        return stats;
    }

    std::map<uint64_t, Completed> completed;
    size_t total = 0;

  private:
    engine_cq_t* queue_ = nullptr;
};

inline engine_many many_of(uint32_t op, void* buffer, const std::vector<uint64_t>& offsets, uint64_t length,
                           std::vector<int64_t>& results, uint32_t iodepth = 0) {
    results.assign(offsets.size(), -1);
    engine_many many{};
    many.size = sizeof many;
    many.op = op;
    many.buffer = buffer;
    many.offsets = offsets.data();
    many.results = results.data();
    many.count = offsets.size();
    many.length = length;
    many.iodepth = iodepth;
    return many;
}

// Keeps a context's thread busy until it is let go.
class Busy {
  public:
    explicit Busy(engine_context_t* context) {
        CHECK_EQ(engine_schedule_oneshot(
                     context,
                     [](void* opaque) {
                         auto* self = static_cast<Busy*>(opaque);
                         self->begun_.store(true);
                         while (!self->over_.load()) sched_yield();
                         self->ended_.store(true);
                     },
                     this),
                 0);
        REQUIRE(eventually([this] { return begun_.load(); }));
    }
    ~Busy() { let_go(); }
    void let_go() {
        over_.store(true);
        CHECK(eventually([this] { return ended_.load(); }));
    }

  private:
    std::atomic<bool> begun_{false}, over_{false}, ended_{false};
};

}  // namespace embedder
