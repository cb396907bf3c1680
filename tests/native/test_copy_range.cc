// Copies of ranges: by the kernel where it can, through a buffer everywhere else, and the same bytes either
// way.
#include <errno.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "file_bench.hh"

using namespace file_bench;

namespace {

// What a copy did to its nodes.
struct Copies {
    uint64_t by_kernel;  // requests
    uint64_t written;    // requests
};

class Disks : public Bench {
  public:
    using Bench::Bench;

    // One with a pattern on it, and the pattern.
    engine_node_t* filled(const Options& options, unsigned seed, std::vector<char>& data) {
        engine_node_t* node = open(options);
        data = pattern(static_cast<size_t>(info(node).bytes), seed);
        CHECK_EQ(write(node, data.data(), 0, data.size()), static_cast<int64_t>(data.size()));
        return node;
    }
    int64_t copy(engine_node_t* source, uint64_t from, engine_node_t* target, uint64_t to, uint64_t bytes,
                 engine_context_t* on = nullptr) {
        return engine_user_copy_range(handle(source), from, handle(target), to, bytes,
                                      on != nullptr ? on : context, clean());
    }
    Copies copies(engine_node_t* node) {
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
        return {stats.op[ENGINE_OP_COPY_RANGE].requests - stats.op[ENGINE_OP_COPY_RANGE].errors,
                stats.op[ENGINE_OP_WRITE].requests};
    }
    // Copies a range, and checks that the target holds that and has not changed elsewhere.
    Copies check_copy(engine_node_t* source, uint64_t from, engine_node_t* target, uint64_t to,
                      uint64_t bytes) {
        std::vector<char> there(static_cast<size_t>(info(source).bytes)),
            expected(static_cast<size_t>(info(target).bytes));
        CHECK_EQ(read(source, there.data(), 0, there.size()), static_cast<int64_t>(there.size()));
        CHECK_EQ(read(target, expected.data(), 0, expected.size()), static_cast<int64_t>(expected.size()));
        memmove(expected.data() + to, there.data() + from, bytes);
        Copies before = copies(target);
        int64_t result = copy(source, from, target, to, bytes);
        if (result < 0) fprintf(stderr, "%s\n", error.message);
        CHECK_EQ(result, static_cast<int64_t>(bytes));
        std::vector<char> back(expected.size());
        CHECK_EQ(read(target, back.data(), 0, back.size()), static_cast<int64_t>(back.size()));
        CHECK(back == expected);
        Copies after = copies(target);
        return {after.by_kernel - before.by_kernel, after.written - before.written};
    }
    engine_user_t* handle(engine_node_t* node) { return api::wrap(user(node)); }
};

Options file(const std::string& path) {
    return {{"driver", "file"}, {"filename", path}};
}

BOTH(between_files_the_kernel_copies) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> a, b;
    engine_node_t* source = disks.filled(file(folder.make("a.img", 20 * MiB)), 1, a);
    engine_node_t* target = disks.filled(file(folder.make("b.img", 20 * MiB)), 2, b);
    Copies whole = disks.check_copy(source, 0, target, 0, 20 * MiB);
    CHECK_EQ(whole.by_kernel, 2);  // 16 MiB at a time
    CHECK_EQ(whole.written, 0);
    Copies odd = disks.check_copy(source, 4097, target, 1234567, 3 * MiB + 1);
    CHECK_EQ(odd.by_kernel, 1);
    CHECK_EQ(odd.written, 0);
    CHECK_EQ(disks.copy(source, 5, target, 7, 0), 0);
}

BOTH(windows_and_filters_are_looked_through) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> a, b;
    Options window{{"driver", "raw"},
                   {"offset", "1M"},
                   {"size", "2M"},
                   {"file.driver", "passthrough"},
                   {"file.file.driver", "file"}};
    Options other = window;
    window["file.file.filename"] = folder.make("a.img", 4 * MiB);
    other["file.file.filename"] = folder.make("b.img", 4 * MiB);
    engine_node_t* source = disks.filled(window, 1, a);
    engine_node_t* target = disks.filled(other, 2, b);
    Copies done = disks.check_copy(source, 0, target, MiB, MiB);
    CHECK_EQ(done.by_kernel, 1);
    CHECK_EQ(done.written, 0);
}

