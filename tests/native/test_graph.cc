// The graph changes while requests run: filters come and go, nodes replace each other, disks are resized,
// contexts leave.
#include <thread>

#include "graph_bench.hh"

namespace {

using namespace graph_bench;

// --- the list of what is in flight

struct Marked : GraceMark {
    unsigned times = 0;
    Marked() {
        run = [](engine::coro::ReadyItem* item) {
            static_cast<Marked*>(static_cast<GraceMark*>(item))->times++;
        };
    }
};

struct Hand : engine::coro::Executor {
    void turn() {
        while (has_ready()) run_ready(100);
    }
};

TEST(a_mark_passes_when_all_before_it_have_left) {
    Hand executor;
    InFlightList list;
    InFlightLink a, b, c;
    Request of_a, of_b, of_c;
    Marked empty, first, second;
    list.add_mark(&empty, executor);
    executor.turn();
    CHECK_EQ(empty.times, 1);
    list.enter(&a, &of_a);
    list.enter(&b, &of_b);
    list.add_mark(&first, executor);
    list.enter(&c, &of_c);
    list.add_mark(&second, executor);
    CHECK(list.oldest() == &of_a);
    list.leave(&a, executor);
    executor.turn();
    CHECK_EQ(first.times, 0);
    CHECK(list.oldest() == &of_b);
    list.leave(&b, executor);
    CHECK_EQ(first.times, 0);  // never inside leave()
    executor.turn();
    CHECK_EQ(first.times, 1);
    CHECK_EQ(second.times, 0);
    list.leave(&c, executor);
    executor.turn();
    CHECK_EQ(second.times, 1);
    CHECK(list.empty());
    CHECK(list.oldest() == nullptr);
}

TEST(what_came_after_a_mark_does_not_hold_it_up) {
    Hand executor;
    InFlightList list;
    InFlightLink a, b;
    Marked mark;
    list.enter(&a, nullptr);
    list.add_mark(&mark, executor);
    list.enter(&b, nullptr);
    list.leave(&a, executor);
    executor.turn();
    CHECK_EQ(mark.times, 1);
    list.leave(&b, executor);
}

TEST(a_mark_that_is_taken_away_never_passes) {
    Hand executor;
    InFlightList list;
    InFlightLink a;
    Marked first, second, third;
    list.enter(&a, nullptr);
    list.add_mark(&first, executor);
    list.add_mark(&second, executor);
    list.add_mark(&third, executor);
    CHECK(list.remove_mark(&second));
    CHECK(!list.remove_mark(&second));
    CHECK(list.remove_mark(&third));
    list.add_mark(&third, executor);
    list.leave(&a, executor);
    executor.turn();
    CHECK_EQ(first.times, 1);
    CHECK_EQ(second.times, 0);
    CHECK_EQ(third.times, 1);
    CHECK(!list.remove_mark(&first));
}

// --- changes

TEST(a_filter_takes_over_the_users_of_a_node_and_gives_them_back) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_user_t* user = Engine::user(disk, "one", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    Error error;
    char buffer[4096] = "before";
    CHECK_EQ(io(user, ENGINE_OP_WRITE, buffer, 0, sizeof buffer, 0, &error), sizeof buffer);
    unsigned started = counts.started, stopped = counts.stopped;
    engine_node_t* filter = nullptr;
    REQUIRE(insert(disk, "filter", &filter, &error) == 0);
    CHECK_EQ(counts.started, started + 1);
    memset(buffer, 0, sizeof buffer);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 0, sizeof buffer, 0, &error), sizeof buffer);
    CHECK_EQ(std::string(buffer), "before");
    CHECK_EQ(stats_of(filter).op[ENGINE_OP_READ].requests, 1);
    engine_pause_stats pauses{};
    pauses.size = sizeof pauses;
    CHECK_EQ(engine_user_get_pauses(user, &pauses), 0);
    CHECK_EQ(pauses.count, 1);
    CHECK(pauses.total_ns >= pauses.longest_ns && pauses.longest_ns > 0);
    // Both ends name their users.
    CHECK_EQ(engine_node_close(disk, &error), -EBUSY);
    CHECK(error.says("node filter"));
    CHECK_EQ(engine_node_close(filter, &error), -EBUSY);
    CHECK(error.says("'one'"));
    engine_node_t* freed = disk;
    REQUIRE(engine_node_remove_filter(filter, 0, &freed, &error) == 0);
    CHECK(freed == nullptr);
    CHECK_EQ(counts.stopped, stopped + 1);
    CHECK(engine_node_find(engine, "filter") == nullptr);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 0, sizeof buffer, 0, &error), sizeof buffer);
    CHECK_EQ(stats_of(disk).op[ENGINE_OP_READ].requests, 2);
    close_user_and_node(user, disk);
}

