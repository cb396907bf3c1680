// The device's side of the split ring: layout, set-up, chains of every legal shape, every violation. One
// thread.
#include <sys/mman.h>

#include "virtio_guest.hh"

using namespace guest;

namespace {

constexpr uint32_t next_flag = desc_f_next, write_flag = desc_f_write, indirect_flag = desc_f_indirect;

}  // namespace

TEST(layout_is_that_of_the_specification) {
    CHECK_EQ(desc_bytes(256), 4096u);
    CHECK_EQ(avail_bytes(256), 518u);
    CHECK_EQ(used_bytes(256), 2054u);
    for (uint32_t size = 1; size <= 32768; size *= 2) {
        CHECK(RingLayout::valid_size(size));
        RingLayout layout = RingLayout::make(size, 130, 1024);
        CHECK_EQ(layout.indirect_entries, 132u);
        CHECK_EQ(layout.desc, 1024u);
        CHECK(layout.avail >= layout.desc + 16 * size && layout.used >= layout.avail + 6 + 2 * size);
        CHECK(layout.indirect >= layout.used + 6 + 8 * size);
        CHECK(1024 + layout.bytes >= layout.indirect + uint64_t{size} * 132 * 16);
        CHECK_EQ((layout.desc | layout.avail | layout.used | layout.indirect) % 128, 0u);
    }
    for (uint32_t size : {0u, 3u, 255u, 32767u, 65536u}) CHECK(!RingLayout::valid_size(size));
}

TEST(passed_event_is_what_the_slots_say) {
    // The slot asked for is passed if it is one of those from `before` up to, not including, `now`.
    Random random(1);
    for (unsigned i = 0; i < 300000; ++i) {
        auto before = static_cast<uint16_t>(random.next());
        auto moved = static_cast<uint16_t>(random.below(random.one_in(2) ? 8 : 32769));
        auto event = static_cast<uint16_t>(before + random.below(16) - 8);
        bool passed = static_cast<uint16_t>(event - before) < moved;
        if (!CHECK_EQ(passed_event(event, static_cast<uint16_t>(before + moved), before), passed)) return;
    }
}

TEST(configure_checks_size_alignment_and_bounds) {
    Guest guest(256);
    DeviceRing ring;
    engine_error error{};
    auto refused = [&](RingConfig config, const char* field) {
        CHECK(ring.configure(guest.table, config, &error) < 0);
        CHECK_EQ(error.field, field);
        CHECK_EQ(error.kind, ENGINE_ERROR_INVALID);
    };
    for (uint32_t size : {0u, 3u, 65536u, 0x80000000u}) {
        RingConfig config = guest.config();
        config.size = size;
        refused(config, "size");
    }
    const RingConfig good = guest.config();
    struct {
        uint64_t RingConfig::* address;
        const char* field;
        uint64_t off;
        uint64_t length;
    } parts[] = {{&RingConfig::desc, "desc", 8, 4096},
                 {&RingConfig::avail, "avail", 1, 518},
                 {&RingConfig::used, "used", 2, 2054}};
    for (const auto& part : parts) {
        RingConfig config = good;
        config.*part.address += part.off;
        refused(config, part.field);
        CHECK(mentions(error, "not aligned"));
        for (uint64_t address : {uint64_t{0}, Guest::base - 16, Guest::base + Guest::bytes, ~uint64_t{15}}) {
            config.*part.address = address;
            refused(config, part.field);
        }
        // The last place where it fits, and 16 bytes further.
        config.*part.address = (Guest::base + Guest::bytes - part.length) & ~uint64_t{15};
        CHECK_EQ(ring.configure(guest.table, config, &error), 0);
        config.*part.address += 16;
        refused(config, part.field);
    }
    CHECK_EQ(ring.configure(MemoryTableRef(), good, &error), -EINVAL);
    // Aligned in the guest, not here.
    MemoryTableRef skewed = one_region(Guest::base, guest.memory.get() + 8, Guest::bytes - 8);
    CHECK_EQ(ring.configure(skewed, good, &error), -EINVAL);
    CHECK(mentions(error, "same alignment"));
    CHECK(!ring.broken());
}

