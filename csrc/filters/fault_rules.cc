// Fault rules: from text, and which of them fires. Parsing is control plane; fire() any thread.
#include "filters/fault_rules.hh"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>
#include <set>
#include <string>

#include "base/error.hh"
#include "block/options.hh"

namespace engine::filters {

using block::bit;
using block::Op;
using block::Request;

// --- which fires

// One number of a stream: so the n-th of a rule is the same whatever the others do.
uint64_t FaultRules::draw(base::Atomic<uint64_t>& draws, unsigned stream) const noexcept {
    uint64_t start = base::mix(seed_ + (uint64_t{stream} << 32) + 1);
    return base::Random(base::mix(start + draws.fetch_add_relaxed(1))).next();
}

namespace {

// Takes one of `most`. False: all are taken.
bool take_one(base::Atomic<uint64_t>& taken, uint64_t most) noexcept {
    uint64_t before = taken.load_relaxed();
    do {
        if (before >= most) return false;
    } while (!taken.compare_exchange_acq_rel(before, before + 1));
    return true;
}

bool move_state(base::Atomic<uint32_t>& state, uint32_t from, uint32_t to) noexcept {
    uint32_t found = from;
    while (!state.compare_exchange_acq_rel(found, to)) {
        if (found != from) return false;
    }
    return true;
}

}  // namespace

// It is about the request. Of several contexts that find the same state only one moves it on.
bool FaultRules::fires(const FaultRule& rule, Tally& tally) noexcept {
    if (rule.state != 0 && state_.load_relaxed() != rule.state) return false;
    if (rule.skip != 0 && take_one(tally.met, rule.skip)) return false;
    if (tally.fired.load_relaxed() >= rule.count) return false;
    if (rule.chance != FaultRule::certain &&
        draw(tally.draws, rule.number) >> (64 - FaultRule::chance_bits) >= rule.chance) {
        return false;
    }
    bool limited = rule.count != UINT64_MAX;
    if (limited && !take_one(tally.fired, rule.count)) return false;
    if (rule.new_state == 0) return true;
    if (rule.state == 0) {
        if (state_.load_relaxed() != rule.new_state) state_.store_relaxed(rule.new_state);
        return true;
    }
    if (move_state(state_, rule.state, rule.new_state)) return true;
    if (limited) tally.fired.fetch_sub_acq_rel(1);
    return false;
}

const FaultRule* FaultRules::fire(const Request& request) noexcept {
    uint64_t left = by_op_[static_cast<unsigned>(request.op)];
    for (; left != 0; left &= left - 1) {
        auto index = static_cast<unsigned>(__builtin_ctzll(left));
        const FaultRule& rule = rules_[index];
        bool touches = request.op == Op::flush ||
                       (request.offset < rule.end && request.offset + request.length > rule.start);
        if (touches && fires(rule, tallies_[index])) return &rule;
    }
    return nullptr;
}

// --- from text

namespace {

constexpr size_t shown_max = 40;  // bytes of what was given, in messages

std::string_view trim(std::string_view text) noexcept {
    constexpr const char* blanks = " \t\r\n";
    size_t first = text.find_first_not_of(blanks);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

// What comes before the separator; `text` is what comes after it.
std::string_view next_part(std::string_view& text, char separator) noexcept {
    size_t at = text.find(separator);
    std::string_view part = text.substr(0, at);
    text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
    return trim(part);
}

std::string shown(std::string_view text) {
    std::string out(text.substr(0, shown_max));
    if (text.size() > shown_max) out += "...";
    return out;
}

template <class T>
bool parse_number(std::string_view text, T* out) noexcept {
    auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), *out);
    return problem == std::errc() && end == text.data() + text.size();
}

template <class T>
bool parse_positive(std::string_view text, T* out) noexcept {
    return parse_number(text, out) && *out != 0;
}

constexpr Op ops[] = {Op::read, Op::write, Op::flush, Op::discard, Op::write_zeroes, Op::block_status};

uint32_t any_op() noexcept {
    uint32_t all = 0;
    for (Op op : ops) all |= bit(op);
    return all;
}

bool parse_ops(std::string_view text, uint32_t* out) noexcept {
    *out = 0;
    if (text == "any") {
        *out = any_op();
        return true;
    }
    while (!text.empty()) {
        bool last = text.find('+') == std::string_view::npos;
        std::string_view name = next_part(text, '+');
        const Op* found = std::find_if(std::begin(ops), std::end(ops),
                                       [name](Op op) { return name == block::op_name(op); });
        if (found == std::end(ops)) return false;
        *out |= bit(*found);
        if (text.empty() && !last) return false;
    }
    return *out != 0;
}

bool parse_range(std::string_view text, FaultRule* rule) noexcept {
    if (text.find('-') == std::string_view::npos) return false;
    std::string_view start = next_part(text, '-');
    return block::parse_size(start, &rule->start) && block::parse_size(trim(text), &rule->end) &&
           rule->start < rule->end;
}

bool parse_errno(std::string_view text, int* out) noexcept {
    constexpr int largest = 4095;  // that a system call can return
    if (parse_number(text, out)) return *out >= 1 && *out <= largest;
    if (text == "ENOTSUP") text = "EOPNOTSUPP";  // the same number
    if (text == "EWOULDBLOCK") text = "EAGAIN";
    for (int number = 1; number <= largest; number++) {
        const char* name = strerrorname_np(number);
        if (name == nullptr || text != name) continue;
        *out = number;
        return true;
    }
    return false;
}

bool parse_probability(std::string_view text, uint64_t* out) noexcept {
    double value = 0;
    if (!parse_number(text, &value) || !(value >= 0 && value <= 1)) return false;
    *out = static_cast<uint64_t>(value * static_cast<double>(FaultRule::certain));
    return true;
}

bool parse_switch(std::string_view text, bool* out) noexcept {
    *out = text == "on";
    return *out || text == "off";
}

// Reads one rule, and says what is wrong with it.
class RuleParser {
  public:
    RuleParser(FaultRule* rule, engine_error* error) noexcept : rule_(*rule), error_(error) {}