TEST(filters_come_and_go_under_load_from_two_contexts) {
#ifdef EMBEDDER_TSAN
    constexpr int changes = 15;
#else
    constexpr int changes = 50;
#endif
    for (uint32_t locking : {ENGINE_LOCKING_PER_NODE, ENGINE_LOCKING_GLOBAL}) {
        Engine engine(locking);
        Ram ram;
        engine_node_t* disk = open_ram(engine, ram, "disk");
        engine_user_t* user = Engine::user(disk, "load", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
        engine_workload_t* loads[] = {
            verified_load(engine, user, engine.context("io0"), 0, 1),
            verified_load(engine, user, engine.context("io1"), disk_bytes / 2, 2),
        };
        Error error;
        for (int i = 0; i < changes; i++) {
            engine_node_t* outer = nullptr;
            engine_node_t* inner = nullptr;
            REQUIRE(insert(disk, "inner", &inner, &error) == 0);
            REQUIRE(insert(inner, "outer", &outer, &error) == 0);
            REQUIRE(engine_node_remove_filter(inner, 0, nullptr, &error) == 0);
            REQUIRE(engine_node_remove_filter(outer, 0, nullptr, &error) == 0);
        }
        for (engine_workload_t* load : loads) {
            engine_workload_result result = end_load(load);
            CHECK(result.requests[0] > 0 && result.requests[1] > 0);
        }
        engine_pause_stats pauses{};
        pauses.size = sizeof pauses;
        CHECK_EQ(engine_user_get_pauses(user, &pauses), 0);
        CHECK_EQ(pauses.count, 2u * 4 * changes);  // on each context
        CHECK_EQ(stats_of(disk).in_flight, 0);
        close_user_and_node(user, disk);
    }
}

TEST(a_change_waits_for_those_inside_and_names_who_is_late) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(disk, "one", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    ram.holding = true;
    std::byte buffers[2][4096] = {};
    std::atomic<int> done{0};
    std::thread late([&] {
        Error error;
        CHECK_EQ(io(user, ENGINE_OP_WRITE, buffers[0], 8192, 4096, 0, &error, context), 4096);
        done++;
    });
    REQUIRE(eventually([&] { return ram.held == 1; }));
    Error error;
    engine_node_t* filter = nullptr;
    CHECK_EQ(insert(disk, "filter", &filter, &error, 30'000'000), -ETIMEDOUT);
    CHECK(filter == nullptr);
    CHECK(error.says("node disk did not come to rest within 30 ms"));
    CHECK(error.says("on context io0"));
    CHECK(error.says("write of 4096 bytes at offset 8192"));
    CHECK(error.says("everything goes on"));
    CHECK_EQ(error.offset, 8192);
    CHECK(error.request_id != 0);
    CHECK(engine_node_find(engine, "filter") == nullptr);
    // Everything goes on: another request gets as far as the first.
    std::thread second([&] {
        Error other;
        CHECK_EQ(io(user, ENGINE_OP_WRITE, buffers[1], 0, 4096, 0, &other, context), 4096);
        done++;
    });
    REQUIRE(eventually([&] { return ram.held == 2; }));
    CHECK_EQ(done, 0);
    // What is inside may leave while the change waits for it.
    std::thread changer([&] {
        Error other;
        CHECK_EQ(insert(disk, "filter", &filter, &other), 0);
    });
    ram.holding = false;
    embedder::run_on(context, [&] { ram_release(*find_channel(api::unwrap(disk), api::unwrap(context))); });
    changer.join();
    late.join();
    second.join();
    CHECK_EQ(done, 2);
    REQUIRE(filter != nullptr);
    CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
    close_user_and_node(user, disk);
}

TEST(requests_that_wait_go_on_in_order_and_may_be_refused_meanwhile) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_context_t* context = engine.context("io0");
    engine_user_t* user = Engine::user(disk, "reader", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL);
    Port* port = nullptr;
    Error error;
    REQUIRE(open_port(api::unwrap(user), api::unwrap(context), &port, &error) == 0);
    struct Ordered : Request {
        std::vector<unsigned>* order;
        unsigned number;
        std::byte data[512];
    };
    std::vector<unsigned> order;
    Ordered requests[4];
    embedder::run_on(context, [&] {
        port->park();
        port->park();
        for (unsigned i = 0; i < 4; i++) {
            Ordered& request = requests[i];
            request.order = &order;
            request.number = i;
            request.op = Op::read;
            request.offset = 512 * i;
            request.length = 512;
            request.set_buffer(request.data, 512);
            request.complete = [](Request* r) {
                auto* self = static_cast<Ordered*>(r);
                CHECK_EQ(self->result, 0);
                self->order->push_back(self->number);
            };
            submit(*port, &request);
        }
        CHECK(port->withdraw(&requests[1]));
        CHECK(!port->withdraw(&requests[1]));
    });
    CHECK(order.empty());
    // What the user may not do is refused at once, parked or not.
    std::byte data[512] = {};
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error, context), -EPERM);
    embedder::run_on(context, [&] { port->unpark(); });
    CHECK(order.empty());
    embedder::run_on(context, [&] { port->unpark(); });
    std::vector<unsigned> expected{0, 2, 3};
    CHECK(eventually([&] {
        bool all = false;
        embedder::run_on(context, [&] { all = order.size() == 3; });
        return all;
    }));
    CHECK(order == expected);
    // One pause, from the first park to the last unpark.
    CHECK_EQ(port->pauses.get(), 1);
    CHECK(port->pause_ns_max.get() > 0);
    CHECK_EQ(port->pause_ns_total.get(), port->pause_ns_max.get());
    close_user_and_node(user, disk);
}

