// The arithmetic of throttle groups at given times: averages to the request, bursts, several limits at once,
// changes, extremes; and that no charge is lost when threads fill the same bucket.
#include <thread>
#include <vector>

#include "check.hh"
#include "filters/throttle_group.hh"

namespace {

using engine::filters::Bucket;
using engine::filters::Direction;
using engine::filters::Limit;
using engine::filters::Limits;
using engine::filters::reading;
using engine::filters::ThrottleGroup;
using engine::filters::writing;

constexpr uint64_t second = 1'000'000'000;
constexpr uint64_t epoch = 12345 * second;

Limits only(Limits::Which which, Limit limit) {
    Limits limits;
    limits.limit[which] = limit;
    return limits;
}

// A group, and a client that sends its next request as soon as the last may go.
struct Client {
    ThrottleGroup group{epoch};
    uint64_t now = epoch;

    explicit Client(const Limits& limits) { group.set(limits, epoch); }
    // Seconds since the start.
    double time() const { return static_cast<double>(now - epoch) / 1e9; }
    void send(uint64_t bytes = 4096, Direction direction = reading) {
        uint64_t due = group.reserve(direction, bytes, now);
        CHECK(due >= now);
        now = due;
    }
    // How many requests go up to that second.
    unsigned count_until(double seconds, uint64_t bytes = 4096, Direction direction = reading) {
        auto end = epoch + static_cast<uint64_t>(seconds * 1e9);
        for (unsigned count = 0;; count++) {
            uint64_t due = group.reserve(direction, bytes, now);
            if (due > end) return count;
            now = due;
        }
    }
};

bool near(double found, double expected, double share = 1e-6) {
    return found >= expected * (1 - share) && found <= expected * (1 + share);
}

TEST(the_average_holds_to_the_request) {
    for (uint64_t rate : {1, 7, 100, 1000, 33333, 100000}) {
        Client client(only(Limits::iops_total, {.average = rate}));
        // A tenth of a second's worth comes at once; then each takes its time.
        for (uint64_t i = 0; i < 10 * rate; i++) client.send();
        double expected = 10.0 - 0.1 - 1.0 / static_cast<double>(rate);
        CHECK(near(client.time(), expected, 1e-5));
    }
    for (uint64_t rate : {4000, 1000000, 1000000000}) {
        Client client(only(Limits::bps_total, {.average = rate}));
        for (int i = 0; i < 1000; i++) client.send(rate / 100);
        CHECK(near(client.time(), 10.0 - 0.1 - 0.01, 0.002));
    }
}

TEST(nothing_waits_below_the_limit) {
    Client client(only(Limits::iops_total, {.average = 1000}));
    for (int i = 0; i < 10000; i++) {
        uint64_t before = client.now;
        client.send();
        CHECK_EQ(client.now, before);
        client.now += 1'001'000;
    }
}

TEST(time_unused_is_not_saved_beyond_the_bucket) {
    Client client(only(Limits::iops_total, {.average = 1000}));
    client.now += 3600 * second;
    uint64_t start = client.now;
    for (int i = 0; i < 1000; i++) client.send();
    CHECK(near(static_cast<double>(client.now - start) / 1e9, 0.9 - 0.001));
}

// A second at the burst rate at once, then the average.
TEST(a_burst_of_a_second) {
    Client client(only(Limits::iops_total, {.average = 100, .burst = 2000}));
    CHECK_EQ(client.count_until(0), 2001);
    CHECK_EQ(client.count_until(10), 1000 - 1);  // the reservation that came too late counts as well
}

// 100 a second, 2000 in bursts of 60 seconds: what leaks meanwhile lets the burst last three seconds longer.
TEST(a_long_burst_keeps_to_its_rate) {
    Limits limits = only(Limits::iops_total, {.average = 100, .burst = 2000, .seconds = 60});
    Client client(limits);
    CHECK(near(client.count_until(10), 20000 + 200, 0.001));
    CHECK(near(client.count_until(60), 100000, 0.001));
    Client again(limits);
    again.count_until(63.15);
    double before = again.time();
    CHECK(near(before, 63.15, 0.001));
    unsigned later = again.count_until(100);
    CHECK(near(later, 100 * (100 - 63.15), 0.02));
    Client whole(limits);
    CHECK(near(whole.count_until(63.158 + 100), 60 * 2000 + 100 * 163.158, 0.002));
}

TEST(the_slowest_of_several_limits_decides) {
    Limits limits;
    limits.limit[Limits::iops_total] = {.average = 1000};
    limits.limit[Limits::bps_read] = {.average = 1 << 20};
    limits.limit[Limits::bps_write] = {.average = 64 << 20};
    Client client(limits);
    for (int i = 0; i < 100; i++) client.send(65536, reading);  // 16 a second by bytes
    CHECK(near(client.time(), 100 / 16.0 - 0.1 - 1 / 16.0, 0.001));
    Client small(limits);
    for (int i = 0; i < 2000; i++) small.send(512, reading);  // 2048 a second by bytes, 1000 by number
    CHECK(near(small.time(), 2.0 - 0.1 - 0.001, 0.001));
    Client writes(limits);
    for (int i = 0; i < 2000; i++) writes.send(65536, writing);  // 1024 a second by bytes
    CHECK(near(writes.time(), 2.0 - 0.1 - 0.001, 0.001));
}

// While the slow limit holds a request back the fast one must not leak what has not been sent: what goes
// fills it when it goes.
TEST(a_fast_limit_counts_from_when_requests_go) {
    Limits limits;
    limits.limit[Limits::iops_read] = {.average = 1};
    limits.limit[Limits::bps_total] = {.average = 1000000};
    Client client(limits);
    for (int i = 0; i < 3; i++) client.send(50000, reading);  // one a second, each half of the bucket
    uint64_t start = client.now;
    for (int i = 0; i < 2; i++) client.send(50000, writing);
    CHECK_EQ(client.now, start);
    client.send(50000, writing);
    CHECK_EQ(client.now, start + second / 20);
}

TEST(large_requests_count_by_size) {
    Limits limits = only(Limits::iops_total, {.average = 1000});
    limits.iops_size = 4096;
    const struct {
        uint64_t bytes;
        double counts;
    } cases[] = {{0, 1}, {512, 1}, {4096, 1}, {6144, 1.5}, {8192, 2}, {1 << 20, 256}};
    for (const auto& one : cases) {
        Client client(limits);
        client.send(4096 * 1000);  // more than the bucket holds
        double start = client.time();
        for (int i = 0; i < 101; i++) client.send(one.bytes);
        double first = 0.9;  // until the large one has leaked
        CHECK(near(client.time() - start - first, 0.1 * one.counts, 0.001));
    }
}

TEST(a_request_larger_than_the_burst_goes_at_the_average) {
    Client client(only(Limits::bps_total, {.average = 1 << 20}));
    for (int i = 0; i < 10; i++) {
        double before = client.time();
        client.send(10 << 20);  // ten seconds' worth
        CHECK(near(client.time() - before, i == 0 ? 0 : i == 1 ? 9.9 : 10, 1e-5));
    }
}

TEST(members_of_a_group_take_turns) {
    // Three channels with one reservation each, as a channel has; the first is a thousand times as busy.
    ThrottleGroup group(epoch);
    group.set(only(Limits::iops_total, {.average = 1000}), epoch);
    uint64_t due[3] = {epoch, epoch, epoch};
    unsigned sent[3] = {0, 0, 0};
    for (;;) {
        unsigned next = 0;
        for (unsigned i = 1; i < 3; i++) {
            if (due[i] < due[next]) next = i;
        }
        uint64_t now = due[next];
        if (now > epoch + 30 * second) break;
        sent[next]++;
        // The others are late by 50 us each time, as what sleeps is.
        uint64_t late = next == 0 ? 0 : 50'000;
        due[next] = group.reserve(reading, 4096, now + late);
    }
    unsigned sum = sent[0] + sent[1] + sent[2];
    CHECK(near(sum, 30 * 1000 + 100, 0.001));
    for (unsigned count : sent) CHECK(near(count, sum / 3.0, 0.02));
}

TEST(new_limits_keep_what_is_in_the_bucket) {
    Client client(only(Limits::iops_total, {.average = 1000, .burst = 1000}));
    for (int i = 0; i < 600; i++) client.send();  // six tenths full
    CHECK_EQ(client.now, epoch);
    uint32_t before = client.group.generation();
    client.group.set(only(Limits::iops_total, {.average = 10, .burst = 1000}), client.now);
    CHECK(client.group.generation() != before);
    CHECK_EQ(client.count_until(0), 401);
    // Debt from a slow limit does not outlive it: no more than the new bucket holds.
    Client slow(only(Limits::iops_total, {.average = 1}));
    for (int i = 0; i < 100; i++) slow.group.reserve(reading, 1, slow.now);
    slow.group.set(only(Limits::iops_total, {.average = 1000}), slow.now);
    for (int i = 0; i < 1001; i++) slow.send();
    CHECK(near(slow.time(), 1.0, 0.002));
    // Not limited at all, nothing waits, and nothing is owed later.
    slow.group.set({}, slow.now);
    CHECK(!slow.group.limited(reading) && !slow.group.limited(writing));
    CHECK_EQ(slow.group.reserve(reading, UINT64_MAX, slow.now), slow.now);
}

TEST(directions_are_apart) {
    Limits limits;
    limits.limit[Limits::iops_write] = {.average = 1};
    limits.limit[Limits::bps_write] = {.average = 1};
    Client client(limits);
    CHECK(!client.group.limited(reading));
    CHECK(client.group.limited(writing));
    client.send(1 << 20, writing);
    client.send(1, writing);
    CHECK(client.time() > 1 << 19);
    uint64_t now = client.now;
    client.send(1 << 30, reading);
    CHECK_EQ(client.now, now);
}

TEST(extremes_neither_overflow_nor_stop) {
    for (uint64_t average : {uint64_t{1}, uint64_t{1'000'000'000'000'000}}) {
        for (uint64_t burst : {uint64_t{0}, uint64_t{1'000'000'000'000'000}}) {
            for (uint64_t seconds : {uint64_t{1}, uint64_t{4294967295}}) {
                Limits limits;
                limits.limit.fill({.average = average, .burst = burst, .seconds = burst != 0 ? seconds : 1});
                limits.iops_size = 1;
                ThrottleGroup group(epoch);
                group.set(limits, epoch);
                uint64_t last = epoch;
                for (int i = 0; i < 100; i++) {
                    uint64_t due = group.reserve(i % 2 == 0 ? reading : writing, UINT64_MAX, epoch);
                    CHECK(due >= last || due == epoch);
                    last = due;
                }
                group.set(limits, epoch + second);
                CHECK(group.reserve(reading, 1, epoch + second) >= epoch + second);
            }
        }
    }
}

// Time stands still; so the last reservation says how much has been charged.
TEST(no_charge_is_lost_between_threads) {
    constexpr unsigned threads = 3;
    constexpr unsigned each = 20000;
    ThrottleGroup group(epoch);
    Limits limits = only(Limits::iops_total, {.average = 1000});
    limits.limit[Limits::bps_total] = {.average = 1000};
    group.set(limits, epoch);
    std::vector<std::thread> pool;
    for (unsigned i = 0; i < threads; i++) {
        pool.emplace_back([&group, i] {
            for (unsigned k = 0; k < each; k++) group.reserve(i == 0 ? writing : reading, 1, epoch);
        });
    }
    for (std::thread& thread : pool) thread.join();
    uint64_t due = group.reserve(reading, 1, epoch);
    CHECK_EQ(due, epoch + (threads * each - 100) * (second / 1000));
}

TEST(limits_are_told) {
    ThrottleGroup group(epoch);
    CHECK(group.limits() == Limits{});
    Limits limits = only(Limits::bps_write, {.average = 5, .burst = 6, .seconds = 7});
    group.set(limits, epoch);
    CHECK(group.limits() == limits);
    CHECK(group.limits() != only(Limits::bps_write, {.average = 5, .burst = 6, .seconds = 8}));
}

}  // namespace
