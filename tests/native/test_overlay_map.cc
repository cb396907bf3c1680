// What an overlay is made of, without requests: sets of sub-clusters, the table, the host clusters and their
// way back, and the map against a model of single sub-clusters.
#include <algorithm>
#include <set>
#include <vector>

#include "base/random.hh"
#include "check.hh"
#include "formats/overlay.hh"

namespace {

using namespace engine::formats;
using engine::coro::Executor;
using engine::coro::LockChain;
using engine::coro::RwLock;

// Nobody else is there: it holds the lock for as long as it lives.
struct Alone {
    Executor executor;
    LockChain chain{executor};
    RwLock lock;
    RwLock::ExclusiveGuard guard = lock.try_lock_exclusive(chain);
};

TEST(sets_of_sub_clusters) {
    for (unsigned first = 0; first < subs_max; first += 7) {
        for (unsigned count = 1; first + count <= subs_max; count += 9) {
            SubSet set = SubSet::range(first, count);
            for (unsigned i = 0; i < subs_max; i++) CHECK_EQ(set.has(i), i >= first && i < first + count);
            CHECK_EQ(set.next(0, subs_max, true), first);
            CHECK_EQ(set.next(first, subs_max, false), first + count);
            CHECK_EQ(set.next(first, first + 1, false), first + 1);
            SubSet rest = SubSet::range(0, subs_max);
            rest.remove(set);
            CHECK_EQ(rest.has(first), false);
            CHECK_EQ(rest.empty(), count == subs_max);
            rest.add(set);
            CHECK_EQ(rest.next(0, subs_max, false), subs_max);
        }
    }
    CHECK(SubSet::range(5, 0).empty() && SubSet().empty());
    Entry entry;
    entry.data = SubSet::range(10, 5);
    entry.zero = SubSet::range(20, 50);
    Source source{};
    CHECK(entry.run(0, subs_max, &source) == 10 && source == Source::backing);
    CHECK(entry.run(12, subs_max, &source) == 3 && source == Source::data);
    CHECK(entry.run(15, subs_max, &source) == 5 && source == Source::backing);
    CHECK(entry.run(20, 30, &source) == 10 && source == Source::zero);
    CHECK(entry.run(70, subs_max, &source) == 58 && source == Source::backing);
}

TEST(the_table_is_sparse) {
    Alone alone;
    Table table;
    REQUIRE(table.init(clusters_max));
    CHECK(table.find(alone.guard, 0).entry == nullptr);
    CHECK_EQ(table.find(alone.guard, 5).alike, 1024 * 1024 - 5);
    Entry* last = table.make(alone.guard, clusters_max - 1);
    REQUIRE(last != nullptr);
    CHECK(table.find(alone.guard, clusters_max - 1).entry == last);
    CHECK_EQ(table.find(alone.guard, clusters_max - 2000).alike, 2000 - 1024);
    last->host = 7;
    unsigned asked = 0;
    auto keep = [&](Entry&) { asked++; };
    auto let_go = [&](Entry& entry) { entry.host = no_host; };
    CHECK(table.clear_leaf(alone.guard, clusters_max - 1024, keep));  // stays: it has a host cluster
    CHECK_EQ(asked, 1024);
    CHECK(table.find(alone.guard, clusters_max - 1).entry == last && last->zero.has(127));
    CHECK(table.clear_leaf(alone.guard, clusters_max - 1024, let_go));
    Table::Found found = table.find(alone.guard, clusters_max - 1000);
    CHECK(found.entry == nullptr && found.zero && found.alike == 1000);
    Entry* again = table.make(alone.guard, clusters_max - 1);
    REQUIRE(again != nullptr);
    CHECK(again->zero.has(0) && again->zero.has(127) && again->data.empty());
    CHECK(!table.find(alone.guard, clusters_max - 1).zero);
}

TEST(a_host_cluster_comes_back_after_grace) {
    Alone alone;
    HostSpace space;
    REQUIRE(space.init(8));
    for (uint32_t i = 0; i < 8; i++) CHECK_EQ(space.allocate(alone.guard), i);
    CHECK_EQ(space.allocate(alone.guard), -ENOSPC);
    CHECK(!space.begin_rest(alone.guard));
    CHECK(space.drop(alone.guard, 3) && space.drop(alone.guard, 5));
    CHECK_EQ(space.allocate(alone.guard), -ENOSPC);
    uint32_t some[8];
    CHECK(space.begin_rest(alone.guard));
    CHECK(space.drop(alone.guard, 7));
    CHECK_EQ(space.take_rested(alone.guard, some), 0);
    space.end_rest(alone.guard, false);  // it could not be had
    CHECK_EQ(space.take_rested(alone.guard, some), 0);
    CHECK(space.begin_rest(alone.guard));
    CHECK(space.drop(alone.guard, 1));
    CHECK(!space.drop(alone.guard, 0));  // as many as may be
    space.end_rest(alone.guard, true);
    CHECK_EQ(space.allocate(alone.guard), -ENOSPC);
    CHECK_EQ(space.take_rested(alone.guard, std::span(some).first(2)), 2);
    CHECK_EQ(space.take_rested(alone.guard, std::span(some).subspan(2)), 1);
    std::sort(some, some + 3);
    CHECK(some[0] == 3 && some[1] == 5 && some[2] == 7);
    space.free(alone.guard, std::span(some).first(3));
    for (int64_t cluster : {3, 5, 7}) CHECK_EQ(space.allocate(alone.guard), cluster);
    CHECK_EQ(space.allocate(alone.guard), -ENOSPC);
    CHECK(space.drop(alone.guard, 0));
}

// --- the map against a model

constexpr unsigned cluster_bits = 12, sub_bits = 9;
constexpr uint64_t sub_bytes = 1 << sub_bits;
constexpr uint64_t clusters = 2500;  // some leaves
constexpr uint64_t bytes = (clusters << cluster_bits) - 3 * sub_bytes;
constexpr uint64_t backing_bytes = bytes / 2 / sub_bytes * sub_bytes;

struct Model {
    std::vector<Source> source = std::vector<Source>(bytes / sub_bytes, Source::backing);
    std::vector<uint64_t> host = std::vector<uint64_t>(bytes / sub_bytes, 0);
};

void compare(const Map& map, const Held& guard, const Model& model) {
    for (uint64_t at = 0; at < bytes;) {
        Extent extent = map.find(guard, at, bytes - at, 1 + static_cast<unsigned>(at % 7));
        REQUIRE(extent.length != 0 && extent.length <= bytes - at);
        for (uint64_t i = 0; i < extent.length; i += sub_bytes) {
            uint64_t sub = (at + i) / sub_bytes;
            Source wanted = model.source[sub];
            if (wanted == Source::backing && at + i >= backing_bytes) wanted = Source::zero;
            REQUIRE(extent.source == wanted);
            if (wanted == Source::data) REQUIRE(extent.host + i == model.host[sub]);
        }
        at += extent.length;
    }
}

struct Write {
    uint64_t offset = 0;
    Places places;
    // Clusters where a clear came in between, and where it hid something.
    std::set<uint64_t> touched{}, hidden{};

