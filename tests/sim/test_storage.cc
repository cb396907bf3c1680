// The simulated disk does what its fault model says.
#include <sys/uio.h>

#include <set>

#include "check.hh"
#include "storage.hh"

using namespace lab;
using engine::aio::IoKind;

namespace {

constexpr uint64_t bytes = 16 << 10;

struct Bench {
    Coverage coverage;
    Storage storage;
    Random random{1};
    int fd;
    explicit Bench(uint64_t seed) : storage(seed, coverage), fd(storage.add(bytes)) {}

    struct Op : IoOp {
        std::vector<std::byte> data;
        iovec part{};
    };
    void prepare(Op& op, IoKind kind, uint64_t offset, uint64_t length, char fill, int flags) {
        op.kind = kind;
        op.fd = fd;
        op.offset = offset;
        op.length = length;
        op.flags = flags;
        op.data.assign(length, static_cast<std::byte>(fill));
        op.part = {op.data.data(), length};
        op.iov = &op.part;
        op.iov_count = 1;
    }
    int64_t run(IoKind kind, uint64_t offset = 0, uint64_t length = 0, char fill = 0, int flags = 0) {
        Op op;
        prepare(op, kind, offset, length, fill, flags);
        storage.latency_ns(op, random);
        return storage.perform(op);
    }
    char at(uint64_t offset) { return static_cast<char>(storage.bytes(fd)[offset]); }
    bool reached(Event event) const { return coverage.reached(static_cast<unsigned>(event)); }
};

TEST(what_was_not_synced_is_lost_torn_and_reordered) {
    std::set<std::string> fates;
    for (uint64_t seed = 0; seed < 200; seed++) {
        Bench bench(seed);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'a'), 512);
        CHECK_EQ(bench.run(IoKind::fdatasync), 0);
        CHECK_EQ(bench.run(IoKind::write, 0, 1024, 'b'), 1024);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'c'), 512);
        CHECK(bench.at(0) == 'c' && bench.at(512) == 'b');
        bench.storage.cut_power();
        CHECK_EQ(bench.run(IoKind::read, 0, 512), -EIO);
        CHECK_EQ(bench.run(IoKind::write, 4096, 512, 'd'), -EIO);
        bench.storage.restore_power();
        CHECK(bench.at(0) != 0);  // it was synced
        CHECK(bench.at(4096) == 0);
        fates.insert({bench.at(0), bench.at(512) == 0 ? '-' : bench.at(512)});
    }
    CHECK(fates == (std::set<std::string>{"a-", "ab", "b-", "bb", "c-", "cb"}));
}

TEST(a_sync_covers_what_was_there_when_it_was_submitted) {
    unsigned survived = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'a'), 512);
        Bench::Op sync;
        bench.prepare(sync, IoKind::fdatasync, 0, 0, 0, 0);
        bench.storage.latency_ns(sync, bench.random);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'b'), 512);
        CHECK_EQ(bench.storage.perform(sync), 0);
        bench.storage.cut_power();
        bench.storage.restore_power();
        CHECK(bench.at(0) == 'a' || bench.at(0) == 'b');
        survived += bench.at(0) == 'b' ? 1 : 0;
    }
    CHECK(survived > 0 && survived < 60);
}

TEST(dsync_is_durable_and_nothing_else_is) {
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'a', RWF_DSYNC), 512);
        bench.storage.cut_power();
        bench.storage.restore_power();
        CHECK(bench.at(0) == 'a');
    }
}

TEST(what_a_failed_sync_lost_no_other_brings_back) {
    unsigned lost = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        CHECK_EQ(bench.run(IoKind::write, 0, 512, 'a'), 512);
        bench.storage.faults.sync_error = 1;
        CHECK_EQ(bench.run(IoKind::fdatasync), -EIO);
        bench.storage.faults.sync_error = 0;
        CHECK_EQ(bench.run(IoKind::fdatasync), 0);
        CHECK(bench.at(0) == 'a');
        bench.storage.cut_power();
        bench.storage.restore_power();
        lost += bench.at(0) == 0 ? 1 : 0;
    }
    CHECK(lost > 0 && lost < 60);
}

TEST(a_failed_write_is_torn_by_sectors) {
    std::set<std::string> fates;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        bench.storage.faults.write_error = 1;
        CHECK_EQ(bench.run(IoKind::write, 0, 1024, 'x'), -EIO);
        fates.insert({bench.at(0) == 0 ? '-' : 'x', bench.at(512) == 0 ? '-' : 'x'});
        CHECK_EQ(bench.at(0), bench.at(511));
    }
    CHECK_EQ(fates.size(), 4);
}

TEST(what_is_under_way_may_still_be_done) {
    std::set<char> fates;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        Bench::Op op;
        bench.prepare(op, IoKind::write, 0, 512, 'w', 0);
        bench.storage.latency_ns(op, bench.random);
        bench.storage.cut_power();
        CHECK_EQ(bench.storage.perform(op), -EIO);
        bench.storage.restore_power();
        fates.insert(bench.at(0));
    }
    CHECK_EQ(fates.size(), 2);
}

TEST(other_faults) {
    Bench bench(1);
    bench.storage.faults.read_error = 1;
    CHECK_EQ(bench.run(IoKind::read, 0, 512), -EIO);
    bench.storage.faults = {.no_space = 1};
    CHECK_EQ(bench.run(IoKind::write, 0, 512, 'n'), -ENOSPC);
    CHECK(bench.at(0) == 0);
    bench.storage.faults = {.short_transfer = 1};
    int64_t result = bench.run(IoKind::read, 0, 4096);
    CHECK(result > 0 && result < 4096 && result % 512 == 0);
    bench.storage.faults = {.transient = 1};
    CHECK_EQ(bench.run(IoKind::read, 0, 512), -EAGAIN);
    CHECK_EQ(bench.run(IoKind::fdatasync), -EINTR);
    bench.storage.faults = {};
    CHECK_EQ(bench.run(IoKind::read, bytes - 512, 1024), 512);  // the file ends there
    CHECK_EQ(bench.run(IoKind::write, bytes - 512, 1024, 'e'), -EFBIG);
    CHECK(bench.reached(Event::read_error) && bench.reached(Event::no_space) &&
          bench.reached(Event::short_transfer) && bench.reached(Event::transient_error));
}

TEST(the_size_is_volatile_too) {
    std::set<size_t> sizes;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Bench bench(seed);
        CHECK_EQ(bench.run(IoKind::write, 8192, 512, 'z'), 512);
        CHECK_EQ(bench.run(IoKind::fdatasync), 0);
        bench.storage.resize(bench.fd, 4096);
        bench.storage.resize(bench.fd, 12288);
        CHECK(bench.at(8192) == 0);
        bench.storage.cut_power();
        bench.storage.restore_power();
        size_t size = bench.storage.bytes(bench.fd).size();
        sizes.insert(size);
        if (size > 8192) CHECK(bench.at(8192) == 0 || bench.at(8192) == 'z');
    }
    CHECK(sizes == (std::set<size_t>{4096, 12288, bytes}));
}

TEST(power_goes_with_the_operation_that_was_named) {
    Bench bench(3);
    bench.storage.cut_at(3);
    CHECK_EQ(bench.run(IoKind::read, 0, 512), 512);
    CHECK_EQ(bench.run(IoKind::read, 0, 512), 512);
    CHECK(bench.storage.powered());
    CHECK_EQ(bench.run(IoKind::read, 0, 512), -EIO);
    CHECK(!bench.storage.powered());
    bench.storage.restore_power();
    CHECK_EQ(bench.run(IoKind::read, 0, 512), 512);
}

}  // namespace
