// The load generator: exact counts, open loop without coordinated omission, depth, mix, verify mode, its
// histograms against brute force, stopping and closing in mid-run, and the first error. Figures are judged by
// counts.
#include <algorithm>
#include <cmath>
#include <memory>

#include "base/histogram.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::eventually;
using Result = std::unique_ptr<engine_workload_result>;

engine_workload_config reads_of(engine_user_t* user, uint64_t count) {
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 100;
    config.block_size = 4096;
    config.iodepth = 16;
    config.count = count;
    config.seed = 7;
    config.user = user;
    return config;
}

class Load {
  public:
    Load(Engine& engine, const engine_workload_config& config) {
        Error error;
        int result = engine_workload_create(engine, &config, &workload_, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        if (result != 0) throw check::Failure();
    }
    ~Load() { CHECK_EQ(engine_workload_close(workload_), 0); }
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;

    void start() {
        Error error;
        CHECK_EQ(engine_workload_start(workload_, &error), 0);
    }
    Result wait() {
        CHECK_EQ(engine_workload_wait(workload_, 50'000'000'000), 0);
        Result over = result();
        CHECK_EQ(over->running, 0);
        CHECK(over->ended_ns >= over->started_ns);
        return over;
    }
    Result run() {
        start();
        return wait();
    }
    Result result() {
        auto made = std::make_unique<engine_workload_result>();
        made->size = sizeof *made;
        CHECK_EQ(engine_workload_get_result(workload_, made.get()), 0);
        return made;
    }
    engine_workload_t* get() { return workload_; }

  private:
    engine_workload_t* workload_ = nullptr;
};

uint64_t total(const Result& result) {
    return result->requests[0] + result->requests[1] + result->flushes;
}

// An engine with one node, and a user of it that is gone before it.
struct Bench {
    Engine engine;
    engine_node_t* node;
    engine_user_t* user;
    explicit Bench(Engine::Options options) : node(engine.open(options)), user(Engine::user(node, "load")) {}
    ~Bench() {
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
    engine_node_stats stats() {
        engine_node_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
        return stats;
    }
};

TEST(a_count_is_exact) {
    Bench bench({{"driver", "null"}});
    for (uint64_t count : {1, 15, 16, 17, 10000}) {
        for (uint32_t depth : {1u, 16u, 200u}) {
            engine_workload_config config = reads_of(bench.user, count);
            config.iodepth = depth;
            uint64_t before = bench.stats().op[ENGINE_OP_READ].requests;
            Result result = Load(bench.engine, config).run();
            CHECK_EQ(result->requests[0], count);
            CHECK_EQ(result->bytes[0], count * 4096);
            CHECK_EQ(result->latency_ns[0].count, count);
            CHECK_EQ(
                result->requests[1] + result->flushes + result->errors + result->late + result->open_loop, 0);
            CHECK_EQ(bench.stats().op[ENGINE_OP_READ].requests, before + count);
        }
    }
    CHECK_EQ(bench.stats().in_flight, 0);
}

TEST(depth_is_what_was_achieved) {
    Bench bench({{"driver", "null"}, {"latency-ns", "100us"}});
    engine_workload_config config = reads_of(bench.user, 1000);
    const unsigned buckets[][2] = {{1, 0}, {2, 1}, {3, 1}, {4, 2}, {64, 6}, {130, 7}};
    for (const auto& [depth, bucket] : buckets) {
        config.iodepth = depth;
        Result result = Load(bench.engine, config).run();
        uint64_t sum = 0;
        for (uint64_t n : result->depth) sum += n;
        CHECK_EQ(sum, 1000);
        for (unsigned i = bucket + 1; i < 8; i++) CHECK_EQ(result->depth[i], 0);
        // While it fills up each lower depth is seen once; the driver answers in batches, so lower ones
        // recur.
        CHECK(result->depth[bucket] > 0);
        if (depth == 1) CHECK_EQ(result->depth[0], 1000);
    }
}

TEST(a_runtime_ends_it) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 0);
    config.runtime_ns = 50'000'000;
    Result result = Load(bench.engine, config).run();
    CHECK(result->ended_ns - result->started_ns >= config.runtime_ns);
    CHECK(result->requests[0] > 16);
    config.count = 100;  // whichever is first
    config.runtime_ns = 3600'000'000'000;
    CHECK_EQ(Load(bench.engine, config).run()->requests[0], 100);
}

TEST(reads_and_writes_are_mixed_and_flushed) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 20000);
    config.read_percent = 70;
    Result result = Load(bench.engine, config).run();
    CHECK(result->requests[0] > 13500 && result->requests[0] < 14500);  // sigma is 65
    CHECK_EQ(total(result), 20000);
    // The same seed does the same again.
    CHECK_EQ(Load(bench.engine, config).run()->requests[0], result->requests[0]);
    config.seed = 8;
    CHECK(Load(bench.engine, config).run()->requests[0] != result->requests[0]);

