// Guest memory: tables of regions, their limits, mapping a memfd that its owner cannot shrink. One thread.
#include <sys/mman.h>

#include <cerrno>

#include "virtio_guest.hh"

using namespace guest;

TEST(memory_table_finds_regions_and_refuses_nonsense) {
    Block a = block(8192), b = block(4096);
    engine_error error{};
    MemoryTable::Builder builder;
    MemoryTableRef table;
    CHECK_EQ(builder.build(&table, &error), -EINVAL);
    REQUIRE(builder.add(0x9000, b.get(), 4096, &error) == 0);
    REQUIRE(builder.add(0x2000, a.get(), 8192, &error) == 0);
    CHECK_EQ(builder.add(0x3fff, b.get(), 1, &error), -EINVAL);
    CHECK(mentions(error, "overlap"));
    CHECK_EQ(builder.add(0x1fff, b.get(), 2, &error), -EINVAL);
    CHECK_EQ(builder.add(0x1000, b.get(), 0x100000, &error), -EINVAL);
    CHECK_EQ(builder.add(0x20000, b.get(), 0, &error), -EINVAL);
    CHECK_EQ(builder.add(UINT64_MAX - 10, b.get(), 12, &error), -EINVAL);
    CHECK(mentions(error, "wraps"));
    CHECK_EQ(builder.add(0x20000, nullptr, 4096, &error), -EINVAL);
    CHECK_EQ(error.kind, ENGINE_ERROR_INVALID);
    CHECK_EQ(builder.add(UINT64_MAX - 10, b.get(), 11, &error), 0);
    CHECK_EQ(builder.add(0x4000, b.get(), 16, &error), 0);  // adjacent
    REQUIRE(builder.build(&table, &error) == 0);
    REQUIRE(table->regions().size() == 4);
    CHECK_EQ(table->find(0x1fff), nullptr);
    CHECK_EQ(table->find(0x2000)->host, a.get());
    CHECK_EQ(table->find(0x3fff)->host, a.get());
    CHECK_EQ(table->find(0x4000)->host, b.get());
    CHECK_EQ(table->find(0x4010), nullptr);
    CHECK_EQ(table->find(0), nullptr);
    CHECK_EQ(table->find(UINT64_MAX - 11), nullptr);
    CHECK(table->find(UINT64_MAX - 10) != nullptr && table->find(UINT64_MAX) != nullptr);
    CHECK_EQ(builder.build(&table, &error), -EINVAL);  // it is empty again

    MemoryCursor cursor;
    cursor.reset(table.get());
    CHECK_EQ(cursor.translate(0x2001, 8191), a.get() + 1);
    CHECK_EQ(cursor.translate(0x2001, 8192), nullptr);
    CHECK_EQ(cursor.translate(0x2001, UINT64_MAX), nullptr);
    CHECK_EQ(cursor.translate(0x9fff, 1), b.get() + 4095);
    CHECK_EQ(cursor.translate(0xa000, 1), nullptr);
}

TEST(memory_table_has_a_limit_and_reports_lack_of_memory) {
    Block a = block(4096);
    engine_error error{};
    MemoryTable::Builder builder;
    for (size_t i = 0; i < MemoryTable::max_regions; ++i) {
        REQUIRE(builder.add(i * 8192, a.get(), 4096, &error) == 0);
    }
    CHECK_EQ(builder.add(1 << 30, a.get(), 4096, &error), -E2BIG);
    CHECK_EQ(error.kind, ENGINE_ERROR_LIMIT);

    // Fail the k-th allocation of everything that sets a queue up, then succeed with the same objects.
    Guest guest(16);
    for (int k = 0; k < 12; ++k) {
        struct Countdown {
            int left;
        } countdown{k};
        MemoryTable::Builder other;
        MemoryTableRef table;
        DeviceRing device;
        DriverRing driver;
        auto attempt = [&] {
            int result = other.add(Guest::base, guest.memory.get(), Guest::bytes, &error);
            if (result == 0) result = other.build(&table, &error);
            if (result == 0) result = device.configure(table, guest.config(), &error);
            DriverConfig config{guest.memory.get(), Guest::base, Guest::bytes, guest.layout, all_features};
            if (result == 0) result = driver.configure(config, &error);
            return result;
        };
        engine_set_allocation_hook(
            [](size_t, void* opaque) { return static_cast<Countdown*>(opaque)->left-- == 0 ? 1 : 0; },
            &countdown);
        int result = attempt();
        engine_set_allocation_hook(nullptr, nullptr);
        CHECK(result == 0 || result == -ENOMEM);
        CHECK_EQ(result == 0, countdown.left >= 0);
        if (result == 0) return;
        if (!table) CHECK_EQ(attempt(), 0);
    }
    CHECK(!"never enough memory");
}

TEST(shared_memory_must_be_sealed_against_shrinking) {
    engine_error error{};
    MemoryTable::Builder builder;
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(fd >= 0 && ftruncate(fd, 65536) == 0);
    CHECK_EQ(builder.map_fd(0, fd, 0, 65536, &error), -EPERM);
    CHECK_EQ(error.kind, ENGINE_ERROR_REFUSED);
    CHECK_EQ(error.field, "F_SEAL_SHRINK");
    CHECK(mentions(error, "F_SEAL_SHRINK"));
    REQUIRE(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    CHECK_EQ(builder.map_fd(0, fd, 0, 65537, &error), -EINVAL);
    CHECK_EQ(builder.map_fd(0, fd, 65536, 1, &error), -EINVAL);
    CHECK_EQ(builder.map_fd(0, fd, UINT64_MAX, 2, &error), -EINVAL);
    CHECK_EQ(error.field, "length");
    CHECK_EQ(builder.map_fd(0, fd, 0, 8192, &error), 0);
    CHECK_EQ(builder.map_fd(0x10000, fd, 8192 + 100, 5000, &error), 0);  // an offset within a page
    int plain = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(builder.map_fd(0x20000, plain, 0, 4096, &error), -EPERM);
    CHECK(mentions(error, "memfd_create"));
    close(plain);
    CHECK_EQ(builder.map_fd(0x20000, -1, 0, 4096, &error), -EBADF);
    CHECK_EQ(error.kind, ENGINE_ERROR_OS);

    MemoryTableRef table;
    REQUIRE(builder.build(&table, &error) == 0);
    MemoryTableRef copy = table;
    table = MemoryTableRef();
    CHECK(ftruncate(fd, 4096) != 0);
    REQUIRE(pwrite(fd, "abc", 3, 8292) == 3);
    CHECK(memcmp(copy->find(0x10000)->host, "abc", 3) == 0);
    copy->find(4095)->host[4095] = 'x';
    char got = 0;
    CHECK(pread(fd, &got, 1, 4095) == 1 && got == 'x');
    // The last reference unmaps.
    void* start = copy->find(0)->host;
    copy = MemoryTableRef();
    unsigned char resident;
    CHECK(mincore(start, 4096, &resident) != 0 && errno == ENOMEM);
    close(fd);
}
