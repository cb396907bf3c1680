// The split ring against a peer that cheats: each word read once, seeded random descriptors against an
// oracle, and a thread that rewrites descriptors under the device.
#include <array>
#include <thread>
#include <vector>

#include "virtio_guest.hh"

using namespace guest;

namespace {

// Counts reads and lies from the second on: a word is scribbled over as soon as it has been read, so that
// what a second read would yield is not what was checked.
struct WatchedAccess {
    static inline uint8_t* base = nullptr;
    static inline std::vector<uint8_t> reads;  // by byte
    static inline unsigned repeated = 0;

    static void watch(uint8_t* memory, size_t bytes) {
        base = memory;
        reads.assign(bytes, 0);
        repeated = 0;
    }
    template <class T>
    static T load(const T* word) {
        T value;
        memcpy(&value, word, sizeof value);
        const size_t at = static_cast<size_t>(reinterpret_cast<const uint8_t*>(word) - base);
        for (size_t i = 0; i < sizeof value; ++i) {
            if (reads.at(at + i)++ != 0) ++repeated;
            base[at + i] = static_cast<uint8_t>(~base[at + i] + 3);
        }
        return little_endian(value);
    }
    template <class T>
    static T load_acquire(const T* word) {
        return load(word);
    }
    template <class T>
    static T load_seq_cst(const T* word) {
        return load(word);
    }
    template <class T>
    static void store(T* word, T value) {
        value = little_endian(value);
        memcpy(word, &value, sizeof value);
    }
    template <class T>
    static void store_seq_cst(T* word, T value) {
        store(word, value);
    }
};

}  // namespace

TEST(the_watch_itself_notices_a_second_read) {
    Block memory = block(64);
    WatchedAccess::watch(memory.get(), 64);
    auto* word = reinterpret_cast<uint32_t*>(memory.get() + 8);
    *word = 7;
    CHECK_EQ(WatchedAccess::load(word), 7u);
    CHECK_EQ(WatchedAccess::repeated, 0u);
    CHECK(WatchedAccess::load(word) != 7u);
    CHECK_EQ(WatchedAccess::repeated, 4u);
}

TEST(the_device_reads_each_word_once) {
    for (bool event : {false, true}) {
        Guest guest(64, feature_indirect_desc | (event ? feature_event_idx : 0));
        BasicDeviceRing<WatchedAccess> ring;
        guest.start(ring);
        // Forty chains, more than are looked at in one go: direct, indirect, indirect at an odd address.
        for (uint16_t i = 0; i < 40; ++i) {
            const uint64_t where = Guest::data + i * 4096u, table = where + 2048 + (i % 3 == 2 ? 5 : 0);
            if (i % 3 == 0) {
                guest.desc(i, where, 16, desc_f_next, 63u - i / 3);
                guest.desc(63u - i / 3, where + 64, 100u + i, desc_f_write);
            } else {
                guest.desc(i, table, 32, desc_f_indirect);
                guest.entry(table, 0, where, 16, desc_f_next, 1);
                guest.entry(table, 1, where + 64, 100u + i, desc_f_write, 0);
            }
            guest.put_head(i);
        }
        guest.show();
        WatchedAccess::watch(guest.memory.get(), Guest::bytes);
        Chain chain;
        for (uint16_t i = 0; i < 40; ++i) {
            REQUIRE(ring.pop(chain));
            CHECK_EQ(chain.head, i);
            REQUIRE(chain.readable().size() == 1 && chain.writable().size() == 1);
            CHECK_EQ(chain.readable()[0].iov_base, guest.host(Guest::data + i * 4096u));
            CHECK_EQ(chain.writable()[0].iov_len, 100u + i);
            uint64_t header[2];
            copy_from_shared<WatchedAccess>(header, chain.readable()[0].iov_base, 16);
        }
        for (uint16_t i = 0; i < 40; ++i) ring.push(i, 0);
        ring.publish();
        CHECK_EQ(WatchedAccess::repeated, 0u);
        CHECK(!ring.broken());
        // And nothing was read that was not needed: 40 heads, 40 × 2 descriptors and 26 that refer to tables,
        // as many headers, the index, and whether to call.
        unsigned bytes = 0;
        for (uint8_t count : WatchedAccess::reads) bytes += count;
        CHECK_EQ(bytes, 40 * 2 + (80 + 26) * 16 + 40 * 16 + 2 + 2u);
    }
}

