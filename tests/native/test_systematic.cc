// Systematic failure: of one sequence of calls over several graphs each allocation fails in turn, and each
// operation of the disk. Nothing crashes or leaks, the error says what and why, and the same sequence
// succeeds afterwards. All in the simulator: one thread, so the k-th allocation is the same one in every run.
#include <fcntl.h>
#include <sys/uio.h>

#include "async_queue.hh"
#include "replaced_new.hh"
#include "sim_engine.hh"

// What is allocated and not given back yet, through the core's one way to memory.
namespace {
int64_t live_blocks = 0;
}

extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier): as the linker's --wrap calls them
void* __real__ZN6engine4base8allocateEmm(size_t bytes, size_t align) noexcept;
void __real__ZN6engine4base10deallocateEPv(void* block) noexcept;
void* __wrap__ZN6engine4base8allocateEmm(size_t bytes, size_t align) noexcept {
    void* block = __real__ZN6engine4base8allocateEmm(bytes, align);
    if (block != nullptr) live_blocks++;
    return block;
}
void __wrap__ZN6engine4base10deallocateEPv(void* block) noexcept {
    if (block != nullptr) live_blocks--;
    __real__ZN6engine4base10deallocateEPv(block);
}
// NOLINTEND(bugprone-reserved-identifier)
}

namespace {

using embedder::Error;
using engine::aio::IoKind;
using engine::aio::IoOp;

constexpr uint64_t disk_bytes = 128 << 10;

// Real files under virtual time.
class RealFiles final : public engine::aio::SimHandler {
  public:
    uint64_t latency_ns(const IoOp&, engine::base::Random&) override { return 1000; }
    int64_t perform(IoOp& op) override {
        auto offset = static_cast<off_t>(op.offset);
        auto count = static_cast<int>(op.iov_count);
        int64_t result = 0;
        switch (op.kind) {
            case IoKind::read:
                result = preadv2(op.fd, op.iov, count, offset, op.flags);
                break;
            case IoKind::write:
                result = pwritev2(op.fd, op.iov, count, offset, op.flags);
                break;
            case IoKind::fdatasync:
                result = fdatasync(op.fd);
                break;
            case IoKind::fallocate:
                result = fallocate(op.fd, op.flags, offset, static_cast<off_t>(op.length));
                break;
            case IoKind::call:
                return op.call(&op);
        }
        return result < 0 ? -errno : result;
    }
};

using Options = std::vector<engine_option>;

// Nodes, in the order of their opening; the last one is used.
struct Graph {
    const char* name;
    std::vector<Options> nodes;
    bool fixed_size = false;
};

std::vector<Graph> graphs(const char* file) {
    return {
        {"null", {{{"driver", "null"}, {"size", "128k"}}}},
        {"memory", {{{"driver", "memory"}, {"size", "128k"}, {"discard", "unmap"}}}},
        {"file", {{{"driver", "file"}, {"filename", file}, {"discard", "unmap"}}}},
        {"raw over file", {{{"driver", "raw"}, {"filename", file}}}},
        {"window of memory",
         {{{"driver", "memory"}, {"node-name", "a name too long for a small string"}, {"size", "256k"}},
          {{"driver", "raw"},
           {"file", "a name too long for a small string"},
           {"offset", "64k"},
           {"size", "128k"}}},
         true},
        {"overlay over memory",
         {{{"driver", "overlay"},
           {"backing.driver", "memory"},
           {"backing.size", "128k"},
           {"cluster-size", "4k"}}},
         true},
        {"overlay over file",
         {{{"driver", "file"}, {"filename", file}, {"node-name", "below"}, {"read-only", "on"}},
          {{"driver", "overlay"}, {"backing", "below"}, {"data", "file"}, {"directory", "."}}},
         true},
        {"throttle",
         {{{"driver", "throttle"},
           {"throttle-group", "group"},
           {"limits.iops-total", "1000"},
           {"file.driver", "memory"},
           {"file.size", "128k"}}}},
        {"verify",
         {{{"driver", "verify"},
           {"file.driver", "memory"},
           {"file.size", "128k"},
           {"reference.driver", "memory"},
           {"reference.size", "128k"}}}},
        {"write-log",
         {{{"driver", "write-log"},
           {"file.driver", "memory"},
           {"file.size", "128k"},
           {"log.driver", "memory"},
           {"log.size", "1M"}}}},
    };
}

// Says what must hold of an answer, and whether to go on.
struct Judge {
    int errnum;
    bool (*struck)(const void* fault);
    const void* fault;
    Error error{};

