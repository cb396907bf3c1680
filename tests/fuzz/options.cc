// Options as text from outside: sizes and times against a reading of their own, bags of dotted keys, the
// table of each driver, and nodes that are opened with what came out. Nothing that would open a real file.
#include <algorithm>
#include <vector>

#include "fuzz.hh"

#include "block/options.hh"
#include "sim_engine.hh"

namespace {

using embedder::Error;
using engine::block::OptionBag;
using engine::block::OptionDef;
using engine::block::Options;
using engine::block::OptionType;
using fuzz::Input;

using Pairs = std::vector<std::pair<std::string, std::string>>;

// --- sizes and times

// What is written before the unit, times the unit; false: it is no number, or none of 64 bits. Exact for up
// to 18 decimals, which is what `exact` says.
bool read_number(std::string_view text, std::string_view* rest, uint64_t unit, bool have_unit, uint64_t* out,
                 bool* exact) {
    using Wide = unsigned __int128;
    size_t at = 0;
    Wide whole = 0, fraction = 0, scale = 1;
    for (; at < text.size() && isdigit(text[at]) != 0; at++) {
        whole = whole * 10 + static_cast<unsigned>(text[at] - '0');
        if (whole > UINT64_MAX) return false;
    }
    if (at == 0) return false;
    *exact = true;
    if (at < text.size() && text[at] == '.') {
        size_t first = ++at;
        for (; at < text.size() && isdigit(text[at]) != 0; at++) {
            if (at - first >= 18) {
                *exact = false;
                continue;
            }
            fraction = fraction * 10 + static_cast<unsigned>(text[at] - '0');
            scale *= 10;
        }
    }
    *rest = text.substr(at);
    if (!have_unit) return true;
    Wide value = whole * unit + fraction * unit / scale;
    *out = static_cast<uint64_t>(value);
    return value <= UINT64_MAX;
}

struct Unit {
    std::string_view text;
    uint64_t value;
};

std::vector<Unit> size_units() {
    static std::vector<std::string> texts;
    std::vector<Unit> units{{"", 1}, {"b", 1}, {"B", 1}};
    if (texts.empty()) {
        for (char letter : std::string_view("kKmMgGtTpPeE")) {
            for (const char* tail : {"", "i", "B", "iB"}) texts.push_back(letter + std::string(tail));
        }
    }
    for (size_t i = 0; i < texts.size(); i++) units.push_back({texts[i], uint64_t{1} << (10 * (i / 8 + 1))});
    return units;
}

// `parsed`: what the code under test says of `text`.
void compare(const std::string& text, const std::vector<Unit>& units, bool parsed, uint64_t value) {
    uint64_t expected = 0;
    bool exact = false, good = false;
    std::string_view rest;
    if (read_number(text, &rest, 0, false, &expected, &exact)) {
        for (const Unit& unit : units) {
            if (unit.text == rest) good = read_number(text, &rest, unit.value, true, &expected, &exact);
        }
    }
    if (!exact && good != parsed) return;  // what was cut off may decide
    if (good != parsed || (good && exact && value != expected)) {
        fprintf(stderr, "'%s': %s, %llu; expected %s, %llu\n", text.c_str(), parsed ? "parsed" : "refused",
                static_cast<unsigned long long>(value), good ? "parsed" : "refused",
                static_cast<unsigned long long>(expected));
        CHECK(false);
    }
}

void check_numbers(const std::string& text) {
    if (text.find('\0') != std::string::npos) return;
    static const std::vector<Unit> sizes = size_units();
    static const std::vector<Unit> times{
        {"", 1}, {"ns", 1}, {"us", 1000}, {"ms", 1000000}, {"s", 1000000000}};
    uint64_t value = 0;
    bool parsed = engine::block::parse_size(text, &value);
    compare(text, sizes, parsed, value);
    parsed = engine::block::parse_time_ns(text, &value);
    compare(text, times, parsed, value);
}

// --- bags

struct Known {
    std::vector<const OptionDef*> defs;
    std::vector<std::string> values;  // names of drivers and nodes, and what else an option may be given
};

const Known& known() {
    static const Known all = [] {
        Known made;
        auto add = [&](std::span<const OptionDef> table) {
            for (const OptionDef& def : table) made.defs.push_back(&def);
        };
        add(engine::block::common_options());
        for (const engine::block::Driver* driver : engine::block::drivers()) {
            add(driver->options);
            made.values.emplace_back(driver->name);
        }
        for (const char* value : {"base", "top", "io0", "io1", "on", "off", "yes", "unmap", "0", "1.5M"})
            made.values.emplace_back(value);
        return made;
    }();
    return all;
}

std::string take_value(Input& input, const OptionDef* def) {
    static const char* const units[] = {"", "k", "M", "G", "T", "E", "us", "ms", "s"};
    uint8_t kind = input.byte();
    if (kind < 64) return input.text_until('\n');
    if (kind < 128) {
        std::string text = std::to_string(input.position(1 << 20));
        if (kind < 96) text += "." + std::to_string(input.position(1000));
        return text + units[input.below(std::size(units))];
    }
    if (kind < 192) return known().values[input.below(known().values.size())];
    if (def == nullptr) return "";
    if (def->type == OptionType::enumeration) {
        std::string_view values = def->values;
        size_t bar = values.find('|');
        return std::string(kind < 224 ? values.substr(0, bar) : values.substr(bar + 1));
    }
    return def->default_value == nullptr ? "" : def->default_value;
}

Pairs take_pairs(Input& input) {
    static const char* const prefixes[] = {"", "", "file.", "backing.", "file.file.", "backing.file."};
    Pairs pairs;
    while (!input.empty() && pairs.size() < 24) {
        uint8_t kind = input.byte();
        std::string key;
        const OptionDef* def = nullptr;
        if (kind < 16) {
            key = input.text_until('=');
        } else {
            key = prefixes[kind % std::size(prefixes)];
            uint64_t which = input.below(known().defs.size() + 2);
            if (which < known().defs.size()) def = known().defs[which];
            key += def != nullptr ? def->key : which == known().defs.size() ? "file" : "backing";
        }
        pairs.emplace_back(key, take_value(input, def));
    }
    return pairs;
}

std::vector<engine_option> options_of(const Pairs& pairs) {
    std::vector<engine_option> options;
    for (const auto& [key, value] : pairs) options.push_back({key.c_str(), value.c_str()});
    return options;
}

// An error that somebody can do something with.
void check_refusal(int result, const Error& error) {
    CHECK(result < 0);
    CHECK_EQ(error.errnum, -result);
    CHECK(error.kind != ENGINE_ERROR_NONE);
    CHECK(error.message[0] != '\0');
}

void check_take(const OptionBag& bag, const char* prefix) {
    OptionBag rest = bag;
    OptionBag taken = rest.take(prefix);
    CHECK_EQ(rest.all().size() + taken.all().size(), bag.all().size());
    for (const auto& [key, value] : taken.all()) {
        const std::string* found = bag.find(std::string(prefix) + "." + key);
        CHECK(found != nullptr && *found == value);
    }
    for (const auto& [key, value] : rest.all()) {
        (void)value;
        CHECK(!key.starts_with(std::string(prefix) + "."));
    }
}

// Each driver's table, with whatever the bag holds.
void check_tables(const OptionBag& bag) {
    for (const engine::block::Driver* driver : engine::block::drivers()) {
        OptionBag mine = bag;
        if (mine.find("driver") == nullptr) mine.set("driver", driver->name);
        Options options;
        Error error;
        int result = options.parse(mine, driver->name, driver->options, &error);
        if (result != 0) {
            check_refusal(result, error);
            CHECK_EQ(error.errnum, EINVAL);
            CHECK(error.field[0] != '\0');
            continue;
        }
        for (const auto& [key, value] : mine.all()) {
            (void)value;
            CHECK(options.given(key.c_str()));
        }
        for (const OptionDef& def : driver->options) {
            CHECK_EQ(options.has(def.key), options.given(def.key) || def.default_value != nullptr);
            if (options.has(def.key) && def.type == OptionType::boolean) {
                CHECK(options.text(def.key) == "on" || options.text(def.key) == "off");
            }
        }
    }
}

// --- opening

bool ends_with(const std::string& key, std::string_view last) {
    return key == last || key.ends_with("." + std::string(last));
}

// Opens no file, calls nobody outside, and takes no more memory than a fuzzer has.
bool harmless(const Pairs& pairs) {
    return std::none_of(pairs.begin(), pairs.end(), [](const auto& pair) {
        const auto& [key, value] = pair;
        return ends_with(key, "filename") || ends_with(key, "unnamed") ||
               (ends_with(key, "driver") && (value == "file" || value == "external")) ||
               (ends_with(key, "data") && value == "file");
    });
}

void use(const sim::Engine& engine, engine_node_t* node, const std::vector<engine_option>& options) {
    engine_node_info info = embedder::info_of(node);
    CHECK(info.name[0] != '\0');
    CHECK_EQ(info.bytes % info.request_alignment, 0);
    engine_user_t* user = embedder::Engine::user(node, "fuzzer", ENGINE_PERM_CONSISTENT_READ);
    char buffer[16];
    uint64_t bytes = std::min<uint64_t>(sizeof buffer, info.bytes);
    Error error;
    int64_t result = embedder::io(user, ENGINE_OP_READ, buffer, info.bytes - bytes, bytes, 0, &error,
                                  engine.context_handle(1));
    if (result < 0) {
        check_refusal(static_cast<int>(result), error);
    } else {
        CHECK_EQ(result, bytes);
    }
    int set = engine_throttle_set(node, options.data(), options.size(), &error);
    if (set != 0) check_refusal(set, error);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

void open(const std::vector<engine_option>& options) {
    sim::Engine engine(1);
    engine_node_t* base = engine.open({{"driver", "memory"}, {"node-name", "base"}, {"size", "1M"}});
    engine_node_t* node = nullptr;
    Error error;
    int result = engine_node_open(engine.handle(), options.data(), options.size(), &node, &error);
    if (result == 0) {
        use(engine, node, options);
        CHECK_EQ(engine_node_close(node, &error), 0);
    } else {
        check_refusal(result, error);
        CHECK(node == nullptr);
    }
    // As a filter, where it is one.
    result = engine_node_insert_filter(base, options.data(), options.size(), 0, &node, &error);
    if (result == 0) {
        CHECK_EQ(engine_node_remove_filter(node, 0, nullptr, &error), 0);
    } else {
        check_refusal(result, error);
    }
    CHECK_EQ(engine_lock_count(engine.handle()), 1);  // nothing but `base` is left
    CHECK_EQ(engine_node_close(base, &error), 0);
}

}  // namespace

void fuzz::run(Input& input) {
    Pairs pairs = take_pairs(input);
    for (const auto& [key, value] : pairs) check_numbers(value);
    std::vector<engine_option> options = options_of(pairs);
    OptionBag bag;
    Error error;
    int result = bag.fill(options.data(), options.size(), &error);
    if (result != 0) {
        check_refusal(result, error);
        return;
    }
    for (const char* prefix : {"file", "backing", "limits"}) check_take(bag, prefix);
    check_tables(bag);
    if (harmless(pairs)) open(options);
}
