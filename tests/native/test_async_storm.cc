// A storm over completion queues: threads submit arrays and vectors to several contexts through one queue and
// cancel at random while another thread drains; users and queues close in between. Each request completes
// exactly once. The figures are atomic; each token belongs to one thread.
#include <deque>
#include <memory>
#include <thread>

#include "async_queue.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using embedder::many_of;
using embedder::request_of;
using embedder::TempFile;

constexpr unsigned threads_count = 3;
constexpr unsigned rounds = 150;
constexpr uint64_t batch_max = 40;

struct Ticket {
    std::atomic<uint32_t> completions{0};
    bool vector = false;
    char data[512];
};

// A small generator, so that a run can be told by its seed.
struct Dice {
    uint64_t state;
    uint64_t below(uint64_t limit) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % limit;
    }
};

void note(const engine_completion& completion, std::atomic<uint64_t>& wrong) {
    auto* ticket = reinterpret_cast<Ticket*>(completion.token);
    ticket->completions.fetch_add(1, std::memory_order_relaxed);
    int64_t expected = ticket->vector ? 2 : 512;
    bool good = completion.result == expected || completion.result == -ECANCELED;
    if (!good || (completion.result < 0) != (completion.error != nullptr)) wrong.fetch_add(1);
}

class Worker {
  public:
    Worker(engine_cq_t* queue, engine_node_t* node, engine_context_t* const* contexts, unsigned seed)
        : queue_(queue), node_(node), contexts_(contexts), dice_{seed} {}