    bool good(int64_t result, const char* what) {
        if (result >= 0) return true;
        bool proper = struck(fault) && result == -errnum && error.errnum == errnum &&
                      (error.kind == ENGINE_ERROR_LIMIT || error.kind == ENGINE_ERROR_OS) &&
                      error.message[0] != '\0' && strchr(error.message, '\n') == nullptr;
        if (proper) return false;
        engine_set_allocation_hook(nullptr, nullptr);  // telling takes memory
        check::report(false, __FILE__, __LINE__,
                      std::string(what) + ": " + std::to_string(result) + ", kind " +
                          std::to_string(error.kind) + ", errno " + std::to_string(error.errnum) + ": " +
                          error.message);
        return false;
    }
};

// One sequence, from opening to closing; it takes no memory of its own, which would count. Where it is cut
// short, clean_up() closes what there is.
class Sequence {
  public:
    Sequence(sim::Engine& engine, const Graph& graph, Judge& judge)
        : engine_(engine), graph_(graph), judge_(judge) {
        nodes_.reserve(graph.nodes.size());
    }

    bool run() { return open() && operations() && asynchronous() && filter() && close(); }
    void clean_up() {
        Error error;
        if (queue_ != nullptr) CHECK_EQ(engine_cq_close(queue_, &error), 0);
        queue_ = nullptr;
        if (filter_ != nullptr) CHECK_EQ(engine_node_remove_filter(filter_, 0, nullptr, &error), 0);
        filter_ = nullptr;
        if (user_ != nullptr) CHECK_EQ(engine_user_close(user_, &error), 0);
        user_ = nullptr;
        for (; !nodes_.empty(); nodes_.pop_back()) CHECK_EQ(engine_node_close(nodes_.back(), &error), 0);
        CHECK_EQ(engine_lock_count(engine_.handle()), 0);  // no node is left
    }

  private:
    bool good(int64_t result, const char* what) { return judge_.good(result, what); }
    engine_context_t* context() const { return engine_.context_handle(1); }

    bool open() {
        for (const Options& options : graph_.nodes) {
            engine_node_t* node = nullptr;
            if (!good(
                    engine_node_open(engine_.handle(), options.data(), options.size(), &node, &judge_.error),
                    "open"))
                return false;
            nodes_.push_back(node);
        }
        return good(engine_user_create(nodes_.back(), "somebody with a long name", ENGINE_PERM_ALL,
                                       ENGINE_PERM_ALL, &user_, &judge_.error),
                    "user");
    }
    bool io(uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags, const char* what) {
        return good(embedder::io(user_, op, buffer_, offset, bytes, flags, &judge_.error, context()), what);
    }
    bool operations() {
        engine_extent extents[8];
        uint64_t offsets[] = {0, 4096, 8192};
        int64_t results[3];
        engine_many many{};
        many.size = sizeof many;
        many.op = ENGINE_OP_READ;
        many.buffer = buffer_;
        many.offsets = offsets;
        many.results = results;
        many.count = 3;
        many.length = 512;
        return io(ENGINE_OP_WRITE, 4096, 4096, 0, "write") &&
               io(ENGINE_OP_WRITE, 8292, 1000, ENGINE_FUA, "write of a part of a block") &&
               io(ENGINE_OP_READ, 100, 9000, 0, "read") &&
               io(ENGINE_OP_WRITE_ZEROES, 5000, 30000, ENGINE_MAY_UNMAP, "write zeroes") &&
               io(ENGINE_OP_DISCARD, 0, 65536, 0, "discard") && io(ENGINE_OP_FLUSH, 0, 0, 0, "flush") &&
               good(engine_user_block_status(user_, context(), 0, disk_bytes, extents, 8, &judge_.error),
                    "block status") &&
               good(engine_user_copy_range(user_, 0, user_, 65536, 8192, context(), &judge_.error), "copy") &&
               good(engine_user_many(user_, context(), &many, &judge_.error), "many") &&
               (graph_.fixed_size || io(ENGINE_OP_RESIZE, disk_bytes, 0, 0, "resize"));
    }
    bool asynchronous() {
        if (!good(engine_cq_create(engine_.handle(), &queue_, &judge_.error), "completion queue"))
            return false;
        engine_request requests[4];
        for (auto& request : requests) request = embedder::request_of(ENGINE_OP_WRITE, 1, buffer_, 512, 512);
        if (!good(engine_submit(queue_, user_, engine_.context_handle(2), requests, 4, &judge_.error),
                  "submit"))
            return false;
        CHECK_EQ(engine_cq_wait(queue_, nullptr, nullptr, UINT64_MAX, &judge_.error), 0);
        engine_completion done[8];
        int64_t count = engine_cq_drain(queue_, done, 8);
        CHECK_EQ(count, 4);
        for (int64_t i = 0; i < count; i++) {
            if (done[i].result >= 0) continue;
            if (done[i].error == nullptr) return good(-EINVAL, "completion without an error");
            static_cast<engine_error&>(judge_.error) = *done[i].error;
            if (!good(done[i].result, "completion")) return false;
        }
        if (!good(engine_cq_close(queue_, &judge_.error), "closing of the queue")) return false;
        queue_ = nullptr;
        return true;
    }
    bool filter() {
        const engine_option options[] = {{"driver", "throttle"}, {"limits.iops-total", "100000"}};
        if (!good(engine_node_insert_filter(nodes_.back(), options, 2, 0, &filter_, &judge_.error), "insert"))
            return false;
        if (!io(ENGINE_OP_WRITE, 0, 8192, 0, "write through the filter")) return false;
        if (!good(engine_node_remove_filter(filter_, 0, nullptr, &judge_.error), "remove")) return false;
        filter_ = nullptr;
        return true;
    }
    bool close() {
        if (!good(engine_user_close(user_, &judge_.error), "detach")) return false;
        user_ = nullptr;
        for (; !nodes_.empty(); nodes_.pop_back()) {
            if (!good(engine_node_close(nodes_.back(), &judge_.error), "close")) return false;
        }
        return true;
    }

