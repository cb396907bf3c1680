// The overlay while others are at it: what a request has mapped stays until it has left, what is being
// written is not there yet, two contexts over the same clusters against a model, and changes of the graph
// under load.
#include <thread>

#include "overlay_bench.hh"
#include "overlay_lanes.hh"

namespace {

using namespace overlay_bench;

using overlay_lanes::cluster;
using overlay_lanes::Lanes;

// --- one step at a time

TEST(a_cluster_that_is_being_read_is_not_used_anew) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    engine_context_t* context = disk.engine.context("io0");
    disk.fill(0, cluster, 'a');
    shelf.holding = true;
    Async reader(disk.user, context, Op::read, 0, cluster, '?');
    REQUIRE(shelf.held == 1);
    shelf.holding = false;
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, cluster), 0);
    disk.let_time_pass();
    CHECK_EQ(disk.given_back(), 0);
    for (uint64_t at = cluster; at < 4 * cluster; at += cluster) disk.fill(at, cluster, 'b');
    disk.let_time_pass();
    disk.release(context);
    CHECK_EQ(reader.wait(), 0);
    CHECK(std::all_of(reader.data.begin(), reader.data.end(), [](char c) { return c == 'a'; }));
    CHECK(disk.holds(0, cluster, 0) && disk.holds(cluster, 3 * cluster, 'b'));
    // Now it may be.
    CHECK(eventually([&] { return disk.given_back() == 1; }));
    auto used_anew = [&] {
        CHECK_EQ(disk.run(ENGINE_OP_DISCARD, cluster, cluster), 0);
        disk.fill(cluster, cluster, 'c');
        return shelf.bytes[0] == std::byte{'c'};
    };
    CHECK(eventually(used_anew));
    CHECK(disk.holds(cluster, cluster, 'c') && disk.holds(2 * cluster, 2 * cluster, 'b'));
}

TEST(a_late_write_harms_nobody) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    engine_context_t* context = disk.engine.context("io0");
    disk.fill(0, cluster, 'a');
    shelf.holding = true;
    Async writer(disk.user, context, Op::write, 0, cluster,
                 'l');  // over data: nothing of the map will change
    REQUIRE(shelf.held == 1);
    shelf.holding = false;
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, cluster), 0);
    disk.let_time_pass();
    for (uint64_t at = cluster; at < 4 * cluster; at += cluster) disk.fill(at, cluster, 'b');
    disk.release(context);
    CHECK_EQ(writer.wait(), 0);
    CHECK(disk.holds(cluster, 3 * cluster, 'b'));
    CHECK(disk.holds(0, cluster, 0));
}

TEST(what_is_being_written_is_not_there_yet) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    engine_context_t* context = disk.engine.context("io0");
    shelf.holding = true;
    Async first(disk.user, context, Op::write, 0, 512, 'w');
    Async second(disk.user, context, Op::write, 1024, 512, 'v');  // into the same new cluster
    REQUIRE(eventually([&] { return shelf.held == 2; }));
    shelf.holding = false;
    CHECK(disk.shines(0, 4 * cluster));
    // Meanwhile all of the cluster is zeroed: those who are writing still find their place.
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 1024, cluster - 1024), 0);
    CHECK(disk.shines(0, 1024) && disk.holds(1024, cluster - 1024, 0));
    disk.fill(cluster, cluster, 'b');
    disk.release(context);
    CHECK_EQ(first.wait(), 0);
    CHECK_EQ(second.wait(), 0);
    CHECK(disk.holds(0, 512, 'w') && disk.shines(512, 512) && disk.holds(1024, 512, 'v'));
    CHECK(disk.holds(1536, cluster - 1536, 0) && disk.holds(cluster, cluster, 'b'));
    CHECK_EQ(disk.given_back(), 0);
    // One cluster for both, and one more.
    CHECK(std::count(shelf.bytes.begin(), shelf.bytes.end(), std::byte{0xdd}) ==
          static_cast<int64_t>(shelf.bytes.size() - cluster - 1024));
}

TEST(a_failed_write_lets_its_cluster_go) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    shelf.full = true;
    for (unsigned i = 0; i < 3; i++) CHECK_EQ(disk.write(i * cluster, cluster, 'x'), -ENOSPC);
    CHECK(eventually([&] { return disk.given_back() != 0; }));
    CHECK(disk.shines(0, 4 * cluster));
}

// --- two contexts against a model

#ifdef EMBEDDER_TSAN
constexpr unsigned rounds = 150;
constexpr unsigned changes = 12;
#else
constexpr unsigned rounds = 1500;
constexpr unsigned changes = 60;
#endif

TEST(two_contexts_over_the_same_clusters) {
    for (const char* data : {"memory", "file"}) {
        for (uint32_t backend : embedder::both_backends) {
            Disk disk("256k", {{"driver", "overlay"},
                               {"backing", "base"},
                               {"data", data},
                               {"size", "320k"},
                               {"cluster-size", "4k"}});
            Lanes lanes(rounds);
            lanes.begin(disk, {disk.engine.context("io0", backend), disk.engine.context("io1", backend)},
                        backend);
            REQUIRE(eventually([&] { return lanes.done(); }));
            lanes.check(disk);
            CHECK(stats_of(child_of(disk.node, 1)).op[ENGINE_OP_DISCARD].requests != 0);
        }
    }
}