TEST(chains_of_every_legal_shape) {
    Guest guest(8);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    CHECK(!ring.pop(chain) && !ring.has_work());

    // Direct: header, data, status.
    guest.desc(5, Guest::data, 16, next_flag, 2);
    guest.desc(2, Guest::data + 64, 4096, next_flag | write_flag, 7);
    guest.desc(7, Guest::data + 8192, 1, write_flag);
    guest.offer(5);
    CHECK(ring.has_work());
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.head, 5);
    REQUIRE(chain.readable().size() == 1 && chain.writable().size() == 2);
    CHECK_EQ(chain.readable()[0].iov_base, guest.host(Guest::data));
    CHECK_EQ(chain.readable_bytes, 16u);
    CHECK_EQ(chain.writable()[0].iov_base, guest.host(Guest::data + 64));
    CHECK_EQ(chain.writable()[0].iov_len, 4096u);
    CHECK_EQ(chain.writable()[1].iov_base, guest.host(Guest::data + 8192));
    CHECK_EQ(chain.writable_bytes, 4097u);
    CHECK_EQ(ring.in_flight(), 1u);
    ring.push(5, 4097);
    CHECK_EQ(guest.used_idx(), 0);
    CHECK(ring.publish());
    CHECK_EQ(guest.used_idx(), 1);
    CHECK_EQ(guest.used_id(0), 5u);
    CHECK_EQ(guest.used_len(0), 4097u);
    CHECK(!ring.publish());  // nothing new

    // One direct descriptor, then a table whose entries are out of order; WRITE beside INDIRECT means
    // nothing.
    const uint64_t table = Guest::data + 16384;
    guest.desc(5, Guest::data, 16, next_flag, 1);
    guest.desc(1, table, 48, indirect_flag | write_flag);
    guest.entry(table, 0, Guest::data + 100, 10, next_flag, 2);
    guest.entry(table, 2, Guest::data + 200, 20, next_flag | write_flag, 1);
    guest.entry(table, 1, Guest::data + 300, 30, write_flag, 0xffff);  // a next without NEXT means nothing
    guest.offer(5);
    REQUIRE(ring.pop(chain));
    REQUIRE(chain.readable().size() == 2 && chain.writable().size() == 2);
    CHECK_EQ(chain.readable()[1].iov_len, 10u);
    CHECK_EQ(chain.writable()[0].iov_len, 20u);
    CHECK_EQ(chain.writable()[1].iov_len, 30u);

    // A table at an odd address, and chains with one half only.
    guest.desc(0, table + 1001, 16, indirect_flag);
    guest.entry(table + 1001, 0, Guest::data + 7, 7, 0, 0);
    guest.desc(3, Guest::data, 9, write_flag | 0xfff8);  // unknown flags mean nothing
    guest.put_head(0);
    guest.offer(3);
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable_bytes, 7u);
    CHECK_EQ(chain.writable_bytes, 0u);
    CHECK_EQ(chain.readable()[0].iov_base, guest.host(Guest::data + 7));
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable_bytes, 0u);
    CHECK_EQ(chain.writable_bytes, 9u);
    CHECK_EQ(ring.in_flight(), 3u);
    ring.push(0, 0);
    ring.push(5, 0);
    ring.push(3, 9);
    ring.publish();
    CHECK_EQ(guest.used_idx(), 4);
    CHECK_EQ(guest.used_id(2), 5u);
    guest.offer(5);  // used, hence free to be offered again
    CHECK(ring.pop(chain));
}