    int parse(std::string_view text) {
        rule_.ops = any_op();
        if (text.empty()) return refuse("is empty", "write key=value, or leave out the ';' before it");
        while (!text.empty()) {
            bool last = text.find(',') == std::string_view::npos;
            int result = parse_pair(next_part(text, ','));
            if (result != 0) return result;
            if (text.empty() && !last) return refuse("ends with ','", "leave it out");
        }
        return check();
    }

  private:
    bool given(const char* key) const { return given_.find(key) != given_.end(); }
    int refuse(const std::string& problem, const std::string& remedy) {
        return base::fail(error_, ENGINE_ERROR_INVALID, EINVAL, {.operation = "open", .field = "rules"},
                          "fault: option 'rules': rule %u %s: %s", rule_.number, problem.c_str(),
                          remedy.c_str());
    }
    int parse_pair(std::string_view pair) {
        size_t at = pair.find('=');
        std::string_view key = trim(pair.substr(0, at));
        std::string_view value;
        if (at != std::string_view::npos) {
            value = trim(pair.substr(at + 1));
        } else if (key == "pause" || key == "torn") {
            value = "on";
        }
        const Key* found = std::find_if(std::begin(keys), std::end(keys),
                                        [key](const Key& each) { return key == each.name; });
        if (found == std::end(keys)) {
            std::string known;
            for (const Key& each : keys) known += (known.empty() ? "" : ", ") + std::string(each.name);
            return refuse("has no key '" + shown(key) + "'", "there are " + known);
        }
        if (!given_.insert(found->name).second)
            return refuse("has key '" + shown(key) + "' twice", "give it once");
        if (found->parse(rule_, value)) return 0;
        return refuse("has key '" + shown(key) + "' = '" + shown(value) + "'",
                      std::string("it takes ") + found->wanted);
    }
    // What only the whole rule shows.
    int check() {
        int actions = (rule_.errnum != 0 ? 1 : 0) + (given("delay") ? 1 : 0) + (rule_.paused ? 1 : 0);
        if (actions > 1) return refuse("has several of errno, delay and pause", "one is what it can do");
        if (rule_.torn && rule_.errnum == 0)
            return refuse("has key 'torn' without 'errno'", "a torn write fails: say how");
        if (actions == 0 && rule_.new_state == 0)
            return refuse("does nothing", "give errno=, delay=, pause or new-state=");
        if (rule_.torn && (rule_.ops & bit(Op::write)) == 0)
            return refuse("has key 'torn' without writes", "give op=write, or leave out torn");
        rule_.action = rule_.errnum != 0 ? FaultAction::fail
                       : given("delay")  ? FaultAction::delay
                       : rule_.paused    ? FaultAction::pause
                                         : FaultAction::none;
        if (!given("offset")) return 0;
        if (given("op") && rule_.ops == bit(Op::flush))
            return refuse("has key 'offset' for a flush", "a flush has no offset: leave it out");
        rule_.ops &= ~bit(Op::flush);
        return 0;
    }

