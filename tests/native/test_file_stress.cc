// The file driver under many operations at once: a random sequence against a model in memory, and verified
// load on two contexts. Seeds are printed; ENGINE_TEST_SEED sets one.
#include <engine/workload.h>

#include <random>

#include "file_bench.hh"

using namespace file_bench;

namespace {

unsigned test_seed() {
    const char* given = getenv("ENGINE_TEST_SEED");
    unsigned seed = given != nullptr ? static_cast<unsigned>(atoi(given)) : std::random_device{}();
    printf("     seed %u\n", seed);
    return seed;
}

// What the disk must hold, and the sequence that brings it there.
class Model {
  public:
    Model(Bench& bench, engine_node_t* node, unsigned seed, uint64_t unit)
        : bench_(bench),
          node_(node),
          random_(seed),
          unit_(unit),
          content_(bench.info(node).bytes),
          buffer_(content_.size()) {}

    void step() {
        switch (pick(10)) {
            case 0:
            case 1:
            case 2:
                write();
                break;
            case 3:
            case 4:
            case 5:
                read();
                break;
            case 6:
                zero();
                break;
            case 7:
                discard();
                break;
            case 8:
                status();
                break;
            default:
                CHECK_EQ(bench_.io(node_, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
                break;
        }
    }
    void check_all() {
        CHECK_EQ(bench_.read(node_, buffer_.base, 0, content_.size()), content_.size());
        CHECK(memcmp(buffer_.base, content_.data(), content_.size()) == 0);
    }

  private:
    uint64_t pick(uint64_t below) { return random_() % below; }
    void choose(uint64_t* offset, uint64_t* length) {
        uint64_t units = content_.size() / unit_;
        uint64_t first = pick(units);
        uint64_t most = std::min<uint64_t>(units - first, pick(4) == 0 ? units : 65536 / unit_ + 1);
        *offset = first * unit_;
        *length = (1 + pick(most)) * unit_;
    }
    void write() {
        uint64_t offset, length;
        choose(&offset, &length);
        uint64_t first = random_();
        for (uint64_t i = 0; i < length; i++) buffer_.base[i] = static_cast<char>(first + i * 7 + (i >> 8));
        memcpy(content_.data() + offset, buffer_.base, length);
        CHECK_EQ(bench_.write(node_, buffer_.base, offset, length, pick(8) == 0 ? ENGINE_FUA : 0), length);
    }
    void read() {
        uint64_t offset, length;
        choose(&offset, &length);
        CHECK_EQ(bench_.read(node_, buffer_.base, offset, length), length);
        CHECK(memcmp(buffer_.base, content_.data() + offset, length) == 0);
    }
    void zero() {
        uint64_t offset, length;
        choose(&offset, &length);
        memset(content_.data() + offset, 0, length);
        uint32_t flags = static_cast<uint32_t>(pick(4)) & (ENGINE_FUA | ENGINE_MAY_UNMAP);
        CHECK_EQ(bench_.io(node_, ENGINE_OP_WRITE_ZEROES, nullptr, offset, length, flags), 0);
    }
    // Whether a discarded byte keeps its value is up to the driver: a file's is zero afterwards, or as it
    // was.
    void discard() {
        uint64_t offset, length;
        choose(&offset, &length);
        CHECK_EQ(bench_.io(node_, ENGINE_OP_DISCARD, nullptr, offset, length), 0);
        CHECK_EQ(bench_.read(node_, buffer_.base, offset, length), length);
        for (uint64_t i = 0; i < length; i++) {
            CHECK(buffer_.base[i] == 0 || buffer_.base[i] == content_[offset + i]);
            content_[offset + i] = buffer_.base[i];
        }
    }
    // Extents follow one another without a gap, and what is called zero is.
    void status() {
        uint64_t offset, length;
        choose(&offset, &length);
        uint64_t at = offset;
        auto found = bench_.extents(node_, offset, length, 1 + static_cast<uint32_t>(pick(8)));
        CHECK(!found.empty());
        for (const engine_extent& extent : found) {
            CHECK_EQ(extent.offset, at);
            CHECK(extent.length != 0);
            at += extent.length;
            REQUIRE(at <= offset + length);
            CHECK(extent.flags == DATA || extent.flags == ZERO);
            if (extent.flags == ZERO) CHECK(all_zero(content_.data() + extent.offset, extent.length));
        }
    }

    Bench& bench_;
    engine_node_t* node_;
    std::mt19937_64 random_;
    uint64_t unit_;
    std::vector<char> content_;
    Aligned buffer_;
};

void compare_with_model(uint32_t backend, Options options, unsigned seed) {
    Folder folder;
    Bench bench(backend);
    options["filename"] = folder.make("a.img", MiB + 3 * 4096);
    options["discard"] = "unmap";
    engine_node_t* node = bench.open(options);
    Model model(bench, node, seed, std::max<uint64_t>(bench.info(node).request_alignment, 1));
    for (int i = 0; i < 600; i++) model.step();
    model.check_all();
    bench.close_node(node);
}

BOTH(random_operations) {
    compare_with_model(backend, {{"driver", "file"}}, test_seed());
}
BOTH(random_operations_on_raw) {
    compare_with_model(backend, {{"driver", "raw"}}, test_seed());
}
BOTH(random_operations_in_a_window) {
    compare_with_model(backend, {{"driver", "raw"}, {"offset", "12288"}}, test_seed());
}
BOTH(random_operations_direct) {
    Folder folder;
    int fd = open(folder.make("probe", 4096).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return;
    close(fd);
    compare_with_model(backend, {{"driver", "raw"}, {"cache.direct", "on"}}, test_seed());
}

// --- load

void verified_load(uint32_t backend, const char* direct, uint64_t count) {
    Folder folder;
    Bench bench(backend);
    engine_context_t* contexts[] = {bench.context, bench.add_context("other")};
    engine_node_t* node = bench.open(
        {{"driver", "raw"}, {"filename", folder.make("a.img", 16 * MiB)}, {"cache.direct", direct}});
    engine_workload_t* loads[2];
    for (unsigned i = 0; i < 2; i++) {
        engine_workload_config config{};
        config.size = sizeof config;
        config.pattern = ENGINE_RANDOM;
        config.read_percent = 50;
        config.block_size = 4096;
        config.iodepth = 32;
        config.flags = ENGINE_WORKLOAD_VERIFY;
        config.count = count;
        config.seed = 1 + i;
        config.offset = i * 8 * MiB;
        config.length = 8 * MiB;
        config.flush_every = 200;
        config.user = api::wrap(bench.user(node));
        config.context = contexts[i];
        REQUIRE(engine_workload_create(bench.engine, &config, &loads[i], bench.clean()) == 0);
    }
    for (engine_workload_t* load : loads) CHECK_EQ(engine_workload_start(load, bench.clean()), 0);
    for (engine_workload_t* load : loads) {
        CHECK_EQ(engine_workload_wait(load, UINT64_MAX), 0);
        auto result = std::make_unique<engine_workload_result>();
        result->size = sizeof *result;
        REQUIRE(engine_workload_get_result(load, result.get()) == 0);
        CHECK_EQ(result->errors, 0u);
        CHECK_EQ(result->verify_errors, 0u);
        CHECK_EQ(result->requests[0] + result->requests[1] + result->flushes, count);
        CHECK(result->flushes > 0);
        CHECK_EQ(engine_workload_close(load), 0);
    }
    engine_node_stats stats{};
    stats.size = sizeof stats;
    REQUIRE(engine_node_get_stats(node, nullptr, &stats) == 0);
    CHECK_EQ(stats.in_flight, 0u);
    CHECK_EQ(
        stats.op[ENGINE_OP_READ].errors + stats.op[ENGINE_OP_WRITE].errors + stats.op[ENGINE_OP_FLUSH].errors,
        0u);
}

BOTH(verified_load_on_two_contexts) {
    verified_load(backend, "off", 10000);
}
BOTH(verified_direct_load_on_two_contexts) {
    Folder folder;
    int fd = open(folder.make("probe", 4096).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return;
    close(fd);
    verified_load(backend, "on", 3000);
}

}  // namespace
