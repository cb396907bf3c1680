// What the shadow model allows, and what it does not.
#include "check.hh"
#include "shadow.hh"

using namespace lab;

namespace {

constexpr uint64_t bytes = 1024;

std::vector<std::byte> written(const Shadow& shadow, uint32_t change, uint64_t length) {
    std::vector<std::byte> data(length);
    shadow.fill(change, data.data());
    return data;
}

struct Bench {
    Shadow shadow{bytes, 2 * bytes};
    std::vector<std::byte> zero = std::vector<std::byte>(bytes);

    // A write that is over.
    uint32_t write(uint64_t offset, uint64_t length, bool fua = false) {
        uint32_t change = shadow.begin(Kind::write, offset, length, fua);
        shadow.end(change, true);
        return change;
    }
    bool reads(uint64_t offset, const std::vector<std::byte>& data, uint64_t began) {
        return shadow.check_read(offset, data.size(), data.data(), began).empty();
    }
    bool survives(uint64_t offset, const std::vector<std::byte>& data) {
        return shadow.check_survivor(offset, data.size(), data.data()).empty();
    }
    void flush() { shadow.flushed(shadow.tick()); }
};

TEST(what_was_overwritten_is_gone) {
    Bench bench;
    std::vector<std::byte> first = written(bench.shadow, bench.write(0, 64), 64);
    CHECK(bench.reads(0, first, bench.shadow.tick()));
    CHECK(!bench.reads(0, std::vector<std::byte>(64), bench.shadow.tick()));
    std::vector<std::byte> second = written(bench.shadow, bench.write(0, 64), 64);
    CHECK(bench.reads(0, second, bench.shadow.tick()));
    CHECK(!bench.reads(0, first, bench.shadow.tick()));
    CHECK(!bench.reads(64, second, bench.shadow.tick()));  // it was written elsewhere
}

TEST(beside_a_write_either_is_right) {
    Bench bench;
    uint64_t began = bench.shadow.tick();
    uint32_t change = bench.shadow.begin(Kind::write, 0, 64, false);
    std::vector<std::byte> data = written(bench.shadow, change, 64);
    std::vector<std::byte> mixed(data);
    fill_cell(mixed.data(), 0);
    for (const auto& seen : {data, mixed, std::vector<std::byte>(64)}) CHECK(bench.reads(0, seen, began));
    bench.shadow.end(change, true);
    CHECK(bench.reads(0, mixed, began));
    CHECK(!bench.reads(0, mixed, bench.shadow.tick()));
}

TEST(a_failed_write_may_have_been_done_or_not) {
    Bench bench;
    std::vector<std::byte> before = written(bench.shadow, bench.write(0, 32), 32);
    uint32_t change = bench.shadow.begin(Kind::write, 0, 32, false);
    bench.shadow.end(change, false);
    uint64_t now = bench.shadow.tick();
    CHECK(bench.reads(0, before, now));
    CHECK(bench.reads(0, written(bench.shadow, change, 32), now));
    CHECK(!bench.reads(0, std::vector<std::byte>(32), now));
}

TEST(a_discard_hides_what_it_likes) {
    Bench bench;
    std::vector<std::byte> before = written(bench.shadow, bench.write(0, 32), 32);
    bench.shadow.end(bench.shadow.begin(Kind::discard, 0, 32, false), true);
    CHECK(bench.reads(0, before, bench.shadow.tick()));
    CHECK(bench.reads(0, std::vector<std::byte>(32), bench.shadow.tick()));
    bench.shadow.end(bench.shadow.begin(Kind::zeroes, 0, 32, false), true);
    CHECK(!bench.reads(0, before, bench.shadow.tick()));
}

TEST(a_torn_cell_is_none) {
    Bench bench;
    std::vector<std::byte> data = written(bench.shadow, bench.write(0, 32), 32);
    data[17] ^= std::byte{1};
    CHECK(!bench.reads(0, data, bench.shadow.tick()));
    std::vector<std::byte> nearly(32);
    nearly[31] = std::byte{1};
    CHECK(!bench.reads(32, nearly, bench.shadow.tick()));
}

TEST(copies_bring_the_library) {
    Bench bench;
    bench.shadow.end(bench.shadow.begin(Kind::copy, 64, 64, false, 320), true);
    std::vector<std::byte> data(64);
    fill_cell(data.data(), library_value(10));
    fill_cell(data.data() + 32, library_value(11));
    CHECK(bench.reads(64, data, bench.shadow.tick()));
    fill_cell(data.data() + 32, library_value(10));
    CHECK(!bench.reads(64, data, bench.shadow.tick()));
}

TEST(what_was_flushed_survives) {
    Bench bench;
    std::vector<std::byte> flushed = written(bench.shadow, bench.write(0, 32), 32);
    bench.flush();
    std::vector<std::byte> late = written(bench.shadow, bench.write(0, 32), 32);
    std::vector<std::byte> durable = written(bench.shadow, bench.write(64, 32, true), 32);
    bench.shadow.lose_power();
    CHECK(bench.survives(0, flushed));
    CHECK(bench.survives(0, late));
    CHECK(!bench.survives(0, std::vector<std::byte>(32)));
    CHECK(bench.survives(64, durable));
    CHECK(!bench.survives(64, std::vector<std::byte>(32)));  // it was FUA
}

TEST(a_flush_covers_what_had_ended_before_it) {
    Bench bench;
    uint32_t change = bench.shadow.begin(Kind::write, 0, 32, false);
    uint64_t began = bench.shadow.tick();
    bench.shadow.end(change, true);
    bench.shadow.flushed(began);
    bench.shadow.lose_power();
    CHECK(bench.survives(0, std::vector<std::byte>(32)));
    CHECK(bench.survives(0, written(bench.shadow, change, 32)));
}

TEST(after_a_power_loss_there_is_what_there_is) {
    Bench bench;
    std::vector<std::byte> data = written(bench.shadow, bench.write(0, 32), 32);
    bench.shadow.lose_power();
    bench.shadow.adopt(bytes, bench.zero.data());
    CHECK(bench.reads(0, std::vector<std::byte>(32), bench.shadow.tick()));
    CHECK(!bench.reads(0, data, bench.shadow.tick()));
}

TEST(what_was_cut_off_comes_back_as_zeroes) {
    Bench bench;
    std::vector<std::byte> data = written(bench.shadow, bench.write(512, 32), 32);
    uint64_t before = bench.shadow.tick();
    bench.shadow.end_resize(bench.shadow.begin_resize(256), true);
    uint64_t between = bench.shadow.tick();
    CHECK(bench.shadow.may_fit(1024, before) && bench.shadow.may_not_fit(1024, before));
    CHECK(!bench.shadow.may_fit(1024, between) && bench.shadow.may_fit(256, between));
    bench.shadow.end_resize(bench.shadow.begin_resize(1024), true);
    uint64_t now = bench.shadow.tick();
    CHECK(bench.shadow.may_fit(1024, now) && !bench.shadow.may_not_fit(1024, now));
    CHECK(bench.reads(512, std::vector<std::byte>(32), now));
    CHECK(!bench.reads(512, data, now));
    CHECK(bench.shadow.may_survive(256) && bench.shadow.may_survive(1024));
    bench.flush();
    CHECK(!bench.shadow.may_survive(256) && bench.shadow.may_survive(1024));
}

TEST(an_extent_of_zeroes_has_none_of_data) {
    Bench bench;
    bench.write(64, 32);
    CHECK(bench.shadow.check_zero_extent(0, 64, bench.shadow.tick()).empty());
    CHECK(!bench.shadow.check_zero_extent(0, 96, bench.shadow.tick()).empty());
}

}  // namespace
