// The overlay: reads shine through, writes stay above; zeroes and discards hide what is below; block status;
// sharing of what is below; options and errors; short memory and space leave the old content.
#include <dirent.h>

#include "overlay_bench.hh"

namespace {

using namespace overlay_bench;

constexpr uint64_t cluster = 65536;

TEST(reads_shine_through_and_writes_stay_above) {
    for (const char* data : {"memory", "file"}) {
        Disk disk("1M", {{"driver", "overlay"}, {"node-name", "top"}, {"backing", "base"}, {"data", data}});
        CHECK(disk.shines(0, 1 << 20));
        disk.fill(3 * cluster + 512, 512, 'a');  // part of a cluster
        CHECK(disk.shines(3 * cluster, 512));
        CHECK(disk.holds(3 * cluster + 512, 512, 'a'));
        CHECK(disk.shines(3 * cluster + 1024, cluster));
        disk.fill(5 * cluster - 1024, 3 * cluster + 2048, 'b');  // across clusters
        CHECK(disk.shines(4 * cluster, cluster - 1024));
        CHECK(disk.holds(5 * cluster - 1024, 3 * cluster + 2048, 'b'));
        CHECK(disk.shines(8 * cluster + 1024, cluster));
        disk.fill(5 * cluster, 4096, 'c');  // over what is there
        CHECK(disk.holds(5 * cluster, 4096, 'c') && disk.holds(5 * cluster + 4096, 4096, 'b'));
        CHECK_EQ(disk.write(10 * cluster, 4096, 'f', ENGINE_FUA), 4096);
        CHECK_EQ(disk.write(10 * cluster, 2048, 'g', ENGINE_FUA), 2048);
        CHECK(disk.holds(10 * cluster, 2048, 'g') && disk.holds(10 * cluster + 2048, 2048, 'f'));
        CHECK_EQ(disk.run(ENGINE_OP_FLUSH, 0, 0), 0);
        // What is below is as it was.
        engine_user_t* reader = Engine::user(disk.below, "reader", ENGINE_PERM_CONSISTENT_READ);
        std::vector<char> below(1 << 20);
        CHECK_EQ(io(reader, ENGINE_OP_READ, below.data(), 0, below.size(), 0, &disk.error), below.size());
        for (uint64_t at = 0; at < below.size(); at++) REQUIRE(below[at] == pattern(at));
        CHECK_EQ(engine_user_close(reader, &disk.error), 0);
        CHECK_EQ(stats_of(disk.below).op[ENGINE_OP_WRITE].requests, 1);  // the filling
    }
}

TEST(requests_in_many_parts) {
    Disk disk("1M", {{"driver", "overlay"}, {"backing", "base"}, {"cluster-size", "4k"}});
    // Parts of odd sizes, over more clusters than one step takes, some of which are there.
    for (uint64_t at = 0; at < 1 << 20; at += 12288) disk.fill(at, 512, 'x');
    constexpr uint64_t bytes = 600 * 1024;
    std::vector<char> data(bytes), back(bytes, '?');
    for (uint64_t i = 0; i < bytes; i++) data[i] = static_cast<char>(i * 7 + i / 1000);
    auto vector_of = [](std::vector<char>& buffer) {
        std::vector<engine_iovec> parts;
        uint64_t at = 0;
        for (uint64_t length = 1; at < buffer.size(); at += length, length = length * 5 % 9973 + 1) {
            length = std::min<uint64_t>(length, buffer.size() - at);
            parts.push_back({buffer.data() + at, length});
        }
        return parts;
    };
    auto run = [&](uint32_t op, std::vector<char>& buffer) {
        std::vector<engine_iovec> parts = vector_of(buffer);
        CHECK(parts.size() > 30);
        return engine_user_io(disk.user, nullptr, op, parts.data(), static_cast<uint32_t>(parts.size()), 1024,
                              bytes, 0, &disk.error);
    };
    std::vector<char> before = disk.read(0, 1 << 20);
    CHECK_EQ(run(ENGINE_OP_READ, back), bytes);
    CHECK(memcmp(back.data(), before.data() + 1024, bytes) == 0);
    CHECK_EQ(run(ENGINE_OP_WRITE, data), bytes);
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 8192, 4096), 0);
    memset(data.data() + 8192 - 1024, 0, 4096);
    CHECK_EQ(run(ENGINE_OP_READ, back), bytes);
    CHECK(data == back);
    CHECK(memcmp(disk.read(0, 1024).data(), before.data(), 1024) == 0);
    CHECK(memcmp(disk.read(1024 + bytes, 4096).data(), before.data() + 1024 + bytes, 4096) == 0);
}

