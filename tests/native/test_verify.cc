// The verify filter, in virtual time: that what differs is found, and where; whose failure it is; what goes
// to both children and how. Order and cancelling are in test_verify_order.cc, threads in test_verify_load.cc.
#include <random>
#include <string>

#include "verify_bench.hh"

namespace {

using namespace verify_bench;
using filter_load::stats_of;

// --- what is equal

// Odd offsets, many parts, all changes, against a model.
TEST(equal_children_agree) {
    Pair pair;
    std::mt19937_64 random(1);
    std::vector<char> model(disk_bytes, 0);
    for (unsigned step = 0; step < 400; step++) {
        uint64_t offset = random() % (disk_bytes - 300000);
        uint64_t length = 1 + random() % (step % 10 == 0 ? 300000 : 5000);
        char* at = model.data() + offset;
        std::vector<char> data(length, static_cast<char>('a' + step % 26));
        std::vector<engine_iovec> parts;
        for (size_t done = 0; done < length;) {
            size_t bytes = std::min<size_t>(length - done, random() % (length / 8 + 2));
            parts.push_back({data.data() + done, bytes});
            done += bytes;
        }
        auto count = static_cast<uint32_t>(parts.size());
        switch (random() % 4) {
            case 0:
                memcpy(at, data.data(), length);
                CHECK_EQ(engine_user_io(pair.user, nullptr, ENGINE_OP_WRITE, parts.data(), count, offset,
                                        length, 0, &pair.error),
                         length);
                break;
            case 1:
                memset(at, 0, length);
                CHECK_EQ(pair.run(step % 2 == 0 ? ENGINE_OP_DISCARD : ENGINE_OP_WRITE_ZEROES, nullptr, offset,
                                  length),
                         0);
                break;
            default:
                CHECK_EQ(engine_user_io(pair.user, nullptr, ENGINE_OP_READ, parts.data(), count, offset,
                                        length, 0, &pair.error),
                         length);
                CHECK(memcmp(at, data.data(), length) == 0);
        }
    }
    CHECK(model == platter.data);
    CHECK(stats_of(pair.node).op[ENGINE_OP_READ].requests > 100);
    CHECK_EQ(stats_of(pair.node).op[ENGINE_OP_READ].errors, 0);
}

TEST(the_data_of_file_reach_the_reader) {
    Pair pair;
    CHECK_EQ(pair.fill('n', 10, 100), 100);
    char data[100];
    CHECK_EQ(pair.run(ENGINE_OP_READ, data, 10, 100), 100);
    CHECK_EQ(std::string_view(data, 100), std::string(100, 'n'));
    CHECK_EQ(platter.counted(Op::read), 1);
}

// --- what differs

struct Damage {
    const char* name;
    std::function<void(Request&)> before;
    uint64_t found_at;     // after a write of 'n' from 1000 to 301000
    const char* file_has;  // in the message
    const char* reference_has;
};

const Damage damages[] = {
    {"a byte that was flipped on its way",
     [](Request& request) {
         if (request.op == Op::write) static_cast<char*>(request.iov[0].iov_base)[250000] ^= 1;
     },
     251000, "6f 6e 6e 6e 6e 6e 6e 6e", "6e 6e 6e 6e 6e 6e 6e 6e"},
    {"a write that went elsewhere",
     [](Request& request) {
         if (request.op == Op::write) request.offset += 4096;
     },
     1000, "00 00 00 00 00 00 00 00", "6e 6e 6e 6e 6e 6e 6e 6e"},
    {"a write that was lost",
     [](Request& request) {
         if (request.op == Op::write) request.op = Op::flush;
     },
     1000, "00 00 00 00 00 00 00 00", "6e 6e 6e 6e 6e 6e 6e 6e"},
};

TEST(a_difference_is_found_where_it_begins) {
    for (const Damage& damage : damages) {
        Pair pair;
        std::vector<char> data(300000, 'n'), back(300000);
        // Each child gets the same buffer: the memory has copied it before the platter's turn comes.
        platter.before = damage.before;
        CHECK_EQ(pair.run(ENGINE_OP_WRITE, data.data(), 1000, data.size()), 300000);
        platter.before = [](Request&) {};
        CHECK_EQ(pair.read(0, 1000), 1000);
        CHECK_EQ(pair.read(310000, 1000), 1000);
        CHECK_EQ(pair.run(ENGINE_OP_READ, back.data(), 500, back.size()), -EIO);
        CHECK_EQ(pair.error.kind, ENGINE_ERROR_CORRUPT);
        CHECK_EQ(pair.error.errnum, EIO);
        CHECK_EQ(pair.error.offset, damage.found_at);
        CHECK_EQ(std::string_view(pair.error.node), "both");
        CHECK_EQ(std::string_view(pair.error.operation), "read");
        std::string text = "node both: read of 300000 bytes at offset 500: its children differ from offset " +
                           std::to_string(damage.found_at) + " on: 'file' (node odd) has " + damage.file_has +
                           ", 'reference' (node ram) has " + damage.reference_has;
        if (!CHECK_EQ(std::string_view(pair.error.message), text)) fprintf(stderr, "  %s\n", damage.name);
        CHECK_EQ(stats_of(pair.node).op[ENGINE_OP_READ].errors, 1);
        // Written anew it is well again.
        CHECK_EQ(pair.fill('m', 1000, 310000), 310000);
        CHECK_EQ(pair.read(0, 320000), 320000);
    }
}

TEST(a_difference_is_found_at_each_place_of_a_piece) {
    Pair pair;
    constexpr uint64_t piece = 128 << 10;  // of the bounce buffer
    for (uint64_t at :
         {uint64_t{0}, uint64_t{1}, piece - 1, piece, piece + 1, 2 * piece - 1, 3 * piece - 1}) {
        platter.data[at] ^= 0x10;
        CHECK_EQ(pair.read(0, 3 * piece), -EIO);
        CHECK_EQ(pair.error.offset, at);
        CHECK_EQ(pair.read(at, 1), -EIO);
        CHECK(pair.says("has 10, 'reference' (node ram) has 00"));
        if (at != 0) CHECK_EQ(pair.read(0, at), at);
        CHECK_EQ(pair.read(at + 1, 4 * piece - at), 4 * piece - at);
        platter.data[at] ^= 0x10;
    }
}

// Between the parts of a vector as well.
TEST(a_difference_is_found_across_parts) {
    Pair pair;
    platter.data[1003] = 'x';
    char data[16];
    engine_iovec parts[] = {{data, 2}, {data + 2, 0}, {data + 2, 1}, {data + 3, 5}, {data + 8, 8}};
    CHECK_EQ(engine_user_io(pair.user, nullptr, ENGINE_OP_READ, parts, 5, 1000, 16, 0, &pair.error), -EIO);
    CHECK_EQ(pair.error.offset, 1003);
    CHECK(pair.says("'file' (node odd) has 78 00 00 00 00 00 00 00, 'reference'"));
}

TEST(a_torn_write_is_found) {
    sim::Engine engine(3);
    engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "ram"}});
    engine_node_t* node = engine.open({{"driver", "verify"},
                                       {"file.driver", "fault"},
                                       {"file.rules", "op=write,offset=128k-256k,errno=EIO,torn=on"},
                                       {"file.seed", "5"},
                                       {"file.file.driver", "memory"},
                                       {"file.file.size", "1M"},
                                       {"reference", "ram"}});
    engine_user_t* user = embedder::Engine::user(node, "test");
    engine_user_t* raw = embedder::Engine::user(filter_load::child_of(filter_load::child_of(node)), "raw",
                                                ENGINE_PERM_CONSISTENT_READ);
    Error error;
    std::vector<char> data(64 << 10, 'n'), left(64 << 10), all(256 << 10);
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), 128 << 10, data.size(), 0, &error), -EIO);
    CHECK(error.says("failed in 'file'") && error.says("fails by rule 1"));
    CHECK_EQ(io(raw, ENGINE_OP_READ, left.data(), 128 << 10, left.size(), 0, &error), left.size());
    auto first = static_cast<uint64_t>(std::find(left.begin(), left.end(), 0) - left.begin());
    REQUIRE(first < left.size());
    CHECK_EQ(io(user, ENGINE_OP_READ, all.data(), 0, all.size(), 0, &error), -EIO);
    CHECK_EQ(error.offset, (128 << 10) + first);
    CHECK_EQ(engine_user_close(user, &error), 0);
    CHECK_EQ(engine_user_close(raw, &error), 0);
}

