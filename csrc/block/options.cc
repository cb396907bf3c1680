// Parsing and checking of block options. No state: any thread.
#include "block/options.hh"

#include <charconv>
#include <cstring>

#include "base/assert.hh"
#include "base/error.hh"

namespace engine::block {

using base::fail;

const char* option_type_name(OptionType type) noexcept {
    switch (type) {
        case OptionType::string:
            return "string";
        case OptionType::boolean:
            return "bool";
        case OptionType::integer:
            return "int";
        case OptionType::size:
            return "size";
        case OptionType::enumeration:
            return "enum";
        case OptionType::time:
            return "time";
        case OptionType::node:
            return "node";
    }
    return "?";
}

std::span<const OptionDef> common_options() noexcept {
    static const OptionDef options[] = {
        {"driver", OptionType::string, nullptr, nullptr, "which driver opens this node", true},
        {"node-name", OptionType::string, nullptr, nullptr,
         "name of the node, unique in the engine, at most 63 bytes"},
        {"read-only", OptionType::boolean, "off", nullptr,
         "refuse writes, and open what is below without write access"},
        {"cache.no-flush", OptionType::boolean, "off", nullptr,
         "a flush does nothing: fast, and lost with the host"},
        {"discard", OptionType::enumeration, "ignore", "ignore|unmap", "what a discard does"},
        {"detect-zeroes", OptionType::enumeration, "off", "off|on|unmap",
         "write zeroes as such where a write holds nothing else; unmap: and deallocate (needs "
         "discard=unmap)"},
        {"context", OptionType::string, "main", nullptr,
         "its home: the context on which its background work runs"},
    };
    return options;
}

namespace {

// whole + fraction / scale, exactly: a double would lose the end of what is larger than 2^53.
struct Decimal {
    uint64_t whole = 0;
    uint64_t fraction = 0;
    uint64_t scale = 1;
};
constexpr unsigned decimals_max = 18;  // those behind them do not count

// A number, and what follows it.
bool leading_number(std::string_view text, Decimal* number, std::string_view* rest) {
    const char* const first = text.data();
    const char* const last = first + text.size();
    auto [end, problem] = std::from_chars(first, last, number->whole);
    if (problem != std::errc()) return false;
    if (end != last && *end == '.') {
        end++;
        for (unsigned i = 0; end != last && *end >= '0' && *end <= '9'; i++, end++) {
            if (i >= decimals_max) continue;
            number->fraction = number->fraction * 10 + static_cast<unsigned>(*end - '0');
            number->scale *= 10;
        }
    }
    *rest = text.substr(static_cast<size_t>(end - text.data()));
    return true;
}

// number * unit, rounded down; false where it does not fit 64 bits.
bool scale(const Decimal& number, uint64_t unit, uint64_t* out) {
    using Wide = unsigned __int128;
    Wide value = Wide{number.whole} * unit + Wide{number.fraction} * unit / number.scale;
    *out = static_cast<uint64_t>(value);
    return value <= UINT64_MAX;
}

}  // namespace

bool parse_size(std::string_view text, uint64_t* bytes) noexcept {
    Decimal number;
    std::string_view rest;
    if (!leading_number(text, &number, &rest)) return false;
    uint64_t unit = 1;
    if (!rest.empty() && rest != "b" && rest != "B") {
        const char* letters = "kKmMgGtTpPeE";
        const char* at = strchr(letters, rest[0]);
        if (at == nullptr || rest[0] == '\0') return false;
        unit = uint64_t{1} << (10 * (static_cast<unsigned>(at - letters) / 2 + 1));
        std::string_view tail = rest.substr(1);
        if (!tail.empty() && tail != "iB" && tail != "B" && tail != "i") return false;
    }
    return scale(number, unit, bytes);
}

bool parse_time_ns(std::string_view text, uint64_t* ns) noexcept {
    Decimal number;
    std::string_view rest;
    if (!leading_number(text, &number, &rest)) return false;
    uint64_t unit;
    if (rest.empty() || rest == "ns") {
        unit = 1;
    } else if (rest == "us") {
        unit = 1000;
    } else if (rest == "ms") {
        unit = 1000000;
    } else if (rest == "s") {
        unit = 1000000000;
    } else {
        return false;
    }
    return scale(number, unit, ns);
}

int OptionBag::fill(const engine_option* options, size_t count, engine_error* error) {
    for (size_t i = 0; i < count; i++) {
        if (options[i].key == nullptr || options[i].value == nullptr || options[i].key[0] == '\0') {
            return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open"},
                        "option %zu has no key or value", i);
        }
        if (!values_.emplace(options[i].key, options[i].value).second) {
            return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = options[i].key},
                        "option '%s' is given twice", options[i].key);
        }
    }
    return 0;
}