// A context goes: the ports of the others stay.
TEST(a_port_is_taken_by_its_context) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_context_t* contexts[] = {engine.context("io0"), engine.context("io1"), engine.context("io2")};
    engine_user_t* user = Engine::user(disk, "one");
    Port* ports[3] = {};
    Error error;
    for (unsigned i = 0; i < 3; i++) {
        REQUIRE(open_port(api::unwrap(user), api::unwrap(contexts[i]), &ports[i], &error) == 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(engine_context_close(contexts[i], &error), 0);
        for (unsigned k = i + 1; k < 3; k++) {
            CHECK(api::unwrap(user)->find_port(api::unwrap(contexts[k])) == ports[k]);
        }
    }
    close_user_and_node(user, disk);
}

TEST(a_port_that_is_still_parked_must_not_go) {
    CHECK_ABORTS("parks_ == 0", {
        Engine engine;
        Ram ram;
        engine_node_t* disk = open_ram(engine, ram, "disk");
        engine_context_t* context = engine.context("io0");
        engine_user_t* user = Engine::user(disk, "one");
        Port* parked = nullptr;
        Error error;
        REQUIRE(open_port(api::unwrap(user), api::unwrap(context), &parked, &error) == 0);
        embedder::run_on(context, [&] { parked->park(); });
        engine_user_close(user, &error);
    });
}

TEST(replacing_moves_the_users_to_another_node) {
    Engine engine;
    Ram one, two;
    engine_node_t* a = open_ram(engine, one, "a");
    engine_node_t* b = open_ram(engine, two, "b");
    engine_user_t* user = Engine::user(a, "one", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    one.bytes[100] = std::byte{'a'};
    two.bytes[100] = std::byte{'b'};
    Error error;
    char buffer[512];
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error), 512);
    CHECK(buffer[100] == 'a');
    CHECK_EQ(engine_node_replace(a, b, 0, &error), 0);
    CHECK_EQ(io(user, ENGINE_OP_READ, buffer, 0, 512, 0, &error), 512);
    CHECK(buffer[100] == 'b');
    CHECK_EQ(engine_node_replace(b, b, 0, &error), 0);
    CHECK_EQ(engine_node_close(a, &error), 0);
    close_user_and_node(user, b);
}

