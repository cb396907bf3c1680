// The memory driver: real data, sparse; zeroes and discards give memory back; resizing; short memory is an
// error; and several contexts at once, over the same bytes too, lose nothing that was theirs alone.
#include <algorithm>

#include "api/handles.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::io;
using engine::block::Channel;
using engine::block::Op;

constexpr uint64_t chunk = 65536;

struct Disk {
    Engine engine;
    engine_node_t* node;
    engine_user_t* user;
    Error error;

    explicit Disk(const char* size)
        : node(engine.open(
              {{"driver", "memory"}, {"size", size}, {"discard", "unmap"}, {"node-name", "ram"}})),
          user(Engine::user(node, "test")) {}
    ~Disk() { CHECK_EQ(engine_user_close(user, &error), 0); }

    void fill(uint64_t offset, uint64_t bytes, char with, engine_context_t* context = nullptr) {
        std::vector<char> data(bytes, with);
        CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), offset, bytes, 0, &error, context), bytes);
    }
    // Whether the range holds nothing but `with`.
    bool holds(uint64_t offset, uint64_t bytes, char with) {
        std::vector<char> data(bytes, '?');
        CHECK_EQ(io(user, ENGINE_OP_READ, data.data(), offset, bytes, 0, &error), bytes);
        return std::all_of(data.begin(), data.end(), [&](char c) { return c == with; });
    }
    int64_t run(uint32_t op, uint64_t offset, uint64_t bytes, uint32_t flags = 0,
                engine_context_t* context = nullptr) {
        return io(user, op, nullptr, offset, bytes, flags, &error, context);
    }
    // "Z65536 D131072": what block status says of a range.
    std::string status(uint64_t offset, uint64_t bytes, uint32_t capacity = 16) {
        std::vector<engine_extent> extents(capacity);
        int64_t count =
            engine_user_block_status(user, nullptr, offset, bytes, extents.data(), capacity, &error);
        CHECK(count >= 0);
        std::string text;
        uint64_t at = offset;
        for (int64_t i = 0; i < count; i++) {
            const engine_extent& extent = extents[static_cast<size_t>(i)];
            CHECK_EQ(extent.offset, at);
            at += extent.length;
            text += (text.empty() ? "" : " ") + std::string(extent.flags == ENGINE_EXTENT_DATA ? "D" : "Z") +
                    std::to_string(extent.length);
        }
        return text;
    }
};

uint64_t resident_bytes() {
    uint64_t pages = 0;
    FILE* file = fopen("/proc/self/statm", "re");
    REQUIRE(file != nullptr);
    CHECK_EQ(fscanf(file, "%*u %lu", &pages), 1);
    fclose(file);
    return pages * 4096;
}

TEST(it_holds_what_is_written_and_zeroes_elsewhere) {
    Disk disk("10M");
    CHECK(disk.holds(0, 1 << 20, 0));
    disk.fill(chunk - 5, 3 * chunk + 10, 'a');  // across chunks, not aligned
    CHECK(disk.holds(chunk - 5, 3 * chunk + 10, 'a'));
    CHECK(disk.holds(0, chunk - 5, 0));
    CHECK(disk.holds(4 * chunk + 5, chunk, 0));
    disk.fill((10 << 20) - 1, 1, 'z');
    CHECK(disk.holds((10 << 20) - 1, 1, 'z'));
    // In parts of odd sizes.
    char parts[3][1000];
    engine_iovec vector[3] = {{parts[0], 1}, {parts[1], 1000}, {parts[2], 777}};
    memset(parts, 'v', sizeof parts);
    CHECK_EQ(
        engine_user_io(disk.user, nullptr, ENGINE_OP_WRITE, vector, 3, 2 * chunk - 900, 1778, 0, &disk.error),
        1778);
    CHECK(disk.holds(2 * chunk - 900, 1778, 'v'));
    CHECK(disk.holds(2 * chunk + 878, 100, 'a'));
    memset(parts, '?', sizeof parts);
    CHECK_EQ(
        engine_user_io(disk.user, nullptr, ENGINE_OP_READ, vector, 3, 2 * chunk - 901, 1778, 0, &disk.error),
        1778);
    CHECK(parts[0][0] == 'a' && parts[1][0] == 'v' && parts[2][776] == 'v' && parts[2][777] == '?');
    CHECK_EQ(disk.run(ENGINE_OP_FLUSH, 0, 0), 0);
}