    struct Key {
        const char* name;
        bool (*parse)(FaultRule& rule, std::string_view value);
        const char* wanted;
    };
    static const Key keys[11];

    FaultRule& rule_;
    engine_error* error_;
    std::set<std::string, std::less<>> given_;
};

const RuleParser::Key RuleParser::keys[11] = {
    {"op", [](FaultRule& rule, std::string_view value) { return parse_ops(value, &rule.ops); },
     "any, or read, write, flush, discard, write-zeroes, block-status joined by '+'"},
    {"offset", [](FaultRule& rule, std::string_view value) { return parse_range(value, &rule); },
     "a range of bytes such as 4k-1M, its end not included"},
    {"skip", [](FaultRule& rule, std::string_view value) { return parse_number(value, &rule.skip); },
     "a number of requests"},
    {"count", [](FaultRule& rule, std::string_view value) { return parse_positive(value, &rule.count); },
     "a number from 1 on"},
    {"probability",
     [](FaultRule& rule, std::string_view value) { return parse_probability(value, &rule.chance); },
     "a number from 0 to 1 such as 0.01"},
    {"state", [](FaultRule& rule, std::string_view value) { return parse_positive(value, &rule.state); },
     "a number from 1 to 4294967295"},
    {"new-state",
     [](FaultRule& rule, std::string_view value) { return parse_positive(value, &rule.new_state); },
     "a number from 1 to 4294967295"},
    {"errno", [](FaultRule& rule, std::string_view value) { return parse_errno(value, &rule.errnum); },
     "the name of an error such as EIO, or a number from 1 to 4095"},
    {"delay",
     [](FaultRule& rule, std::string_view value) { return block::parse_time_ns(value, &rule.delay_ns); },
     "a time such as 20us"},
    {"pause", [](FaultRule& rule, std::string_view value) { return parse_switch(value, &rule.paused); },
     "on or off"},
    {"torn", [](FaultRule& rule, std::string_view value) { return parse_switch(value, &rule.torn); },
     "on or off"},
};

}  // namespace

int FaultRules::parse(std::string_view text, uint64_t seed, engine_error* error) {
    seed_ = seed;
    text = trim(text);
    while (!text.empty()) {
        std::string_view one = next_part(text, ';');
        if (size_ == most) {
            return base::fail(error, ENGINE_ERROR_LIMIT, EINVAL, {.operation = "open", .field = "rules"},
                              "fault: option 'rules': more than %u rules: put another fault filter above",
                              most);
        }
        FaultRule& rule = rules_[size_];
        rule.number = size_ + 1;
        int result = RuleParser(&rule, error).parse(one);
        if (result != 0) return result;
        for (Op op : ops) {
            if ((rule.ops & bit(op)) != 0) by_op_[static_cast<unsigned>(op)] |= uint64_t{1} << size_;
        }
        size_++;
    }
    return 0;
}

}  // namespace engine::filters