// Its own edge stays, as it was, and so does its size.
TEST(an_overlay_replaces_what_is_below_it) {
    Engine engine;
    engine_node_t* base = engine.open({{"driver", "memory"}, {"node-name", "base"}, {"size", "1M"}});
    engine_user_t* user = Engine::user(base, "one", ENGINE_PERM_WRITE, ENGINE_PERM_ALL);
    Error error;
    std::string block(4096, 'b'), read(4096, '?');
    CHECK_EQ(io(user, ENGINE_OP_WRITE, block.data(), 0, 4096, 0, &error), 4096);
    engine_user_close(user, &error);
    user = Engine::user(base, "one", ENGINE_PERM_CONSISTENT_READ,
                        ENGINE_PERM_ALL);  // an overlay wants its backing node to stand still
    engine_node_t* top = engine.open({{"driver", "overlay"},
                                      {"node-name", "top"},
                                      {"backing", "base"},
                                      {"size", "2M"},
                                      {"data", "memory"}});
    CHECK_EQ(engine_node_replace(base, top, 0, &error), 0);
    CHECK_EQ(info_of(top).bytes, 2 << 20);
    CHECK_EQ(info_of(top).user_count, 1);
    CHECK_EQ(info_of(base).user_count, 1);
    CHECK_EQ(io(user, ENGINE_OP_READ, read.data(), 0, 4096, 0, &error), 4096);
    CHECK(read == block);
    CHECK_EQ(stats_of(top).op[ENGINE_OP_READ].requests, 1);
    engine_user_close(user, &error);
    CHECK_EQ(engine_node_close(base, &error), -EBUSY);
    CHECK_EQ(engine_node_close(top, &error), 0);
    CHECK_EQ(info_of(base).user_count, 0);
    CHECK_EQ(engine_node_close(base, &error), 0);
}

// Who opened the parent has not opened what stands there now; and what stood there has nobody else.
TEST(a_replacement_is_not_closed_with_the_parent) {
    Engine engine;
    engine_node_t* parent = engine.open({{"driver", "passthrough"},
                                         {"node-name", "parent"},
                                         {"file.driver", "memory"},
                                         {"file.node-name", "old"},
                                         {"file.size", "1M"}});
    engine_node_t* old = engine_node_find(engine, "old");
    engine_node_t* other = engine.open({{"driver", "memory"}, {"node-name", "other"}, {"size", "1M"}});
    Error error;
    CHECK_EQ(engine_node_replace(old, other, 0, &error), 0);
    CHECK_EQ(engine_node_close(parent, &error), 0);
    CHECK(engine_node_find(engine, "other") == other);
    REQUIRE(engine_node_find(engine, "old") == old);
    CHECK_EQ(engine_node_close(other, &error), 0);
    CHECK_EQ(engine_node_close(old, &error), 0);
}

TEST(a_replacement_must_be_as_large_and_allow_as_much) {
    Engine engine;
    Ram one, two;
    engine_node_t* a = open_ram(engine, one, "a");
    engine_node_t* b = open_ram(engine, two, "b");
    engine_user_t* user = Engine::user(a, "writer", ENGINE_PERM_WRITE, ENGINE_PERM_ALL);
    api::unwrap(b)->bytes.store_relaxed(disk_bytes - 4096);
    Error error;
    CHECK_EQ(engine_node_replace(a, b, 0, &error), -EINVAL);
    CHECK(error.says("resize it first"));
    api::unwrap(b)->bytes.store_relaxed(disk_bytes);
    engine_user_t* jealous = Engine::user(b, "jealous", 0, ENGINE_PERM_CONSISTENT_READ);
    CHECK_EQ(engine_node_replace(a, b, 0, &error), -EBUSY);
    CHECK(error.says("'writer'") && error.says("'jealous'"));
    std::byte data[512] = {};
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error), 512);
    CHECK_EQ(stats_of(a).op[ENGINE_OP_WRITE].requests, 1);
    close_user_and_node(jealous, b);
    close_user_and_node(user, a);
}