const std::string* OptionBag::find(const std::string& key) const {
    auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
}

OptionBag OptionBag::take(const std::string& prefix) {
    OptionBag taken;
    std::string dotted = prefix + ".";
    for (auto it = values_.lower_bound(dotted); it != values_.end() && it->first.starts_with(dotted);) {
        taken.values_.emplace(it->first.substr(dotted.size()), std::move(it->second));
        it = values_.erase(it);
    }
    return taken;
}

namespace {

const OptionDef* find_def(std::span<const OptionDef> table, std::string_view key) {
    for (const OptionDef& def : table) {
        if (key == def.key) return &def;
    }
    return nullptr;
}

std::string known_keys(std::span<const OptionDef> table) {
    std::string keys;
    auto add = [&](std::span<const OptionDef> part) {
        for (const OptionDef& def : part) {
            if (!keys.empty()) keys += ", ";
            keys += def.key;
        }
    };
    add(table);
    add(common_options());
    return keys;
}

bool one_of(std::string_view values, std::string_view wanted) {
    while (!values.empty()) {
        size_t bar = values.find('|');
        if (values.substr(0, bar) == wanted) return true;
        if (bar == std::string_view::npos) break;
        values.remove_prefix(bar + 1);
    }
    return false;
}

// "min..max"; either side may be empty.
bool in_range(const char* values, uint64_t number) {
    if (values == nullptr) return true;
    std::string_view text = values;
    size_t dots = text.find("..");
    uint64_t low = 0, high = UINT64_MAX;
    if (dots > 0) parse_size(text.substr(0, dots), &low);
    if (dots + 2 < text.size()) parse_size(text.substr(dots + 2), &high);
    return number >= low && number <= high;
}

}  // namespace

int Options::check(const OptionDef& def, const std::string& value, const char* driver, engine_error* error) {
    base::Where where{.operation = "open", .field = def.key};
    auto refuse = [&](const char* wanted) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                    "driver %s: option '%s' = '%s' is not %s%s%s%s", driver, def.key, value.c_str(), wanted,
                    def.values != nullptr ? " (" : "", def.values != nullptr ? def.values : "",
                    def.values != nullptr ? ")" : "");
    };
    uint64_t number = 0;
    std::string stored = value;
    switch (def.type) {
        case OptionType::string:
        case OptionType::node:
            break;
        case OptionType::boolean:
            if (value == "true" || value == "yes" || value == "1") stored = "on";
            if (value == "false" || value == "no" || value == "0") stored = "off";
            if (stored != "on" && stored != "off") return refuse("on or off");
            break;
        case OptionType::enumeration:
            if (!one_of(def.values, value)) return refuse("one of its values");
            break;
        case OptionType::integer:
        case OptionType::size:
            if (!parse_size(value, &number))
                return refuse(def.type == OptionType::size ? "a size such as 64k" : "a number");
            if (!in_range(def.values, number)) return refuse("within its range");
            break;
        case OptionType::time:
            if (!parse_time_ns(value, &number)) return refuse("a time such as 20us");
            if (!in_range(def.values, number)) return refuse("within its range");
            break;
    }
    numbers_[def.key] = number;
    texts_[def.key] = std::move(stored);
    return 0;
}

int Options::parse(const OptionBag& bag, const char* driver, std::span<const OptionDef> table,
                   engine_error* error) {
    for (const auto& [key, value] : bag.all()) {
        const OptionDef* def = find_def(table, key);
        if (def == nullptr) def = find_def(common_options(), key);
        if (def == nullptr) {
            return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = key.c_str()},
                        "driver %s has no option '%s'; it knows: %s", driver, key.c_str(),
                        known_keys(table).c_str());
        }
        int result = check(*def, value, driver, error);
        if (result != 0) return result;
        given_.insert(key);
    }
    auto complete = [&](std::span<const OptionDef> part) {
        for (const OptionDef& def : part) {
            if (texts_.contains(def.key)) continue;
            if (def.required) {
                return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = def.key},
                            "driver %s needs option '%s': %s", driver, def.key, def.text);
            }
            if (def.default_value == nullptr) continue;
            int result = check(def, def.default_value, driver, error);
            if (result != 0) return result;
        }
        return 0;
    };
    int result = complete(table);
    return result != 0 ? result : complete(common_options());
}

bool Options::has(const char* key) const {
    return texts_.contains(key);
}

bool Options::given(const char* key) const {
    return given_.contains(key);
}

const std::string& Options::text(const char* key) const {
    static const std::string none;
    auto found = texts_.find(key);
    return found == texts_.end() ? none : found->second;
}

uint64_t Options::number(const char* key) const {
    auto found = numbers_.find(key);
    ENGINE_CHECK(found != numbers_.end());
    return found->second;
}

}  // namespace engine::block