    config.read_percent = 0;
    config.flush_every = 9;
    config.count = 1000;
    result = Load(bench.engine, config).run();
    CHECK_EQ(result->flushes, 100);
    CHECK_EQ(result->requests[1], 900);
    CHECK_EQ(result->requests[0], 0);
    CHECK_EQ(bench.stats().op[ENGINE_OP_FLUSH].requests, 100);
}

TEST(the_range_is_kept_to) {
    Bench bench({{"driver", "null"}, {"size", "1M"}});
    engine_workload_config config = reads_of(bench.user, 5000);
    config.offset = (1 << 20) - 8192;  // a request elsewhere than in the last two blocks would be an error
    CHECK_EQ(Load(bench.engine, config).run()->errors, 0);
    engine_workload_t* workload = nullptr;
    Error error;
    auto refused = [&](const char* field) {
        CHECK_EQ(engine_workload_create(bench.engine, &config, &workload, &error), -EINVAL);
        CHECK_EQ(std::string_view(error.field), field);
    };
    config.length = 8193;
    refused("length");
    config.length = 4095;
    refused("length");
    config.length = 0;
    config.offset = 100;
    refused("length");
    config.offset = UINT64_MAX / 4096 * 4096;
    refused("length");
    config = reads_of(bench.user, 0);
    refused("count");
    config = reads_of(nullptr, 1);
    refused("user");
    config = reads_of(bench.user, 1);
    config.iodepth = 0;
    refused("iodepth");
    config.iodepth = 65537;
    refused("iodepth");
    config = reads_of(bench.user, 1);
    config.block_size = 0;
    refused("block_size");
    config = reads_of(bench.user, 1);
    config.read_percent = 101;
    refused("read_percent");
    CHECK(workload == nullptr);
}

TEST(an_open_loop_keeps_its_rate) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 0);
    config.rate_iops = 20000;
    config.runtime_ns = 100'000'000;
    config.iodepth = 4096;  // more than fall due in all: never full
    Result result = Load(bench.engine, config).run();
    CHECK_EQ(result->open_loop, 1);
    CHECK_EQ(result->late, 0);
    // Every intended start up to the end of the run, and none after it.
    CHECK_EQ(result->requests[0], 2000);
    CHECK_EQ(result->unissued, 0);
    // By count: exactly that many, and not before the last one's intended start.
    config.count = 500;
    config.runtime_ns = 0;
    result = Load(bench.engine, config).run();
    CHECK_EQ(result->requests[0], 500);
    CHECK(result->ended_ns - result->started_ns >= 499 * (1'000'000'000 / config.rate_iops));
}

// A device that takes ten times as long as there is between two requests: measured from the intended start
// the waiting shows, in closed form, whatever the machine does.
TEST(an_open_loop_counts_from_the_intended_start) {
    Bench bench({{"driver", "null"}, {"latency-ns", "2ms"}});
    engine_workload_config config = reads_of(bench.user, 50);
    config.iodepth = 1;
    config.rate_iops = 5000;  // one each 200 us
    Result result = Load(bench.engine, config).run();
    const engine_histogram& latency = result->latency_ns[0];
    CHECK_EQ(latency.count, 50);
    // Number k is done not before (k + 1) * 2 ms, and was due at k * 200 us.
    CHECK(latency.max >= 49 * 1'800'000 + 2'000'000);
    uint64_t least_sum = 0;
    for (uint64_t k = 0; k < 50; k++) least_sum += k * 1'800'000 + 2'000'000;
    CHECK(latency.sum >= least_sum);
    CHECK_EQ(result->late, 49);
    // A closed loop of the same device never sees it.
    config.rate_iops = 0;
    result = Load(bench.engine, config).run();
    CHECK(result->latency_ns[0].min >= 2'000'000);
    CHECK_EQ(result->late, 0);
}

TEST(without_latency_there_are_no_stamps) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 1000);
    config.flags = ENGINE_WORKLOAD_NO_LATENCY;
    Result result = Load(bench.engine, config).run();
    CHECK_EQ(result->requests[0], 1000);
    CHECK_EQ(result->latency_ns[0].count, 0);
    CHECK_EQ(engine_histogram_percentile(&result->latency_ns[0], 0.99), 0);
}