TEST(only_filters_are_inserted_and_removed) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    Error error;
    engine_node_t* made = nullptr;
    engine_option null[] = {{"driver", "null"}};
    CHECK_EQ(engine_node_insert_filter(disk, null, 1, 0, &made, &error), -EINVAL);
    CHECK(error.says("driver null is no filter"));
    CHECK_EQ(engine_node_remove_filter(disk, 0, nullptr, &error), -EINVAL);
    CHECK(error.says("driver ram is no filter"));
    engine_option unknown[] = {{"driver", "nonsense"}};
    CHECK_EQ(engine_node_insert_filter(disk, unknown, 1, 0, &made, &error), -ENOENT);
    Node* filter = nullptr;
    CHECK_EQ(insert_filter(api::unwrap(disk), filter_driver, bag_of({{"file", "disk"}}), second_ns, &filter,
                           &error),
             -EINVAL);
    CHECK(error.says("leave it out"));
    CHECK_EQ(engine_node_close(disk, &error), 0);
}

// raw above a RAM disk that was opened with it cannot be had here, so the owner is a filter.
TEST(what_was_opened_along_with_a_node_stays_owned) {
    Engine engine;
    Error error;
    Node* owner = nullptr;
    REQUIRE(open_node(*api::unwrap(engine.get()), filter_driver,
                      bag_of({{"node-name", "owner"}, {"file.driver", "null"}, {"file.node-name", "below"}}),
                      &owner, &error) == 0);
    engine_node_t* below = engine_node_find(engine, "below");
    REQUIRE(below != nullptr);
    engine_node_t* middle = nullptr;
    REQUIRE(insert(below, "middle", &middle, &error) == 0);
    char role[16];
    CHECK(engine_node_get_child(api::wrap(owner), 0, role, sizeof role) == middle);
    CHECK(engine_node_get_child(middle, 0, role, sizeof role) == below);
    engine_node_t* freed = below;
    REQUIRE(engine_node_remove_filter(middle, 0, &freed, &error) == 0);
    CHECK(freed == nullptr);  // the owner has it again
    CHECK(engine_node_get_child(api::wrap(owner), 0, role, sizeof role) == below);
    // Without an owner above it, it is the caller's.
    REQUIRE(engine_node_remove_filter(api::wrap(owner), 0, &freed, &error) == 0);
    CHECK(freed == below);
    CHECK(engine_node_find(engine, "below") == below);
    CHECK_EQ(engine_node_close(below, &error), 0);
    CHECK(engine_node_find(engine, "below") == nullptr);
}

TEST(closing_the_owner_while_a_filter_stands_between_leaves_the_filter_the_owner) {
    Engine engine;
    Error error;
    Node* owner = nullptr;
    REQUIRE(open_node(*api::unwrap(engine.get()), filter_driver,
                      bag_of({{"node-name", "owner"}, {"file.driver", "null"}, {"file.node-name", "below"}}),
                      &owner, &error) == 0);
    engine_node_t* middle = nullptr;
    REQUIRE(insert(engine_node_find(engine, "below"), "middle", &middle, &error) == 0);
    CHECK_EQ(engine_node_close(api::wrap(owner), &error), 0);
    CHECK(engine_node_find(engine, "below") != nullptr);
    CHECK_EQ(engine_node_close(middle, &error), 0);
    CHECK(engine_node_find(engine, "below") == nullptr);
}

TEST(what_is_pending_settles_before_children_change) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    Error error;
    engine_node_t* upper = nullptr;
    engine_node_t* lower = nullptr;
    REQUIRE(insert(disk, "upper", &upper, &error) == 0);
    unsigned settled = counts.settled;
    REQUIRE(insert(disk, "lower", &lower, &error) == 0);  // changes the child of `upper`
    CHECK_EQ(counts.settled, settled + 1);
    counts.settle_result = -EIO;
    CHECK_EQ(engine_node_remove_filter(lower, 0, nullptr, &error), -EIO);
    CHECK(error.says("nothing was changed"));
    counts.settle_result = 0;
    char role[16];
    CHECK(engine_node_get_child(upper, 0, role, sizeof role) == lower);
    CHECK_EQ(engine_node_remove_filter(lower, 0, nullptr, &error), 0);
    CHECK_EQ(engine_node_remove_filter(upper, 0, nullptr, &error), 0);
    CHECK_EQ(engine_node_close(disk, &error), 0);
}