// --- the log

std::vector<std::string> lines;

TEST(differences_are_logged_and_not_without_end) {
    lines.clear();
    engine_set_log_hook(
        [](const engine_log_record* record, void*) {
            if (record->level == ENGINE_LOG_ERROR) lines.emplace_back(record->message);
        },
        nullptr);
    {
        Pair pair;
        platter.data[77] = 'x';
        for (unsigned i = 0; i < 150; i++) {
            char data[8];
            CHECK_EQ(io(pair.user, ENGINE_OP_READ, data, 72, 8, 0, nullptr), -EIO);
        }
    }
    engine_set_log_hook(nullptr, nullptr);
    REQUIRE(lines.size() == 100);
    for (const std::string& line : lines) {
        CHECK(line.starts_with(
            "node both: read of 8 bytes at offset 72: its children differ from offset 77 on"));
    }
    CHECK(lines[98].ends_with("'reference' (node ram) has 00 00 00"));
    CHECK(lines[99].ends_with("(what this node finds from here on is not logged)"));
}

// --- one child fails, or both

TEST(the_child_that_failed_is_named) {
    for (Side side : {Side::file, Side::reference}) {
        Pair pair(side);
        const char* role = side == Side::file ? "file" : "reference";
        char data[512];
        const struct {
            uint32_t op;
            const char* name;
        } cases[] = {{ENGINE_OP_READ, "read of 512"},
                     {ENGINE_OP_WRITE, "write of 512"},
                     {ENGINE_OP_FLUSH, "flush of 0"},
                     {ENGINE_OP_DISCARD, "discard of 512"},
                     {ENGINE_OP_WRITE_ZEROES, "write-zeroes of 512"}};
        platter.before = [](Request&) { platter.answer = -ENODEV; };
        for (const auto& one : cases) {
            bool flush = one.op == ENGINE_OP_FLUSH;
            CHECK_EQ(pair.run(one.op, data, flush ? 0 : 4096, flush ? 0 : 512), -ENODEV);
            CHECK_EQ(pair.error.kind, ENGINE_ERROR_OS);
            CHECK_EQ(pair.error.errnum, ENODEV);
            CHECK_EQ(std::string_view(pair.error.node), "odd");
            CHECK_EQ(std::string_view(pair.error.field), role);
            CHECK_EQ(pair.error.offset, flush ? 0 : 4096);
            std::string text = std::string("node both: ") + one.name + " bytes at offset " +
                               (flush ? "0" : "4096") + " failed in '" + role +
                               "' (node odd) alone: No such device";
            CHECK_EQ(std::string_view(pair.error.message), text);
            if (!flush) CHECK_EQ(io(pair.user, one.op, data, 4096, 512, 0, nullptr), -ENODEV);
        }
    }
}

