// The passthrough filter, and with it handing requests on: every operation reaches the child as it is and
// comes back as it was, each node counts for itself, errors name the node that failed, and a short memory is
// an error. Also raw's window, which travels the same way.
#include "api/handles.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::info_of;
using embedder::io;

engine_node_t* child_of(engine_node_t* node) {
    char role[16];
    engine_node_t* child = engine_node_get_child(node, 0, role, sizeof role);
    REQUIRE(child != nullptr);
    CHECK_EQ(std::string_view(role), "file");
    return child;
}

engine_node_stats stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}

// An engine, a node in it, and a user that is gone before both.
struct Disk {
    Engine engine;
    engine_node_t* node;
    engine_user_t* user;
    Error error;

    explicit Disk(Engine::Options options) : node(engine.open(options)), user(Engine::user(node, "test")) {}
    ~Disk() {
        CHECK_EQ(stats_of(node).in_flight, 0);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
    int64_t run(uint32_t op, uint64_t offset, uint64_t bytes, void* buffer = nullptr, uint32_t flags = 0,
                engine_context_t* context = nullptr) {
        return io(user, op, buffer, offset, bytes, flags, &error, context);
    }
};

TEST(every_operation_reaches_the_child_and_comes_back) {
    Disk disk({{"driver", "passthrough"},
               {"node-name", "top"},
               {"file.driver", "memory"},
               {"file.size", "1M"},
               {"discard", "unmap"},
               {"file.node-name", "ram"}});
    char data[8192];
    char back[8192];
    memset(data, 'd', sizeof data);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 65536 - 4096, 8192, data), 8192);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 524288, 8192, data, ENGINE_FUA), 8192);
    CHECK_EQ(disk.run(ENGINE_OP_READ, 65536 - 4096, 8192, back), 8192);
    CHECK(memcmp(data, back, sizeof data) == 0);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 524288, 4096), 0);
    CHECK_EQ(disk.run(ENGINE_OP_READ, 524288, 8192, back), 8192);
    CHECK(back[0] == 0 && back[4095] == 0 && back[4096] == 'd');
    CHECK_EQ(disk.run(ENGINE_OP_FLUSH, 0, 0), 0);
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 65536), 0);
    engine_extent extents[8];
    REQUIRE(engine_user_block_status(disk.user, nullptr, 0, 1 << 20, extents, 8, &disk.error) == 5);
    CHECK(extents[0].offset == 0 && extents[0].length == 65536 && extents[0].flags == ENGINE_EXTENT_ZERO);
    CHECK(extents[1].offset == 65536 && extents[1].flags == ENGINE_EXTENT_DATA);
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 2 << 20, 0), 0);
    CHECK_EQ(info_of(disk.node).bytes, 2 << 20);
    CHECK_EQ(info_of(child_of(disk.node)).bytes, 2 << 20);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, (2 << 20) - 4096, 4096, data), 4096);
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 65536, 0), 0);
    CHECK_EQ(disk.run(ENGINE_OP_READ, 65536, 512, back), -EINVAL);
    CHECK(disk.error.says("node top: read"));
    engine_node_stats above = stats_of(disk.node);
    engine_node_stats below = stats_of(child_of(disk.node));
    for (uint32_t op = 0; op < ENGINE_OP_COUNT; op++) {
        uint64_t refused = op == ENGINE_OP_READ ? 1 : 0;
        CHECK_EQ(above.op[op].requests, below.op[op].requests + refused);
        CHECK_EQ(above.op[op].bytes, below.op[op].bytes);
        CHECK_EQ(above.op[op].errors, refused);
        CHECK_EQ(below.op[op].errors, 0);
        // A copy reaches a child that can do it: test_copy_range.cc.
        CHECK_EQ(above.op[op].requests != 0, op != ENGINE_OP_COPY_RANGE);
    }
    CHECK_EQ(below.in_flight, 0);
}

TEST(limits_are_those_of_the_child) {
    Engine engine;
    for (const char* driver : {"null", "memory"}) {
        engine_node_t* node =
            engine.open({{"driver", "passthrough"}, {"file.driver", driver}, {"file.size", "3M"}});
        engine_node_info above = info_of(node);
        engine_node_info below = info_of(child_of(node));
        CHECK_EQ(std::string_view(above.driver), "passthrough");
        CHECK_EQ(above.bytes, 3 << 20);
        CHECK_EQ(above.ops, below.ops);
        CHECK_EQ(above.holes, below.holes);
        CHECK_EQ(above.request_alignment, below.request_alignment);
        CHECK_EQ(above.memory_alignment, below.memory_alignment);
    }
}