BOTH(what_is_no_file_is_read_and_written) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> data;
    engine_node_t* on_disk = disks.filled(file(folder.make("a.img", 4 * MiB)), 1, data);
    engine_node_t* memory = disks.filled({{"driver", "memory"}, {"size", "4M"}}, 2, data);
    engine_node_t* throttled = disks.filled({{"driver", "throttle"},
                                             {"limits.iops-total", "100000"},
                                             {"file.driver", "file"},
                                             {"file.filename", folder.make("b.img", 4 * MiB)}},
                                            3, data);
    Copies done = disks.check_copy(memory, 511, on_disk, 1025, 2 * MiB + 3);
    CHECK_EQ(done.by_kernel, 0);
    CHECK_EQ(done.written, 3);  // 1 MiB at a time
    done = disks.check_copy(on_disk, 0, memory, 0, 4 * MiB);
    CHECK_EQ(done.written, 4);
    done = disks.check_copy(on_disk, 0, throttled, 0, MiB);  // its limits are those of writes
    CHECK_EQ(done.by_kernel, 0);
    CHECK_EQ(done.written, 1);
}

BOTH(zero_detection_sees_what_is_copied) {
    Folder folder;
    Disks disks(backend);
    engine_node_t* source = disks.open(file(folder.make("a.img", MiB)));
    Options options = file(folder.make("b.img", MiB));
    options["detect-zeroes"] = "on";
    std::vector<char> data;
    engine_node_t* target = disks.filled(options, 1, data);
    Copies done = disks.check_copy(source, 0, target, 0, MiB);
    CHECK_EQ(done.by_kernel, 0);
}

BOTH(direct_files_of_any_length) {
    Folder folder;
    Disks disks(backend);
    Options a = file(folder.make("a.img", MiB + 1000)), b = file(folder.make("b.img", 2 * MiB));
    a["cache.direct"] = b["cache.direct"] = "on";
    if (!has_direct(a["filename"])) return;
    std::vector<char> data;
    engine_node_t* source = disks.filled(a, 1, data);
    engine_node_t* target = disks.filled(b, 2, data);
    disks.check_copy(source, 0, target, 0, disks.info(source).bytes);
    disks.check_copy(source, 100, target, 70000, 300001);
}

BOTH(ranges_of_one_node_may_overlap) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> data;
    engine_node_t* node = disks.filled(file(folder.make("a.img", 6 * MiB)), 1, data);
    disks.check_copy(node, 0, node, 12345, 4 * MiB);
    disks.check_copy(node, 12345, node, 0, 4 * MiB);
    disks.check_copy(node, MiB, node, MiB, 2 * MiB);
    Copies apart = disks.check_copy(node, 0, node, 4 * MiB, MiB);
    CHECK_EQ(apart.by_kernel, 1);
}

// Of two pieces that the kernel could copy, one after another, the second would read what the first has
// written.
BOTH(an_overlap_of_pieces_is_seen) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> data;
    engine_node_t* node = disks.filled(file(folder.make("a.img", 40 * MiB)), 1, data);
    CHECK_EQ(disks.copy(node, 0, node, 16 * MiB, 24 * MiB), static_cast<int64_t>(24 * MiB));
    std::vector<char> back(24 * MiB);
    CHECK_EQ(disks.read(node, back.data(), 16 * MiB, back.size()), static_cast<int64_t>(back.size()));
    CHECK(memcmp(back.data(), data.data(), back.size()) == 0);
}

