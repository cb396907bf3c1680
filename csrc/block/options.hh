// Options of block nodes. The driver's table is their one source: key, type, default, range, text. A parsed
// set is immutable. Control plane only.
#pragma once

#include <engine/block.h>

#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace engine::block {

enum class OptionType : uint8_t { string, boolean, integer, size, enumeration, time, node };

struct OptionDef {
    const char* key;
    OptionType type;
    const char* default_value;  // null: none
    const char* values;         // enumeration "a|b"; integer, size, time "min..max"; else null
    const char* text;
    bool required = false;
};

const char* option_type_name(OptionType type) noexcept;
// Those that every node has: driver, node-name, read-only, cache.no-flush, discard, detect-zeroes,
// context.
std::span<const OptionDef> common_options() noexcept;

// "4k", "1G", "64KiB", "512": powers of 1024, as in qemu-img. False: not a size.
bool parse_size(std::string_view text, uint64_t* bytes) noexcept;
// "20us", "5s", "100ns", "2ms"; a bare number is nanoseconds.
bool parse_time_ns(std::string_view text, uint64_t* ns) noexcept;

// Raw dotted options as they come from outside, before any driver has looked at them.
class OptionBag {
  public:
    // Duplicate keys are refused.
    int fill(const engine_option* options, size_t count, engine_error* error);
    const std::string* find(const std::string& key) const;
    void set(const std::string& key, std::string value) { values_[key] = std::move(value); }
    // Takes out everything under "prefix.", without the prefix.
    OptionBag take(const std::string& prefix);
    const std::map<std::string, std::string>& all() const noexcept { return values_; }
    void erase(const std::string& key) { values_.erase(key); }

  private:
    std::map<std::string, std::string> values_;
};

// Checked against the common options and a driver's table, defaults filled in.
class Options {
  public:
    // Errors name the key, the driver and what would be right.
    int parse(const OptionBag& bag, const char* driver, std::span<const OptionDef> table,
              engine_error* error);

    bool has(const char* key) const;    // given, or with a default
    bool given(const char* key) const;  // by the caller
    const std::string& text(const char* key) const;
    bool boolean(const char* key) const { return text(key) == "on"; }
    uint64_t number(const char* key) const;  // integer, size (bytes), time (ns)

  private:
    int check(const OptionDef& def, const std::string& value, const char* driver, engine_error* error);
    std::map<std::string, std::string, std::less<>> texts_;
    std::map<std::string, uint64_t, std::less<>> numbers_;
    std::set<std::string, std::less<>> given_;
};

}  // namespace engine::block