// A fault below each child; each says so in its own words.
struct Faults {
    sim::Engine engine{4};
    engine_node_t* node;
    engine_user_t* user;
    Error error;

    Faults(const char* file, const char* reference)
        : node(engine.open({{"driver", "verify"},
                            {"node-name", "both"},
                            {"file.driver", "fault"},
                            {"file.node-name", "left"},
                            {"file.rules", file},
                            {"file.file.driver", "memory"},
                            {"file.file.size", "1M"},
                            {"reference.driver", "fault"},
                            {"reference.node-name", "right"},
                            {"reference.rules", reference},
                            {"reference.file.driver", "memory"},
                            {"reference.file.size", "1M"}})),
          user(embedder::Engine::user(node, "test")) {}
    ~Faults() { CHECK_EQ(engine_user_close(user, &error), 0); }
    int64_t write() {
        char data[512] = {};
        return io(user, ENGINE_OP_WRITE, data, 0, 512, 0, &error);
    }
};

TEST(two_that_fail_alike_are_one_failure) {
    Faults faults("op=write,errno=ENOSPC", "op=write,errno=ENOSPC");
    CHECK_EQ(faults.write(), -ENOSPC);
    CHECK_EQ(
        std::string_view(faults.error.message),
        "node both: write of 512 bytes at offset 0 failed in both children alike: node left: write of 512 "
        "bytes at offset 0 fails by rule 1 of 'rules': No space left on device");
    CHECK_EQ(std::string_view(faults.error.node), "left");
    CHECK_EQ(std::string_view(faults.error.field), "");
}