    sim::Engine& engine_;
    const Graph& graph_;
    Judge& judge_;
    std::vector<engine_node_t*> nodes_;
    engine_user_t* user_ = nullptr;
    engine_node_t* filter_ = nullptr;
    engine_cq_t* queue_ = nullptr;
    alignas(4096) char buffer_[16384] = {};
};

bool never(const void*) {
    return false;
}

// The sequence with a fault, and then without. `begin` and `end` stand around the first; `end` says whether
// the fault has struck, without which there is nothing to repeat.
template <class Begin, class End>
void run_twice(const Graph& graph, RealFiles& files, Judge judge, Begin&& begin, End&& end) {
    sim::Engine engine(1);
    engine.simulator.serve_with(files);
    {
        Sequence sequence(engine, graph, judge);
        begin(engine);
        bool whole = sequence.run();
        bool struck = end(engine);
        if (!whole) sequence.clean_up();
        CHECK_EQ(engine_lock_count(engine.handle()), 0);
        if (!struck) return;
    }
    Judge strict{0, never, nullptr};
    CHECK(Sequence(engine, graph, strict).run());
}

void fail_allocations(const Graph& graph, RealFiles& files, bool lasting) {
    int64_t k = 0;
    for (bool struck = true; struck; k++) {
        Shortage shortage{k, lasting};
        Judge judge{ENOMEM, [](const void* fault) { return static_cast<const Shortage*>(fault)->struck; },
                    &shortage};
        int64_t before = live_blocks;
        run_twice(
            graph, files, judge, [&](sim::Engine&) { shortage.begin(); },
            [&](sim::Engine&) { return shortage.end(), shortage.struck; });
        CHECK_EQ(live_blocks - before, 0);
        struck = shortage.struck;
        if (check::failures != 0) {
            fprintf(stderr, "%s: allocation %ld%s\n", graph.name, k, lasting ? " and all after it" : "");
            REQUIRE(false);
        }
    }
    CHECK(k > (new_is_replaced ? 50 : 10));  // it does allocate
}

uint64_t fail_io(const Graph& graph, RealFiles& files) {
    uint64_t k = 1;
    for (bool struck = true; struck; k++) {
        struck = false;
        Judge judge{EIO, [](const void*) { return true; }, nullptr};
        int64_t before = live_blocks;
        run_twice(
            graph, files, judge, [&](sim::Engine& engine) { engine.simulator.fail_operation(k, EIO); },
            [&](sim::Engine& engine) { return struck = engine.simulator.operations() >= k; });
        CHECK_EQ(live_blocks - before, 0);
        if (check::failures != 0) {
            fprintf(stderr, "%s: operation %lu\n", graph.name, k);
            REQUIRE(false);
        }
    }
    return k - 2;
}

void with_each_graph(void (*f)(const Graph&, RealFiles&)) {
    embedder::TempFile file(disk_bytes);
    RealFiles files;
    for (const Graph& graph : graphs(file.name())) {
        Judge strict{0, never, nullptr};
        run_twice(
            graph, files, strict, [](sim::Engine&) {},
            [](sim::Engine&) { return true; });  // what is kept for good
        f(graph, files);
    }
}

TEST(each_allocation_fails_once) {
    with_each_graph([](const Graph& graph, RealFiles& files) { fail_allocations(graph, files, false); });
}
TEST(from_each_allocation_on_all_fail) {
    with_each_graph([](const Graph& graph, RealFiles& files) { fail_allocations(graph, files, true); });
}
TEST(each_operation_fails_once) {
    with_each_graph([](const Graph& graph, RealFiles& files) {
        bool on_disk = strstr(graph.name, "file") != nullptr;
        CHECK_EQ(fail_io(graph, files) > 5, on_disk);
    });
}

}  // namespace