// Whether a discard does something is the child's to say, unless the filter was told as well.
TEST(a_discard_is_handed_on) {
    const struct {
        const char *above, *below;
        bool discards;
    } cases[] = {{nullptr, "unmap", true},
                 {nullptr, "ignore", false},
                 {"ignore", "unmap", false},
                 {"unmap", "unmap", true}};
    for (const auto& one : cases) {
        Engine engine;
        engine.open({{"driver", "memory"}, {"node-name", "ram"}, {"size", "1M"}, {"discard", one.below}});
        engine_node_t* node =
            one.above == nullptr
                ? engine.open({{"driver", "passthrough"}, {"file", "ram"}})
                : engine.open({{"driver", "passthrough"}, {"file", "ram"}, {"discard", one.above}});
        engine_user_t* user = Engine::user(node, "test");
        Error error;
        char data[4096];
        char back[4096];
        memset(data, 'd', sizeof data);
        CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 4096, 0, &error), 4096);
        CHECK_EQ(io(user, ENGINE_OP_DISCARD, nullptr, 0, 65536, 0, &error), 0);
        CHECK_EQ(io(user, ENGINE_OP_READ, back, 0, 4096, 0, &error), 4096);
        CHECK_EQ(back[17] == 0, one.discards);
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

TEST(an_error_names_the_node_that_failed) {
    Disk disk({{"driver", "passthrough"},
               {"node-name", "top"},
               {"file.driver", "raw"},
               {"file.node-name", "window"},
               {"file.size", "64k"},
               {"file.file.driver", "null"}});
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 1 << 20, 0), -ENOTSUP);
    CHECK(disk.error.says("node window: option 'size' fixes the size of this disk"));
    CHECK_EQ(std::string_view(disk.error.node), "window");
    CHECK(disk.error.request_id != 0);
    CHECK_EQ(info_of(disk.node).bytes, 65536);
    for (engine_node_t* node : {disk.node, child_of(disk.node)}) {
        CHECK_EQ(stats_of(node).op[ENGINE_OP_RESIZE].errors, 1);
        CHECK_EQ(stats_of(node).op[ENGINE_OP_RESIZE].requests, 1);
    }
    CHECK_EQ(stats_of(child_of(child_of(disk.node))).op[ENGINE_OP_RESIZE].requests, 0);
}

TEST(a_read_only_filter_refuses_writers) {
    Engine engine;
    engine_node_t* node =
        engine.open({{"driver", "passthrough"}, {"read-only", "on"}, {"file.driver", "null"}});
    engine_user_t* user = nullptr;
    Error error;
    CHECK_EQ(engine_user_create(node, "guest", ENGINE_PERM_WRITE, 15, &user, &error), -EROFS);
    CHECK_EQ(info_of(child_of(node)).read_only, 1);
}

TEST(windows_of_windows_come_back_where_they_were) {
    Disk disk({{"driver", "raw"},
               {"offset", "64k"},
               {"file.driver", "raw"},
               {"file.offset", "128k"},
               {"file.file.driver", "passthrough"},
               {"file.file.file.driver", "memory"},
               {"file.file.file.size", "1M"}});
    char data[4096];
    char back[4096];
    memset(data, 'w', sizeof data);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE, 65536, 4096, data), 4096);
    CHECK_EQ(disk.run(ENGINE_OP_READ, 65536, 4096, back), 4096);
    CHECK(memcmp(data, back, sizeof data) == 0);
    engine_extent extents[4];
    REQUIRE(engine_user_block_status(disk.user, nullptr, 4096, 200000, extents, 4, &disk.error) == 3);
    CHECK(extents[0].offset == 4096 && extents[0].length == 61440 && extents[0].flags == ENGINE_EXTENT_ZERO);
    CHECK(extents[1].offset == 65536 && extents[1].length == 65536 && extents[1].flags == ENGINE_EXTENT_DATA);
    CHECK(extents[2].offset == 131072 && extents[2].length == 73024);
    engine_node_t* bottom = child_of(child_of(child_of(disk.node)));
    engine_user_t* reader = Engine::user(bottom, "reader", ENGINE_PERM_CONSISTENT_READ);
    CHECK_EQ(io(reader, ENGINE_OP_READ, back, 65536 * 4, 4096, 0, &disk.error), 4096);
    CHECK(memcmp(data, back, sizeof data) == 0);
    CHECK_EQ(engine_user_close(reader, &disk.error), 0);
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 65536, 0), 0);
    CHECK_EQ(info_of(disk.node).bytes, 65536);
    CHECK_EQ(info_of(bottom).bytes, 65536 * 4);
}