// The data node spoils what is given back.
TEST(two_contexts_over_a_shelf) {
    for (uint64_t seed = 1; seed <= 3; seed++) {
        Shelf shelf(512 << 10);
        ShelfDisk disk("256k", shelf);
        Lanes lanes(rounds);
        lanes.begin(disk, {disk.engine.context("io0"), disk.engine.context("io1")}, seed * 100);
        REQUIRE(eventually([&] { return lanes.done(); }));
        lanes.check(disk);
        CHECK(disk.given_back() != 0);
    }
}

// --- changes under load

TEST(filters_come_and_go_everywhere) {
    Shelf shelf(512 << 10);
    ShelfDisk disk("256k", shelf);
    Lanes lanes;
    lanes.begin(disk, {disk.engine.context("io0"), disk.engine.context("io1")}, 17);
    engine_node_t* places[] = {disk.node, disk.below, disk.data};
    for (unsigned change = 0; change < changes; change++) {
        engine_option options[] = {{"driver", "passthrough"}, {"node-name", "filter"}};
        engine_node_t* filter = nullptr;
        CHECK_EQ(engine_node_insert_filter(places[change % 3], options, 2, 0, &filter, &disk.error), 0);
        if (filter == nullptr) break;
        uint64_t before = stats_of(disk.node).op[ENGINE_OP_READ].requests;
        CHECK(eventually([&] { return stats_of(disk.node).op[ENGINE_OP_READ].requests > before; }));
        CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &disk.error), 0);
    }
    lanes.stop();
    REQUIRE(eventually([&] { return lanes.done(); }));
    lanes.check(disk);
    CHECK(disk.given_back() != 0);
}

// Its way back goes through the filter that is to go: it was waiting for a request that was waited for.
TEST(a_cluster_on_its_way_back_holds_up_a_change) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    engine_context_t* context = disk.engine.context("io0");
    engine_option options[] = {{"driver", "passthrough"}, {"node-name", "filter"}};
    engine_node_t* filter = nullptr;
    CHECK_EQ(engine_node_insert_filter(disk.data, options, 2, 0, &filter, &disk.error), 0);
    disk.fill(0, cluster, 'a');
    shelf.holding = shelf.holding_discards = true;
    Async reader(disk.user, context, Op::read, 0, cluster, '?');
    REQUIRE(shelf.held == 1);
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, cluster), 0);
    std::atomic<int> removed{1};
    std::thread remover([&] {
        Error error;
        removed = engine_node_remove_filter(filter, 0, nullptr, &error);
    });
    Port* port = api::unwrap(disk.user)->find_port(api::unwrap(context));
    auto is_parked = [&] {
        bool parked = false;
        embedder::run_on(context, [&] { parked = port->parked(); });
        return parked;
    };
    CHECK(eventually(is_parked));
    // The read alone: what is held for the home's work comes after it.
    Channel* channel = find_channel(api::unwrap(disk.data), api::unwrap(context));
    embedder::run_on(context, [channel] {
        shelf_do(*channel, static_cast<Request*>(channel->state<ShelfChannel>().held.pop()));
    });
    CHECK_EQ(reader.wait(), 0);
    CHECK(eventually([&] { return shelf.held == 2; }));
    for (unsigned i = 0; i < 100; i++) embedder::run_on(context, [] {});
    CHECK_EQ(removed.load(), 1);
    disk.release(engine_context_find(disk.engine, "main"));
    remover.join();
    CHECK_EQ(removed.load(), 0);
    CHECK(disk.holds(0, cluster, 0) && disk.shines(cluster, cluster));
}

TEST(the_home_closes_under_load) {
    Disk disk("256k", {{"driver", "memory"}, {"size", "0"}});
    engine_context_t* contexts[] = {disk.engine.context("io0"), disk.engine.context("io1")};
    CHECK_EQ(engine_user_close(disk.user, &disk.error), 0);
    CHECK_EQ(engine_node_close(disk.node, &disk.error), 0);
    engine_context_t* home = disk.engine.context("home");
    disk.node = disk.engine.open({{"driver", "overlay"},
                                  {"backing", "base"},
                                  {"size", "320k"},
                                  {"cluster-size", "4k"},
                                  {"context", "home"}});
    disk.user = Engine::user(disk.node, "test");
    Lanes lanes;
    lanes.begin(disk, {contexts[0], contexts[1]}, 5);
    engine_node_t* data = child_of(disk.node, 1);
    CHECK(eventually([&] { return stats_of(data).op[ENGINE_OP_DISCARD].requests > 10; }));
    CHECK_EQ(engine_context_close(home, &disk.error), 0);
    // The work goes on elsewhere.
    uint64_t before = stats_of(data).op[ENGINE_OP_DISCARD].requests;
    CHECK(eventually([&] { return stats_of(data).op[ENGINE_OP_DISCARD].requests > before + 10; }));
    lanes.stop();
    REQUIRE(eventually([&] { return lanes.done(); }));
    lanes.check(disk);
}

}  // namespace