TEST(verify_finds_what_was_changed) {
    for (uint32_t backend : both_backends) {
        embedder::TempFile file(256 << 10);
        Bench bench({{"driver", "raw"}, {"filename", file.name()}, {"cache.no-flush", "on"}});
        engine_workload_config config = reads_of(bench.user, 4000);
        config.read_percent = 50;
        config.flags = ENGINE_WORKLOAD_VERIFY;
        config.context = bench.engine.context("io0", backend);
        Result result = Load(bench.engine, config).run();
        CHECK_EQ(result->errors + result->verify_errors, 0);
        CHECK(result->requests[0] > 1500);

        // Sequentially, one at a time: 64 blocks written, then read again and again, with a block spoilt in
        // between.
        config.pattern = ENGINE_SEQUENTIAL;
        config.iodepth = 1;
        config.count = 1'000'000'000;
        Load load(bench.engine, config);
        load.start();
        REQUIRE(eventually([&] { return load.result()->requests[1] > 1000; }));
        CHECK_EQ(load.result()->verify_errors, 0);
        const char garbage[] = "garbage";
        // A write may put it right again before a read sees it: spoil it until one does.
        CHECK(eventually([&] {
            CHECK_EQ(pwrite(file.fd(), garbage, sizeof garbage, 7 * 4096 + 64), sizeof garbage);
            return load.result()->verify_errors != 0;
        }));
        CHECK_EQ(load.result()->error_offset, 7 * 4096 + 64);
        CHECK_EQ(engine_workload_stop(load.get()), 0);
        CHECK_EQ(load.wait()->errors, 0);
    }
}

TEST(two_workloads_share_a_node) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 100000);
    config.read_percent = 50;
    config.context = bench.engine.context("io0");
    Load first(bench.engine, config);
    config.context = bench.engine.context("io1", ENGINE_BACKEND_THREADS, 50000);
    Load second(bench.engine, config);
    first.start();
    second.start();
    CHECK_EQ(total(first.wait()), 100000);
    CHECK_EQ(total(second.wait()), 100000);
    engine_node_stats stats = bench.stats();
    CHECK_EQ(stats.channels, 2);
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests + stats.op[ENGINE_OP_WRITE].requests, 200000);
    Error error;
    CHECK_EQ(engine_context_close(config.context, &error), -EBUSY);
    CHECK_EQ(engine_user_close(bench.user, &error), -EBUSY);
    CHECK(error.says("user 'load'"));
}

