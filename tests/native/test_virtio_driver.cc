// Both sides of the split ring together: order and wrap-around, notifications and their suppression, what a
// driver refuses from a device, the hot path's allocations. One thread plays driver and device in turn.
#include <algorithm>
#include <vector>

#include "virtio_guest.hh"

using namespace guest;

namespace {

// A chain of `count` elements with `writable` of them at the end; the first four bytes carry `tag`.
bool add_tagged(Pair& pair, uint32_t tag, uint32_t count, uint32_t writable, uint64_t where) {
    std::vector<Element> elements;
    for (uint32_t i = 0; i < count; ++i) elements.push_back({where + 64 * i, 16 + i});
    memcpy(pair.host(where), &tag, 4);
    std::span<const Element> all(elements);
    return pair.driver.add(all.first(count - writable), all.last(writable),
                           reinterpret_cast<void*>(uintptr_t{tag} + 1));
}

uint32_t tag_of(const Chain& chain) {
    uint32_t tag;
    memcpy(&tag, chain.iov[0].iov_base, 4);
    return tag;
}

struct Flight {
    uint32_t tag;
    uint16_t head;
    uint32_t written;
    uint32_t count;
};

// Chains of random shapes, completed in random order, through more than one round of the 16-bit indices.
void exchange(uint32_t size, uint32_t indirect_entries, uint64_t features, uint16_t first, uint32_t chains) {
    Pair pair(size, indirect_entries, features, first);
    Random random(size + chains);
    std::vector<Flight> taken, pushed;
    std::vector<uint32_t> counts(chains);
    std::vector<bool> done(chains);
    uint32_t added = 0, popped = 0, reaped = 0;
    const uint32_t longest = std::min(8u, std::max(size, indirect_entries));
    Chain chain;
    while (reaped < chains) {
        for (uint32_t burst = random.below(2 * size) + 1; burst != 0 && added < chains; --burst) {
            const uint32_t count = random.below(longest) + 1;
            const uint64_t where = pair.data() + added % 1024 * 1024;  // more than there can be in flight
            if (!add_tagged(pair, added, count, random.below(count + 1), where)) break;
            counts[added++] = count;
        }
        pair.driver.publish();
        for (uint32_t burst = random.below(2 * size) + 1; burst != 0 && pair.device.pop(chain); --burst) {
            REQUIRE(chain.head < size && tag_of(chain) == popped);  // in the order in which they were offered
            REQUIRE(chain.end == counts[popped]);
            const uint32_t written = random.below(static_cast<uint32_t>(chain.writable_bytes) + 1);
            taken.push_back({popped, chain.head, written, counts[popped]});
            ++popped;
        }
        REQUIRE(!pair.device.broken() && pair.device.in_flight() == taken.size());
        while (!taken.empty() && !random.one_in(8)) {
            std::swap(taken[random.below(static_cast<uint32_t>(taken.size()))], taken.back());
            pair.device.push(taken.back().head, taken.back().written);
            pushed.push_back(taken.back());
            taken.pop_back();
        }
        pair.device.publish();
        void* token;
        uint32_t written;
        for (const Flight& flight : pushed) {
            REQUIRE(pair.driver.reap(&token, &written));
            REQUIRE(token == reinterpret_cast<void*>(uintptr_t{flight.tag} + 1) && written == flight.written);
            REQUIRE(!done[flight.tag]);
            done[flight.tag] = true;
            ++reaped;
        }
        pushed.clear();
        REQUIRE(!pair.driver.reap(&token, &written) && !pair.driver.broken());
        REQUIRE(pair.driver.in_flight() == added - reaped);
    }
    CHECK_EQ(pair.driver.free_descriptors(), size);
    CHECK_EQ(pair.device.in_flight(), 0u);
    CHECK_EQ(pair.device.next_index(), static_cast<uint16_t>(first + chains));
}

}  // namespace

TEST(chains_travel_in_order_through_wrap_around) {
    const uint64_t direct = feature_event_idx;
    exchange(1, 0, direct, 0, 70000);
    exchange(2, 0, 0, 65530, 70000);
    exchange(8, 4, all_features, 0, 70000);
    exchange(64, 0, direct, 65535, 140000);
    exchange(256, 8, feature_indirect_desc, 32767, 140000);
    exchange(256, 8, all_features, 0, 140000);
    exchange(1, 8, all_features, 7, 70000);
}