TEST(longest_chains) {
    // As many elements as the queue has descriptors, and as a chain holds.
    Guest guest(256);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    auto fill = [&](uint32_t count) {
        for (uint32_t i = 0; i < count; ++i) {
            guest.desc(i, Guest::data + i, 1, i + 1 < count ? next_flag : 0, i + 1);
        }
        guest.offer(0);
        bool popped = ring.pop(chain);
        if (popped) ring.push(0, 0), ring.publish();
        return popped;
    };
    CHECK(fill(Chain::capacity));
    CHECK_EQ(chain.readable().size(), Chain::capacity);
    CHECK(!fill(Chain::capacity + 1));
    CHECK(ring.violation() == Violation::chain_elements);
    CHECK_EQ(ring.error().kind, ENGINE_ERROR_LIMIT);

    Guest small(8);
    DeviceRing other;
    small.start(other);
    // Eight descriptors, all used; and a table that holds more than the queue.
    for (uint32_t i = 0; i < 8; ++i) small.desc(i, Guest::data, 512, i < 7 ? next_flag : 0, i + 1);
    small.offer(0);
    CHECK(other.pop(chain));
    CHECK_EQ(chain.readable_bytes, 4096u);
    for (uint32_t i = 0; i < 128; ++i)
        small.entry(Guest::data, i, Guest::data, 512, i < 127 ? next_flag : 0, i + 1);
    small.desc(1, Guest::data, 128 * 16, indirect_flag);
    small.offer(1);
    CHECK(other.pop(chain));
    CHECK_EQ(chain.readable().size(), 128u);
}

TEST(elements_that_cross_regions_are_split) {
    Block a = block(4096), b = block(8192), c = block(4096);
    engine_error error{};
    MemoryTable::Builder builder;
    MemoryTableRef table;
    Guest guest(8);
    REQUIRE(builder.add(Guest::base, guest.memory.get(), Guest::bytes, &error) == 0);
    REQUIRE(builder.add(0x800000, a.get(), 4096, &error) == 0);
    REQUIRE(builder.add(0x801000, b.get(), 8192, &error) == 0);
    REQUIRE(builder.add(0x803000, c.get(), 4096, &error) == 0);
    REQUIRE(builder.build(&table, &error) == 0);
    guest.table = table;
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    guest.desc(0, 0x800ff0, 32, next_flag, 1);
    guest.desc(1, 0x800800, 0x800 + 8192 + 10, write_flag);
    guest.offer(0);
    REQUIRE(ring.pop(chain));
    REQUIRE(chain.readable().size() == 2 && chain.writable().size() == 3);
    CHECK_EQ(chain.readable_bytes, 32u);
    CHECK_EQ(chain.readable()[0].iov_base, a.get() + 0xff0);
    CHECK_EQ(chain.readable()[1].iov_base, b.get());
    CHECK_EQ(chain.writable()[1].iov_len, 8192u);
    CHECK_EQ(chain.writable()[2].iov_base, c.get());
    CHECK_EQ(chain.writable()[2].iov_len, 10u);
    CHECK_EQ(chain.writable_bytes, 0x800u + 8192 + 10);
    ring.push(0, 0);
    // Splitting counts against the chain's room, not against the table's: eight elements, nine iovecs.
    for (uint32_t i = 0; i < 8; ++i) guest.desc(i, 0x800ff0, i == 3 ? 32 : 16, i < 7 ? next_flag : 0, i + 1);
    guest.offer(0);
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable().size(), 9u);
    ring.push(0, 0);
    // Past the end of the last region, and a table across two regions.
    guest.desc(0, 0x803ff0, 17, 0);
    guest.offer(0);
    CHECK(!ring.pop(chain));
    CHECK(ring.violation() == Violation::address);
    CHECK_EQ(ring.error().offset, 0x804000u);
    guest.start(ring);
    guest.desc(0, 0x800ff0, 32, indirect_flag);
    guest.offer(0);
    CHECK(!ring.pop(chain));
    CHECK(ring.violation() == Violation::indirect_address);
}

TEST(an_element_does_not_wrap_around_the_address_space) {
    Block top = block(4096), bottom = block(4096);
    Guest guest(8);
    MemoryTable::Builder builder;
    engine_error error{};
    REQUIRE(builder.add(Guest::base, guest.memory.get(), Guest::bytes, &error) == 0);
    REQUIRE(builder.add(UINT64_MAX - 4095, top.get(), 4096, &error) == 0);
    REQUIRE(builder.add(0, bottom.get(), 4096, &error) == 0);
    REQUIRE(builder.build(&guest.table, &error) == 0);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    guest.desc(0, UINT64_MAX - 15, 16, 0);
    guest.offer(0);
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable()[0].iov_base, top.get() + 4080);
    guest.desc(1, UINT64_MAX - 15, 17, 0);
    guest.offer(1);
    CHECK(!ring.pop(chain));
    CHECK_EQ(ring.violation(), Violation::address);
}