TEST(the_driver_reads_each_word_once) {
    for (uint64_t features : {uint64_t{0}, feature_event_idx}) {
        const RingLayout layout = RingLayout::make(16);
        Block memory = block(65536);
        BasicDriverRing<WatchedAccess> driver;
        DeviceRing device;
        engine_error error{};
        REQUIRE(driver.configure({memory.get(), 0, 65536, layout, features}, &error) == 0);
        MemoryTableRef table = one_region(0, memory.get(), 65536);
        RingConfig config{16, layout.desc, layout.avail, layout.used, features};
        REQUIRE(device.configure(table, config, &error) == 0);
        Element elements[2] = {{32768, 8}, {32776, 8}};
        WatchedAccess::watch(memory.get(), 65536);
        for (int i = 0; i < 8; ++i) REQUIRE(driver.add({elements, 1}, {elements + 1, 1}, elements + i % 2));
        driver.publish();
        Chain chain;
        while (device.pop(chain)) device.push(chain.head, 8);
        device.publish();
        WatchedAccess::watch(memory.get(), 65536);
        for (int i = 0; i < 8; ++i) {
            void* token = nullptr;
            uint32_t written = 0;
            REQUIRE(driver.reap(&token, &written));
            CHECK(token == elements + i % 2 && written == 8);
        }
        CHECK_EQ(WatchedAccess::repeated, 0u);
        unsigned bytes = 0;
        for (uint8_t count : WatchedAccess::reads) bytes += count;
        CHECK_EQ(bytes, 8 * 8 + 2u);
    }
}

namespace {

// Three regions, two of them adjacent for the guest and apart here, and nothing around them.
struct World {
    struct Region {
        uint64_t guest;
        uint32_t bytes;
        Block host;
    };
    std::array<Region, 3> regions;
    MemoryTableRef table;
    uint32_t size = 0;
    uint64_t features = 0;
    RingLayout layout{};

    World() {
        const uint64_t at[3] = {0x10000, 0x1c000, 0x40000};
        const uint32_t bytes[3] = {0xc000, 0x2000, 0x3000};
        MemoryTable::Builder builder;
        engine_error error{};
        for (int i = 0; i < 3; ++i) {
            regions[i] = {at[i], bytes[i], block(bytes[i])};
            if (builder.add(at[i], regions[i].host.get(), bytes[i], &error) != 0) throw check::Failure();
        }
        if (builder.build(&table, &error) != 0) throw check::Failure();
    }
    // One byte at a time, on purpose: the oracle shares no code with what it judges.
    uint8_t* byte(uint64_t address) {
        for (Region& r : regions) {
            if (address >= r.guest && address < r.guest + r.bytes) return r.host.get() + (address - r.guest);
        }
        return nullptr;
    }
    uint64_t read(uint64_t address, int bytes) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; ++i)
            value |= uint64_t{*byte(address + static_cast<unsigned>(i))} << (8 * i);
        return value;
    }
    void write(uint64_t address, uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) {
            *byte(address + static_cast<unsigned>(i)) = static_cast<uint8_t>(value >> (8 * i));
        }
    }
    uint64_t desc() const { return regions[0].guest + layout.desc; }
    uint64_t avail() const { return regions[0].guest + layout.avail; }
};

struct Piece {
    uint8_t* host;
    uint64_t bytes;
    bool writable;
};

// What the specification says of the chain at `head`, straight from its text: false if it breaks a rule.
bool judge(World& w, uint32_t head, std::vector<Piece>* pieces) {
    pieces->clear();
    if (head >= w.size) return false;
    uint64_t table = w.desc(), entries = w.size, index = head, total = 0, steps = 0;
    bool inside = false, writing = false;
    for (;;) {
        const uint64_t d = table + 16 * index;
        const uint64_t address = w.read(d, 8), length = w.read(d + 8, 4), flags = w.read(d + 12, 2);
        if (flags & desc_f_indirect) {
            if (inside || (flags & desc_f_next) || !(w.features & feature_indirect_desc)) return false;
            if (length == 0 || length % 16 != 0) return false;
            for (uint64_t i = 1; i < length; ++i) {  // all in one region
                if (w.byte(address + i) == nullptr || w.byte(address + i) != w.byte(address) + i)
                    return false;
            }
            if (w.byte(address) == nullptr) return false;
            inside = true, table = address, entries = length / 16, index = 0, steps = 0;
            continue;
        }
        const bool writable = (flags & desc_f_write) != 0;
        if (length == 0 || (writing && !writable) || ++steps > entries) return false;
        writing = writable;
        for (uint64_t i = 0; i < length; ++i) {
            uint8_t* host = w.byte(address + i);
            if (host == nullptr) return false;
            if (i != 0 && host == pieces->back().host + pieces->back().bytes) {
                ++pieces->back().bytes;
            } else {
                pieces->push_back({host, 1, writable});
            }
        }
        if (pieces->size() > Chain::capacity) return false;
        total += length;
        if (!(flags & desc_f_next)) return total <= max_chain_bytes;
        index = w.read(d + 14, 2);
        if (index >= entries) return false;
    }
}