TEST(the_largest_queue_fills_up) {
    Pair pair(32768, 0, feature_event_idx, 40000);
    Element element{pair.data(), 1};
    for (int round = 0; round < 3; ++round) {
        for (uint32_t i = 0; i < 32768; ++i) REQUIRE(pair.driver.add({}, {&element, 1}, nullptr));
        CHECK(!pair.driver.add({}, {&element, 1}, nullptr));
        pair.driver.publish();
        CHECK_EQ(pair.driver.in_flight(), 32768u);
        Chain chain;
        uint32_t popped = 0;
        while (pair.device.pop(chain)) ++popped;
        CHECK_EQ(popped, 32768u);
        CHECK_EQ(pair.device.in_flight(), 32768u);
        CHECK(!pair.device.broken());
        for (uint32_t head = 0; head < 32768; ++head) pair.device.push(static_cast<uint16_t>(head), 1);
        pair.device.publish();
        void* token;
        uint32_t written, reaped = 0;
        while (pair.driver.reap(&token, &written)) ++reaped;
        CHECK_EQ(reaped, 32768u);
    }
    CHECK_EQ(pair.driver.free_descriptors(), 32768u);
}

TEST(the_driver_takes_what_fits_and_no_more) {
    Pair pair(8, 16, all_features);
    std::vector<Element> many(17, Element{pair.data(), 1});
    std::span<const Element> all(many);
    CHECK(!pair.driver.add({}, {}, nullptr));
    CHECK(!pair.driver.add(all, {}, nullptr));  // too long for a table and for the queue
    CHECK_EQ(pair.driver.max_elements(), 16u);
    CHECK_EQ(pair.driver.in_flight(), 0u);
    for (int i = 0; i < 7; ++i) CHECK(pair.driver.add(all.first(16), {}, nullptr));
    CHECK(pair.driver.add(all.first(1), {}, nullptr));  // direct, below indirect_min
    CHECK_EQ(pair.driver.free_descriptors(), 0u);
    CHECK(!pair.driver.add(all.first(1), {}, nullptr) && !pair.driver.add(all.first(2), {}, nullptr));

    // Without the feature the tables stay unused; with a high indirect_min only what cannot go directly uses
    // one.
    Pair direct(8, 16, feature_event_idx);
    CHECK_EQ(direct.driver.max_elements(), 8u);
    CHECK(direct.driver.add(all.first(4), all.first(3), nullptr));
    CHECK_EQ(direct.driver.free_descriptors(), 1u);
    CHECK(!direct.driver.add(all.first(1), all.first(1), nullptr));
    CHECK(direct.driver.add({}, all.first(1), nullptr));

    Pair late(8, 16, all_features);
    engine_error error{};
    DriverConfig config{late.memory.get(), Pair::base, late.bytes, late.layout, all_features};
    config.indirect_min = 1000;
    REQUIRE(late.driver.configure(config, &error) == 0);
    CHECK(late.driver.add(all.first(8), {}, nullptr) && late.driver.free_descriptors() == 0);
    REQUIRE(late.driver.configure(config, &error) == 0);
    CHECK(late.driver.add(all.first(9), {}, nullptr) && late.driver.free_descriptors() == 7);
}

TEST(the_driver_checks_its_configuration) {
    Block memory = block(65536);
    engine_error error{};
    DriverRing ring;
    const DriverConfig good{memory.get(), 0x10000, 65536, RingLayout::make(256), all_features};
    auto refused = [&](DriverConfig config, const char* field) {
        CHECK(ring.configure(config, &error) < 0);
        CHECK_EQ(error.kind, ENGINE_ERROR_INVALID);
        CHECK_EQ(error.field, field);
    };
    DriverConfig config = good;
    config.layout.size = 100;
    refused(config, "size");
    config = good;
    config.layout = RingLayout::make(256, 70000);
    refused(config, "indirect_entries");
    config = good;
    config.memory += 64;
    refused(config, "memory");
    config = good;
    config.guest += 16;
    refused(config, "memory");
    config = good;
    config.bytes = config.layout.bytes - 1;
    refused(config, "bytes");
    config = good;
    config.layout.desc = ~uint64_t{127};
    refused(config, "bytes");
    CHECK(!ring.add({}, {}, nullptr) && !ring.publish() && !ring.has_used());
    config = good;
    config.bytes = config.layout.bytes;
    CHECK_EQ(ring.configure(config, &error), 0);
}