TEST(block_status_tells_data_from_holes) {
    Disk disk("1M");
    CHECK_EQ(disk.status(0, 1 << 20), "Z1048576");
    disk.fill(2 * chunk + 100, 1, 'a');
    disk.fill(3 * chunk, chunk, 'a');
    disk.fill(8 * chunk, 1, 'a');
    CHECK_EQ(disk.status(0, 1 << 20), "Z131072 D131072 Z262144 D65536 Z458752");
    CHECK_EQ(disk.status(100, 2 * chunk), "Z130972 D100");
    CHECK_EQ(disk.status(0, 1 << 20, 2), "Z131072 D131072");  // as many as there is room for
    CHECK_EQ(disk.status(2 * chunk, 10), "D10");
    engine_node_info info = embedder::info_of(disk.node);
    CHECK_EQ(info.holes, 1);
}

TEST(zeroes_and_discards) {
    Disk disk("1M");
    disk.fill(0, 8 * chunk, 'a');
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, chunk - 100, 2 * chunk + 200), 0);  // two whole, two in part
    CHECK(disk.holds(0, chunk - 100, 'a'));
    CHECK(disk.holds(chunk - 100, 2 * chunk + 200, 0));
    CHECK(disk.holds(3 * chunk + 100, chunk, 'a'));
    CHECK_EQ(disk.status(0, 8 * chunk), "D65536 Z131072 D327680");
    // Without leave to unmap the chunk stays: zeroes are data.
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 4 * chunk, chunk), 0);
    CHECK(disk.holds(4 * chunk, chunk, 0));
    CHECK_EQ(disk.status(4 * chunk, chunk), "D65536");
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 4 * chunk, 2 * chunk, ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK),
             0);
    CHECK_EQ(disk.status(4 * chunk, 4 * chunk), "Z131072 D131072");
    CHECK(disk.holds(4 * chunk, 2 * chunk, 0));
    // A discarded chunk is as good as new.
    disk.fill(4 * chunk + 10, 10, 'b');
    CHECK(disk.holds(4 * chunk + 10, 10, 'b'));
    CHECK(disk.holds(4 * chunk, 10, 0) && disk.holds(4 * chunk + 20, chunk - 20, 0));
    CHECK_EQ(disk.status(4 * chunk, 2 * chunk), "D65536 Z65536");
    // Where nothing was written nothing is made.
    CHECK_EQ(disk.run(ENGINE_OP_WRITE_ZEROES, 12 * chunk, chunk), 0);
    CHECK_EQ(disk.status(12 * chunk, chunk), "Z65536");
}

TEST(what_is_discarded_goes_back_to_the_system) {
    constexpr uint64_t bytes = 64 << 20;
    Disk disk("64M");
    for (uint64_t at = 0; at < bytes; at += 1 << 20) disk.fill(at, 1 << 20, 'a');
    uint64_t full = resident_bytes();
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, bytes), 0);
    CHECK(resident_bytes() + bytes / 2 < full);
    CHECK_EQ(disk.status(0, bytes), "Z67108864");
    CHECK(disk.holds(bytes / 2, 1 << 20, 0));
}