TEST(chain_helpers_take_from_both_ends) {
    Guest guest(8);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    for (uint32_t i = 0; i < 64; ++i) guest.host(Guest::data)[i] = static_cast<uint8_t>(i);
    guest.desc(0, Guest::data + 1, 5, next_flag, 1);
    guest.desc(1, Guest::data + 8, 16, next_flag, 2);
    guest.desc(2, Guest::data + 32, 4, next_flag | write_flag, 3);
    guest.desc(3, Guest::data + 40, 1, write_flag);
    guest.offer(0);
    REQUIRE(ring.pop(chain));
    uint8_t bytes[32] = {};
    CHECK(!chain.read_front(bytes, 22));
    CHECK(chain.read_front(bytes, 13));
    const uint8_t expected[] = {1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15};
    CHECK(memcmp(bytes, expected, 13) == 0);
    CHECK_EQ(chain.readable().size(), 1u);
    CHECK_EQ(chain.readable()[0].iov_len, 8u);
    CHECK_EQ(chain.writable()[0].iov_base, guest.host(Guest::data + 32));
    CHECK(chain.read_front(bytes, 8));
    CHECK_EQ(bytes[7], 23);
    CHECK(chain.readable().empty() && !chain.read_front(bytes, 1));
    CHECK_EQ(chain.take_back_byte(), guest.host(Guest::data + 40));
    CHECK_EQ(chain.take_back_byte(), guest.host(Guest::data + 35));
    CHECK_EQ(chain.writable().size(), 1u);
    CHECK_EQ(chain.writable()[0].iov_len, 3u);
    for (int i = 0; i < 3; ++i) CHECK(chain.take_back_byte() != nullptr);
    CHECK_EQ(chain.take_back_byte(), nullptr);
}

