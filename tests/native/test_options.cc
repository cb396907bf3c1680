// Options of block nodes: sizes, times and booleans as text, what a wrong key or value answers, nested
// children, references and inheritance; and the driver table, their one source.
#include <cmath>

#include "block/options.hh"
#include "embedder.hh"

namespace {

using embedder::Engine;
using embedder::Error;
using embedder::info_of;
using engine::block::parse_size;
using engine::block::parse_time_ns;

TEST(sizes_are_written_as_in_qemu_img) {
    const struct {
        const char* text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"512", 512},
        {"512b", 512},
        {"512B", 512},
        {"1k", 1024},
        {"1K", 1024},
        {"64KiB", 65536},
        {"64KB", 65536},
        {"4M", 4u << 20},
        {"1.5G", 3u << 29},
        {"0.5k", 512},
        {"1g", 1u << 30},
        {"2T", uint64_t{2} << 40},
        {"1P", uint64_t{1} << 50},
        {"8E", uint64_t{8} << 60},
        {"18446744073709551615", UINT64_MAX},
        {"9007199254740993.0", 9007199254740993},
        {"7.0000000000000001E", (uint64_t{7} << 60) + 115},
        {"1.99999999999999999999999k", 2047},
    };
    for (const auto& one : good) {
        uint64_t bytes = 1;
        CHECK(parse_size(one.text, &bytes));
        CHECK_EQ(bytes, one.bytes);
    }
    for (const char* bad : {"",       " ",
                            "k",      "-1",
                            "+1",     "1 k",
                            " 1",     "1x",
                            "1kk",    "1kib",
                            "0x10",   "1.k.",
                            "1e3",    "1..5k",
                            "16E",    "18446744073709551616",
                            "16384P", "99999999999999E",
                            "nan",    "inf",
                            "1.5.5",  ".5k"}) {
        uint64_t bytes = 0;
        bool parsed = parse_size(bad, &bytes);
        check::report(!parsed, __FILE__, __LINE__, std::string("parsed as a size: '") + bad + "'");
    }
}

TEST(times_have_units) {
    const struct {
        const char* text;
        uint64_t ns;
    } good[] = {{"0", 0},          {"100", 100},         {"100ns", 100},     {"20us", 20000},
                {"2ms", 2000000},  {"5s", 5000000000},   {"1.5ms", 1500000}, {"0.25us", 250},
                {"1.001us", 1001}, {"0.29s", 290000000}, {"4.35us", 4350}};
    for (const auto& one : good) {
        uint64_t ns = 1;
        CHECK(parse_time_ns(one.text, &ns));
        CHECK_EQ(ns, one.ns);
    }
    for (const char* bad : {"", "s", "-1s", "1m", "1h", "1 s", "1S", "20000000000s", "1.s.", "1us "}) {
        uint64_t ns = 0;
        bool parsed = parse_time_ns(bad, &ns);
        check::report(!parsed, __FILE__, __LINE__, std::string("parsed as a time: '") + bad + "'");
    }
}

// Opens what must be refused, and says how.
Error refused(Engine& engine, Engine::Options options, int errnum, const char* field) {
    engine_node_t* node = nullptr;
    Error error;
    CHECK_EQ(engine.open(options, &node, &error), -errnum);
    CHECK_EQ(error.errnum, errnum);
    CHECK_EQ(std::string_view(error.operation), "open");
    CHECK_EQ(std::string_view(error.field), field);
    CHECK(node == nullptr);
    CHECK(strchr(error.message, '\n') == nullptr);
    return error;
}