TEST(resizing) {
    Disk disk("256k");
    disk.fill(0, 4 * chunk, 'a');
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, chunk + 100, 0), 0);
    Error error;
    char byte;
    CHECK_EQ(io(disk.user, ENGINE_OP_READ, &byte, chunk + 100, 1, 0, &error), -EINVAL);
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 10 << 20, 0), 0);
    CHECK(disk.holds(0, chunk + 100, 'a'));
    CHECK(disk.holds(chunk + 100, 5 * chunk, 0));  // what was cut off does not come back
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, (uint64_t{64} << 40) + 1, 0), -EFBIG);
    CHECK(disk.error.says("node ram: 70368744177665 bytes are more than a memory disk can have: at most"));
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, uint64_t{64} << 40, 0), 0);
    disk.fill((uint64_t{64} << 40) - 10, 10, 'e');
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, 0, 0), 0);
    CHECK_EQ(disk.run(ENGINE_OP_RESIZE, uint64_t{64} << 40, 0), 0);
    CHECK(disk.holds((uint64_t{64} << 40) - 10, 10, 0));
}

TEST(the_largest_disk) {
    Disk disk("64T");
    const uint64_t end = uint64_t{64} << 40;
    disk.fill(end - 10, 10, 'e');
    disk.fill(end / 2, 10, 'm');
    CHECK(disk.holds(end - 10, 10, 'e') && disk.holds(end / 2, 10, 'm'));
    CHECK_EQ(disk.status(0, end), "Z35184372088832 D65536 Z35184371957760 D65536");
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, end), 0);
    CHECK(disk.holds(end - 10, 10, 0));
    Error error;
    engine_node_t* node = nullptr;
    CHECK_EQ(disk.engine.open({{"driver", "memory"}, {"size", "65T"}}, &node, &error), -EINVAL);
    CHECK(error.says("option 'size' = '65T' is not within its range (0..64T)"));
    CHECK_EQ(disk.engine.open({{"driver", "memory"}}, &node, &error), -EINVAL);
    CHECK_EQ(std::string_view(error.field), "size");
}

// An answer takes a bounded number of steps. A chunk in each 64 MiB, discarded again, makes each hole a step.
TEST(the_status_of_a_long_range_comes_in_parts) {
    Disk disk("5G");
    for (uint64_t at = 0; at < uint64_t{5} << 30; at += 64 << 20) disk.fill(at, 1, 'x');
    CHECK_EQ(disk.run(ENGINE_OP_DISCARD, 0, uint64_t{5} << 30), 0);
    CHECK_EQ(disk.status(0, uint64_t{5} << 30), "Z4294967296");
    CHECK_EQ(disk.status(uint64_t{4} << 30, uint64_t{1} << 30), "Z1073741824");
}

TEST(short_memory_is_an_error) {
    Disk disk("1M");
    disk.fill(0, 100, 'a');
    engine_set_allocation_hook([](size_t bytes, void*) { return bytes >= chunk ? 1 : 0; }, nullptr);
    char data[2 * chunk] = {};
    int64_t beside = io(disk.user, ENGINE_OP_WRITE, data, 4 * chunk, 512, 0, &disk.error);
    CHECK(disk.error.says("node ram: no memory for what is written at offset 262144"));
    CHECK_EQ(disk.error.kind, ENGINE_ERROR_LIMIT);
    int64_t across = io(disk.user, ENGINE_OP_WRITE, data, chunk - 10, 20, 0, &disk.error);
    int64_t inside = io(disk.user, ENGINE_OP_WRITE, data, 200, 100, 0, &disk.error);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(beside, -ENOMEM);
    CHECK_EQ(across, -ENOMEM);
    CHECK_EQ(inside, 100);
    CHECK(disk.holds(0, 100, 'a'));
    disk.fill(4 * chunk, 512, 'b');
    CHECK(disk.holds(4 * chunk, 512, 'b'));
    engine_set_allocation_hook([](size_t bytes, void*) { return bytes == 8192 ? 1 : 0; }, nullptr);
    engine_node_t* node = nullptr;
    Error error;
    int result = disk.engine.open({{"driver", "memory"}, {"size", "1M"}}, &node, &error);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(result, -ENOMEM);
    CHECK(error.says("memory: no memory for the table of chunks"));
}

// --- several contexts at once

// A stream of requests on one context: the next one is submitted when the last has completed.
struct Stream : engine::block::Request {
    engine::block::Port* port = nullptr;
    std::function<bool(Stream&)> next;  // sets the request up; false: it is over
    std::vector<char> data;
    std::atomic<bool> over{false};

