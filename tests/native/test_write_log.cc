// The write-log filter under load of several contexts: everything that completed is in the log, in places
// that say what was done before what. Reading and replaying is Python's part (tests/py/test_write_log.py).
#include <vector>

#include "filter_load.hh"
#include "filters/crc32c.hh"
#include "filters/write_log_format.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using engine::filters::LogEntry;
using engine::filters::LogHead;
using engine::filters::LogOp;
using filter_load::Load;

constexpr uint64_t log_bytes = 64 << 20;

template <class T>
T read_record(engine_user_t* user, uint64_t place) {
    T record;
    Error error;
    CHECK_EQ(embedder::io(user, ENGINE_OP_READ, &record, place, sizeof record, 0, &error),
             static_cast<int64_t>(sizeof record));
    uint32_t checksum = record.checksum;
    record.checksum = 0;
    CHECK_EQ(engine::filters::crc32c(&record, sizeof record), checksum);
    record.checksum = checksum;
    return record;
}

// All of a log without gaps.
std::vector<LogEntry> read_log(engine_node_t* log) {
    engine_user_t* user = Engine::user(log, "reader", ENGINE_PERM_CONSISTENT_READ);
    auto head = read_record<LogHead>(user, 0);
    CHECK_EQ(head.magic, engine::filters::log_magic);
    std::vector<LogEntry> entries;
    for (uint64_t place = head.block; place < log_bytes;) {
        LogEntry raw;
        Error error;
        REQUIRE(embedder::io(user, ENGINE_OP_READ, &raw, place, sizeof raw, 0, &error) > 0);
        if (raw.magic == 0) break;
        auto entry = read_record<LogEntry>(user, place);
        CHECK_EQ(entry.id, head.id);
        CHECK_EQ(entry.place, place);
        CHECK(entry.began <= place);
        std::vector<std::byte> data(entry.op == LogOp::write ? entry.length : 0);
        if (!data.empty()) {
            CHECK_EQ(
                embedder::io(user, ENGINE_OP_READ, data.data(), place + head.block, data.size(), 0, &error),
                static_cast<int64_t>(data.size()));
            CHECK_EQ(engine::filters::crc32c(data.data(), data.size()), entry.data_checksum);
        }
        place += head.block + (data.size() + head.block - 1) / head.block * head.block;
        entries.push_back(entry);
    }
    Error error;
    CHECK_EQ(engine_user_close(user, &error), 0);
    return entries;
}

TEST(checksums_by_instruction_and_by_table_agree) {
    std::vector<unsigned char> data(5000);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<unsigned char>(i * i >> 3);
    for (size_t length : {0u, 1u, 7u, 8u, 9u, 63u, 4096u, 4999u}) {
        for (size_t from : {0u, 1u, 5u}) {
            length = std::min(length, data.size() - from);
            CHECK_EQ(engine::filters::crc32c(data.data() + from, length, 77),
                     engine::filters::crc32c_by_table(data.data() + from, length, 77));
        }
    }
    CHECK_EQ(engine::filters::crc32c_by_table("123456789", 9), 0xe3069283u);
}

TEST(what_four_contexts_write_is_there_once) {
    constexpr uint64_t each = 1000;
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* log = engine.open({{"driver", "memory"}, {"node-name", "log"}, {"size", "64M"}});
        engine_node_t* node = engine.open(
            {{"driver", "write-log"}, {"log", "log"}, {"file.driver", "memory"}, {"file.size", "1M"}});
        engine_user_t* user = Engine::user(node, "load");
        {
            std::vector<std::unique_ptr<Load>> loads;
            for (int i = 0; i < 4; i++) {
                std::string name = "io" + std::to_string(i);
                loads.push_back(
                    std::make_unique<Load>(engine, user, engine.context(name.c_str(), backend), each, 25));
            }
            uint64_t writes = 0;
            for (auto& load : loads) {
                auto result = load->wait();
                CHECK_EQ(result->errors, 0);
                writes += result->requests[1];
            }
            CHECK(writes > 2 * each);
            CHECK_EQ(filter_load::stats_of(node).op[ENGINE_OP_WRITE].requests, writes);
            Error error;
            loads.clear();
            CHECK_EQ(engine_user_close(user, &error), 0);
            CHECK_EQ(engine_node_close(node, &error), 0);
            std::vector<LogEntry> entries = read_log(log);
            CHECK_EQ(entries.size(), writes);
            for (const LogEntry& entry : entries) CHECK_EQ(entry.length, 4096u);
        }
    }
}

// Many at once, with room for some: each either failed, or is there.
TEST(a_log_runs_full_under_load) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* log = engine.open({{"driver", "memory"}, {"node-name", "log"}, {"size", "1M"}});
        engine_node_t* node = engine.open(
            {{"driver", "write-log"}, {"log", "log"}, {"file.driver", "memory"}, {"file.size", "1M"}});
        engine_user_t* user = Engine::user(node, "load");
        uint64_t errors = 0, writes = 0;
        {
            Load first(engine, user, engine.context("io0", backend), 400, 0);
            Load second(engine, user, engine.context("io1", backend), 400, 0);
            for (const Load* load : {&first, &second}) {
                auto result = load->wait();
                errors += result->errors;
                writes += result->requests[1];
            }
        }
        constexpr uint64_t room = ((1 << 20) - 512) / (512 + 4096);
        CHECK_EQ(filter_load::stats_of(node).op[ENGINE_OP_WRITE].errors, errors);
        CHECK(errors > 0);
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
        CHECK_EQ(engine_node_close(node, &error), 0);
        CHECK_EQ(read_log(log).size(), room);
        CHECK(writes + errors >= room);
    }
}

}  // namespace