TEST(a_run_is_stopped_or_closed_in_the_middle) {
    for (const char* latency : {"0", "1ms", "200ms"}) {
        for (uint64_t rate : {0, 10000}) {
            Bench bench({{"driver", "null"}, {"latency-ns", latency}});
            engine_workload_config config = reads_of(bench.user, 1'000'000'000);
            config.rate_iops = rate;
            config.context = bench.engine.context("io0");
            {
                Load load(bench.engine, config);
                CHECK_EQ(engine_workload_wait(load.get(), 0), -EINVAL);  // not started
                CHECK_EQ(engine_workload_stop(load.get()), 0);
                load.start();
                CHECK_EQ(engine_workload_wait(load.get(), 0), -ETIMEDOUT);
                CHECK_EQ(load.result()->running, 1);
                CHECK_EQ(engine_workload_stop(load.get()), 0);
                CHECK_EQ(engine_workload_stop(load.get()), 0);
                Result result = load.wait();
                CHECK_EQ(bench.stats().in_flight, 0);
                CHECK_EQ(bench.stats().op[ENGINE_OP_READ].requests, result->requests[0]);
                Error error;
                CHECK_EQ(engine_workload_start(load.get(), &error), -EALREADY);
            }
            {
                Load load(bench.engine, config);
                load.start();  // and closed at once, by its destructor
            }
            Load never_started(bench.engine, config);
            CHECK_EQ(bench.stats().in_flight, 0);
        }
    }
}

TEST(a_run_is_stopped_by_its_own_context) {
    Bench bench({{"driver", "null"}});
    engine_workload_config config = reads_of(bench.user, 1'000'000'000);
    config.context = bench.engine.context("io0");
    Load load(bench.engine, config);
    load.start();
    embedder::run_on(bench.engine.context("io1"),
                     [&] { CHECK_EQ(engine_workload_stop(load.get()), -EDEADLK); });
    CHECK_EQ(load.result()->running, 1);
    embedder::run_on(config.context, [&] { CHECK_EQ(engine_workload_stop(load.get()), 0); });
    load.wait();
}

TEST(the_first_error_is_told) {
    Bench bench({{"driver", "null"}, {"size", "1M"}});
    engine_user_t* reader = Engine::user(bench.node, "reader", ENGINE_PERM_CONSISTENT_READ);
    engine_workload_config config = reads_of(reader, 1'000'000'000);
    config.read_percent = 0;
    Result result = Load(bench.engine, config).run();  // ends by itself
    CHECK_EQ(result->error_errnum, EPERM);
    CHECK(result->errors >= 1 && result->errors <= config.iodepth);
    CHECK_EQ(total(result), 0);

    // The disk shrinks under a sequential reader: the error is where the new end is.
    config = reads_of(bench.user, 1'000'000'000);
    config.pattern = ENGINE_SEQUENTIAL;
    config.iodepth = 1;
    Load load(bench.engine, config);
    load.start();
    Error error;
    CHECK_EQ(embedder::io(bench.user, ENGINE_OP_RESIZE, nullptr, 512 << 10, 0, 0, &error), 0);
    result = load.wait();
    CHECK_EQ(result->error_errnum, EINVAL);
    CHECK_EQ(result->errors, 1);
    CHECK(result->error_offset >= 512 << 10);
    CHECK_EQ(engine_user_close(reader, &error), 0);
}

// --- histograms

TEST(buckets_are_as_the_header_says) {
    using engine::base::Histogram;
    auto check = [](uint64_t value) {
        unsigned i = Histogram::bucket_of(value);
        REQUIRE(i < ENGINE_HISTOGRAM_BUCKETS);
        if (i < 64) {
            CHECK_EQ(value, i);
            return;
        }
        unsigned e = i / 32 - 1, m = i % 32;
        unsigned __int128 low = static_cast<unsigned __int128>(32 + m) << e;
        unsigned __int128 high = static_cast<unsigned __int128>(33 + m) << e;
        CHECK(value >= low && value < high);
        CHECK_EQ(Histogram::low_of(i), static_cast<uint64_t>(low));
    };
    for (uint64_t value = 0; value < 100000; value++) check(value);
    for (unsigned shift = 0; shift < 64; shift++) {
        for (int delta = -1; delta <= 1; delta++)
            check((uint64_t{1} << shift) + static_cast<uint64_t>(delta));
    }
    check(UINT64_MAX);
}

TEST(percentiles_agree_with_a_sorted_list) {
    auto merged = std::make_unique<engine_histogram>();
    engine::base::Histogram::reset(merged.get());
    std::vector<uint64_t> values;
    uint64_t state = 42;
    for (int part = 0; part < 3; part++) {  // recorded apart, then merged
        engine::base::Histogram histogram;
        for (int i = 0; i < 5000; i++) {
            state = state * 6364136223846793005 + 1442695040888963407;
            uint64_t value = state >> (20 + state % 40);
            values.push_back(value);
            histogram.record(value);
        }
        auto exported = std::make_unique<engine_histogram>();
        engine::base::Histogram::reset(exported.get());
        histogram.add_to(exported.get());
        engine_histogram_merge(merged.get(), exported.get());
    }
    std::sort(values.begin(), values.end());
    CHECK_EQ(merged->count, values.size());
    CHECK_EQ(merged->min, values.front());
    CHECK_EQ(merged->max, values.back());
    uint64_t sum = 0;
    for (uint64_t value : values) sum += value;
    CHECK_EQ(merged->sum, sum);
    for (double share : {0.0, 0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0}) {
        auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
        uint64_t exact = values[rank == 0 ? 0 : rank - 1];
        uint64_t told = engine_histogram_percentile(merged.get(), share);
        CHECK(told >= exact);
        CHECK(static_cast<double>(told - exact) <= static_cast<double>(exact) / 32);
    }
    CHECK_EQ(engine_histogram_percentile(merged.get(), 1.0), values.back());
    engine::base::Histogram::reset(merged.get());
    CHECK_EQ(engine_histogram_percentile(merged.get(), 0.5), 0);
    CHECK_EQ(merged->min, UINT64_MAX);
}

}  // namespace
