// Offsets, lengths and buffers that do not suit a driver: what arrives there suits it, and the outcome is the
// same as if it had been content with anything.
#include <random>

#include "sector_disk.hh"

namespace {

using namespace sector_disk;

// --- against a model

struct Model {
    explicit Model(Bench& on, uint64_t seed) : bench(on), random(seed), bytes(demands.bytes) {}

    uint64_t below(uint64_t n) { return random() % n; }
    // Mostly small, sometimes long; at a place where blocks are cut.
    void choose(uint64_t* offset, uint64_t* length) {
        *length = 1 + below(below(4) == 0 ? bytes.size() / 2 : 3000);
        *offset = below(bytes.size() - *length + 1);
        if (below(3) == 0) *offset = *offset / 512 * 512;
        if (below(3) == 0) *length = std::max<uint64_t>(*length / 512 * 512, 512);
        if (*offset + *length > bytes.size()) *offset = bytes.size() - *length;
    }
    // Splits a buffer into parts of any size, some of them empty.
    std::vector<engine_iovec> split(char* buffer, uint64_t length) {
        std::vector<engine_iovec> parts;
        while (length != 0) {
            uint64_t part = below(5) == 0 ? below(3) : 1 + below(1 + length / (1 + below(60)));
            part = std::min(part, length);
            if (parts.size() == 500) part = length;
            parts.push_back({buffer, part});
            buffer += part;
            length -= part;
        }
        return parts;
    }
    void step(engine_context_t* context) {
        uint64_t offset = 0, length = 0;
        choose(&offset, &length);
        std::vector<char> buffer(length + 1);
        char* data = buffer.data() + below(2);
        uint32_t flags = below(4) == 0 ? ENGINE_FUA : 0;
        uint32_t op = static_cast<uint32_t>(below(4));
        if (op == ENGINE_OP_FLUSH) op = ENGINE_OP_WRITE_ZEROES;
        if (op == ENGINE_OP_WRITE) {
            for (uint64_t i = 0; i < length; i++) data[i] = static_cast<char>(random());
            if (below(8) == 0) std::fill(data, data + length, 0);
            std::copy(data, data + length, bytes.begin() + static_cast<ptrdiff_t>(offset));
        } else if (op != ENGINE_OP_READ) {
            uint64_t from = offset, to = offset + length;
            if (op == ENGINE_OP_DISCARD) {  // whole blocks only
                uint64_t block = demands.request_alignment;
                from = (from + block - 1) / block * block;
                to = to / block * block;
            }
            if (from < to) std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(from), to - from, 0);
        }
        bool moves = op == ENGINE_OP_READ || op == ENGINE_OP_WRITE;
        auto parts = split(data, length);
        int64_t result = engine_user_io(bench.user, context, op, moves ? parts.data() : nullptr,
                                        moves ? static_cast<uint32_t>(parts.size()) : 0, offset, length,
                                        moves && op != ENGINE_OP_READ ? flags : 0, &bench.error);
        CHECK_EQ(result, moves ? static_cast<int64_t>(length) : 0);
        if (op == ENGINE_OP_READ) {
            CHECK(std::equal(data, data + length, bytes.begin() + static_cast<ptrdiff_t>(offset)));
        }
    }
    void compare() {
        bool same = true;
        for (size_t i = 0; i < bytes.size(); i++)
            same = same && bench.byte(i) == static_cast<unsigned char>(bytes[i]);
        CHECK(same);
    }

    Bench& bench;
    std::mt19937_64 random;
    std::vector<char> bytes;
};

void run_model(const Demands& with, uint64_t seed, std::initializer_list<engine_option> options) {
    Bench bench(with, options);
    engine_context_t* context = bench.engine.context("io0");
    Model model(bench, seed);
    for (unsigned i = 0; i < 700; i++) model.step(context);
    model.compare();
}

TEST(any_request_on_any_disk) {
    uint32_t reads_and_writes = bit(Op::read) | bit(Op::write) | bit(Op::flush) | bit(Op::discard);
    const Demands kinds[] = {
        {},
        {.request_alignment = 512, .memory_alignment = 1},
        {.request_alignment = 1, .memory_alignment = 4096},
        {.request_alignment = 512, .memory_alignment = 4096},
        {.request_alignment = 512, .memory_alignment = 4096, .max_transfer = 4608},
        {.request_alignment = 1, .memory_alignment = 4096, .max_transfer = 777},
        {.request_alignment = 512, .memory_alignment = 512, .max_transfer = 1024},
        {.request_alignment = 512, .memory_alignment = 1, .max_transfer = 512},
        {.request_alignment = 1, .memory_alignment = 1, .max_transfer = 777},
        {.request_alignment = 512, .native_ops = reads_and_writes, .native_write_flags = 0},
    };
    uint64_t seed = 1;
    for (const Demands& kind : kinds) {
        run_model(kind, seed++, {{"discard", "unmap"}});
        run_model(kind, seed++, {{"discard", "unmap"}, {"detect-zeroes", "on"}});
    }
}

