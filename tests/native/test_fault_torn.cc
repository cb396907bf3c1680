// Torn writes of the fault filter: which parts of a write reach the child, in which blocks and with which
// flags, and that it fails whatever becomes of them.
#include <algorithm>
#include <vector>

#include "api/handles.hh"
#include "block/registry.hh"
#include "embedder.hh"

namespace {

using embedder::Engine;
using embedder::Error;
using embedder::io;
using engine::block::bit;
using engine::block::Channel;
using engine::block::Node;
using engine::block::Op;
using engine::block::Request;
namespace api = engine::api;

// A disk that keeps its data, with blocks as large as the test wants, and notes what comes.
struct Platter {
    uint32_t block = 1;
    uint8_t write_flags = ENGINE_FUA;
    bool fails = false;
    std::vector<char> data = std::vector<char>(1 << 20, 'o');
    unsigned writes = 0, flushes = 0, at_once = 0, most_at_once = 0;
    uint8_t any_flags = 0, all_flags = 0xff;
};
Platter platter;  // of the test that runs

int platter_open(Node& node, const engine::block::OpenArguments&) {
    node.request_alignment = platter.block;
    node.native_ops = bit(Op::read) | bit(Op::write) | bit(Op::flush);
    node.native_write_flags = platter.write_flags;
    node.bytes.store_relaxed(platter.data.size());
    return 0;
}

void platter_do(Request* request) {
    char* at = platter.data.data() + request->offset;
    for (uint32_t i = 0; i < request->iov_count; i++) {
        const iovec& part = request->iov[i];
        if (request->op == Op::read) memcpy(part.iov_base, at, part.iov_len);
        if (request->op == Op::write) memcpy(at, part.iov_base, part.iov_len);
        at += part.iov_len;
    }
    platter.at_once--;
    finish(request, platter.fails ? -ENODEV : 0);
}

void platter_submit(Channel& channel, Request* request) {
    platter.most_at_once = std::max(platter.most_at_once, ++platter.at_once);
    if (request->op == Op::flush) platter.flushes++;
    if (request->op == Op::write) {
        platter.writes++;
        platter.any_flags |= request->flags;
        platter.all_flags &= request->flags;
    }
    request->run = [](engine::aio::Message* message) { platter_do(static_cast<Request*>(message)); };
    channel.context->ready(request);
}

const engine::block::Driver platter_driver{
    .name = "platter",
    .layer = "protocol",
    .text = "for tests",
    .options = {},
    .children = {},
    .state_size = 0,
    .channel_state_size = 0,
    .open = platter_open,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = platter_submit,
};

struct Disk {
    Engine engine;
    engine_node_t* node = nullptr;
    engine_user_t* user = nullptr;
    Error error;