namespace {

struct BadChain {
    Violation violation;
    const char* field;
    void (*make)(Guest&);
    bool indirect = true;
};

constexpr uint64_t far = Guest::base + Guest::bytes;
constexpr uint64_t itable = Guest::data + 4096;

const BadChain bad_chains[] = {
    {Violation::head_range, "avail.ring", [](Guest& g) { g.offer(8); }},
    {Violation::head_range, "avail.ring", [](Guest& g) { g.offer(0xffff); }},
    {Violation::avail_index, "avail.idx",
     [](Guest& g) { g.avail = static_cast<uint16_t>(g.avail + 9), g.show(); }},
    {Violation::avail_index, "avail.idx", [](Guest& g) { --g.avail, g.show(); }},
    {Violation::next_range, "desc.next", [](Guest& g) { g.desc(0, g.data, 1, next_flag, 8), g.offer(0); }},
    {Violation::next_range, "desc.next",
     [](Guest& g) { g.desc(0, g.data, 1, next_flag, 0xffff), g.offer(0); }},
    {Violation::loop, "desc.next", [](Guest& g) { g.desc(0, g.data, 1, next_flag, 0), g.offer(0); }},
    {Violation::loop, "desc.next",
     [](Guest& g) {
         for (uint32_t i = 0; i < 8; ++i) g.desc(i, g.data, 1, next_flag, (i + 1) % 8);
         g.offer(3);
     }},
    {Violation::loop, "desc.next",
     [](Guest& g) {
         g.entry(itable, 0, g.data, 1, next_flag, 1);
         g.entry(itable, 1, g.data, 1, next_flag, 0);
         g.desc(0, itable, 32, indirect_flag), g.offer(0);
     }},
    {Violation::zero_length, "desc.len", [](Guest& g) { g.desc(0, g.data, 0, 0), g.offer(0); }},
    {Violation::address, "desc.addr", [](Guest& g) { g.desc(0, 0, 1, 0), g.offer(0); }},
    {Violation::address, "desc.addr", [](Guest& g) { g.desc(0, far, 1, 0), g.offer(0); }},
    {Violation::address, "desc.addr", [](Guest& g) { g.desc(0, far - 1, 2, write_flag), g.offer(0); }},
    {Violation::address, "desc.addr", [](Guest& g) { g.desc(0, g.data, UINT32_MAX, 0), g.offer(0); }},
    {Violation::address, "desc.addr", [](Guest& g) { g.desc(0, UINT64_MAX, 2, 0), g.offer(0); }},
    {Violation::order, "desc.flags",
     [](Guest& g) {
         g.desc(0, g.data, 1, next_flag | write_flag, 1), g.desc(1, g.data, 1, 0);
         g.offer(0);
     }},
    {Violation::indirect_feature, "desc.flags",
     [](Guest& g) { g.desc(0, itable, 16, indirect_flag), g.offer(0); }, false},
    {Violation::indirect_nested, "desc.flags",
     [](Guest& g) {
         g.entry(itable, 0, itable, 16, indirect_flag, 0);
         g.desc(0, itable, 16, indirect_flag), g.offer(0);
     }},
    {Violation::indirect_nested, "desc.flags",  // the queue's own table as an indirect one
     [](Guest& g) { g.desc(0, g.base + g.layout.desc, 128, indirect_flag), g.offer(0); }},
    {Violation::indirect_next, "desc.flags",
     [](Guest& g) { g.desc(0, itable, 16, indirect_flag | next_flag, 1), g.offer(0); }},
    {Violation::indirect_length, "desc.len",
     [](Guest& g) { g.desc(0, itable, 0, indirect_flag), g.offer(0); }},
    {Violation::indirect_length, "desc.len",
     [](Guest& g) { g.desc(0, itable, 24, indirect_flag), g.offer(0); }},
    {Violation::indirect_address, "desc.addr",
     [](Guest& g) { g.desc(0, far, 16, indirect_flag), g.offer(0); }},
    {Violation::indirect_address, "desc.addr",
     [](Guest& g) { g.desc(0, itable, 0xfffffff0, indirect_flag), g.offer(0); }},
    {Violation::next_range, "desc.next",
     [](Guest& g) {
         g.entry(itable, 0, g.data, 1, next_flag, 2);
         g.desc(0, itable, 32, indirect_flag), g.offer(0);
     }},
};

}  // namespace

TEST(every_violation_breaks_the_ring_and_nothing_else) {
    for (const BadChain& bad : bad_chains) {
        Guest guest(8, bad.indirect ? feature_indirect_desc : 0);
        DeviceRing ring;
        guest.start(ring);
        Chain chain;
        // One good chain is in flight meanwhile.
        guest.desc(7, Guest::data, 1, write_flag);
        guest.offer(7);
        REQUIRE(ring.pop(chain));
        bad.make(guest);
        CHECK(!ring.pop(chain));
        CHECK(ring.broken());
        CHECK_EQ(ring.violation(), bad.violation);
        CHECK_EQ(ring.error().kind, ENGINE_ERROR_CORRUPT);
        CHECK_EQ(ring.error().errnum, EPROTO);
        CHECK_EQ(ring.error().field, bad.field);
        CHECK(mentions(ring.error(), "broken at available index 1"));
        // Silent from now on.
        CHECK(!ring.pop(chain) && !ring.has_work());
        CHECK(ring.enable_notifications());
        ring.disable_notifications();
        engine_error error{};
        CHECK_EQ(ring.configure(guest.table, guest.config(), &error), -EBUSY);
        ring.push(7, 1);
        CHECK(!ring.publish());
        CHECK_EQ(guest.used_idx(), 0);
        CHECK_EQ(ring.in_flight(), 0u);
        // And whole again once the driver has reset it.
        guest.avail = 0;
        guest.show();
        guest.start(ring);
        CHECK(!ring.broken() && ring.violation() == Violation::none);
        guest.desc(7, Guest::data, 1, write_flag);
        guest.offer(7);
        CHECK(ring.pop(chain));
    }
}