TEST(of_two_that_fail_it_is_the_failure_of_file) {
    Faults faults("op=write,errno=ENOSPC", "op=write,errno=ENODEV");
    CHECK_EQ(faults.write(), -ENOSPC);
    CHECK(faults.error.says("failed in both children: 'file': node left: write of 512 bytes"));
    CHECK(faults.error.says("'reference': node right: write of 512 bytes at offset 0 fails by rule 1"));
    CHECK_EQ(faults.error.errnum, ENOSPC);
}

// --- what goes to both, and how

TEST(flush_and_fua_reach_both) {
    for (Side side : {Side::file, Side::reference}) {
        Pair pair(side);
        char data[512] = {};
        CHECK_EQ(pair.run(ENGINE_OP_WRITE, data, 0, 512, ENGINE_FUA), 512);
        CHECK_EQ(platter.flags, ENGINE_FUA);
        CHECK_EQ(platter.counted(Op::flush), 0);
        CHECK_EQ(pair.run(ENGINE_OP_WRITE, data, 0, 512), 512);
        CHECK_EQ(platter.flags, 0);
        CHECK_EQ(pair.run(ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
        CHECK_EQ(platter.counted(Op::flush), 1);
        CHECK_EQ(pair.run(ENGINE_OP_WRITE_ZEROES, nullptr, 0, 512, ENGINE_FUA | ENGINE_MAY_UNMAP), 0);
        CHECK_EQ(platter.flags, ENGINE_MAY_UNMAP);
        CHECK_EQ(platter.counted(Op::flush), 2);
    }
    // A child that has no FUA gets a flush, and one that has no flush needs none.
    Platter plain;
    plain.write_flags = 0;
    Pair pair(Side::reference, plain);
    char data[512] = {};
    CHECK_EQ(pair.run(ENGINE_OP_WRITE, data, 0, 512, ENGINE_FUA), 512);
    CHECK_EQ(platter.flags, 0);
    CHECK_EQ(platter.counted(Op::flush), 1);
}

TEST(a_reference_without_flush_is_not_asked) {
    Platter dry;
    dry.native_ops &= ~bit(Op::flush);
    Pair pair(Side::reference, dry);
    CHECK_EQ(pair.run(ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK_EQ(platter.counted(Op::flush), 0);
}

TEST(zeroes_that_file_refuses_are_in_neither) {
    for (uint32_t op : {ENGINE_OP_WRITE_ZEROES, ENGINE_OP_DISCARD}) {
        Pair pair;
        CHECK_EQ(pair.fill('n', 0, 8192), 8192);
        platter.before = [](Request& request) {
            if (request.op == Op::write_zeroes && (request.flags & ENGINE_NO_FALLBACK) != 0) {
                platter.answer = -ENOTSUP;
            }
        };
        bool discard = op == ENGINE_OP_DISCARD;
        uint32_t flags = discard ? 0 : ENGINE_NO_FALLBACK;
        CHECK_EQ(pair.run(op, nullptr, 0, 4096, flags), discard ? 0 : -ENOTSUP);
        CHECK_EQ(pair.error.kind, discard ? ENGINE_ERROR_NONE : ENGINE_ERROR_OS);
        CHECK_EQ(pair.read(0, 8192), 8192);
        CHECK_EQ(platter.data[0], 'n');
        CHECK_EQ(pair.run(ENGINE_OP_WRITE_ZEROES, nullptr, 0, 4096), 0);
        CHECK_EQ(pair.read(0, 8192), 8192);
        CHECK_EQ(platter.data[0], 0);
    }
}

// … and where the reference alone has no cheap ones, it writes them.
TEST(zeroes_that_the_reference_refuses_are_written) {
    Pair pair(Side::reference);
    CHECK_EQ(pair.fill('n', 0, 8192), 8192);
    platter.before = [](Request& request) {
        if (request.op == Op::write_zeroes) platter.answer = -ENOTSUP;
    };
    CHECK_EQ(pair.run(ENGINE_OP_DISCARD, nullptr, 0, 4096), 0);
    CHECK_EQ(platter.data[4095], 0);
    CHECK_EQ(pair.run(ENGINE_OP_WRITE_ZEROES, nullptr, 4096, 4096, ENGINE_NO_FALLBACK), 0);
    CHECK_EQ(platter.data[4096], 0);
    CHECK_EQ(pair.read(0, 8192), 8192);
}

TEST(a_discard_leaves_zeroes) {
    for (Side side : {Side::file, Side::reference}) {
        Pair pair(side);
        CHECK_EQ(pair.fill('n', 0, 65536), 65536);
        CHECK_EQ(pair.run(ENGINE_OP_DISCARD, nullptr, 4096, 8192), 0);
        CHECK_EQ(platter.counted(Op::discard), 0);
        CHECK_EQ(platter.flags & ENGINE_MAY_UNMAP, ENGINE_MAY_UNMAP);
        CHECK_EQ(pair.read(0, 65536), 65536);
        CHECK_EQ(std::string_view(platter.data.data() + 4096, 8192), std::string(8192, '\0'));
        CHECK_EQ(platter.data[4095], 'n');
        CHECK_EQ(platter.data[12288], 'n');
    }
}

// --- block status

std::vector<engine_extent> status(Pair& pair, uint64_t offset, uint64_t bytes, int64_t* result) {
    std::vector<engine_extent> extents(8);
    pair.error = {};
    *result = engine_user_block_status(pair.user, nullptr, offset, bytes, extents.data(), 8, &pair.error);
    extents.resize(*result < 0 ? 0 : static_cast<size_t>(*result));
    return extents;
}

TEST(block_status_is_that_of_file) {
    Pair pair(Side::reference);
    CHECK_EQ(pair.fill('n', 65536, 65536), 65536);
    int64_t result = 0;
    auto extents = status(pair, 0, 262144, &result);
    REQUIRE(extents.size() == 3);
    CHECK_EQ(extents[0].flags, ENGINE_EXTENT_ZERO);
    CHECK_EQ(extents[1].flags, ENGINE_EXTENT_DATA);
    CHECK_EQ(extents[1].offset, 65536);
    CHECK_EQ(extents[1].length, 65536);
    CHECK_EQ(extents[2].flags, ENGINE_EXTENT_ZERO);
    CHECK_EQ(extents[2].length, 131072);
    // The reference has said that all is data: what is zero in `file` was read.
    CHECK(platter.counted(Op::read) >= 2);
    // One that says zero is believed.
    platter.says_zero = true;
    unsigned before = platter.counted(Op::read);
    CHECK_EQ(status(pair, 131072, 131072, &result).size(), 1);
    CHECK_EQ(platter.counted(Op::read), before);
}

TEST(block_status_does_not_pass_off_data_as_zeroes) {
    Pair pair;
    CHECK_EQ(pair.fill('n', 70000, 100), 100);
    platter.says_zero = true;
    int64_t result = 0;
    status(pair, 4096, 200000, &result);
    CHECK_EQ(result, -EIO);
    CHECK_EQ(pair.error.offset, 70000);
    CHECK_EQ(pair.error.kind, ENGINE_ERROR_CORRUPT);
    CHECK_EQ(std::string_view(pair.error.operation), "block-status");
    CHECK_EQ(
        std::string_view(pair.error.message),
        "node both: block-status of 200000 bytes at offset 4096: its children differ from offset 70000 on: "
        "'file' (node odd) says that it reads as zeroes, 'reference' (node ram) has 6e 6e 6e 6e 6e 6e 6e 6e");
    CHECK_EQ(status(pair, 0, 70000, &result).size(), 1);
    auto extents = status(pair, 70100, 100000, &result);
    REQUIRE(extents.size() == 1);
    CHECK_EQ(extents[0].length, 100000);
    // It says so of data, too, where it is true of what there is.
    CHECK_EQ(pair.fill(0, 70000, 100), 100);
    CHECK_EQ(status(pair, 4096, 200000, &result).size(), 1);
}

TEST(block_status_without_help_of_the_reference) {
    Platter silent;
    silent.native_ops &= ~bit(Op::block_status);
    Pair pair(Side::reference, silent);
    int64_t result = 0;
    auto extents = status(pair, 1000, 300000, &result);
    REQUIRE(extents.size() == 1);
    CHECK_EQ(extents[0].offset, 1000);
    CHECK_EQ(extents[0].length, 300000);
    CHECK(platter.counted(Op::read) >= 3);
    platter.data[200000] = 'x';
    status(pair, 1000, 300000, &result);
    CHECK_EQ(result, -EIO);
    CHECK_EQ(pair.error.offset, 200000);
    platter.before = [](Request& request) {
        if (request.op == Op::read) platter.answer = -ENODEV;
    };
    status(pair, 1000, 300000, &result);
    CHECK_EQ(result, -ENODEV);
    CHECK(pair.says("failed in 'reference' (node odd) alone: No such device"));
}

// So much is looked at for one answer, and the answer says so.
TEST(block_status_ends_where_it_was_checked) {
    sim::Engine engine(5);
    platter = {};
    platter.data.resize(16 << 20);
    platter.native_ops &= ~bit(Op::block_status);
    engine::block::OptionBag bag;
    bag.set("node-name", "odd");
    engine.open_with(platter_driver, std::move(bag));
    engine_node_t* node = engine.open(
        {{"driver", "verify"}, {"file.driver", "memory"}, {"file.size", "16M"}, {"reference", "odd"}});
    engine_user_t* user = embedder::Engine::user(node, "test");
    Error error;
    uint64_t at = 0;
    unsigned answers = 0;
    for (; at < 16 << 20 && answers < 100; answers++) {
        engine_extent extent{};
        int64_t count = engine_user_block_status(user, nullptr, at, (16 << 20) - at, &extent, 1, &error);
        REQUIRE(count == 1);
        CHECK_EQ(extent.offset, at);
        CHECK_EQ(extent.flags, ENGINE_EXTENT_ZERO);
        REQUIRE(extent.length > 0);
        at += extent.length;
    }
    CHECK_EQ(at, 16 << 20);
    CHECK_EQ(answers, 4);
    CHECK_EQ(platter.counted(Op::read), 128);
    CHECK_EQ(engine_user_close(user, &error), 0);
    platter = {};
}

// --- resize

uint64_t bytes_of(engine_node_t* node) {
    return embedder::info_of(node).bytes;
}

TEST(a_resize_is_of_both_or_neither) {
    for (Side side : {Side::file, Side::reference}) {
        Platter elastic;
        elastic.native_ops |= bit(Op::resize);
        Pair pair(side, elastic);
        CHECK_EQ(pair.run(ENGINE_OP_RESIZE, nullptr, 2 << 20, 0), 0);
        CHECK_EQ(bytes_of(pair.node), 2 << 20);
        for (const char* name : {"odd", "ram"}) {
            CHECK_EQ(bytes_of(engine_node_find(pair.engine.handle(), name)), 2 << 20);
        }
        CHECK_EQ(pair.fill('n', (2 << 20) - 512, 512), 512);
        CHECK_EQ(pair.read(1 << 20, 1 << 20), 1 << 20);
        platter.before = [](Request& request) {
            if (request.op == Op::resize) platter.answer = -ENOSPC;
        };
        CHECK_EQ(pair.run(ENGINE_OP_RESIZE, nullptr, 4 << 20, 0), -ENOSPC);
        CHECK(pair.says(side == Side::file ? "failed in 'file' (node odd) alone: No space left"
                                           : "failed in 'reference' (node odd) alone: No space left"));
        for (const char* name : {"odd", "ram", "both"}) {
            CHECK_EQ(bytes_of(engine_node_find(pair.engine.handle(), name)), 2 << 20);
        }
        CHECK_EQ(pair.read(0, 2 << 20), 2 << 20);
        platter.before = [](Request&) {};
        CHECK_EQ(pair.run(ENGINE_OP_RESIZE, nullptr, 4096, 0), 0);
        CHECK_EQ(bytes_of(pair.node), 4096);
        CHECK_EQ(pair.read(4096, 1), -EINVAL);
    }
}

// --- options

TEST(bad_options_are_named) {
    sim::Engine engine(6);
    engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "ram"}});
    engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "rom"}, {"read-only", "on"}});
    const struct {
        std::vector<engine_option> options;
        const char* field;
        const char* text;
    } cases[] = {
        {{{"file", "ram"}}, "reference", "driver verify needs a 'reference': give reference.driver="},
        {{{"reference", "ram"}}, "file", "driver verify needs a 'file'"},
        {{{"file", "ram"}, {"reference", "none"}}, "reference", "there is no node 'none'"},
        {{{"file", "ram"},
          {"reference.driver", "memory"},
          {"reference.size", "64k"},
          {"reference.node-name", "s"}},
         "reference",
         "verify: 'file' (node ram) has 1048576 bytes, 'reference' (node s) 65536: give them the same size"},
        {{{"file", "ram"}, {"reference", "rom"}}, "permissions", "node rom is read-only: user 'node "},
        {{{"file", "rom"}, {"reference", "rom"}, {"read-only", "on"}},
         "reference",
         "verify: option 'reference': it is node rom, as 'file' is, which cannot differ from itself"},
        {{{"file", "ram"}, {"reference", "ram"}}, "", "conflicts with user 'node "},
        {{{"file", "ram"}, {"reference.driver", "memory"}, {"reference.size", "1M"}, {"speed", "1"}},
         "speed",
         "driver verify has no option 'speed'"},
    };
    for (const auto& one : cases) {
        std::vector<engine_option> options{{"driver", "verify"}};
        options.insert(options.end(), one.options.begin(), one.options.end());
        engine_node_t* node = nullptr;
        Error error;
        CHECK(engine_node_open(engine.handle(), options.data(), options.size(), &node, &error) < 0);
        CHECK_EQ(std::string_view(error.field), one.field);
        if (!CHECK(error.says(one.text))) fprintf(stderr, "  %s\n", error.message);
    }
}

