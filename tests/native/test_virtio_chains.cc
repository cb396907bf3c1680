// What a virtio-blk queue makes of chains that no honest driver offers: a status where there is a place for
// one, a broken queue where there is none, and life goes on. The chains are written by hand on the test's
// thread.
#include "virtio_disk.hh"

using namespace rig;
using virtio::blk_discard;
using virtio::blk_flush;
using virtio::blk_get_id;
using virtio::blk_in;
using virtio::blk_ioerr;
using virtio::blk_ok;
using virtio::blk_out;
using virtio::blk_unsupported;
using virtio::blk_write_zeroes;

namespace {

constexpr uint64_t data = HandDriver::data;
constexpr HandDriver::Part range_part{HandDriver::range, 16};

struct Case {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node;
    engine_error error{};

    explicit Case(const char* latency = "0")
        : node(engine.open({{"driver", "null"}, {"size", "1M"}, {"latency-ns", latency}})) {}
};

TEST(requests_of_the_wrong_shape_get_a_status) {
    Case c;
    Recorder recorder(c.node);
    Disk disk(c.node, {c.io0});
    HandDriver driver(disk.core(0));
    // Types that do not exist, and one of SCSI's past.
    for (uint32_t type : {2u, 3u, 5u, 7u, 12u, 14u, 0x80000000u, UINT32_MAX}) {
        CHECK_EQ(driver.request(type, 0, {}), int{blk_unsupported});
    }
    // Not whole sectors.
    for (uint32_t bytes : {1u, 511u, 513u, 1000u}) {
        CHECK_EQ(driver.request(blk_in, 0, {{data, bytes, true}}), int{blk_ioerr});
        CHECK_EQ(driver.request(blk_out, 0, {{data, bytes}}), int{blk_ioerr});
    }
    // Beyond the end, by little, by much, and where the byte offset wraps around.
    for (uint64_t sector : {uint64_t{2047}, uint64_t{2048}, uint64_t{1} << 54, uint64_t{1} << 55, UINT64_MAX,
                            (uint64_t{1} << 55) - 1}) {
        CHECK_EQ(driver.request(blk_in, sector, {{data, 1024, true}}), int{blk_ioerr});
        CHECK_EQ(driver.request(blk_out, sector, {{data, 1024}}), int{blk_ioerr});
    }
    CHECK(recorder.take().empty());
    CHECK_EQ(driver.request(blk_in, 2047, {{data, 512, true}}), int{blk_ok});
    // No data at all is a transfer of nothing.
    CHECK_EQ(driver.request(blk_in, 0, {}), int{blk_ok});
    CHECK_EQ(driver.request(blk_out, 0, {}), int{blk_ok});
    CHECK_EQ(driver.request(blk_flush, 0, {}), int{blk_ok});
    CHECK(!driver.is_broken());
    CHECK_EQ(disk.stats(0).in_flight, 0u);
}

TEST(headers_in_pieces_and_headers_cut_short) {
    Case c;
    Disk disk(c.node, {c.io0});
    HandDriver driver(disk.core(0));
    driver.put_header(blk_in, 1);
    std::vector<HandDriver::Part> pieces;
    for (uint32_t i = 0; i < 16; i++) pieces.push_back({HandDriver::header + i, 1});
    pieces.push_back({data, 100, true});
    pieces.push_back({data + 200, 412, true});
    pieces.push_back({HandDriver::status, 1, true});
    CHECK_EQ(driver.request(pieces), int{blk_ok});
    // Data and status in one element: the status is the last byte, wherever it lies (section 5.2.6.4).
    driver.put_header(blk_in, 1);
    *driver.guest.host(data + 512) = HandDriver::untouched;
    driver.request({{HandDriver::header, 16}, {data, 513, true}});
    CHECK_EQ(*driver.guest.host(data + 512), uint8_t{blk_ok});
    CHECK_EQ(driver.guest.used_len(driver.guest.avail - 1u), 513u);
    // Header and data in one readable element.
    driver.put_header(blk_out, 1);
    CHECK_EQ(driver.request({{HandDriver::header, 16 + 1024}, {HandDriver::status, 1, true}}), int{blk_ok});
    // Too few bytes to be a header.
    for (uint32_t bytes : {1u, 8u, 15u}) {
        CHECK_EQ(driver.request({{HandDriver::header, bytes}, {HandDriver::status, 1, true}}),
                 int{blk_ioerr});
    }
    CHECK_EQ(driver.request({{HandDriver::status, 1, true}}), int{blk_ioerr});
    CHECK(!driver.is_broken());
}

TEST(ranges_that_are_not_supported) {
    Case c;
    Recorder recorder(c.node);
    Disk disk(c.node, {c.io0});
    HandDriver driver(disk.core(0));
    auto request = [&](uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags) {
        driver.put_range(sector, sectors, flags);
        return driver.request(type, 0, {range_part});
    };
    CHECK_EQ(request(blk_discard, 8, 8, 0), int{blk_ok});
    CHECK_EQ(request(blk_discard, 8, 8, virtio::blk_range_unmap), int{blk_unsupported});
    CHECK_EQ(request(blk_discard, 8, 8, 2), int{blk_unsupported});
    CHECK(recorder.take().empty());  // discard=ignore
    CHECK_EQ(request(blk_write_zeroes, 8, 8, virtio::blk_range_unmap), int{blk_ok});
    auto seen = recorder.take();
    REQUIRE(seen.size() == 1);
    CHECK(seen[0].offset == 4096 && seen[0].length == 4096 && seen[0].flags == ENGINE_MAY_UNMAP);
    for (uint32_t flags : {2u, 3u, 0x80000000u}) {
        CHECK_EQ(request(blk_write_zeroes, 8, 8, flags), int{blk_unsupported});
    }
    for (uint32_t type : {uint32_t{blk_discard}, uint32_t{blk_write_zeroes}}) {
        CHECK_EQ(request(type, 2047, 2, 0), int{blk_ioerr});
        CHECK_EQ(request(type, 0, UINT32_MAX, 0), int{blk_ioerr});
        CHECK_EQ(request(type, uint64_t{1} << 55, 1, 0), int{blk_ioerr});
        CHECK_EQ(request(type, (uint64_t{1} << 55) - 1, 8, 0), int{blk_ioerr});
        CHECK_EQ(request(type, 0, 0, 0), int{blk_ok});  // nothing
        // A second range, half a range, none.
        driver.put_range(0, 1, 0, 0);
        driver.put_range(8, 1, 0, 1);
        CHECK_EQ(driver.request(type, 0, {{HandDriver::range, 32}}), int{blk_unsupported});
        CHECK_EQ(driver.request(type, 0, {{HandDriver::range, 17}}), int{blk_unsupported});
        CHECK_EQ(driver.request(type, 0, {{HandDriver::range, 8}}), int{blk_ioerr});
        CHECK_EQ(driver.request(type, 0, {}), int{blk_ioerr});
    }
    CHECK(recorder.take().empty());
}

TEST(the_id_needs_twenty_bytes) {
    Case c;
    engine_disk_config config = Disk::defaults();
    config.serial = "12345678901234567890";  // all of them, hence without a NUL
    Disk disk(c.node, {c.io0}, config);
    HandDriver driver(disk.core(0));
    CHECK_EQ(driver.request(blk_get_id, 0, {{data, 19, true}}), int{blk_ioerr});
    CHECK_EQ(driver.request(blk_get_id, 0, {}), int{blk_ioerr});
    memset(driver.guest.host(data), 'x', 64);
    CHECK_EQ(driver.request(blk_get_id, 0, {{data, 7, true}, {data + 7, 1, true}, {data + 8, 20, true}}),
             int{blk_ok});
    CHECK(memcmp(driver.guest.host(data), "12345678901234567890xxxxxxxxxxxx", 32) == 0);
}

// Errors name the queue, its user and what was wrong; other queues of the disk do not notice.
void check_broken(Disk& disk, const char* field, const char* text) {
    engine_queue_stats stats = disk.stats(0);
    CHECK_EQ(stats.broken, 1u);
    CHECK_EQ(stats.in_flight, 0u);
    CHECK_EQ(stats.error.kind, uint32_t{ENGINE_ERROR_CORRUPT});
    CHECK_EQ(stats.error.field, field);
    CHECK(stats.error.offset == UINT64_MAX);
    if (!mentions(stats.error, "queue 0") || !mentions(stats.error, "vda") || !mentions(stats.error, text)) {
        check::report(false, __FILE__, __LINE__, std::string("message: ") + stats.error.message);
    }
    std::vector<uint8_t> sector(512);
    CHECK_EQ(engine_queue_io(disk.queue(1), ENGINE_OP_READ, sector.data(), 0, 512, 0, nullptr), 0);
    CHECK_EQ(disk.stats(1).broken, 0u);
}

TEST(no_place_for_a_status_breaks_the_queue) {
    Case c;
    Disk disk(c.node, {c.io0, c.io1});
    HandDriver driver(disk.core(0));
    driver.put_header(blk_out, 0);
    uint64_t calls = driver.calls;
    engine_log_open();
    CHECK_EQ(driver.request({{HandDriver::header, 16}, {data, 512}}), HandDriver::broken);
    check_broken(disk, "desc.flags", "no writable byte for the status");
    engine_log_record record{};
    record.size = sizeof record;
    CHECK_EQ(engine_log_take(&record, 0), 1);
    CHECK_EQ(record.level, uint32_t{ENGINE_LOG_ERROR});
    CHECK(std::string_view(record.message).ends_with(disk.stats(0).error.message));
    engine_log_close();
    CHECK(driver.calls > calls);  // so that the driver looks
    // It takes nothing more, however often it is kicked.
    driver.put_header(blk_flush, 0);
    driver.put_chain({{HandDriver::header, 16}, {HandDriver::status, 1, true}});
    driver.guest.offer(0);
    for (int i = 0; i < 100; i++) driver.queue.kick();
    usleep(2000);
    CHECK_EQ(driver.guest.used_idx(), static_cast<uint16_t>(driver.guest.avail - 1));
    // Until it is attached anew.
    driver.reset();
    CHECK_EQ(driver.request(blk_flush, 0, {}), int{blk_ok});
    CHECK_EQ(disk.stats(0).broken, 0u);
    driver.stop();
    CHECK_EQ(engine_queue_io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, nullptr), 0);
}