TEST(wrong_options_answer_with_what_would_be_right) {
    Engine engine;
    Error error = refused(engine, {{"driver", "null"}, {"sizes", "1G"}}, EINVAL, "sizes");
    CHECK(error.says(
        "driver null has no option 'sizes'; it knows: size, latency-ns, read-zeroes, driver, node-name"));
    error = refused(engine, {{"driver", "null"}, {"size", "many"}}, EINVAL, "size");
    CHECK(error.says("option 'size' = 'many' is not a size such as 64k"));
    error = refused(engine, {{"driver", "null"}, {"size", "9E"}}, EINVAL, "size");
    CHECK(error.says("within its range (0..8E)"));
    error = refused(engine, {{"driver", "null"}, {"latency-ns", "61s"}}, EINVAL, "latency-ns");
    CHECK(error.says("within its range"));
    error = refused(engine, {{"driver", "null"}, {"latency-ns", "soon"}}, EINVAL, "latency-ns");
    CHECK(error.says("a time such as 20us"));
    error = refused(engine, {{"driver", "null"}, {"read-zeroes", "maybe"}}, EINVAL, "read-zeroes");
    CHECK(error.says("on or off"));
    error = refused(engine, {{"driver", "null"}, {"discard", "sometimes"}}, EINVAL, "discard");
    CHECK(error.says("is not one of its values (ignore|unmap)"));
    error = refused(engine, {{"driver", "null"}, {"discard", "ignore|unmap"}}, EINVAL, "discard");
    error = refused(engine, {{"driver", "null"}, {"discard", ""}}, EINVAL, "discard");
    error = refused(engine, {{"driver", "null"}, {"size", "1G"}, {"size", "2G"}}, EINVAL, "size");
    CHECK(error.says("option 'size' is given twice"));
    error = refused(engine, {{"size", "1G"}}, EINVAL, "driver");
    CHECK(error.says(
        "option 'driver' is missing; there are: delay, external, fault, file, memory, null, overlay, "
        "passthrough, raw, throttle"));
    error = refused(engine, {{"driver", "vmdk"}}, ENOENT, "driver");
    CHECK(error.says(
        "there is no driver 'vmdk'; there are: delay, external, fault, file, memory, null, overlay, "
        "passthrough, raw, throttle"));
    error = refused(engine, {{"driver", "file"}}, EINVAL, "filename");
    error = refused(engine, {{"driver", "raw"}}, EINVAL, "file");
    CHECK(error.says("driver raw needs a 'file': give filename="));
    error = refused(engine, {{"driver", "raw"}, {"file", "nobody"}}, ENOENT, "file");
    CHECK(error.says("there is no node 'nobody'"));
    error = refused(engine, {{"driver", "null"}, {nullptr, "x"}}, EINVAL, "");
    error = refused(engine, {{"driver", "null"}, {"size", nullptr}}, EINVAL, "");
    error = refused(engine, {{"driver", "null"}, {"", "x"}}, EINVAL, "");
    std::string name(64, 'n');
    error = refused(engine, {{"driver", "null"}, {"node-name", name.c_str()}}, EINVAL, "node-name");
    error = refused(engine, {{"driver", "null"}, {"node-name", ""}}, EINVAL, "node-name");
    engine.open({{"driver", "null"}, {"node-name", "disk"}});
    error = refused(engine, {{"driver", "null"}, {"node-name", "disk"}}, EEXIST, "node-name");
    CHECK_EQ(error.kind, ENGINE_ERROR_CONFLICT);
    CHECK(error.says("there is a node 'disk' already"));
    // Nothing of what failed is left: only the one node.
    CHECK_EQ(engine_lock_count(engine), 1);
}

TEST(booleans_have_several_spellings) {
    Engine engine;
    for (const char* yes : {"on", "true", "yes", "1"}) {
        CHECK_EQ(info_of(engine.open({{"driver", "null"}, {"read-only", yes}})).read_only, 1);
    }
    for (const char* no : {"off", "false", "no", "0"}) {
        CHECK_EQ(info_of(engine.open({{"driver", "null"}, {"read-only", no}})).read_only, 0);
    }
    refused(engine, {{"driver", "null"}, {"read-only", "On"}}, EINVAL, "read-only");
}

TEST(values_arrive) {
    Engine engine;
    engine_node_info info =
        info_of(engine.open({{"driver", "null-co"}, {"size", "1.5G"}, {"node-name", "disk"}}));
    CHECK_EQ(info.bytes, 3u << 29);
    CHECK_EQ(std::string_view(info.driver), "null");
    CHECK_EQ(std::string_view(info.name), "disk");
    CHECK_EQ(info_of(engine.open({{"driver", "null"}})).bytes, 1u << 30);
    CHECK(engine_node_find(engine, "disk") != nullptr);
    CHECK(engine_node_find(engine, "none") == nullptr);
}

TEST(children_are_nested_or_named) {
    embedder::TempFile file(65536);
    Engine engine;
    // filename on a format, dotted, and by reference come to the same.
    engine_node_t* plain = engine.open({{"driver", "raw"}, {"filename", file.name()}, {"locking", "off"}});
    engine_node_t* dotted = engine.open({{"driver", "raw"},
                                         {"file.driver", "file"},
                                         {"file.filename", file.name()},
                                         {"file.locking", "off"},
                                         {"file.node-name", "below"},
                                         {"offset", "4k"},
                                         {"size", "8k"}});
    CHECK_EQ(info_of(plain).bytes, 65536);
    CHECK_EQ(info_of(dotted).bytes, 8192);
    for (engine_node_t* node : {plain, dotted}) {
        char role[16];
        engine_node_t* child = engine_node_get_child(node, 0, role, sizeof role);
        REQUIRE(child != nullptr);
        CHECK_EQ(std::string_view(role), "file");
        engine_node_info info = info_of(child);
        CHECK_EQ(std::string_view(info.driver), "file");
        CHECK_EQ(std::string_view(info.filename), file.name());
        CHECK_EQ(info.user_count, 1);
        CHECK(engine_node_get_child(node, 1, role, sizeof role) == nullptr);
    }
    CHECK(engine_node_find(engine, "below") != nullptr);
    Error error;
    CHECK_EQ(engine_node_close(dotted, &error), 0);
    CHECK(engine_node_find(engine, "below") == nullptr);  // closed with its parent

    engine_node_t* base = engine.open({{"driver", "null"}, {"node-name", "base"}, {"size", "1M"}});
    engine_node_t* parent = engine.open({{"driver", "raw"}, {"file", "base"}, {"node-name", "top"}});
    CHECK_EQ(info_of(parent).bytes, 1u << 20);
    CHECK_EQ(engine_node_close(base, &error), -EBUSY);
    CHECK(error.says("node base is in use by 'node top': close them first"));
    CHECK_EQ(engine_node_close(parent, &error), 0);
    CHECK_EQ(engine_node_find(engine, "base"), base);  // it was there before its parent, and stays
    CHECK_EQ(engine_node_close(base, &error), 0);
}