// Parts of sub-clusters go through the request layer, which reads the rest from wherever it is.
TEST(any_offset_and_length) {
    Disk disk("256k", {{"driver", "overlay"}, {"backing", "base"}, {"cluster-size", "64k"}});
    std::vector<char> shadow(256 << 10);
    for (uint64_t at = 0; at < shadow.size(); at++) shadow[at] = pattern(at);
    uint64_t state = 1;
    auto below = [&state](uint64_t n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (state >> 33) % n;
    };
    for (unsigned step = 0; step < 600; step++) {
        uint64_t length = 1 + below(step % 5 == 0 ? 100000 : 1500);
        uint64_t at = below(shadow.size() - length + 1);
        uint64_t kind = below(4);
        if (kind == 0) {
            CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, at, length), 0);
            std::fill_n(shadow.begin() + static_cast<ptrdiff_t>(at), length, 0);
        } else if (kind < 3) {
            disk.fill(at, length, static_cast<char>('a' + step % 26));
            std::fill_n(shadow.begin() + static_cast<ptrdiff_t>(at), length, 'a' + step % 26);
        } else {
            std::vector<char> got = disk.read(at, length);
            CHECK(std::equal(got.begin(), got.end(), shadow.begin() + static_cast<ptrdiff_t>(at)));
        }
    }
    CHECK(disk.read(0, shadow.size()) == shadow);
}

TEST(zeroes_and_discards_hide_what_is_below) {
    for (const char* data : {"memory", "file"}) {
        Disk disk("1M", {{"driver", "overlay"}, {"backing", "base"}, {"data", data}});
        CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 512, 1024), 0);  // nothing of it was above
        CHECK(disk.shines(0, 512) && disk.holds(512, 1024, 0) && disk.shines(1536, cluster));
        disk.fill(4 * cluster, 3 * cluster, 'a');
        CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 4 * cluster, cluster), 0);  // a whole one
        CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 5 * cluster + 512, 512), 0);
        CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 6 * cluster, cluster, ENGINE_MAY_UNMAP), 0);
        CHECK(disk.holds(4 * cluster, cluster, 0));
        CHECK(disk.holds(5 * cluster, 512, 'a') && disk.holds(5 * cluster + 512, 512, 0));
        CHECK(disk.holds(5 * cluster + 1024, cluster - 1024, 'a'));
        CHECK(disk.holds(6 * cluster, cluster, 0) && disk.shines(7 * cluster, cluster));
        disk.fill(4 * cluster + 1024, 512, 'b');  // in what was dropped
        CHECK(disk.holds(4 * cluster, 1024, 0) && disk.holds(4 * cluster + 1024, 512, 'b'));
        CHECK(disk.holds(4 * cluster + 1536, 4096, 0));
        CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 0, 1 << 20, ENGINE_NO_FALLBACK), 0);
        CHECK(disk.holds(0, 1 << 20, 0));
        disk.fill(9 * cluster, 512, 'c');
        CHECK(disk.holds(9 * cluster, 512, 'c') && disk.holds(9 * cluster + 512, cluster, 0));
    }
}