TEST(each_violation_of_the_ring_breaks_one_queue) {
    struct {
        const char* field;
        const char* text;
        void (*offer)(HandDriver&);
    } cases[] = {
        {"desc.next", "loop",
         [](HandDriver& d) {
             for (uint32_t i = 0; i < 64; i++) d.guest.desc(i, data, 16, virtio::desc_f_next, (i + 1) % 64);
             d.guest.offer(0);
         }},
        {"desc.next", "beyond the end",
         [](HandDriver& d) {
             d.guest.desc(0, data, 16, virtio::desc_f_next, 64);
             d.guest.offer(0);
         }},
        {"desc.addr", "no memory",
         [](HandDriver& d) {
             d.guest.desc(0, 0xdead0000, 16, 0);
             d.guest.offer(0);
         }},
        {"desc.addr", "no memory",
         [](HandDriver& d) {
             d.guest.desc(0, UINT64_MAX - 8, 16, 0);
             d.guest.offer(0);
         }},
        {"desc.len", "no bytes",
         [](HandDriver& d) {
             d.guest.desc(0, data, 0, 0);
             d.guest.offer(0);
         }},
        {"desc.flags", "follows a writable one",
         [](HandDriver& d) {
             d.put_chain({{HandDriver::status, 1, true}, {HandDriver::header, 16}});
             d.guest.offer(0);
         }},
        {"avail.ring", "does not have", [](HandDriver& d) { d.guest.offer(64); }},
        {"avail.idx", "further than the queue is long",
         [](HandDriver& d) {
             d.guest.avail = static_cast<uint16_t>(d.guest.avail + 65);
             d.guest.show();
         }},
    };
    Case c;
    Disk disk(c.node, {c.io0, c.io1});
    HandDriver driver(disk.core(0));
    for (const auto& one : cases) {
        CHECK_EQ(driver.request(blk_flush, 0, {}), int{blk_ok});
        one.offer(driver);
        driver.queue.kick();
        CHECK(!driver.wait_used());
        check_broken(disk, one.field, one.text);
        driver.reset();
    }
    CHECK_EQ(driver.request(blk_flush, 0, {}), int{blk_ok});
}