namespace {

// Offers `count` chains one by one and returns how many of them asked for a kick; takes them all.
uint32_t kicks_of(Pair& pair, uint32_t count) {
    uint32_t kicks = 0;
    Element element{pair.data(), 1};
    for (uint32_t i = 0; i < count; ++i) {
        if (!pair.driver.add({}, {&element, 1}, nullptr)) throw check::Failure();
        kicks += pair.driver.publish();
    }
    return kicks;
}
void take_all(Pair& pair) {
    Chain chain;
    while (pair.device.pop(chain)) pair.device.push(chain.head, 1);
}
uint32_t reap_all(Pair& pair) {
    void* token;
    uint32_t written, count = 0;
    while (pair.driver.reap(&token, &written)) ++count;
    return count;
}

}  // namespace

TEST(kicks_come_when_asked_for) {
    for (uint64_t features : {uint64_t{0}, feature_event_idx}) {
        const bool event = features != 0;
        for (uint16_t first : {uint16_t{0}, uint16_t{65533}}) {
            Pair pair(64, 0, features, first);
            // From the start: with an event index for the first chain only, else for each.
            CHECK_EQ(kicks_of(pair, 3), event ? 1u : 3u);
            take_all(pair);
            CHECK(pair.device.enable_notifications());
            CHECK_EQ(kicks_of(pair, 5), event ? 1u : 5u);
            take_all(pair);
            // Not asked for again, hence none with an event index.
            CHECK_EQ(kicks_of(pair, 5), event ? 0u : 5u);
            take_all(pair);
            pair.device.disable_notifications();
            CHECK_EQ(kicks_of(pair, 5), 0u);
            take_all(pair);
            pair.device.publish();
            reap_all(pair);
            // A chain that came before the wish may have come without a kick: the answer says so.
            CHECK_EQ(kicks_of(pair, 1), 0u);
            CHECK(!pair.device.enable_notifications());
            take_all(pair);
            CHECK(pair.device.enable_notifications());
            // Enabled and disabled again with nothing in between: no stale wish.
            pair.device.disable_notifications();
            CHECK_EQ(kicks_of(pair, 2), 0u);
            // Chains whose heads are read but not yet popped count as work.
            Chain chain;
            REQUIRE(pair.device.pop(chain));
            CHECK(pair.device.has_work() && !pair.device.enable_notifications());
            CHECK(!pair.device.broken() && !pair.driver.broken());
        }
    }
}

TEST(calls_come_when_asked_for) {
    for (uint64_t features : {uint64_t{0}, feature_event_idx}) {
        const bool event = features != 0;
        for (uint16_t first : {uint16_t{0}, uint16_t{65533}}) {
            Pair pair(64, 0, features, first);
            auto calls_of = [&](uint32_t count) {
                uint32_t calls = 0;
                Chain chain;
                kicks_of(pair, count);
                while (pair.device.pop(chain)) {
                    pair.device.push(chain.head, 1);
                    calls += pair.device.publish();
                }
                return calls;
            };
            CHECK_EQ(calls_of(3), event ? 1u : 3u);
            CHECK(pair.driver.has_used());
            CHECK_EQ(reap_all(pair), 3u);
            CHECK(!pair.driver.has_used() && pair.driver.enable_calls());
            CHECK_EQ(calls_of(5), event ? 1u : 5u);
            CHECK_EQ(reap_all(pair), 5u);
            CHECK_EQ(calls_of(5), event ? 0u : 5u);
            pair.driver.disable_calls();
            CHECK_EQ(calls_of(5), 0u);
            CHECK(!pair.driver.enable_calls());
            CHECK_EQ(reap_all(pair), 10u);
            CHECK(pair.driver.enable_calls());
            pair.driver.disable_calls();
            CHECK_EQ(calls_of(2), 0u);
            CHECK_EQ(reap_all(pair), 2u);
        }
    }
}

TEST(polling_sides_exchange_no_notifications) {
    // Through several rounds of the index: the slot that stands for "none" comes round once each time.
    for (uint64_t features : {uint64_t{0}, feature_event_idx}) {
        Pair pair(64, 0, features);
        pair.device.disable_notifications();
        pair.driver.disable_calls();
        uint32_t kicks = 0, calls = 0;
        Element element{pair.data(), 1};
        for (uint32_t round = 0; round < 65536 * 3 / 32; ++round) {
            for (uint32_t i = 0; i < 32; ++i) REQUIRE(pair.driver.add({}, {&element, 1}, nullptr));
            kicks += pair.driver.publish();
            take_all(pair);
            calls += pair.device.publish();
            REQUIRE(reap_all(pair) == 32);
        }
        CHECK_EQ(kicks, features != 0 ? 3u : 0u);
        CHECK_EQ(calls, features != 0 ? 3u : 0u);
    }
}