uint64_t random_address(Random& random) {
    static const uint64_t edges[] = {0,       0xffff,  0x10000, 0x1bff0, 0x1bfff,    0x1c000,
                                     0x1dfff, 0x1e000, 0x40000, 0x42fff, UINT64_MAX, uint64_t{1} << 63};
    if (random.one_in(60)) return edges[random.below(12)];
    if (random.one_in(20)) return 0x1bf00 + random.below(512);  // about where two regions meet
    if (random.one_in(200)) return random.next();
    return random.one_in(2) ? 0x40000 + random.below(0x2f00) : 0x10000 + random.below(0xd000);
}

uint32_t random_length(Random& random) {
    static const uint32_t lengths[] = {0, 1, 15, 16, 0x7fffffff, 0x80000000, 0xffffffff, 0x2000};
    if (random.one_in(40)) return lengths[random.below(8)];
    return 1 + random.below(random.one_in(10) ? 4096 : 64);
}

// Mostly a good chain from entry to entry, with the writable part in the end; now and then anything.
void random_table(World& w, Random& random, uint64_t table, uint32_t entries, bool direct) {
    const uint32_t turn = random.below(entries + 1);
    for (uint32_t i = 0; i < entries; ++i) {
        uint32_t flags = i >= turn ? desc_f_write : 0;
        if (i + 1 < entries && !random.one_in(entries > 20 ? 300 : 4)) flags |= desc_f_next;
        if (random.one_in(100)) flags ^= 1u << random.below(4);
        uint64_t next = i + 1;
        if (random.one_in(40)) next = random.one_in(3) ? random.next() & 0xffff : random.below(entries + 1);
        uint64_t address = random_address(random);
        uint32_t length = random_length(random);
        if (direct && random.one_in(6)) {
            const uint32_t count = random.one_in(10) ? 140 + random.below(10) : 1 + random.below(6);
            flags = desc_f_indirect | (flags & (random.one_in(20) ? 3u : 2u));
            address = 0x16000 + random.below(random.one_in(10) ? 64 : 4) * (random.one_in(4) ? 1 : 64);
            length = count * 16 + (random.one_in(40) ? random.below(16) : 0);
            random_table(w, random, address, count, random.one_in(50));
        }
        w.write(table + 16 * i, address, 8);
        w.write(table + 16 * i + 8, length, 4);
        w.write(table + 16 * i + 12, flags, 2);
        w.write(table + 16 * i + 14, next, 2);
    }
}

bool same(const Chain& chain, const std::vector<Piece>& pieces) {
    if (pieces.size() != chain.end) return false;
    uint64_t readable = 0, writable = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
        if (chain.iov[i].iov_base != pieces[i].host || chain.iov[i].iov_len != pieces[i].bytes) return false;
        if (pieces[i].writable != (i >= chain.middle)) return false;
        (pieces[i].writable ? writable : readable) += pieces[i].bytes;
    }
    return readable == chain.readable_bytes && writable == chain.writable_bytes;
}

// Reads and writes all that a chain offers: the address sanitizer stands by.
uint32_t touch(const Chain& chain) {
    uint32_t sum = 0;
    for (const iovec& part : chain.readable()) {
        for (size_t i = 0; i < part.iov_len; ++i) sum += static_cast<const uint8_t*>(part.iov_base)[i];
    }
    for (const iovec& part : chain.writable()) memset(part.iov_base, static_cast<int>(sum), part.iov_len);
    return sum;
}

}  // namespace

