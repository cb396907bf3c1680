// Coordinated omission, in virtual time: a disk stands still for a known while in the middle of a run, or to
// its end. The open loop counts every request that was due meanwhile from its intended start; the closed
// loop, of the same disk, shows a handful. All is counted, nothing timed.
#include "base/histogram.hh"
#include "sim_engine.hh"

namespace {

using embedder::Error;
using engine::base::Histogram;
using Result = std::unique_ptr<engine_workload_result>;

constexpr uint64_t us = 1000, ms = 1000 * us;
constexpr uint64_t rate = 10'000, gap = 1'000'000'000 / rate;
constexpr uint64_t service = 20 * us;
constexpr uint64_t runtime = 1000 * ms;
constexpr uint32_t depth = 64;
// Between an intended start and the end of its request there are turns of the context beside the disk's time;
// and a queue of requests that a stall has left behind takes its time: 2000 of them, 64 at once, 20 us each.
constexpr uint64_t slack = 5 * ms;

// Serves each request in the same time, but for those that it holds during the stall: they end after it.
class Disk final : public engine::aio::SimHandler {
  public:
    Disk(engine::aio::Simulator& simulator, uint64_t service_ns, uint64_t from_ns, uint64_t to_ns)
        : simulator_(simulator), service_ns_(service_ns), from_ns_(from_ns), to_ns_(to_ns) {}
    uint64_t latency_ns(const engine::aio::IoOp&, engine::base::Random&) override {
        uint64_t now_ns = simulator_.now_ns(), done_ns = now_ns + service_ns_;
        bool held = done_ns > from_ns_ && now_ns < to_ns_;
        return (held ? to_ns_ + service_ns_ : done_ns) - now_ns;
    }
    int64_t perform(engine::aio::IoOp& op) override { return static_cast<int64_t>(op.length); }

  private:
    engine::aio::Simulator& simulator_;
    uint64_t service_ns_, from_ns_, to_ns_;
};

struct Options {
    uint64_t rate_iops = rate;
    uint32_t read_percent = 100;
    uint64_t count = 0;
    uint64_t runtime_ns = runtime;  // without a count
    uint64_t stop_at = 0;           // 0: it ends by itself
    uint64_t service_ns = service;  // of the disk
};

// Reads of a disk that stands still from `from` to `to`, counted from their beginning.
Result reads(uint64_t seed, uint64_t from, uint64_t to, Options options) {
    sim::Engine engine(seed, 1);
    uint64_t began_ns = engine.simulator.now_ns();
    Disk disk(engine.simulator, options.service_ns, began_ns + from, began_ns + to);
    engine_node_t* node = engine.open_disk(engine.simulator.files().add(1 << 20), 1 << 20);
    engine_user_t* user = embedder::Engine::user(node, "load");
    engine.simulator.serve_with(disk);
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = options.read_percent;
    config.block_size = 4096;
    config.iodepth = depth;
    config.count = options.count;
    config.runtime_ns = options.count == 0 ? options.runtime_ns : 0;
    config.rate_iops = options.rate_iops;
    config.seed = seed;
    config.user = user;
    config.context = engine.context_handle(1);
    engine_workload_t* workload = nullptr;
    Error error;
    CHECK_EQ(engine_workload_create(engine.handle(), &config, &workload, &error), 0);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    if (options.stop_at != 0) {
        CHECK_EQ(engine_workload_wait(workload, options.stop_at), -ETIMEDOUT);
        CHECK_EQ(engine_workload_stop(workload), 0);
    }
    CHECK_EQ(engine_workload_wait(workload, UINT64_MAX), 0);
    auto result = std::make_unique<engine_workload_result>();
    result->size = sizeof *result;
    CHECK_EQ(engine_workload_get_result(workload, result.get()), 0);
    CHECK_EQ(engine_workload_close(workload), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
    CHECK_EQ(engine_node_close(node, &error), 0);
    CHECK_EQ(result->errors, 0);
    return result;
}

// How many took so long or longer, by whole buckets: `ns` is rounded down to the beginning of one.
uint64_t at_least(const Result& result, uint64_t ns) {
    uint64_t found = 0;
    for (const engine_histogram& latency : result->latency_ns) {
        for (unsigned i = Histogram::bucket_of(ns); i < Histogram::bucket_count; i++)
            found += latency.buckets[i];
    }
    return found;
}

uint64_t rounded(uint64_t ns) {
    return Histogram::low_of(Histogram::bucket_of(ns));
}

uint64_t latencies(const Result& result) {
    return result->latency_ns[0].count + result->latency_ns[1].count;
}

// A request that is due at t, from the beginning of the stall until its end, takes from there to the end, and
// what the queue behind the stall takes. So those that take `ns` or longer are those due up to `end - ns`.
void check_stalled(const Result& result, uint64_t from, uint64_t end, uint64_t ns) {
    uint64_t most = end - from - rounded(ns);
    uint64_t found = at_least(result, ns);
    CHECK(found >= most / gap);
    CHECK(found <= (most + slack) / gap + 1);
}

TEST(an_open_loop_counts_what_was_due_during_a_stall) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        constexpr uint64_t from = 400 * ms, to = 600 * ms;  // 2000 requests fall due meanwhile: a fifth
        Result open = reads(seed, from, to, {});
        CHECK_EQ(open->requests[0], runtime / gap);
        CHECK_EQ(latencies(open), runtime / gap);
        CHECK_EQ(open->unissued, 0);
        for (uint64_t ns : {20 * ms, 50 * ms, 100 * ms, 150 * ms, 190 * ms})
            check_stalled(open, from, to, ns);
        CHECK(engine_histogram_percentile(&open->latency_ns[0], 0.99) > 180 * ms);
        CHECK(engine_histogram_percentile(&open->latency_ns[0], 0.5) < ms);
        CHECK(open->late >= (to - from) / gap - depth);
        REQUIRE(check::failures == 0);
    }
}