// Who stands above a filter, or looks through a window, reaches the same bytes as who stands below.
BOTH(an_overlap_of_two_levels_is_seen) {
    Folder folder;
    Disks disks(backend);
    for (const Options& options :
         {file(folder.make("a.img", 6 * MiB)), Options{{"driver", "memory"}, {"size", "6M"}}}) {
        std::vector<char> data;
        engine_node_t* node = disks.filled(options, 1, data);
        engine_user_t* above = disks.handle(node);
        for (const char* driver : {"passthrough", "throttle"}) {
            engine_option option{"driver", driver};
            engine_node_t* filter = nullptr;
            REQUIRE(engine_node_insert_filter(node, &option, 1, 0, &filter, disks.clean()) == 0);
            engine_user_t* below = nullptr;
            REQUIRE(engine_user_create(node, "below", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL, &below,
                                       disks.clean()) == 0);
            for (uint64_t apart : {MiB / 2, 2 * MiB + 512}) {
                CHECK_EQ(
                    engine_user_copy_range(below, 0, above, apart, 3 * MiB, disks.context, disks.clean()),
                    static_cast<int64_t>(3 * MiB));
                memmove(data.data() + apart, data.data(), 3 * MiB);
            }
            CHECK_EQ(engine_user_copy_range(below, MiB, above, 0, 4 * MiB, disks.context, disks.clean()),
                     static_cast<int64_t>(4 * MiB));
            memmove(data.data(), data.data() + MiB, 4 * MiB);
            std::vector<char> back(data.size());
            CHECK_EQ(disks.read(node, back.data(), 0, back.size()), static_cast<int64_t>(back.size()));
            CHECK(back == data);
            CHECK_EQ(engine_user_close(below, disks.clean()), 0);
            CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, disks.clean()), 0);
        }
    }
}

BOTH(a_window_and_what_is_below_it) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> inside;
    engine_node_t* window = disks.filled({{"driver", "raw"},
                                          {"offset", "1M"},
                                          {"size", "5M"},
                                          {"file.driver", "file"},
                                          {"file.filename", folder.make("a.img", 6 * MiB)}},
                                         1, inside);
    std::vector<char> data(6 * MiB);
    memcpy(data.data() + MiB, inside.data(), inside.size());
    engine_node_t* node = engine_node_get_child(window, 0, nullptr, 0);
    engine_user_t* below = nullptr;
    REQUIRE(engine_user_create(node, "below", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL, &below,
                               disks.clean()) == 0);
    // From 0 to 1 MiB + 512, although the offsets say that it goes down.
    CHECK_EQ(engine_user_copy_range(below, MiB / 2, disks.handle(window), 512, 3 * MiB, disks.context,
                                    disks.clean()),
             static_cast<int64_t>(3 * MiB));
    memmove(data.data() + MiB + 512, data.data() + MiB / 2, 3 * MiB);
    std::vector<char> back(5 * MiB);
    CHECK_EQ(disks.read(window, back.data(), 0, back.size()), static_cast<int64_t>(back.size()));
    CHECK(memcmp(back.data(), data.data() + MiB, back.size()) == 0);
    CHECK_EQ(engine_user_close(below, disks.clean()), 0);
}

BOTH(what_the_kernel_did_not_copy_is_no_failure) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> data;
    engine_node_t* on_disk = disks.filled(file(folder.make("a.img", MiB)), 1, data);
    engine_node_t* memory = disks.open({{"driver", "memory"}, {"size", "1M"}});
    Options detecting = file(folder.make("b.img", MiB));
    detecting["detect-zeroes"] = "on";
    engine_node_t* refusing = disks.open(detecting);
    for (engine_node_t* target : {memory, refusing}) {
        CHECK_EQ(disks.copy(on_disk, 0, target, 0, MiB), static_cast<int64_t>(MiB));
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(target, nullptr, &stats), 0);
        CHECK_EQ(stats.op[ENGINE_OP_COPY_RANGE].requests, 0);
        CHECK_EQ(stats.op[ENGINE_OP_COPY_RANGE].errors, 0);
        CHECK(stats.op[ENGINE_OP_WRITE].requests != 0);
    }
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(on_disk, nullptr, &stats), 0);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, 2);
    CHECK_EQ(stats.op[ENGINE_OP_READ].errors, 0);
}