TEST(a_child_is_described_once) {
    Engine engine;
    engine.open({{"driver", "null"}, {"node-name", "base"}});
    Error error =
        refused(engine, {{"driver", "raw"}, {"file", "base"}, {"file.driver", "null"}}, EINVAL, "file");
    CHECK(error.says("option 'file' names node 'base', and 'file.driver' describes a new one"));
    error =
        refused(engine, {{"driver", "raw"}, {"file.driver", "null"}, {"file.size", "1M"}, {"backing.x", "1"}},
                EINVAL, "backing.x");
    error = refused(engine, {{"driver", "raw"}, {"file.driver", "null"}, {"file.colour", "red"}}, EINVAL,
                    "colour");
    CHECK_EQ(engine_lock_count(engine), 1);
}

// A node that is not open yet is not found, so that nobody can build on half of one, itself least of all.
TEST(a_node_is_not_its_own_child) {
    Engine engine;
    Error error =
        refused(engine, {{"driver", "raw"}, {"node-name", "snake"}, {"file", "snake"}}, ENOENT, "file");
    CHECK(error.says("there is no node 'snake'"));
}

TEST(a_child_inherits_from_its_parent) {
    Engine engine;
    auto child_of = [](engine_node_t* node) {
        char role[16];
        return engine_node_get_child(node, 0, role, sizeof role);
    };
    engine_node_t* parent = engine.open({{"driver", "raw"}, {"read-only", "on"}, {"file.driver", "null"}});
    CHECK_EQ(info_of(child_of(parent)).read_only, 1);
    parent = engine.open(
        {{"driver", "raw"}, {"read-only", "on"}, {"file.driver", "null"}, {"file.read-only", "off"}});
    CHECK_EQ(info_of(parent).read_only, 1);
    CHECK_EQ(info_of(child_of(parent)).read_only, 0);
    parent = engine.open({{"driver", "raw"}, {"file.driver", "null"}});
    CHECK_EQ(info_of(child_of(parent)).read_only, 0);
    // A writable parent of what is read-only: refused, with both named.
    engine_node_t* node = nullptr;
    Error error;
    CHECK_EQ(engine.open(
                 {{"driver", "raw"}, {"node-name", "top"}, {"file.driver", "null"}, {"file.read-only", "on"}},
                 &node, &error),
             -EROFS);
    CHECK_EQ(std::string_view(error.operation), "attach");
    CHECK(error.says("is read-only: user 'node top' cannot have write"));
}

// --- the table

TEST(the_driver_table_is_complete) {
    uint32_t count = engine_driver_count();
    REQUIRE(count >= 3);
    std::string before;
    for (uint32_t i = 0; i < count; i++) {
        engine_driver_info driver{};
        driver.size = sizeof driver;
        REQUIRE(engine_driver_get(i, &driver) == 0);
        CHECK(before < driver.name);  // in order of name
        before = driver.name;
        std::string_view layer = driver.layer;
        CHECK(layer == "protocol" || layer == "format" || layer == "filter");
        CHECK(driver.text[0] != '\0');
        CHECK(driver.option_count >= 5);
        for (uint32_t j = 0; j < driver.option_count; j++) {
            engine_option_info option{};
            option.size = sizeof option;
            REQUIRE(engine_driver_get_option(i, j, &option) == 0);
            std::string_view type = option.type;
            CHECK(option.key[0] != '\0' && option.text[0] != '\0');
            CHECK(type == "string" || type == "bool" || type == "int" || type == "size" || type == "enum" ||
                  type == "time" || type == "node");
            if (type == "enum") CHECK(option.values != nullptr && strchr(option.values, '|') != nullptr);
            if (option.required != 0) CHECK(option.default_value == nullptr);
        }
        engine_option_info option{};
        option.size = sizeof option;
        CHECK_EQ(engine_driver_get_option(i, driver.option_count, &option), -ENOENT);
    }
    engine_driver_info driver{};
    driver.size = sizeof driver;
    CHECK_EQ(engine_driver_get(count, &driver), -ENOENT);
    engine_option_info option{};
    CHECK_EQ(engine_driver_get_option(count, 0, &option), -ENOENT);
}

}  // namespace