// It stops asking while the disk stands still: only those in flight by then have waited. What it makes in the
// rest of the time outnumbers them so far that no percentile up to 99.9 knows of the stall.
TEST(a_closed_loop_hides_a_stall) {
    Result closed = reads(1, 400 * ms, 600 * ms, {.rate_iops = 0, .service_ns = 10 * service});
    CHECK_EQ(at_least(closed, 100 * ms), depth);
    CHECK_EQ(at_least(closed, 5 * ms), depth);
    CHECK(engine_histogram_percentile(&closed->latency_ns[0], 0.999) < ms);
    CHECK_EQ(closed->unissued, 0);
}

// The disk does not come back before time is up. 64 requests are held, the others that fall due never go out:
// left out of the percentiles, 0.7 % would have waited; it was half of them.
TEST(an_open_loop_counts_what_a_stall_to_the_end_kept_from_going_out) {
    for (uint64_t seed = 0; seed < 8; seed++) {
        constexpr uint64_t from = 500 * ms, to = 1200 * ms;
        Result open = reads(seed, from, to, {});
        CHECK_EQ(open->requests[0] + open->unissued, runtime / gap);
        CHECK_EQ(latencies(open), runtime / gap);
        CHECK(open->unissued >= (runtime - from) / gap - depth - 1);
        CHECK(open->unissued <= (runtime - from) / gap - depth + 1);
        for (uint64_t ns : {250 * ms, 400 * ms, 600 * ms}) check_stalled(open, from, to, ns);
        CHECK(at_least(open, 190 * ms) >= (runtime - from) / gap);  // all that were due wait until 1200 ms
        CHECK(engine_histogram_percentile(&open->latency_ns[0], 0.99) > 680 * ms);
        REQUIRE(check::failures == 0);
    }
}

TEST(those_never_issued_are_reads_and_writes_as_the_others) {
    Result open = reads(3, 500 * ms, 1200 * ms, {.read_percent = 70});
    CHECK_EQ(open->requests[0] + open->requests[1] + open->unissued, runtime / gap);
    CHECK_EQ(latencies(open), runtime / gap);
    uint64_t reads = open->latency_ns[0].count - open->requests[0];
    CHECK(reads >= open->unissued * 7 / 10 - 1);
    CHECK(reads <= open->unissued * 7 / 10 + 1);
    CHECK(open->latency_ns[0].max <= 701 * ms);
    CHECK(open->latency_ns[1].max <= 701 * ms);
}

// More than the disk can do: 3.2 M/s. What it did not come to is there as well.
TEST(more_than_the_disk_can_do) {
    constexpr uint64_t asked = 10'000'000;
    Result open = reads(5, 0, 0, {.rate_iops = asked, .runtime_ns = 20 * ms});
    CHECK_EQ(open->requests[0] + open->unissued, asked / 50);
    CHECK_EQ(latencies(open), asked / 50);
    CHECK(open->requests[0] < 66'000);
}

TEST(a_stop_leaves_out_what_was_not_due_by_then) {
    constexpr uint64_t from = 100 * ms, stop = 300 * ms;
    Result open = reads(9, from, 500 * ms, {.stop_at = stop});
    uint64_t due = open->requests[0] + open->unissued;
    CHECK(due >= stop / gap);
    CHECK(due <= (stop + slack) / gap);
    CHECK_EQ(latencies(open), due);
}

// A count is served to its end, however late that is.
TEST(a_count_misses_nothing) {
    Result open = reads(11, 100 * ms, 900 * ms, {.count = 5000});
    CHECK_EQ(open->requests[0], 5000);
    CHECK_EQ(open->unissued, 0);
    check_stalled(open, 100 * ms, 900 * ms, 600 * ms);
}

}  // namespace