TEST(random_descriptors_are_judged_as_the_specification_says) {
    World world;
    const uint64_t seed = 20240607;
    Random random(seed);
    DeviceRing ring;
    Chain chain;
    std::vector<Piece> pieces;
    unsigned accepted = 0, rejected = 0;
    std::array<unsigned, 32> seen{};
    volatile uint32_t sum = 0;
    for (unsigned round = 0; round < 100000; ++round) {
        world.size = 1u << random.below(5);
        world.layout = RingLayout::make(world.size);
        world.features = random.one_in(8) ? 0 : feature_indirect_desc;
        random_table(world, random, world.desc(), world.size, true);
        const uint32_t offered = 1 + random.below(random.one_in(50) ? 2 * world.size : world.size);
        world.write(world.avail(), 0, 2);
        world.write(world.avail() + 2, random.one_in(100) ? random.next() : offered, 2);
        for (uint32_t i = 0; i < world.size; ++i) {
            world.write(world.avail() + 4 + 2 * i,
                        random.one_in(100) ? random.next() : random.below(world.size), 2);
        }
        RingConfig config{world.size, world.desc(), world.avail(), 0x10000 + world.layout.used,
                          world.features};
        engine_error error{};
        REQUIRE(ring.configure(world.table, config, &error) == 0);
        const uint64_t idx = world.read(world.avail() + 2, 2);
        const uint32_t head = static_cast<uint32_t>(world.read(world.avail() + 4, 2));
        const bool good = judge(world, head, &pieces) && idx <= world.size;
        const bool popped = ring.pop(chain);
        if (popped != (good && idx != 0) || (popped && !same(chain, pieces))) {
            fprintf(stderr, "seed %lu, round %u: %s\n", seed, round, popped ? "taken" : ring.error().message);
            CHECK(!"ring and oracle disagree");
            return;
        }
        if (popped) {
            ++accepted;
            sum = sum +
                  touch(chain);  // a writable element may lie on the ring itself: whatever follows is wild
            std::array<uint16_t, 4> heads{chain.head};
            uint32_t taken = 1;
            for (; taken < 4 && ring.pop(chain); ++taken) {
                sum = sum + touch(chain);
                heads[taken] = chain.head;
            }
            for (uint32_t i = 0; i < taken; ++i) ring.push(heads[i], 0);
            ring.publish();
        } else if (ring.broken()) {
            ++rejected;
        }
        if (ring.broken()) ++seen[static_cast<size_t>(ring.violation())];
        REQUIRE(ring.in_flight() == 0);
    }
    printf("     %u taken, %u refused\n", accepted, rejected);
    CHECK(accepted > 20000 && rejected > 20000);
    for (size_t i = 1; i <= static_cast<size_t>(Violation::indirect_address); ++i) {
        const auto violation = static_cast<Violation>(i);
        // These two need more memory and more time in flight than this test gives.
        if (violation == Violation::chain_bytes || violation == Violation::overcommitted) continue;
        if (!CHECK(seen[i] != 0)) fprintf(stderr, "violation %zu never came\n", i);
    }
}

TEST(a_thread_that_rewrites_descriptors_gets_nothing_past_the_checks) {
    Guest guest(4);
    const uint64_t values[][2] = {
        {Guest::data, 64 | uint64_t{desc_f_next} << 32 | uint64_t{1} << 48},
        {Guest::data + 4096, 512 | uint64_t{desc_f_write} << 32},
        {Guest::base + Guest::bytes - 32, 64 | uint64_t{desc_f_next} << 32 | uint64_t{2} << 48},
        {UINT64_MAX - 7, 0xffffffffu | uint64_t{desc_f_next} << 32 | uint64_t{3} << 48},
        {Guest::base + Guest::bytes - 16,
         16 | uint64_t{desc_f_write | desc_f_next} << 32 | uint64_t{9} << 48},
        {Guest::data + 65536, 32 | uint64_t{desc_f_indirect} << 32},
        {0, 16},
    };
    for (uint32_t i = 0; i < 2; ++i) {
        guest.entry(Guest::data + 65536, i, Guest::data, 16, i == 0 ? desc_f_next : desc_f_write, 1);
    }
    std::atomic<bool> stop{false};
    std::thread rewriter([&] {
        Random random(3);
        auto* words = guest.at<uint64_t>(guest.layout.desc);
        while (!stop.load(std::memory_order_relaxed)) {
            SharedAccess::store(&words[random.below(8)], values[random.below(7)][random.below(2)]);
            for (uint32_t i = 0; i < 8; i += 2) {  // and often something sensible
                const auto& value = values[random.below(2)];
                SharedAccess::store(&words[i], value[0]);
                SharedAccess::store(&words[i + 1], value[1]);
            }
        }
    });
    DeviceRing ring;
    Chain chain;
    unsigned taken = 0, refused = 0, escaped = 0;
    guest.start(ring);
    for (unsigned round = 0; round < 200000; ++round) {
        guest.offer(static_cast<uint16_t>(round % 4));
        if (ring.pop(chain)) {
            ++taken;
            for (unsigned i = 0; i < chain.end; ++i) {
                const auto* start = static_cast<uint8_t*>(chain.iov[i].iov_base);
                const size_t length = chain.iov[i].iov_len;
                escaped += start < guest.memory.get() || length == 0 || length > Guest::bytes ||
                           start + length > guest.memory.get() + Guest::bytes;
            }
            ring.push(chain.head, 0);
            ring.publish();
        } else {
            ++refused;
            guest.start(ring);
        }
    }
    stop = true;
    rewriter.join();
    CHECK_EQ(escaped, 0u);
    CHECK(taken > 1000 && refused > 1000);
    printf("     %u taken, %u refused\n", taken, refused);
}