#ifndef EMBEDDER_TSAN
// The hook is the process's own, so the sanitizer's threads may meet it.
TEST(short_memory_is_an_error) {
    Disk disk({{"driver", "passthrough"}, {"node-name", "top"}, {"file.driver", "null"}});
    char data[512] = {};
    // The channel is there, and its pool still empty.
    CHECK_EQ(disk.run(ENGINE_OP_READ, uint64_t{1} << 40, 512, data), -EINVAL);
    engine_set_allocation_hook([](size_t, void*) { return 1; }, nullptr);
    int64_t result = disk.run(ENGINE_OP_READ, 0, 512, data);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(result, -ENOMEM);
    CHECK_EQ(disk.error.kind, ENGINE_ERROR_LIMIT);
    CHECK(disk.error.says("node top: no memory for a request"));
    CHECK_EQ(disk.run(ENGINE_OP_READ, 0, 512, data), 512);
    CHECK_EQ(stats_of(disk.node).op[ENGINE_OP_READ].requests, 3);
    CHECK_EQ(stats_of(child_of(disk.node)).op[ENGINE_OP_READ].requests, 1);
}
#endif

// --- under load

engine_workload_t* start_load(engine_t* engine, engine_user_t* user, engine_context_t* context,
                              uint64_t count) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 64;
    config.count = count;
    config.seed = 3;
    config.flush_every = 100;
    config.flags = ENGINE_WORKLOAD_VERIFY;
    config.user = user;
    config.context = context;
    engine_workload_t* workload = nullptr;
    Error error;
    REQUIRE(engine_workload_create(engine, &config, &workload, &error) == 0);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    return workload;
}

TEST(many_filters_under_load_from_two_contexts) {
    constexpr uint64_t count = 20000;
    for (uint32_t backend : both_backends) {
        embedder::TempFile file(256 << 10);
        Engine engine;
        engine.open(
            {{"driver", "file"}, {"filename", file.name()}, {"node-name", "f0"}, {"cache.no-flush", "on"}});
        constexpr unsigned filters = 8;
        std::vector<engine_node_t*> nodes{engine_node_find(engine, "f0")};
        for (unsigned i = 1; i <= filters; i++) {
            std::string name = "f" + std::to_string(i);
            std::string below = "f" + std::to_string(i - 1);
            nodes.push_back(engine.open(
                {{"driver", "passthrough"}, {"node-name", name.c_str()}, {"file", below.c_str()}}));
        }
        engine_user_t* user = Engine::user(nodes.back(), "load");
        engine_workload_t* loads[2];
        for (unsigned i = 0; i < 2; i++) {
            loads[i] = start_load(engine, user, engine.context(i == 0 ? "io0" : "io1", backend), count);
        }
        static engine_workload_result result;
        for (engine_workload_t* load : loads) {
            CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
            result.size = sizeof result;
            CHECK_EQ(engine_workload_get_result(load, &result), 0);
            CHECK_EQ(result.errors + result.verify_errors, 0);
            CHECK_EQ(engine_workload_close(load), 0);
        }
        for (engine_node_t* node : nodes) {
            engine_node_stats stats = stats_of(node);
            CHECK_EQ(stats.channels, 2);
            CHECK_EQ(stats.in_flight, 0);
            uint64_t sum = stats.op[ENGINE_OP_READ].requests + stats.op[ENGINE_OP_WRITE].requests;
            CHECK_EQ(
                sum + (node == nodes[0] ? 0 : stats.op[ENGINE_OP_FLUSH].requests),
                2 * count - (node == nodes[0] ? stats_of(nodes.back()).op[ENGINE_OP_FLUSH].requests : 0));
        }
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

}  // namespace