TEST(block_status) {
    Disk disk("1M", {{"driver", "overlay"}, {"backing", "base"}, {"size", "2M"}});
    CHECK_EQ(disk.status(0, 2 << 20), "D1048576 Z1048576");
    disk.fill(3 * cluster, 1024, 'a');  // data here and data below are alike
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 5 * cluster, cluster + 512), 0);
    disk.fill(20 * cluster, cluster, 'a');
    CHECK_EQ(disk.status(0, 2 << 20), "D327680 Z66048 D654848 Z262144 D65536 Z720896");
    CHECK_EQ(disk.status(5 * cluster + 512, 2 * cluster, 1), "Z65536");
    CHECK_EQ(disk.status(100, 200), "D200");
    CHECK_EQ(disk.status(0, 2 << 20, 2), "D327680 Z66048");
    CHECK_EQ(info_of(disk.node).holes, 1);
    // Holes below are holes here.
    engine_node_t* hollow = disk.engine.open({{"driver", "overlay"},
                                              {"backing.driver", "memory"},
                                              {"backing.size", "1M"},
                                              {"cluster-size", "4k"}});
    std::swap(disk.node, hollow);
    CHECK_EQ(engine_user_close(disk.user, &disk.error), 0);
    disk.user = Engine::user(disk.node, "test");
    CHECK_EQ(disk.status(0, 1 << 20), "Z1048576");
    for (uint64_t at = 0; at < 1 << 20; at += 65536) disk.fill(at + 4096, 4096, 'a');
    CHECK_EQ(disk.status(0, 131072), "Z4096 D4096 Z61440 D4096 Z57344");
    CHECK_EQ(info_of(child_of(disk.node, 0)).read_only, 1);
    CHECK_EQ(engine_node_close(hollow, &disk.error), 0);
}

TEST(a_larger_disk_and_one_of_an_odd_size) {
    {
        Disk disk("1M",
                  {{"driver", "overlay"}, {"backing", "base"}, {"size", "3M"}, {"cluster-size", "512k"}});
        CHECK_EQ(info_of(disk.node).bytes, 3 << 20);
        CHECK_EQ(info_of(disk.node).request_alignment, 4096);
        CHECK(disk.shines(0, 1 << 20) && disk.holds(1 << 20, 2 << 20, 0));
        disk.fill((1 << 20) - 4096, 8192, 'e');  // across the end of what is below
        CHECK(disk.holds((1 << 20) - 4096, 8192, 'e') && disk.shines((1 << 20) - 8192, 4096));
        CHECK(disk.holds((1 << 20) + 4096, 4096, 0));
        CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 3 << 20), 0);
        CHECK(disk.holds(0, 3 << 20, 0));
    }
    Disk disk("1000", {{"driver", "overlay"}, {"backing", "base"}});
    CHECK_EQ(info_of(disk.node).bytes, 1024);
    std::vector<char> all = disk.read(0, 1024);
    for (uint64_t at = 0; at < 1024; at++) REQUIRE(all[at] == (at < 1000 ? pattern(at) : 0));
    CHECK_EQ(disk.status(0, 1024), "D1000 Z24");
    disk.fill(512, 512, 'z');
    CHECK(disk.holds(512, 512, 'z') && disk.shines(0, 512));
    Error error;
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 4096, 0), -ENOTSUP);
    CHECK(disk.error.says("an overlay keeps the size that it was opened with"));
}

// A disk that is much larger than its table would be, if that was not sparse.
TEST(a_huge_disk_is_discarded_in_no_memory) {
    Disk disk("1M", {{"driver", "overlay"}, {"backing", "base"}, {"size", "16T"}});
    const uint64_t end = uint64_t{16} << 40;
    disk.fill(end - 4096, 4096, 'e');
    disk.fill(end / 2, 4096, 'm');
    CHECK(disk.holds(end - 4096, 4096, 'e') && disk.holds(end - 8192, 4096, 0));
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, end), 0);
    CHECK(disk.holds(0, 1 << 20, 0) && disk.holds(end - 4096, 4096, 0) && disk.holds(end / 2, 4096, 0));
    CHECK_EQ(disk.status(0, uint64_t{1} << 30), "Z1073741824");
}

TEST(two_overlays_share_what_is_below) {
    Disk disk("1M", {{"driver", "overlay"}, {"node-name", "one"}, {"backing", "base"}});
    engine_node_t* other =
        disk.engine.open({{"driver", "overlay"}, {"node-name", "two"}, {"backing", "base"}});
    engine_user_t* user = Engine::user(other, "other");
    char data[512];
    memset(data, 'o', sizeof data);
    disk.fill(0, 512, 'd');
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 512, 512, 0, &disk.error), 512);
    CHECK(disk.holds(0, 512, 'd') && disk.shines(512, 4096));
    CHECK_EQ(io(user, ENGINE_OP_READ, data, 0, 512, 0, &disk.error), 512);
    CHECK(data[0] == pattern(0));
    engine_user_t* writer = nullptr;
    CHECK_EQ(
        engine_user_create(disk.below, "writer", ENGINE_PERM_WRITE, ENGINE_PERM_ALL, &writer, &disk.error),
        -EBUSY);
    CHECK(disk.error.says("'node one'"));
    CHECK_EQ(engine_user_close(user, &disk.error), 0);
    CHECK_EQ(engine_node_close(other, &disk.error), 0);
}

