// Changes that must not overlap another: the tree of what is under way, the switch to it and back, and that
// nothing is lost where parts of one block are written at the same time.
#include <random>
#include <thread>

#include "sector_disk.hh"

namespace {

using namespace sector_disk;

// --- the tree

TEST(the_tree_finds_what_overlaps) {
    std::mt19937_64 random(1);
    IntervalTree tree;
    std::vector<std::unique_ptr<Interval>> all;
    uint64_t age = 0;
    for (unsigned step = 0; step < 20000; step++) {
        if (all.size() < 5 || (random() % 2 == 0 && all.size() < 200)) {
            auto item = std::make_unique<Interval>();
            item->start = random() % 1000;
            item->end = item->start + 1 + random() % (random() % 10 == 0 ? 500 : 20);
            item->age = age++;
            tree.insert(item.get());
            all.push_back(std::move(item));
        } else {
            size_t index = random() % all.size();
            tree.erase(all[index].get());
            std::swap(all[index], all.back());
            all.pop_back();
        }
        uint64_t start = random() % 1100, end = start + 1 + random() % 50;
        size_t expected = 0, found = 0;
        for (auto& item : all) expected += item->start < end && item->end > start ? 1 : 0;
        uint64_t last = 0;
        tree.for_overlaps(start, end, [&](Interval* item) {
            CHECK(item->start < end && item->end > start && item->start >= last);
            last = item->start;
            found++;
            return true;
        });
        CHECK_EQ(found, expected);
        unsigned calls = 0;
        tree.for_overlaps(start, end, [&](Interval*) {
            calls++;
            return false;
        });
        CHECK_EQ(calls, expected == 0 ? 0 : 1);
    }
    for (auto& item : all) tree.erase(item.get());
    CHECK(tree.empty());
}

// --- on one context, where what overlaps is certain

TEST(two_parts_of_one_block_are_both_written) {
    Bench bench;
    engine_context_t* context = bench.engine.context("io0");
    Port* port = bench.port(context);
    for (unsigned round = 0; round < 3; round++) {  // the switch, then tracked
        auto fill = static_cast<char>('a' + 2 * round);
        Together both;
        both.add(Op::write, 10, 20, fill);
        both.add(Op::write, 200, 20, static_cast<char>(fill + 1));
        both.run(context, port);
        CHECK_EQ(bench.byte(9), 0);
        CHECK_EQ(bench.byte(10), fill);
        CHECK_EQ(bench.byte(29), fill);
        CHECK_EQ(bench.byte(30), 0);
        CHECK_EQ(bench.byte(200), static_cast<char>(fill + 1));
        CHECK_EQ(bench.byte(219), static_cast<char>(fill + 1));
        CHECK_EQ(bench.byte(220), 0);
    }
}

// Whatever comes first: what only the whole block's write covers must be its.
TEST(a_part_and_the_whole_of_a_block) {
    for (bool part_first : {true, false}) {
        Bench bench;
        engine_context_t* context = bench.engine.context("io0");
        Port* port = bench.port(context);
        for (unsigned round = 0; round < 3; round++) {
            auto whole = static_cast<char>('A' + round);
            Together both;
            if (part_first) both.add(Op::write, 512 + 10, 20, 'p');
            both.add(Op::write, 512, 512, whole);
            if (!part_first) both.add(Op::write, 512 + 10, 20, 'p');
            both.run(context, port);
            CHECK_EQ(bench.byte(512), whole);
            CHECK_EQ(bench.byte(512 + 9), whole);
            CHECK_EQ(bench.byte(512 + 30), whole);
            CHECK_EQ(bench.byte(1023), whole);
            unsigned char part = bench.byte(512 + 10);
            CHECK(part == 'p' || part == static_cast<unsigned char>(whole));
            CHECK_EQ(bench.byte(512 + 29), part);
        }
    }
}

// One that was with the driver before the switch is in no tree: the switch waits for it.
TEST(the_switch_waits_for_what_is_inside) {
    Bench bench;
    engine_context_t* contexts[] = {bench.engine.context("io0"), bench.engine.context("io1")};
    Together whole, part;
    whole.add(Op::write, 0, 512, 'w');
    part.add(Op::write, 10, 20, 'p');
    bench.disk().holding = true;
    whole.submit(contexts[0], bench.port(contexts[0]));
    part.submit(contexts[1], bench.port(contexts[1]));
    CHECK(eventually([&] { return bench.tracked(); }));
    for (unsigned i = 0; i < 50; i++) {
        for (engine_context_t* context : contexts) embedder::run_on(context, [] {});
    }
    CHECK_EQ(bench.disk().reads.load(), 0);
    bench.let_go(contexts[0]);
    whole.wait();
    part.wait();
    CHECK_EQ(bench.byte(9), 'w');
    CHECK_EQ(bench.byte(10), 'p');
    CHECK_EQ(bench.byte(30), 'w');
}

TEST(zeroes_in_a_part_keep_the_rest) {
    Bench bench;
    engine_context_t* context = bench.engine.context("io0");
    Port* port = bench.port(context);
    Together fill;
    fill.add(Op::write, 0, 2048, 'x');
    fill.run(context, port);
    Together both;
    both.add(Op::write_zeroes, 100, 1000);
    both.add(Op::write, 50, 50, 'y');
    both.add(Op::write, 1100, 50, 'z');
    both.run(context, port);
    CHECK_EQ(bench.byte(49), 'x');
    CHECK_EQ(bench.byte(50), 'y');
    CHECK_EQ(bench.byte(99), 'y');
    CHECK_EQ(bench.byte(100), 0);
    CHECK_EQ(bench.byte(1099), 0);
    CHECK_EQ(bench.byte(1100), 'z');
    CHECK_EQ(bench.byte(1150), 'x');
}

// --- the switch

TEST(an_idle_node_switches_back) {
    Bench bench;
    engine_context_t* contexts[] = {bench.engine.context("io0"), bench.engine.context("io1")};
    for (engine_context_t* context : contexts) bench.port(context);
    alignas(512) char buffer[512] = {};
    for (unsigned round = 0; round < 3; round++) {
        CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, 1, 1, 0, &bench.error, contexts[round % 2]), 1);
        CHECK(bench.tracked());
        CHECK(eventually([&] {
            io(bench.user, ENGINE_OP_WRITE, buffer, 512, 512, 0, &bench.error, contexts[0]);
            return !bench.tracked();
        }));
        for (const auto& channel : bench.node->control->channels) CHECK(!channel->tracked);
    }
}