    void work() {
        for (unsigned round = 0; round < rounds; round++) {
            engine_user_t* user = Engine::user(node_, "worker", ENGINE_PERM_CONSISTENT_READ);
            for (uint64_t i = 0, n = 1 + dice_.below(3); i < n; i++) submit(user);
            if (dice_.below(2) == 0)
                (void)engine_cancel(queue_, name_of(tickets[dice_.below(tickets.size())]));
            // Completions may be drained later than this: the user needs not wait for that.
            CHECK_EQ(engine_cq_wait(queue_, user, nullptr, UINT64_MAX, nullptr), 0);
            Error error;
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
    }
    std::deque<Ticket> tickets;
    std::atomic<uint64_t> submitted{0};

  private:
    static uint64_t name_of(Ticket& ticket) { return reinterpret_cast<uint64_t>(&ticket); }
    void submit(engine_user_t* user) {
        engine_context_t* context = contexts_[dice_.below(3)];
        if (dice_.below(4) == 0) {
            Ticket& ticket = tickets.emplace_back();
            ticket.vector = true;
            std::vector<int64_t>& results = results_.emplace_back();
            engine_many many = many_of(ENGINE_OP_READ, ticket.data, offsets_, 256, results, 1);
            CHECK_EQ(engine_submit_many(queue_, user, context, &many, name_of(ticket), nullptr), 0);
            submitted.fetch_add(1);
            return;
        }
        std::vector<engine_request> requests(1 + dice_.below(batch_max));
        for (engine_request& request : requests) {
            Ticket& ticket = tickets.emplace_back();
            request = request_of(ENGINE_OP_READ, name_of(ticket), ticket.data, dice_.below(2048) * 512, 512);
        }
        CHECK_EQ(engine_submit(queue_, user, context, requests.data(), requests.size(), nullptr), 0);
        submitted.fetch_add(requests.size());
    }

    engine_cq_t* queue_;
    engine_node_t* node_;
    engine_context_t* const* contexts_;
    Dice dice_;
    std::vector<uint64_t> offsets_{0, 4096};
    std::deque<std::vector<int64_t>> results_;
};

void drain_until(engine_cq_t* queue, const std::atomic<bool>& over, std::atomic<uint64_t>& drained,
                 std::atomic<uint64_t>& wrong) {
    engine_completion out[17];
    pollfd descriptor{engine_cq_fileno(queue), POLLIN, 0};
    while (!over.load(std::memory_order_acquire)) {
        if (poll(&descriptor, 1, 10) != 1) continue;
        int64_t count = engine_cq_drain(queue, out, 17);
        for (int64_t i = 0; i < count; i++) note(out[i], wrong);
        if (count > 0) drained.fetch_add(static_cast<uint64_t>(count));
    }
}

void storm(engine_node_t* node, Engine& engine, uint32_t backend) {
    engine_context_t* contexts[] = {engine.context("io0", backend), engine.context("io1", backend, 20000),
                                    engine_context_find(engine, "main")};
    embedder::Queue queue(engine);
    std::deque<Worker> workers;
    std::vector<std::thread> threads;
    std::atomic<bool> over{false};
    std::atomic<uint64_t> drained{0};
    std::atomic<uint64_t> wrong{0};
    std::thread drainer([&] { drain_until(queue, over, drained, wrong); });
    for (unsigned i = 0; i < threads_count; i++) workers.emplace_back(queue.get(), node, contexts, i + 1);
    for (Worker& worker : workers) threads.emplace_back([&worker] { worker.work(); });
    for (std::thread& thread : threads) thread.join();
    uint64_t submitted = 0;
    for (Worker& worker : workers) submitted += worker.submitted.load();
    CHECK(eventually([&] { return drained.load() >= submitted; }));
    over.store(true, std::memory_order_release);
    drainer.join();
    CHECK_EQ(drained.load(), submitted);
    CHECK_EQ(wrong.load(), 0);
    uint64_t not_once = 0;
    for (Worker& worker : workers) {
        for (Ticket& ticket : worker.tickets) not_once += ticket.completions.load() != 1 ? 1 : 0;
    }
    CHECK_EQ(not_once, 0);
    CHECK_EQ(queue.stats().in_flight, 0);
}

TEST(many_threads_several_contexts_one_queue) {
    for (uint32_t backend : both_backends) {
        TempFile file(1 << 20);
        Engine engine;
        storm(engine.open({{"driver", "file"}, {"filename", file.name()}}), engine, backend);
    }
}

TEST(the_same_over_a_slow_node) {
    Engine engine;
    storm(engine.open({{"driver", "null"}, {"size", "1M"}, {"latency-ns", "50us"}}), engine,
          ENGINE_BACKEND_AUTO);
}

// Contexts and users close as soon as nothing is in flight on them, while their completions are still to be
// drained.
TEST(contexts_close_under_undrained_completions) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* node = engine.open({{"driver", "null"}, {"size", "1M"}, {"latency-ns", "100us"}});
        embedder::Queue queue(engine);
        std::vector<char> buffer(64 * 512);
        for (uint64_t round = 0; round < 30; round++) {
            engine_context_t* context = engine.context(("io" + std::to_string(round)).c_str(), backend);
            engine_user_t* user = Engine::user(node, "test");
            std::vector<engine_request> requests;
            for (uint64_t i = 0; i < 64; i++) {
                requests.push_back(
                    request_of(ENGINE_OP_READ, round * 64 + i, buffer.data() + i * 512, 0, 512));
            }
            CHECK_EQ(queue.submit(user, context, requests), 0);
            CHECK_EQ(engine_cq_wait(queue, nullptr, context, UINT64_MAX, nullptr), 0);
            CHECK_EQ(engine_user_close(user, nullptr), 0);
            CHECK_EQ(engine_context_close(context, nullptr), 0);
            if (round % 3 == 2) CHECK_EQ(queue.drain(1000), 192);
        }
        CHECK_EQ(queue.completed.size(), 30 * 64);
    }
}

// A queue closes while its last completions are on their way: the context must not touch it afterwards.
TEST(queues_close_behind_their_last_completion) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_user_t* user = Engine::user(engine.open({{"driver", "null"}, {"size", "1M"}}), "test");
        char buffer[512];
        for (int i = 0; i < 300; i++) {
            embedder::Queue queue(engine);
            CHECK_EQ(queue.submit(user, context, {request_of(ENGINE_OP_READ, 1, buffer, 0, 512)}), 0);
            if (i % 2 == 0) queue.drain(1);
        }
        CHECK_EQ(engine_user_close(user, nullptr), 0);
    }
}

}  // namespace