    explicit Disk(Platter with = {}, const char* seed = "0",
                  const char* rules = "op=write,torn=on,errno=EIO") {
        platter = std::move(with);
        engine::block::OptionBag bag;
        bag.set("node-name", "platter");
        Node* below = nullptr;
        REQUIRE(open_node(*api::unwrap(engine.get()), platter_driver, std::move(bag), &below, &error) == 0);
        node = engine.open({{"driver", "fault"}, {"rules", rules}, {"seed", seed}, {"file", "platter"}});
        user = Engine::user(node, "test");
    }
    ~Disk() { CHECK_EQ(engine_user_close(user, &error), 0); }
    int64_t write(uint64_t offset, uint64_t bytes, uint32_t flags = 0) {
        std::vector<char> data(bytes, 'n');
        error = Error();
        return io(user, ENGINE_OP_WRITE, data.data(), offset, bytes, flags, &error);
    }
};

// 'o' or 'n' for each block of the range; '?': it is neither the one nor the other.
std::string blocks(uint64_t start, uint64_t end, uint64_t block) {
    std::string kinds;
    for (uint64_t at = start; at < end;) {
        uint64_t next = std::min(end, at - at % block + block);
        bool same = std::all_of(platter.data.begin() + static_cast<ptrdiff_t>(at),
                                platter.data.begin() + static_cast<ptrdiff_t>(next),
                                [at](char each) { return each == platter.data[at]; });
        kinds += same ? platter.data[at] : '?';
        at = next;
    }
    return kinds;
}

// Nothing was touched beside it.
void untouched(uint64_t start, uint64_t end) {
    for (uint64_t at = 0; at < platter.data.size(); at++) {
        if ((at < start || at >= end) && platter.data[at] != 'o') {
            CHECK_EQ(at, UINT64_MAX);
            return;
        }
    }
}

std::string torn(const char* seed, uint64_t offset = 65536, uint64_t bytes = 65536, uint32_t block = 1) {
    Platter with;
    with.block = block;
    Disk disk(with, seed);
    CHECK_EQ(disk.write(offset, bytes), -EIO);
    CHECK(disk.error.says("fails by rule 1 of 'rules': Input/output error"));
    untouched(offset, offset + bytes);
    CHECK(platter.most_at_once <= 32);
    return blocks(offset, offset + bytes, std::max<uint64_t>(block, 512));
}

TEST(some_sectors_are_written) {
    std::string kinds = torn("1");
    CHECK_EQ(kinds.size(), 128);
    CHECK_EQ(kinds.find('?'), std::string::npos);
    auto written = std::count(kinds.begin(), kinds.end(), 'n');
    CHECK(written > 40 && written < 88);
    // In no order: not the first so many.
    CHECK(kinds.find("no") < kinds.rfind("on"));
    CHECK_EQ(torn("1"), kinds);
    CHECK(torn("2") != kinds);
}

TEST(one_write_after_another_tears_in_its_own_way) {
    Disk disk;
    CHECK_EQ(disk.write(0, 65536), -EIO);
    CHECK_EQ(disk.write(65536, 65536), -EIO);
    CHECK(blocks(0, 65536, 512) != blocks(65536, 131072, 512));
}

TEST(blocks_of_the_child_are_whole) {
    std::string kinds = torn("1", 65536, 262144, 4096);
    CHECK_EQ(kinds.size(), 64);
    CHECK_EQ(kinds.find('?'), std::string::npos);
    CHECK(std::count(kinds.begin(), kinds.end(), 'n') > 15);
    CHECK(std::count(kinds.begin(), kinds.end(), 'o') > 15);
}

// Sectors are the disk's, not the request's: the first and the last are written in part.
TEST(a_write_that_is_not_aligned_tears_at_sectors) {
    for (uint32_t block : {1u, 4096u}) {
        bool first = false, last = false;
        for (const char* seed : {"1", "2", "3", "4", "5", "6", "7", "8"}) {
            std::string kinds = torn(seed, 65536 + 100, 40960, block);
            CHECK_EQ(kinds.size(), block == 1 ? 81 : 11);
            CHECK_EQ(kinds.find('?'), std::string::npos);
            first = first || kinds.front() == 'n';
            last = last || kinds.back() == 'n';
        }
        CHECK(first && last);
    }
}

TEST(data_comes_from_the_right_place) {
    Disk disk;
    std::vector<char> data(100'000);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>('A' + i * 7 / 512 % 26);
    engine_iovec parts[] = {
        {data.data(), 3},           {data.data() + 3, 700},      {nullptr, 0},
        {data.data() + 703, 40000}, {data.data() + 40703, 1},    {data.data() + 40704, 111},
        {data.data() + 40815, 511}, {data.data() + 41326, 58674}};
    CHECK_EQ(engine_user_io(disk.user, nullptr, ENGINE_OP_WRITE, parts, 8, 4000, data.size(), 0, &disk.error),
             -EIO);
    unsigned written = 0;
    for (size_t i = 0; i < data.size(); i++) {
        char found = platter.data[4000 + i];
        if (found != 'o') written++;
        if (found != 'o' && found != data[i]) {
            CHECK_EQ(i, SIZE_MAX);
            break;
        }
    }
    CHECK(written > 30'000 && written < 70'000);
    untouched(4000, 4000 + data.size());
}

TEST(what_is_written_keeps_its_flags) {
    {
        Disk disk;
        CHECK_EQ(disk.write(0, 65536, ENGINE_FUA), -EIO);
        CHECK_EQ(platter.all_flags, ENGINE_FUA);
        CHECK_EQ(platter.flushes, 0);
        CHECK_EQ(disk.write(0, 65536), -EIO);
        CHECK_EQ(platter.all_flags, 0);
    }
    Platter with;
    with.write_flags = 0;  // FUA is a flush afterwards, and it does not come so far
    Disk disk(with);
    CHECK_EQ(disk.write(0, 65536, ENGINE_FUA), -EIO);
    CHECK(platter.writes > 40);
    CHECK_EQ(platter.any_flags, 0);
    CHECK_EQ(platter.flushes, 0);
}

TEST(other_operations_fail_whole) {
    Disk disk({}, "0", "torn=on,errno=ENOSPC");
    char data[4096];
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, data, 0, 4096, 0, &disk.error), -ENOSPC);
    CHECK_EQ(io(disk.user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &disk.error), -ENOSPC);
    CHECK_EQ(platter.writes + platter.flushes, 0);
    CHECK_EQ(disk.write(0, 4096), -ENOSPC);
}

// The error is the rule's, whatever the child says.
TEST(a_child_that_fails_changes_nothing) {
    Platter with;
    with.fails = true;
    Disk disk(with, "1");
    CHECK_EQ(disk.write(0, 1 << 20), -EIO);
    CHECK_EQ(std::string_view(disk.error.node), "#block0");
    CHECK(disk.error.says("fails by rule 1 of 'rules': Input/output error"));
    CHECK(platter.writes <= 32);  // it is not asked for ever
}

#ifndef EMBEDDER_TSAN
// The hook is the process's own, so the sanitizer's threads may meet it.
TEST(without_memory_it_fails_all_the_same) {
    for (int k = 0; k < 12; k++) {
        Disk disk({}, "1");
        char byte;
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, &byte, 0, 1, 0, &disk.error), 1);  // the channels are there
        std::vector<char> data(20'000, 'n');
        engine_iovec parts[] = {{data.data(), 100}, {data.data() + 100, 19'900}};
        static int left;
        left = k;
        engine_set_allocation_hook([](size_t, void*) { return left-- <= 0 ? 1 : 0; }, nullptr);
        int64_t result =
            engine_user_io(disk.user, nullptr, ENGINE_OP_WRITE, parts, 2, 0, data.size(), 0, &disk.error);
        engine_set_allocation_hook(nullptr, nullptr);
        CHECK_EQ(result, -EIO);
        CHECK(disk.error.says("fails by rule 1 of 'rules'"));
        CHECK_EQ(blocks(0, data.size(), 512).find('?'), std::string::npos);
        untouched(0, data.size());
    }
}
#endif

}  // namespace