TEST(a_batch_is_published_by_one_store) {
    Guest guest(16);
    DeviceRing device;
    guest.start(device);
    Chain chain;
    for (uint16_t i = 0; i < 16; ++i) {
        guest.desc(i, Guest::data, 8, desc_f_write);
        guest.put_head(i);
    }
    CHECK(!device.pop(chain));  // nothing shown yet
    guest.show();
    for (uint16_t i = 0; i < 16; ++i) {
        REQUIRE(device.pop(chain));
        device.push(chain.head, i);
        CHECK_EQ(guest.used_idx(), 0);
    }
    CHECK(device.publish());
    CHECK_EQ(guest.used_idx(), 16);
    for (uint32_t i = 0; i < 16; ++i) CHECK(guest.used_id(i) == i && guest.used_len(i) == i);
}

TEST(the_driver_does_not_trust_the_device) {
    struct {
        DeviceViolation violation;
        const char* field;
        uint16_t idx;
        uint32_t id;
        uint32_t length;
    } cases[] = {
        {DeviceViolation::used_index, "used.idx", 4, 0, 0},  // three are out
        {DeviceViolation::used_index, "used.idx", 0xffff, 0, 0},
        {DeviceViolation::used_id, "used.id", 1, 8, 0},
        {DeviceViolation::used_id, "used.id", 1, 0xffffffff, 0},
        {DeviceViolation::used_id, "used.id", 1, 1, 0},  // inside a chain, not its head
        {DeviceViolation::used_id, "used.id", 1, 7, 0},  // free
        {DeviceViolation::used_length, "used.len", 1, 0, 101},
        {DeviceViolation::used_length, "used.len", 1, 0, 0xffffffff},
    };
    for (const auto& bad : cases) {
        Pair pair(8, 0, 0);
        Element elements[2] = {{pair.data(), 16}, {pair.data() + 64, 100}};
        for (int i = 0; i < 3; ++i) REQUIRE(pair.driver.add({elements, 1}, {elements + 1, 1}, &pair));
        pair.driver.publish();
        // What the device should not write to changes nothing: the driver remembers for itself.
        memset(pair.memory.get() + pair.layout.desc, 0xff, desc_bytes(8));
        memset(pair.memory.get() + pair.layout.avail, 0xff, avail_bytes(8));
        uint8_t* used = pair.memory.get() + pair.layout.used;
        SharedAccess::store(reinterpret_cast<uint32_t*>(used + 4), bad.id);
        SharedAccess::store(reinterpret_cast<uint32_t*>(used + 8), bad.length);
        SharedAccess::store_seq_cst(reinterpret_cast<uint16_t*>(used + 2), bad.idx);
        void* token;
        uint32_t written;
        CHECK(!pair.driver.reap(&token, &written));
        CHECK(pair.driver.broken());
        CHECK_EQ(pair.driver.violation(), bad.violation);
        CHECK_EQ(pair.driver.error().kind, ENGINE_ERROR_CORRUPT);
        CHECK_EQ(pair.driver.error().field, bad.field);
        CHECK(!pair.driver.add({elements, 1}, {}, nullptr) && !pair.driver.publish());
        CHECK(!pair.driver.reap(&token, &written) && !pair.driver.has_used() && pair.driver.enable_calls());
    }
    // The same head used twice.
    Pair pair(8, 0, 0);
    Element element{pair.data(), 16};
    REQUIRE(pair.driver.add({}, {&element, 1}, nullptr) && pair.driver.add({}, {&element, 1}, nullptr));
    pair.driver.publish();
    uint8_t* used = pair.memory.get() + pair.layout.used;
    SharedAccess::store_seq_cst(reinterpret_cast<uint16_t*>(used + 2),
                                uint16_t{2});  // both entries name head 0
    void* token;
    uint32_t written;
    CHECK(pair.driver.reap(&token, &written));
    CHECK(!pair.driver.reap(&token, &written));
    CHECK_EQ(pair.driver.violation(), DeviceViolation::used_id);
}

TEST(the_hot_path_allocates_nothing) {
    Pair pair(64, 8, all_features);
    uint64_t allocations = 0;
    engine_set_allocation_hook(
        [](size_t, void* opaque) {
            ++*static_cast<uint64_t*>(opaque);
            return 0;
        },
        &allocations);
    for (int i = 0; i < 10000; ++i) {
        kicks_of(pair, 48);
        take_all(pair);
        pair.device.publish();
        REQUIRE(reap_all(pair) == 48);
    }
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(allocations, 0u);
}