BOTH(copies_that_are_refused) {
    Folder folder;
    Disks disks(backend);
    engine_node_t* source = disks.open(file(folder.make("a.img", MiB)));
    engine_node_t* target = disks.open(file(folder.make("b.img", MiB)));
    CHECK_EQ(disks.copy(source, 1, target, 0, MiB), -EINVAL);
    CHECK(
        disks.says("copy-range of 1048576 bytes at offset 1 ends past the end of the disk (1048576 bytes)"));
    CHECK_EQ(disks.copy(source, 0, target, UINT64_MAX, 2), -EINVAL);
    CHECK(disks.says("ends past the end"));
    auto attach = [&](engine_node_t* node, uint32_t permissions) {
        engine_user_t* user = nullptr;
        REQUIRE(engine_user_create(node, "narrow", permissions, ENGINE_PERM_ALL, &user, disks.clean()) == 0);
        return user;
    };
    engine_user_t* reader = attach(target, ENGINE_PERM_CONSISTENT_READ);
    engine_user_t* writer = attach(source, ENGINE_PERM_WRITE);
    CHECK_EQ(engine_user_copy_range(disks.handle(source), 0, reader, 0, 512, disks.context, disks.clean()),
             -EPERM);
    CHECK(disks.says("user narrow holds no permission to write"));
    CHECK_EQ(engine_user_copy_range(writer, 0, disks.handle(target), 0, 512, disks.context, disks.clean()),
             -EPERM);
    CHECK(disks.says("user narrow holds no permission to read"));
    CHECK_EQ(engine_user_copy_range(writer, 0, disks.handle(target), 0, 0, disks.context, disks.clean()),
             -EPERM);
    CHECK_EQ(engine_user_close(reader, disks.clean()), 0);
    CHECK_EQ(engine_user_close(writer, disks.clean()), 0);
    CHECK_EQ(disks.io(target, ENGINE_OP_COPY_RANGE, nullptr, 0, 512), -EINVAL);
}

// It is looked at whole: no part of it is written first.
BOTH(a_copy_that_ends_past_the_target_changes_nothing) {
    Folder folder;
    Disks disks(backend);
    std::vector<char> a, b;
    engine_node_t* source = disks.filled(file(folder.make("a.img", 4 * MiB)), 1, a);
    engine_node_t* target = disks.filled(file(folder.make("b.img", 4 * MiB)), 2, b);
    CHECK_EQ(disks.copy(source, 0, target, 2 * MiB, 3 * MiB), -EINVAL);
    CHECK(disks.says(
        "copy-range of 3145728 bytes at offset 2097152 ends past the end of the disk (4194304 bytes)"));
    std::vector<char> back(b.size());
    CHECK_EQ(disks.read(target, back.data(), 0, back.size()), static_cast<int64_t>(back.size()));
    CHECK(back == b);
}

// A copy is inside both nodes or inside neither: changes that wait for both get through, and no byte is lost.
BOTH(while_filters_come_and_go) {
    Folder folder;
    Disks disks(backend);
    engine_context_t* other = disks.add_context("other");
    std::vector<char> a, b;
    engine_node_t* source = disks.filled(file(folder.make("a.img", MiB)), 1, a);
    engine_node_t* target = disks.filled(file(folder.make("b.img", MiB)), 2, b);
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> changes{0};
    auto change = [&](engine_node_t* below) {
        engine_error error{};
        error.size = sizeof error;
        engine_option driver{"driver", "passthrough"};
        while (!stop.load()) {
            engine_node_t *filter = nullptr, *freed = nullptr;
            CHECK_EQ(engine_node_insert_filter(below, &driver, 1, 0, &filter, &error), 0);
            CHECK_EQ(engine_node_remove_filter(filter, 0, &freed, &error), 0);
            changes++;
        }
    };
    std::thread changers[] = {std::thread(change, source), std::thread(change, target)};
    uint64_t copied = 0;
    for (; copied < 400 || changes < 40; copied++) {
        uint64_t at = copied * 7919 % 200 * 4096;
        engine_context_t* on = copied % 2 == 0 ? disks.context : other;
        REQUIRE(disks.copy(source, at, target, at, 50 * 4096, on) == 50 * 4096);
        memcpy(b.data() + at, a.data() + at, 50 * 4096);
    }
    stop = true;
    for (std::thread& changer : changers) changer.join();
    std::vector<char> back(MiB);
    CHECK_EQ(disks.read(target, back.data(), 0, MiB), static_cast<int64_t>(MiB));
    CHECK(back == b);
    CHECK(disks.copies(target).by_kernel > 0);
}

}  // namespace