TEST(a_read_only_view) {
    Disk disk("1M", {{"driver", "memory"}, {"size", "0"}});
    engine_node_t* node =
        disk.engine.open({{"driver", "overlay"}, {"backing", "base"}, {"read-only", "on"}, {"size", "2M"}});
    engine_user_t* user = Engine::user(node, "reader", ENGINE_PERM_CONSISTENT_READ);
    char data[1024];
    CHECK_EQ(io(user, ENGINE_OP_READ, data, (1 << 20) - 512, 1024, 0, &disk.error), 1024);
    CHECK(data[511] == pattern((1 << 20) - 1) && data[512] == 0);
    CHECK_EQ(engine_user_close(user, &disk.error), 0);
    CHECK_EQ(engine_node_close(node, &disk.error), 0);
}

unsigned entries_of(const char* directory) {
    DIR* listing = opendir(directory);
    REQUIRE(listing != nullptr);
    unsigned count = 0;
    while (readdir(listing) != nullptr) count++;
    closedir(listing);
    return count;
}

TEST(the_unnamed_file_leaves_nothing) {
    char directory[] = "native-test-overlay-XXXXXX";
    REQUIRE(mkdtemp(directory) != nullptr);
    {
        Disk disk("1M",
                  {{"driver", "overlay"}, {"backing", "base"}, {"data", "file"}, {"directory", directory}});
        disk.fill(0, 1 << 20, 'a');
        CHECK_EQ(entries_of(directory), 2);
        engine_node_info info = info_of(child_of(disk.node, 1));
        CHECK_EQ(std::string_view(info.driver), "file");
        CHECK_EQ(std::string(info.filename), std::string(directory) + " (unnamed file)");
        CHECK_EQ(info.bytes, 2 << 20);
        // What is discarded goes back to the file system.
        CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 1 << 20), 0);
        engine_user_t* reader = nullptr;
        CHECK_EQ(engine_user_create(child_of(disk.node, 1), "reader", ENGINE_PERM_CONSISTENT_READ,
                                    ENGINE_PERM_ALL, &reader, &disk.error),
                 0);
        auto is_empty = [&] {
            engine_extent extent{};
            int64_t count = engine_user_block_status(reader, nullptr, 0, 2 << 20, &extent, 1, &disk.error);
            return count == 1 && extent.flags == ENGINE_EXTENT_ZERO && extent.length == 2 << 20;
        };
        CHECK(eventually(is_empty));
        CHECK_EQ(engine_user_close(reader, &disk.error), 0);
    }
    CHECK_EQ(rmdir(directory), 0);
}