    void begin(engine_user_t* user, engine_context_t* context) {
        Error told;
        REQUIRE(open_port(engine::api::unwrap(user), engine::api::unwrap(context), &port, &told) == 0);
        complete = [](engine::block::Request* request) {
            auto* self = static_cast<Stream*>(request);
            CHECK(self->result >= 0);
            self->advance();
        };
        embedder::run_on(context, [this] { advance(); });
    }
    void advance() {
        if (next(*this)) {
            submit(*port, this);
        } else {
            over.store(true, std::memory_order_release);
        }
    }
    void write(uint64_t at, uint64_t bytes, char with) {
        data.assign(bytes, with);
        op = Op::write;
        offset = at;
        length = bytes;
        set_buffer(data.data(), bytes);
    }
    void discard(uint64_t at, uint64_t bytes) {
        op = Op::discard;
        offset = at;
        length = bytes;
        iov = nullptr;
        iov_count = 0;
    }
    bool done() const { return over.load(std::memory_order_acquire); }
};

#ifdef EMBEDDER_TSAN
constexpr unsigned rounds = 300;
#else
constexpr unsigned rounds = 3000;
#endif

// Both race to make each chunk, and each has its half of it.
TEST(halves_of_a_new_chunk_from_two_contexts) {
    for (uint32_t backend : both_backends) {
        Disk disk("1G");
        Stream streams[2];
        engine_context_t* contexts[2] = {disk.engine.context("io0", backend),
                                         disk.engine.context("io1", backend)};
        unsigned done[2] = {0, 0};
        for (unsigned i = 0; i < 2; i++) {
            streams[i].next = [&done, i](Stream& stream) {
                if (done[i] == rounds) return false;
                stream.write(done[i] * chunk + i * chunk / 2, chunk / 2, static_cast<char>('a' + i));
                done[i]++;
                return true;
            };
            streams[i].begin(disk.user, contexts[i]);
        }
        REQUIRE(embedder::eventually([&] { return streams[0].done() && streams[1].done(); }));
        for (unsigned k = 0; k < rounds; k++) {
            CHECK(disk.holds(k * chunk, chunk / 2, 'a'));
            CHECK(disk.holds(k * chunk + chunk / 2, chunk / 2, 'b'));
        }
    }
}

// One writes what the other discards: in the end what is told to be a hole reads as one, and each byte is
// one that was written, or zero.
TEST(writes_and_discards_of_the_same_chunks) {
    constexpr unsigned chunks = 4;
    for (unsigned run = 0; run < 5; run++) {
        Disk disk("256k");
        Stream streams[2];
        engine_context_t* contexts[2] = {disk.engine.context("io0"), disk.engine.context("io1")};
        unsigned done[2] = {0, 0};
        for (unsigned i = 0; i < 2; i++) {
            streams[i].next = [&done, i](Stream& stream) {
                if (done[i] == rounds) return false;
                unsigned k = done[i]++;
                if (i == 0) {
                    stream.write(k % chunks * chunk + k % 60 * 1000, 5000, 'w');
                } else {
                    stream.discard((k * 3) % chunks * chunk, chunk);
                }
                return true;
            };
            streams[i].begin(disk.user, contexts[i]);
        }
        REQUIRE(embedder::eventually([&] { return streams[0].done() && streams[1].done(); }));
        for (unsigned k = 0; k < chunks; k++) {
            if (disk.status(k * chunk, chunk) == "Z65536") CHECK(disk.holds(k * chunk, chunk, 0));
        }
        std::vector<char> all(chunks * chunk, '?');
        CHECK_EQ(io(disk.user, ENGINE_OP_READ, all.data(), 0, all.size(), 0, &disk.error), all.size());
        CHECK(std::all_of(all.begin(), all.end(), [](char c) { return c == 'w' || c == 0; }));
        disk.fill(0, chunks * chunk, 'e');
        CHECK(disk.holds(0, chunks * chunk, 'e'));
    }
}

}  // namespace
