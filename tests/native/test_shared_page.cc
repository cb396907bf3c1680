// The request path writes nothing that two contexts share: the pages of the nodes are made read-only while
// two contexts run a million requests. A canary shows that a write to such a page is caught.
#include <sys/mman.h>

#include "api/handles.hh"
#include "embedder.hh"

namespace {

using embedder::Engine;
using embedder::Error;
using embedder::in_child;
using engine::block::Node;

#ifdef EMBEDDER_TSAN
constexpr uint64_t file_requests = 50'000;  // each costs some thirty times as much there
#else
constexpr uint64_t file_requests = 500'000;
#endif
constexpr uint64_t null_requests = 500'000;

// The pages of a node and of all below it.
class ReadOnlyPages {
  public:
    explicit ReadOnlyPages(engine_node_t* node) {
        add(node);
        CHECK(!nodes_.empty());
        protect(PROT_READ);
    }
    ~ReadOnlyPages() { protect(PROT_READ | PROT_WRITE); }
    ReadOnlyPages(const ReadOnlyPages&) = delete;
    ReadOnlyPages& operator=(const ReadOnlyPages&) = delete;

  private:
    void add(engine_node_t* handle) {
        Node* node = engine::api::unwrap(handle);
        REQUIRE(reinterpret_cast<uintptr_t>(node) % 4096 == 0);
        REQUIRE(node->mapped_bytes >= 4096 && node->mapped_bytes % 4096 == 0);
        REQUIRE(Node::state_offset + node->driver->state_size <= node->mapped_bytes);
        nodes_.push_back({node, node->mapped_bytes});
        char role[16];
        for (uint32_t i = 0; engine_node_t* child = engine_node_get_child(handle, i, role, sizeof role);
             i++) {
            add(child);
        }
    }
    void protect(int protection) {
        for (const auto& [node, bytes] : nodes_) CHECK_EQ(mprotect(node, bytes, protection), 0);
    }
    std::vector<std::pair<void*, size_t>> nodes_;
};

engine_workload_t* make_workload(engine_t* engine, engine_user_t* user, engine_context_t* context,
                                 uint64_t count) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 32;
    config.count = count;
    config.seed = reinterpret_cast<uintptr_t>(context);
    config.flush_every = 5000;
    config.user = user;
    config.context = context;
    engine_workload_t* workload = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine, &config, &workload, &error) == 0);
    return workload;
}

uint64_t done_requests(engine_workload_t* workload) {
    static engine_workload_result result;
    result.size = sizeof result;
    CHECK_EQ(engine_workload_get_result(workload, &result), 0);
    CHECK_EQ(result.errors, 0);
    CHECK(result.requests[0] > 0 && result.requests[1] > 0);
    return result.requests[0] + result.requests[1] + result.flushes;
}

// What is refused is refused without a write as well.
void refused_requests(engine_user_t* user, engine_user_t* reader, engine_context_t* context, uint64_t bytes) {
    alignas(4096) static char buffer[4096];
    Error error;
    CHECK_EQ(embedder::io(user, ENGINE_OP_READ, buffer, bytes, 4096, 0, &error, context), -EINVAL);
    CHECK(error.says("ends past the end of the disk"));
    CHECK_EQ(embedder::io(reader, ENGINE_OP_WRITE, buffer, 0, 4096, 0, &error, context), -EPERM);
    CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE, buffer, 0, 4096, ENGINE_FUA, &error, context), 4096);
    CHECK_EQ(embedder::io(user, ENGINE_OP_WRITE_ZEROES, nullptr, 0, 4096, 0, &error, context), 0);
    CHECK_EQ(embedder::io(user, ENGINE_OP_DISCARD, nullptr, 0, 4096, 0, &error, context), 0);
    CHECK_EQ(embedder::io(user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error, context), 0);
    engine_extent extents[4];
    CHECK(engine_user_block_status(user, context, 0, bytes, extents, 4, &error) >= 1);
}