TEST(a_head_in_flight_cannot_be_offered_again) {
    for (bool together : {true, false}) {
        Guest guest(8);
        DeviceRing ring;
        guest.start(ring);
        Chain chain;
        guest.desc(4, Guest::data, 1, 0);
        guest.put_head(4);
        if (!together) {
            guest.show();
            CHECK(ring.pop(chain));
        }
        guest.offer(4);
        if (together) CHECK(ring.pop(chain));
        CHECK(!ring.pop(chain));
        CHECK_EQ(ring.violation(), Violation::head_in_flight);
        CHECK_EQ(ring.error().field, "avail.ring");
        CHECK(mentions(ring.error(), "head 4"));
    }
}

TEST(no_more_in_flight_than_the_queue_holds) {
    Guest guest(4);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    for (uint16_t i = 0; i < 4; ++i) guest.desc(i, Guest::data, 1, 0), guest.put_head(i);
    guest.show();
    for (int i = 0; i < 4; ++i) CHECK(ring.pop(chain));
    CHECK(!ring.pop(chain) && !ring.broken());
    // One of them is pushed but the driver has not been told.
    ring.push(2, 0);
    guest.offer(2);
    CHECK(!ring.pop(chain));
    CHECK_EQ(ring.violation(), Violation::overcommitted);
    CHECK_EQ(ring.error().field, "avail.idx");
}

TEST(a_chain_has_at_most_4_gib) {
    // A region larger than memory, never touched: one element of 2^32 - 1 bytes, then one more, then two
    // more.
    const uint64_t bytes = uint64_t{5} << 30;
    void* reserved = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(reserved != MAP_FAILED);
    Guest guest(8);
    MemoryTable::Builder builder;
    engine_error error{};
    REQUIRE(builder.add(Guest::base, guest.memory.get(), Guest::bytes, &error) == 0);
    REQUIRE(builder.add(uint64_t{1} << 40, reserved, bytes, &error) == 0);
    REQUIRE(builder.build(&guest.table, &error) == 0);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    guest.desc(0, uint64_t{1} << 40, UINT32_MAX, next_flag, 1);
    guest.desc(1, Guest::data, 1, write_flag);
    guest.offer(0);
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable_bytes, UINT32_MAX);
    ring.push(0, 1);
    ring.publish();
    guest.desc(1, Guest::data, 2, write_flag);
    guest.offer(0);
    CHECK(!ring.pop(chain));
    CHECK_EQ(ring.violation(), Violation::chain_bytes);
    munmap(reserved, bytes);
}

TEST(memory_can_be_swapped_between_turns) {
    Guest guest(8);
    DeviceRing ring;
    guest.start(ring);
    Chain chain;
    guest.desc(0, Guest::data, 4, 0), guest.desc(1, Guest::data + 8, 4, 0);
    guest.put_head(0), guest.offer(1);
    REQUIRE(ring.pop(chain));
    // The same guest, mapped elsewhere: the ring goes on there, the chain in flight stays where it was.
    Block elsewhere = block(Guest::bytes);
    memcpy(elsewhere.get(), guest.memory.get(), Guest::bytes);
    MemoryTableRef table = one_region(Guest::base, elsewhere.get(), Guest::bytes);
    const MemoryTable* before = guest.table.get();
    engine_error error{};
    REQUIRE(ring.swap_memory(table, &error) == 0);
    CHECK_EQ(table.get(), before);
    REQUIRE(ring.pop(chain));
    CHECK_EQ(chain.readable()[0].iov_base, elsewhere.get() + (Guest::data + 8 - Guest::base));
    MemoryTableRef wrong = one_region(0, elsewhere.get(), 4096);
    CHECK(ring.swap_memory(wrong, &error) < 0);
    CHECK(!ring.broken());
    ring.push(0, 0), ring.push(1, 0);
    CHECK(ring.publish());
    CHECK_EQ(elsewhere[guest.layout.used + 2], 2);
    ring.stop();
    CHECK(!ring.pop(chain) && !ring.has_work() && ring.swap_memory(table, &error) < 0);
}