// Slices of a long transfer are aligned in memory as well, also where that is more than in the request.
TEST(aligned_buffers_are_sliced_where_they_stay_aligned) {
    alignas(4096) static char buffer[32768], back[32768];
    for (uint64_t most : {uint64_t{4608}, uint64_t{2048}, uint64_t{512}}) {
        Bench bench({.request_alignment = 512, .memory_alignment = 4096, .max_transfer = most});
        for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = static_cast<char>(i / 512 + most);
        memset(back, 0, sizeof back);
        CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, 512, sizeof buffer, 0, &bench.error), sizeof buffer);
        CHECK_EQ(io(bench.user, ENGINE_OP_READ, back, 512, sizeof back, 0, &bench.error), sizeof back);
        CHECK(memcmp(buffer, back, sizeof back) == 0);
    }
}

TEST(no_memory_is_asked_for_where_all_suits) {
    Bench bench;
    engine_context_t* context = bench.engine.context("io0");
    alignas(512) static char buffer[4096];
    CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, 512, 4096, 0, &bench.error, context), 4096);
    CHECK_EQ(io(bench.user, ENGINE_OP_READ, buffer, 512, 4096, 0, &bench.error, context), 4096);
    CHECK_EQ(bench.disk().requests.load(), 2);
    CHECK(!bench.tracked());
    // A read of a part of a block needs no switch either, and one request.
    CHECK_EQ(io(bench.user, ENGINE_OP_READ, buffer, 600, 100, 0, &bench.error, context), 100);
    CHECK_EQ(bench.disk().requests.load(), 3);
    CHECK(!bench.tracked());
    // A write of a part of a block reads it, writes it, and switches.
    CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, 600, 100, 0, &bench.error, context), 100);
    CHECK_EQ(bench.disk().requests.load(), 5);
    CHECK(bench.tracked());
    CHECK_EQ(bench.limits().bounce_bytes.used(), 0);
}

TEST(bounds_hold_for_parts_of_blocks) {
    Bench bench;
    char buffer[600] = {};
    CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, demands.bytes - 1, 2, 0, &bench.error), -EINVAL);
    CHECK(bench.error.says("ends past the end of the disk"));
    CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, demands.bytes - 600, 600, 0, &bench.error), 600);
    CHECK_EQ(bench.disk().requests.load(), 2);  // one block is whole
}

TEST(a_size_is_a_multiple_of_the_alignment) {
    Bench bench;
    CHECK_EQ(io(bench.user, ENGINE_OP_RESIZE, nullptr, 1000, 0, 0, &bench.error), -EINVAL);
    CHECK(bench.error.says("a size of 1000 bytes is not a multiple of its alignment, 512 bytes"));
    CHECK_EQ(io(bench.user, ENGINE_OP_RESIZE, nullptr, 1024, 0, 0, &bench.error), 0);
}

// --- memory

TEST(without_memory_for_bounce_buffers_requests_take_turns) {
    Bench bench;
    bench.limits().bounce_bytes.set_most(0);
    engine_context_t* contexts[] = {bench.engine.context("io0"), bench.engine.context("io1")};
    Together requests[2];
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned j = 0; j < 50; j++) {
            uint64_t at = uint64_t{j} * 600 + i * 300;
            requests[i].add(j % 3 == 0 ? Op::read : Op::write, at + 1, j == 9 ? 40000 - at : 299,
                            static_cast<char>('a' + i));
        }
    }
    for (unsigned i = 0; i < 2; i++) requests[i].submit(contexts[i], bench.port(contexts[i]));
    for (Together& each : requests) each.wait();
    for (Together& each : requests) {
        for (auto& one : each.requests) CHECK_EQ(one->result, 0);
    }
    CHECK_EQ(bench.byte(1 + 600 * 40), 'a');
    CHECK_EQ(bench.byte(1 + 600 * 40 + 300), 'b');
    CHECK_EQ(bench.limits().bounce_bytes.used(), 0);
}

struct Hook {
    std::atomic<int> left{-1};
};
Hook hook;
int fail_one(size_t, void*) {
    return hook.left.load() >= 0 && hook.left-- == 0 ? 1 : 0;
}

// The k-th allocation fails, for every k until none is left to fail: done or not done, and never stuck.
TEST(an_allocation_that_fails_fails_the_request_alone) {
    for (uint32_t op : {ENGINE_OP_WRITE, ENGINE_OP_READ, ENGINE_OP_WRITE_ZEROES}) {
        unsigned failures = 0;
        for (int k = 0; k < 60; k++) {
            Bench bench;
            engine_context_t* context = bench.engine.context("io0");
            bench.port(context);
            char buffer[700];
            memset(buffer, 'x', sizeof buffer);
            hook.left = k;
            engine_set_allocation_hook(fail_one, nullptr);
            int64_t result = io(bench.user, op, buffer, 1000, 700, 0, &bench.error, context);
            engine_set_allocation_hook(nullptr, nullptr);
            bool hit = hook.left.load() < 0;
            CHECK(result >= 0 || result == -ENOMEM);
            if (result < 0) failures++;
            bool before = op == ENGINE_OP_READ || result < 0 || op == ENGINE_OP_WRITE_ZEROES;
            CHECK_EQ(bench.byte(1000), before ? 0 : 'x');
            memset(buffer, 'x', sizeof buffer);
            CHECK_EQ(io(bench.user, ENGINE_OP_WRITE, buffer, 1000, 700, 0, &bench.error, context), 700);
            CHECK_EQ(bench.byte(1699), 'x');
            CHECK_EQ(bench.limits().bounce_bytes.used(), 0);
            if (!hit) break;
            CHECK(k < 59);
        }
        CHECK(failures != 0);
    }
}

}  // namespace