TEST(its_lock_is_listed) {
    Engine engine(ENGINE_LOCKING_PER_NODE, true);
    engine_node_t* node = engine.open(
        {{"driver", "overlay"}, {"node-name", "top"}, {"backing.driver", "memory"}, {"backing.size", "1M"}});
    engine_user_t* user = Engine::user(node, "test");
    char data[512] = {};
    Error error;
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error), 512);
    CHECK_EQ(io(user, ENGINE_OP_READ, data, 0, 512, 0, &error), 512);
    CHECK_EQ(engine_lock_count(engine), 4);
    static engine_lock_info info;
    info.size = sizeof info;
    unsigned found = 0;
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(engine_lock_get(engine, i, &info), 0);
        if (std::string_view(info.lock) != "meta") continue;
        found++;
        CHECK_EQ(std::string_view(info.owner), "top");
        CHECK_EQ(info.rank, 2);
        CHECK_EQ(info.acquisitions, 5);  // two looks and two steps of the write, a look of the read
        CHECK_EQ(info.hold_ns.count, 5);
    }
    CHECK_EQ(found, 1);
    CHECK_EQ(engine_lock_get(engine, 4, &info), -ENOENT);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(options_and_their_errors) {
    Disk disk("1M", {{"driver", "memory"}, {"size", "0"}});
    auto refused = [&](Engine::Options options, int errnum, const char* text) {
        engine_node_t* node = nullptr;
        Error error;
        CHECK_EQ(disk.engine.open(options, &node, &error), -errnum);
        if (!CHECK(error.says(text))) fprintf(stderr, "  it says: %s\n", error.message);
        CHECK_EQ(engine_lock_count(disk.engine), 2);  // no node is left
    };
    refused({{"driver", "overlay"}}, EINVAL,
            "driver overlay needs a 'backing': give backing.driver=…, or the name of a node");
    refused({{"driver", "overlay"}, {"filename", "disk.img"}}, EINVAL,
            "option 'filename': it could be either file: write backing.driver=…,backing.filename=…");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"cluster-size", "96k"}}, EINVAL,
            "overlay: option 'cluster-size': it must be a power of two");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"cluster-size", "1M"}}, EINVAL,
            "option 'cluster-size' = '1M' is not within its range (4k..512k)");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"data", "tape"}}, EINVAL, "memory|file");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"size", "5T"}, {"cluster-size", "4k"}}, EFBIG,
            "is too large for clusters of 4096 bytes, with which it may have 4398046511104");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"size", "40T"}}, EFBIG,
            "bytes are more than a memory disk can have");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"data", "memory"}, {"file.driver", "null"}}, EINVAL,
            "option 'data': 'file' says already where data goes");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"directory", "/tmp"}}, EINVAL,
            "option 'directory': there is no unnamed file to put there: add data=file");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"data", "file"}, {"directory", "/nowhere"}}, ENOENT,
            "directory '/nowhere': cannot make an unnamed file in it: No such file or directory");
    refused({{"driver", "overlay"}, {"backing", "base"}, {"data", "file"}, {"directory", "/dev/null"}},
            ENOTDIR, "with unnamed=on it must be a directory");
    refused({{"driver", "file"}, {"filename", "/tmp"}, {"unnamed", "on"}, {"read-only", "on"}}, EINVAL,
            "option 'unnamed': a new file that cannot be written is of no use");
}

// --- space and memory that are short

TEST(a_full_data_node_leaves_the_old_content) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    disk.fill(0, 4096, 'a');
    shelf.full = true;
    CHECK_EQ(disk.write(4096, 8192, 'b'), -ENOSPC);
    CHECK(disk.error.says("node shelf: the shelf is full"));
    CHECK(disk.shines(4096, 8192));
    CHECK_EQ(disk.write(0, 512, 'b'), -ENOSPC);
    CHECK(disk.holds(0, 4096, 'a'));
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 512, 512), 0);
    CHECK_EQ(disk.write(512, 512, 'b'), -ENOSPC);
    CHECK(disk.holds(512, 512, 0));
    shelf.full = false;
    disk.fill(4096, 8192, 'c');
    CHECK(disk.holds(4096, 8192, 'c'));
}

TEST(a_data_node_that_is_too_small) {
    Shelf shelf(4 * 4096);
    ShelfDisk disk("1M", shelf);
    for (uint64_t at = 0; at < 4; at++) disk.fill(at * 8192, 4096, static_cast<char>('a' + at));
    CHECK_EQ(disk.write(65536, 4096, 'x'), -ENOSPC);
    CHECK(
        disk.error.says("node top: write of 4096 bytes at offset 65536: the data node has no free cluster"));
    CHECK_EQ(disk.write(24576, 8192, 'x'), -ENOSPC);  // its first half has a place
    CHECK(disk.shines(65536, 4096) && disk.shines(28672, 4096) && disk.holds(24576, 4096, 'x'));
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 4096), 0);
    CHECK(eventually([&] { return disk.write(65536, 4096, 'y') == 4096; }));
    CHECK(disk.holds(65536, 4096, 'y') && disk.holds(0, 4096, 0) && disk.holds(8192, 4096, 'b'));
}