    void cleared(uint64_t at, bool hides) {
        uint64_t cluster = at >> cluster_bits;
        if (cluster < offset >> cluster_bits || cluster > (offset + places.length - 1) >> cluster_bits)
            return;
        touched.insert(cluster);
        if (hides) hidden.insert(cluster);
    }
};

void clear(Model& model, std::vector<Write>& under_way, uint64_t offset, uint64_t length) {
    bool hides = false;  // in this cluster
    for (uint64_t at = offset; at < offset + length; at += sub_bytes) {
        Source& source = model.source[at / sub_bytes];
        hides = hides || source == Source::data || (source == Source::backing && at < backing_bytes);
        source = Source::zero;
        uint64_t next = at + sub_bytes;
        if ((next & ((1 << cluster_bits) - 1)) != 0 && next < offset + length) continue;
        for (Write& write : under_way) write.cleared(at, hides);
        hides = false;
    }
}

// What a write does, in its two steps; `written` false: its data could not be written.
void end_write(Map& map, const Exclusive& guard, const Write& write, bool written, Model& model) {
    Map::Committed committed = map.commit(guard, write.offset, write.places, written);
    uint64_t at = write.offset;
    for (unsigned i = 0; i < write.places.count; i++) {
        const Extent& extent = write.places.extents[i];
        for (uint64_t k = 0; k < extent.length && written; k += sub_bytes) {
            uint64_t cluster = (at + k) >> cluster_bits;
            if (write.hidden.contains(cluster)) continue;  // it stays as the clear has left it
            // More is done again than must be: whole clusters, and whole leaves.
            bool may_be_left = write.touched.contains(cluster);
            if (may_be_left && map.find(guard, at + k, sub_bytes).source != Source::data) continue;
            model.source[(at + k) / sub_bytes] = Source::data;
            model.host[(at + k) / sub_bytes] = extent.host + k;
        }
        at += extent.length;
    }
    REQUIRE(at - write.offset == write.places.length);
    REQUIRE(!committed.again || (written && !write.touched.empty()));
    REQUIRE(committed.again || !written || write.hidden.empty());
}

TEST(what_a_clear_has_hidden_does_not_come_back_with_another_write) {
    Alone alone;
    Map map;
    REQUIRE(map.init({cluster_bits, sub_bits, backing_bytes}, bytes, 2 * clusters));
    Places slow, quick;
    bool dropped = false;
    map.reserve(alone.guard, 0, 2 * sub_bytes, &slow);
    map.reserve(alone.guard, 0, 2 * sub_bytes, &quick);
    CHECK_EQ(quick.extents[0].host, slow.extents[0].host);
    CHECK(!map.commit(alone.guard, 0, quick, true).again);
    CHECK_EQ(map.clear(alone.guard, sub_bytes, sub_bytes, &dropped), sub_bytes);
    CHECK(map.commit(alone.guard, 0, slow, true).again);
    CHECK(map.find(alone.guard, sub_bytes, sub_bytes).source == Source::zero);
    CHECK(map.find(alone.guard, 0, sub_bytes).source == Source::data);
    slow = Places();
    map.reserve(alone.guard, 0, 2 * sub_bytes, &slow);
    CHECK(!map.commit(alone.guard, 0, slow, true).again);
    CHECK(map.find(alone.guard, sub_bytes, sub_bytes).source == Source::data);
}

// A write that found data has its place there, and no count. It is hidden; the next write gets the same host
// cluster, writes, and is followed there by the first. Whatever is hidden now must not come back.
TEST(what_reads_as_zero_is_hidden_again_from_those_who_write_there) {
    Alone alone;
    Map map;
    REQUIRE(map.init({cluster_bits, sub_bits, backing_bytes}, bytes, 2 * clusters));
    Places first, next;
    bool dropped = false;
    map.reserve(alone.guard, 0, 2 * sub_bytes, &first);
    CHECK(!map.commit(alone.guard, 0, first, true).again);
    CHECK_EQ(map.clear(alone.guard, 0, sub_bytes, &dropped), sub_bytes);
    map.reserve(alone.guard, 0, sub_bytes, &next);
    CHECK_EQ(next.extents[0].host, first.extents[0].host);
    CHECK_EQ(map.clear(alone.guard, 0, sub_bytes, &dropped), sub_bytes);
    CHECK(map.commit(alone.guard, 0, next, true).again);
    CHECK(map.find(alone.guard, 0, sub_bytes).source == Source::zero);
}

TEST(the_map_against_a_model) {
    Alone alone;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        engine::base::Random random(seed);
        Map map;
        Model model;
        REQUIRE(map.init({cluster_bits, sub_bits, backing_bytes}, bytes, 2 * clusters));
        std::vector<Write> under_way;
        for (unsigned step = 0; step < 3000; step++) {
            uint64_t offset = random.below(bytes / sub_bytes) * sub_bytes;
            uint64_t most = random.below(4) == 0 ? bytes : 20 * sub_bytes;
            uint64_t length = std::min(bytes - offset, (1 + random.below(most / sub_bytes)) * sub_bytes);
            switch (random.below(step % 500 < 300 ? 3 : 6)) {
                case 0:
                case 1: {
                    Write write{offset, {}};
                    map.reserve(alone.guard, offset, length, &write.places);
                    REQUIRE(write.places.error == 0 && write.places.length != 0);
                    under_way.push_back(write);
                    break;
                }
                case 2:
                    if (under_way.empty()) break;
                    std::swap(under_way[random.below(under_way.size())], under_way.back());
                    end_write(map, alone.guard, under_way.back(), random.below(5) != 0, model);
                    under_way.pop_back();
                    break;
                default:
                    for (uint64_t done = 0; done < length;) {
                        bool dropped = false;
                        uint64_t cleared = map.clear(alone.guard, offset + done, length - done, &dropped);
                        REQUIRE(cleared != 0);
                        done += cleared;
                    }
                    clear(model, under_way, offset, length);
            }
            HostSpace& space = map.space();
            if (random.below(10) == 0 && under_way.empty() && space.begin_rest(alone.guard)) {
                space.end_rest(alone.guard, true);
                uint32_t some[64];
                while (unsigned count = space.take_rested(alone.guard, some)) {
                    space.free(alone.guard, std::span(some).first(count));
                }
            }
            if (step % 25 == 0) compare(map, alone.guard, model);
            REQUIRE(check::failures == 0);
        }
        for (const Write& write : under_way) end_write(map, alone.guard, write, true, model);
        compare(map, alone.guard, model);
        std::vector<uint64_t> hosts;
        for (uint64_t i = 0; i < model.host.size(); i++) {
            if (model.source[i] == Source::data) hosts.push_back(model.host[i]);
        }
        std::sort(hosts.begin(), hosts.end());
        CHECK(std::adjacent_find(hosts.begin(), hosts.end()) == hosts.end());
    }
}

}  // namespace