TEST(an_indirect_table_needs_the_feature) {
    Case c;
    Disk disk(c.node, {c.io0, c.io1});
    HandDriver driver(disk.core(0), 64, virtio::feature_event_idx);
    driver.guest.desc(0, data, 64, virtio::desc_f_indirect);
    driver.guest.offer(0);
    driver.queue.kick();
    CHECK(!driver.wait_used());
    check_broken(disk, "desc.flags", "not negotiated");
}

TEST(what_is_in_flight_outlives_a_break) {
    Case c("20ms");
    Disk disk(c.node, {c.io0, c.io1});
    HandDriver driver(disk.core(0));
    driver.put_header(blk_in, 0);
    for (uint16_t i = 0; i < 8; i++) {
        driver.put_chain(
            {{HandDriver::header, 16}, {data + 1024u * i, 512, true}, {HandDriver::status + 1u + i, 1, true}},
            3u * i);
        *driver.guest.host(HandDriver::status + 1u + i) = HandDriver::untouched;
        driver.guest.put_head(static_cast<uint16_t>(3 * i));
    }
    driver.put_chain({{HandDriver::header, 16}}, 24);
    driver.guest.put_head(24);
    driver.guest.show();
    driver.queue.kick();
    for (int i = 0; i < 2000 && !driver.is_broken(); i++) usleep(20);
    CHECK(driver.is_broken());
    driver.stop();  // waits for the eight: they write to the guest's memory until then
    engine_queue_stats stats = disk.stats(0);
    CHECK_EQ(stats.completed, 9u);
    CHECK_EQ(stats.in_flight, 0u);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests, 8u);
    for (uint16_t i = 0; i < 8; i++) {
        CHECK_EQ(*driver.guest.host(HandDriver::status + 1u + i), uint8_t{blk_ok});
    }
}