TEST(a_channel_that_comes_later_is_tracked_too) {
    Bench bench;
    char byte = 'x';
    CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, &byte, 1, 1, 0, &bench.error), 1);
    engine_context_t* late = bench.engine.context("late");
    bench.port(late);
    CHECK(bench.tracked());
    CHECK_EQ(bench.node->control->channels.size(), 2);
    for (const auto& channel : bench.node->control->channels) CHECK(channel->tracked);
}

// --- from two contexts, under changes of the graph

// Each writes its own stripes of 64 bytes, eight of both in every block, and reads them back.
struct Striper {
    Bench* bench = nullptr;
    engine_context_t* context = nullptr;
    unsigned mine = 0;
    std::vector<unsigned char> shadow;
    std::atomic<bool> stop{false};
    std::atomic<unsigned> done{0};
    unsigned mismatches = 0;

    void run() {
        std::mt19937_64 random(mine + 1);
        unsigned stripes = static_cast<unsigned>(demands.bytes / 128);
        shadow.assign(demands.bytes, 0);
        while (!stop.load()) {
            Error error;
            uint64_t at = (random() % stripes) * 128 + mine * 64;
            char buffer[64];
            uint64_t kind = random() % 8;
            if (kind == 0) {
                CHECK_EQ(io(bench->user, ENGINE_OP_READ, buffer, at, 64, 0, &error, context), 64);
                if (memcmp(buffer, &shadow[at], 64) != 0) mismatches++;
            } else if (kind == 1) {
                memset(&shadow[at], 0, 64);
                CHECK_EQ(io(bench->user, ENGINE_OP_WRITE_ZEROES, nullptr, at, 64, 0, &error, context), 0);
            } else {
                memset(buffer, static_cast<char>(random()), 64);
                memcpy(&shadow[at], buffer, 64);
                uint32_t flags = kind == 2 ? ENGINE_FUA : 0;
                CHECK_EQ(io(bench->user, ENGINE_OP_WRITE, buffer, at, 64, flags, &error, context), 64);
            }
            done++;
        }
    }
};

TEST(stripes_of_two_contexts_are_kept_apart) {
    Demands with;
    with.bytes = 4096;  // eight blocks: collisions are the rule
    Bench bench(with);
    Striper stripers[2];
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2; i++) {
        stripers[i].bench = &bench;
        stripers[i].context = bench.engine.context(i == 0 ? "io0" : "io1");
        stripers[i].mine = i;
        threads.emplace_back([&striper = stripers[i]] { striper.run(); });
    }
    unsigned filters = 0;
    while (stripers[0].done.load() < 4000 || stripers[1].done.load() < 4000 || filters < 10) {
        Error error;
        engine_node_t* filter = nullptr;
        engine_option options[] = {{"driver", "passthrough"}, {"node-name", "over"}};
        CHECK_EQ(engine_node_insert_filter(api::wrap(bench.node), options, 2, 0, &filter, &error), 0);
        if (filter == nullptr) break;
        CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
        filters++;
    }
    for (Striper& striper : stripers) striper.stop = true;
    for (std::thread& thread : threads) thread.join();
    for (Striper& striper : stripers) {
        CHECK_EQ(striper.mismatches, 0);
        bool same = true;
        for (size_t i = 0; i < demands.bytes; i++) {
            bool its = i / 64 % 2 == striper.mine;
            same = same && (!its || bench.byte(i) == striper.shadow[i]);
        }
        CHECK(same);
    }
}

}  // namespace