TEST(a_resize_finds_nothing_inside) {
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_node_t* filter = nullptr;
    Error error;
    engine_user_t* user = Engine::user(disk, "load", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    REQUIRE(insert(disk, "filter", &filter, &error) == 0);
    engine_workload_t* load = verified_load(engine, user, engine.context("io0"), 0, 7);
    for (uint64_t bytes = disk_bytes; bytes < disk_bytes + 20 * 4096; bytes += 4096) {
        CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, bytes, 0, 0, &error), 0);
        CHECK_EQ(api::unwrap(disk)->bytes.load_relaxed(), bytes);
        CHECK_EQ(api::unwrap(filter)->bytes.load_relaxed(), bytes);
    }
    end_load(load);
    engine_user_t* reader = Engine::user(filter, "reader", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL);
    CHECK_EQ(io(reader, ENGINE_OP_RESIZE, nullptr, 4096, 0, 0, &error), -EPERM);
    CHECK(error.says("user reader holds no permission to resize on node filter"));
    CHECK_EQ(engine_user_close(reader, &error), 0);
    CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
    close_user_and_node(user, disk);
}

TEST(background_work_moves_home_when_its_context_leaves) {
    Engine engine;
    Ram ram;
    engine_context_t* context = engine.context("io0");
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_user_t* user = Engine::user(disk, "one", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    Error error;
    Node* filter = nullptr;
    REQUIRE(insert_filter(api::unwrap(disk), filter_driver,
                          bag_of({{"node-name", "filter"}, {"context", "io0"}}), second_ns, &filter,
                          &error) == 0);
    CHECK(counts.home == api::unwrap(context));
    std::byte data[512] = {};
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error, context), 512);
    CHECK_EQ(stats_of(disk).channels, 1);
    unsigned stopped = counts.stopped;
    CHECK_EQ(engine_context_close(context, &error), 0);
    CHECK_EQ(counts.stopped, stopped + 1);
    CHECK(counts.home == api::unwrap(engine.get())->main());
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error), 512);
    CHECK_EQ(engine_node_remove_filter(api::wrap(filter), 0, nullptr, &error), 0);
    close_user_and_node(user, disk);

    Node* nowhere = nullptr;
    CHECK_EQ(
        open_node(*api::unwrap(engine.get()), ram_driver, bag_of({{"context", "io0"}}), &nowhere, &error),
        -ENOENT);
    CHECK(error.says("there is no context 'io0'"));
}

// Everybody at once: filters, users, contexts, resizes, on one disk, from several threads.
TEST(changes_from_many_threads_do_not_get_in_each_others_way) {
#ifdef EMBEDDER_TSAN
    constexpr int rounds = 12;
#else
    constexpr int rounds = 40;
#endif
    Engine engine;
    Ram ram;
    engine_node_t* disk = open_ram(engine, ram, "disk");
    engine_user_t* user = Engine::user(disk, "load", ENGINE_PERM_ALL, ENGINE_PERM_ALL);
    engine_workload_t* load = verified_load(engine, user, engine.context("io0"), 0, 3);
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; t++) {
        threads.emplace_back([&, t] {
            Error error;
            std::string name = "filter" + std::to_string(t);
            for (int i = 0; i < rounds; i++) {
                engine_node_t* filter = nullptr;
                int result = insert(disk, name.c_str(), &filter, &error);
                CHECK_EQ(result, 0);
                if (result == 0) CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
            }
        });
    }
    threads.emplace_back([&] {
        Error error;
        for (int i = 0; i < rounds; i++) {
            CHECK_EQ(io(user, ENGINE_OP_RESIZE, nullptr, disk_bytes + 4096 * (i % 8u), 0, 0, &error), 0);
        }
    });
    threads.emplace_back([&] {
        Error error;
        std::byte data[512] = {};
        for (int i = 0; i < rounds / 4; i++) {
            engine_context_t* context = engine.context("passing");
            CHECK_EQ(io(user, ENGINE_OP_READ, data, disk_bytes / 2, 512, 0, &error, context), 512);
            CHECK_EQ(engine_context_close(context, &error), 0);
        }
    });
    for (std::thread& thread : threads) thread.join();
    end_load(load);
    CHECK_EQ(stats_of(disk).in_flight, 0);
    close_user_and_node(user, disk);
}

}  // namespace