TEST(stopping_waits_for_what_is_in_flight) {
    Case c("5ms");
    Disk disk(c.node, {c.io0});
    HandDriver driver(disk.core(0));
    for (int round = 0; round < 10; round++) {
        driver.put_header(blk_in, 0);
        *driver.guest.host(HandDriver::status) = HandDriver::untouched;
        driver.put_chain({{HandDriver::header, 16}, {data, 512, true}, {HandDriver::status, 1, true}});
        driver.guest.offer(0);
        driver.queue.kick();
        while (disk.stats(0).requests != static_cast<uint64_t>(round + 1)) usleep(20);
        driver.stop();
        CHECK_EQ(*driver.guest.host(HandDriver::status), uint8_t{blk_ok});
        CHECK_EQ(driver.guest.used_idx(), driver.guest.avail);
        // Both rings go on where they were.
        CHECK_EQ(driver.start(&c.error), 0);
    }
}

TEST(a_ring_may_be_smaller_than_the_queue_not_larger) {
    Case c;
    Disk disk(c.node, {c.io0});
    {
        HandDriver driver(disk.core(0), 4);
        CHECK_EQ(driver.request(blk_flush, 0, {}), int{blk_ok});
    }
    guest::Guest large(128);
    CHECK_EQ(disk.core(0).start(large.table, large.config(), {}, &c.error), -EINVAL);
    CHECK_EQ(c.error.field, "size");
    CHECK(mentions(c.error, "128") && mentions(c.error, "64"));
    // Neither do rings outside the guest's memory; and a failed start leaves the queue free.
    guest::Guest small(64);
    virtio::RingConfig config = small.config();
    config.used += uint64_t{1} << 40;
    CHECK_EQ(disk.core(0).start(small.table, config, {}, &c.error), -EFAULT);
    CHECK_EQ(c.error.field, "used");
    CHECK_EQ(engine_queue_io(disk.queue(0), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &c.error), 0);
}

TEST(a_polled_queue_needs_no_kick) {
    Case c;
    for (uint32_t event_index : {0u, 1u}) {
        engine_disk_config config = Disk::defaults();
        config.polled = 1;
        config.event_index = event_index;
        Disk disk(c.node, {c.io0}, config);
        HandDriver driver(disk.core(0), 64, disk.core(0).disk().features());
        for (int i = 0; i < 100; i++) {
            driver.put_header(blk_in, 0);
            *driver.guest.host(HandDriver::status) = HandDriver::untouched;
            driver.put_chain({{HandDriver::header, 16}, {data, 512, true}, {HandDriver::status, 1, true}});
            driver.guest.offer(0);
            if (!CHECK(driver.wait_used())) break;
            CHECK_EQ(*driver.guest.host(HandDriver::status), uint8_t{blk_ok});
        }
        CHECK_EQ(disk.stats(0).kicks, 0u);
        // And says so to the driver.
        if (event_index == 0) {
            CHECK_EQ(*driver.guest.at<uint16_t>(driver.guest.layout.used), virtio::used_f_no_notify);
        }
    }
}

}  // namespace