TEST(a_reference_that_cannot_be_written_is_refused) {
    for (Op op : {Op::read, Op::write}) {
        sim::Engine engine(7);
        platter = {};
        platter.native_ops &= ~bit(op);
        engine::block::OptionBag bag;
        bag.set("node-name", "odd");
        engine.open_with(platter_driver, std::move(bag));
        engine_option options[] = {
            {"driver", "verify"}, {"file.driver", "memory"}, {"file.size", "1M"}, {"reference", "odd"}};
        engine_node_t* node = nullptr;
        Error error;
        CHECK_EQ(engine_node_open(engine.handle(), options, 4, &node, &error), -EINVAL);
        CHECK(error.says(op == Op::read ? "driver platter cannot read" : "driver platter cannot write"));
    }
}

TEST(read_only_children_are_compared) {
    sim::Engine engine(8);
    engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "a"}, {"read-only", "on"}});
    engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "b"}, {"read-only", "on"}});
    engine_node_t* node =
        engine.open({{"driver", "verify"}, {"file", "a"}, {"reference", "b"}, {"read-only", "on"}});
    engine_user_t* user = embedder::Engine::user(node, "test", ENGINE_PERM_CONSISTENT_READ);
    Error error;
    char data[512];
    CHECK_EQ(io(user, ENGINE_OP_READ, data, 0, 512, 0, &error), 512);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

}  // namespace