#ifndef EMBEDDER_TSAN
// The hook is the process's own, so the sanitizer's threads may meet it.
struct Shortage {
    int64_t k;
    bool lasting;
    std::atomic<int64_t> seen{0};
    static int refuse(size_t, void* opaque) {
        auto* self = static_cast<Shortage*>(opaque);
        int64_t number = self->seen++;
        return (self->lasting ? number >= self->k : number == self->k) ? 1 : 0;
    }
};

TEST(short_memory_leaves_the_old_content) {
    for (bool lasting : {false, true}) {
        for (uint32_t op : {ENGINE_OP_WRITE, ENGINE_OP_DISCARD, ENGINE_OP_READ, ENGINE_OP_WRITE_ZEROES}) {
            bool struck = true;
            for (int64_t k = 0; struck; k++) {
                Shelf shelf(2 << 20);
                ShelfDisk disk("1M", shelf);
                disk.fill(4096, 512, 'a');
                CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 8192, 4096), 0);
                disk.fill(0, 512, 'a');
                std::vector<char> before = disk.read(0, 1 << 20), after(65536);
                Shortage shortage{k, lasting};
                engine_set_allocation_hook(Shortage::refuse, &shortage);
                std::vector<char> data(65536, 'w');
                int64_t result = io(disk.user, op, data.data(), 0, 65536, 0, &disk.error);
                engine_set_allocation_hook(nullptr, nullptr);
                struck = shortage.seen > k;
                if (result < 0) {
                    CHECK_EQ(result, -ENOMEM);
                    CHECK(struck);
                    if (op != ENGINE_OP_WRITE_ZEROES) CHECK(disk.error.message[0] != '\0');
                }
                after = disk.read(0, 65536);
                for (uint64_t at = 0; at < 65536; at++) {
                    char now = op == ENGINE_OP_WRITE ? 'w' : op == ENGINE_OP_READ ? before[at] : 0;
                    REQUIRE(after[at] == now || (result < 0 && after[at] == before[at]));
                }
                disk.fill(0, 65536, 'z');
                CHECK(disk.holds(0, 65536, 'z'));
                CHECK(k < 1000);
            }
        }
    }
}

TEST(what_could_not_be_given_back_is_given_back_later) {
    Shelf shelf(2 << 20);
    ShelfDisk disk("1M", shelf);
    // So that the pools have what requests and passes take, but for the grace.
    disk.fill(0, 4096, 'a');
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, 4096), 0);
    CHECK(eventually([&] { return disk.given_back() == 1; }));
    disk.let_time_pass();
    for (uint64_t at = 0; at < 3; at++) disk.fill(at * 4096, 4096, 'b');
    Shortage shortage{0, true};
    engine_set_allocation_hook(Shortage::refuse, &shortage);
    int64_t result = disk.run(ENGINE_OP_DISCARD, 0, 4096);
    bool asked = eventually([&] { return shortage.seen != 0; });
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(result, 0);
    CHECK(asked);
    disk.let_time_pass();
    CHECK_EQ(disk.given_back(), 1);
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 8192, 4096), 0);
    CHECK(eventually([&] { return disk.given_back() == 3; }));
    CHECK(disk.holds(0, 4096, 0) && disk.holds(4096, 4096, 'b') && disk.holds(8192, 4096, 0));
}

TEST(an_overlay_is_opened_or_not) {
    for (bool lasting : {false, true}) {
        Disk disk("1M", {{"driver", "memory"}, {"size", "0"}});
        bool struck = true;
        for (int64_t k = 0; struck; k++) {
            Shortage shortage{k, lasting};
            engine_node_t* node = nullptr;
            Error error;
            engine_set_allocation_hook(Shortage::refuse, &shortage);
            int result = disk.engine.open({{"driver", "overlay"}, {"node-name", "top"}, {"backing", "base"}},
                                          &node, &error);
            engine_set_allocation_hook(nullptr, nullptr);
            struck = shortage.seen > k;
            if (result == 0) {
                CHECK_EQ(engine_node_close(node, &error), 0);
            } else {
                CHECK_EQ(result, -ENOMEM);
                CHECK(struck && error.message[0] != '\0');
            }
            CHECK_EQ(engine_lock_count(disk.engine), 2);
        }
    }
}
#endif

}  // namespace