// `homes`: how many channels it has elsewhere.
void survives(Engine& engine, engine_node_t* node, uint32_t backend, uint64_t bytes, uint64_t requests,
              uint32_t homes = 0) {
    engine_context_t* contexts[] = {engine.context("io0", backend), engine.context("io1", backend)};
    engine_user_t* user = Engine::user(node, "load");
    engine_user_t* reader = Engine::user(node, "reader", ENGINE_PERM_CONSISTENT_READ);
    engine_workload_t* workloads[2];
    for (unsigned i = 0; i < 2; i++) workloads[i] = make_workload(engine, user, contexts[i], requests);
    Error error;
    uint64_t before = 0;
    {
        ReadOnlyPages pages(node);
        for (engine_workload_t* workload : workloads) CHECK_EQ(engine_workload_start(workload, &error), 0);
        for (engine_context_t* context : contexts) refused_requests(user, reader, context, bytes);
        for (engine_workload_t* workload : workloads) CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
        for (engine_workload_t* workload : workloads) before += done_requests(workload);
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
        CHECK_EQ(stats.channels, 2 + homes);
        CHECK_EQ(stats.in_flight, 0);
        uint64_t counted = 0;
        for (const engine_op_stats& op : stats.op) counted += op.requests;
        CHECK(counted >= 2 * requests);
        CHECK_EQ(stats.op[ENGINE_OP_WRITE].errors, 2);
        CHECK_EQ(stats.op[ENGINE_OP_READ].errors, 2);
    }
    CHECK_EQ(before, 2 * requests);
    for (engine_workload_t* workload : workloads) CHECK_EQ(engine_workload_close(workload), 0);
    CHECK_EQ(engine_user_close(reader, &error), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(a_write_to_the_page_is_caught) {
    int status = in_child([] {
        signal(SIGSEGV, SIG_DFL);
        void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        auto* node = new (page) Node;
        node->bytes.store_relaxed(1);
        mprotect(page, 4096, PROT_READ);
        if (node->bytes.load_relaxed() != 1) return 1;
        node->bytes.store_relaxed(2);
        return 0;
    });
    CHECK_EQ(status, 1000 + SIGSEGV);
}

#ifndef EMBEDDER_TSAN
// On the request path itself, on a context's thread: a resize is the one request that stores.
TEST(a_request_that_writes_is_caught) {
    int status = in_child([] {
        signal(SIGSEGV, SIG_DFL);
        Engine engine;
        engine_node_t* node = engine.open({{"driver", "null"}});
        engine_user_t* user = Engine::user(node, "test");
        engine_context_t* context = engine.context("io0");
        Error error;
        if (embedder::io(user, ENGINE_OP_RESIZE, nullptr, 8192, 0, 0, &error, context) != 0) return 1;
        ReadOnlyPages pages(node);
        char buffer[512];
        if (embedder::io(user, ENGINE_OP_WRITE, buffer, 0, 512, 0, &error, context) != 512) return 2;
        embedder::io(user, ENGINE_OP_RESIZE, nullptr, 4096, 0, 0, &error, context);
        return 3;
    });
    CHECK_EQ(status, 1000 + SIGSEGV);
}
#endif

TEST(a_null_node_is_not_written) {
    Engine engine;
    engine_node_t* node = engine.open({{"driver", "null"}, {"size", "1G"}});
    survives(engine, node, ENGINE_BACKEND_AUTO, uint64_t{1} << 30, null_requests);
}

TEST(raw_over_a_file_is_not_written) {
    for (uint32_t backend : embedder::both_backends) {
        embedder::TempFile file(4 << 20);
        Engine engine;
        engine_node_t* node = engine.open({{"driver", "raw"},
                                           {"discard", "unmap"},
                                           {"cache.no-flush", "on"},  // the disk's speed is not the subject
                                           {"file.driver", "file"},
                                           {"file.filename", file.name()}});
        survives(engine, node, backend, 4 << 20,
                 file_requests / (backend == ENGINE_BACKEND_THREADS ? 10 : 1));
    }
}

// What the two of them change, table and lock, lies elsewhere.
TEST(an_overlay_is_not_written) {
    Engine engine;
    engine_node_t* node =
        engine.open({{"driver", "overlay"}, {"backing.driver", "memory"}, {"backing.size", "4M"}});
    survives(engine, node, ENGINE_BACKEND_AUTO, 4 << 20, file_requests / 10, 1);
}

}  // namespace
