// The rules of a fault node by themselves: which request meets which, one after another and from several
// threads, and what is said of a text that is wrong. Times and effects are in test_fault.cc.
#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "embedder.hh"
#include "filters/fault_rules.hh"

namespace {

using embedder::Error;
using engine::block::Op;
using engine::block::Request;
using engine::filters::FaultAction;
using engine::filters::FaultRule;
using engine::filters::FaultRules;

std::unique_ptr<FaultRules> rules_of(const char* text, uint64_t seed = 0) {
    auto rules = std::make_unique<FaultRules>();
    Error error;
    int result = rules->parse(text, seed, &error);
    check::report(result == 0, __FILE__, __LINE__, error.message);
    REQUIRE(result == 0);
    return rules;
}

// The number of the rule that fires; 0: none does.
unsigned meet(FaultRules& rules, Op op, uint64_t offset = 0, uint64_t length = 4096) {
    Request request;
    request.op = op;
    request.offset = op == Op::flush ? 0 : offset;
    request.length = op == Op::flush ? 0 : length;
    const FaultRule* rule = rules.fire(request);
    if (rule != nullptr) CHECK(rules.concern(op));
    return rule == nullptr ? 0 : rule->number;
}

constexpr Op ruled[] = {Op::read, Op::write, Op::flush, Op::discard, Op::write_zeroes, Op::block_status};

TEST(operations_are_told_apart) {
    const char* names[] = {"read", "write", "flush", "discard", "write-zeroes", "block-status"};
    for (unsigned i = 0; i < 6; i++) {
        auto rules = rules_of(("op=" + std::string(names[i]) + ",errno=EIO").c_str());
        for (Op op : ruled) {
            CHECK_EQ(meet(*rules, op), op == ruled[i] ? 1 : 0);
            CHECK_EQ(rules->concern(op), op == ruled[i]);
        }
    }
    auto both = rules_of("op=read + flush,errno=5");
    for (Op op : ruled) CHECK_EQ(meet(*both, op), op == Op::read || op == Op::flush ? 1 : 0);
    for (const char* text : {"op=any,errno=EIO", "errno=EIO"}) {
        auto any = rules_of(text);
        for (Op op : ruled) CHECK_EQ(meet(*any, op), 1);
        CHECK_EQ(meet(*any, Op::resize), 0);
        CHECK(!any->concern(Op::resize));
    }
}

TEST(no_rules_are_about_nothing) {
    for (const char* text : {"", "  ", "\n"}) {
        auto rules = rules_of(text);
        for (Op op : ruled) CHECK(!rules->concern(op) && meet(*rules, op) == 0);
    }
}

TEST(a_range_is_met_by_what_overlaps_it) {
    auto rules = rules_of("offset=4k-8k,errno=EIO");
    const struct {
        uint64_t offset, length;
        bool met;
    } cases[] = {{0, 4096, false},
                 {0, 4097, true},
                 {4096, 1, true},
                 {8191, 1, true},
                 {8192, 1, false},
                 {0, 1 << 20, true},
                 {4095, 2, true},
                 {8191, 4096, true},
                 {0, 1, false},
                 {5000, 10, true},
                 {uint64_t{1} << 50, 512, false}};
    for (const auto& one : cases) {
        CHECK_EQ(meet(*rules, Op::read, one.offset, one.length), one.met ? 1 : 0);
    }
    CHECK_EQ(meet(*rules, Op::flush), 0);  // it has no place
    auto from_start = rules_of("offset=0-1M,errno=EIO");
    CHECK_EQ(meet(*from_start, Op::flush), 0);
    CHECK(!from_start->concern(Op::flush));
}

TEST(the_first_that_fires_decides) {
    auto rules = rules_of(" op=read , offset=0-4k , errno=EIO ;\n op=read,errno=ENOSPC; delay=1ms ;");
    CHECK_EQ(meet(*rules, Op::read), 1);
    CHECK_EQ(meet(*rules, Op::read, 8192), 2);
    CHECK_EQ(meet(*rules, Op::write), 3);
}

TEST(some_are_let_pass_first) {
    auto rules = rules_of("op=read,skip=2,errno=EIO;op=read,errno=ENOSPC");
    CHECK_EQ(meet(*rules, Op::read), 2);
    CHECK_EQ(meet(*rules, Op::write), 0);  // is none of the two
    CHECK_EQ(meet(*rules, Op::read), 2);
    for (int i = 0; i < 5; i++) CHECK_EQ(meet(*rules, Op::read), 1);
}

TEST(it_fires_so_often_at_most) {
    auto rules = rules_of("op=write,skip=1,count=2,errno=EIO");
    unsigned fired[6];
    for (unsigned& each : fired) each = meet(*rules, Op::write);
    CHECK(fired[0] == 0 && fired[1] == 1 && fired[2] == 1 && fired[3] == 0 && fired[4] == 0);
}

TEST(states_follow_one_another) {
    auto rules = rules_of(
        "state=1,op=write,new-state=2;"
        "state=2,op=flush,new-state=3,errno=EIO;"
        "state=3,op=read,errno=EIO,count=1,new-state=1");
    CHECK_EQ(meet(*rules, Op::flush), 0);
    CHECK_EQ(meet(*rules, Op::write), 1);
    CHECK_EQ(meet(*rules, Op::write), 0);
    CHECK_EQ(meet(*rules, Op::read), 0);
    CHECK_EQ(meet(*rules, Op::flush), 2);
    CHECK_EQ(meet(*rules, Op::flush), 0);
    CHECK_EQ(meet(*rules, Op::read), 3);
    CHECK_EQ(meet(*rules, Op::write), 1);
    CHECK_EQ(meet(*rules, Op::flush), 2);
    CHECK_EQ(meet(*rules, Op::read), 0);  // it has had its turn
    auto from_any = rules_of("op=write,new-state=7;state=7,errno=EIO");
    CHECK_EQ(meet(*from_any, Op::read), 0);
    CHECK_EQ(meet(*from_any, Op::write), 1);
    CHECK_EQ(meet(*from_any, Op::read), 2);
}

std::vector<unsigned> draws(const char* text, uint64_t seed, unsigned count) {
    auto rules = rules_of(text, seed);
    std::vector<unsigned> fired;
    for (unsigned i = 0; i < count; i++) fired.push_back(meet(*rules, Op::read));
    return fired;
}

TEST(chance_goes_by_its_seed) {
    constexpr unsigned count = 20000;
    const struct {
        const char* text;
        double share;
    } cases[] = {{"probability=0.25,errno=EIO", 0.25},
                 {"probability=0,errno=EIO", 0},
                 {"probability=1,errno=EIO", 1},
                 {"probability=1e-2,errno=EIO", 0.01}};
    for (const auto& one : cases) {
        std::vector<unsigned> fired = draws(one.text, 3, count);
        auto times = static_cast<double>(std::count(fired.begin(), fired.end(), 1u));
        CHECK(times >= one.share * count - 300 && times <= one.share * count + 300);
        if (one.share == 0 || one.share == 1) CHECK(times == one.share * count);
    }
    const char* half = "probability=0.5,errno=EIO";
    CHECK(draws(half, 3, 100) == draws(half, 3, 100));
    CHECK(draws(half, 3, 100) != draws(half, 4, 100));
    // Each rule has chances of its own.
    std::vector<unsigned> two = draws("probability=0.5,errno=EIO;probability=0.5,delay=1s", 3, 4000);
    CHECK(std::count(two.begin(), two.end(), 2u) > 800);
    CHECK(std::count(two.begin(), two.end(), 0u) > 800);
}

TEST(actions_are_read) {
    auto rules = rules_of(
        "op=read,errno=ENOSPC;op=write,errno=28,torn=on;op=flush,delay=20us;op=discard,pause;"
        "op=write-zeroes,pause=on,torn=off;op=block-status,errno=ENOTSUP");
    auto rule = [&](Op op) {
        Request request;
        request.op = op;
        request.length = op == Op::flush ? 0 : 512;
        const FaultRule* found = rules->fire(request);
        REQUIRE(found != nullptr);
        return *found;
    };
    CHECK(rule(Op::read).action == FaultAction::fail && rule(Op::read).errnum == ENOSPC);
    CHECK(!rule(Op::read).torn);
    CHECK(rule(Op::write).torn && rule(Op::write).errnum == ENOSPC);
    CHECK(rule(Op::flush).action == FaultAction::delay && rule(Op::flush).delay_ns == 20000);
    CHECK(rule(Op::discard).action == FaultAction::pause);
    CHECK(rule(Op::write_zeroes).action == FaultAction::pause);
    CHECK_EQ(rule(Op::block_status).errnum, ENOTSUP);
}

TEST(every_error_has_a_name) {
    for (int number : {EPERM, EIO, ENXIO, EAGAIN, ENOMEM, EACCES, EBUSY, ENODEV, EINVAL, EFBIG, ENOSPC, EROFS,
                       ENODATA, ETIMEDOUT, EREMOTEIO, EDQUOT, ECANCELED, EOPNOTSUPP, EILSEQ}) {
        std::string text = std::string("errno=") + strerrorname_np(number);
        auto rules = rules_of(text.c_str());
        Request request;
        request.length = 512;
        CHECK_EQ(rules->fire(request)->errnum, number);
    }
}

TEST(bad_rules_are_named) {
    const struct {
        const char *rules, *text;
    } cases[] = {
        {"errno=EIO;op=raed,errno=EIO",
         "rule 2 has key 'op' = 'raed': it takes any, or read, write, flush, discard, write-zeroes"},
        {"op=read+,errno=EIO", "rule 1 has key 'op' = 'read+'"},
        {"op=,errno=EIO", "rule 1 has key 'op' = ''"},
        {"op=any+read,errno=EIO", "rule 1 has key 'op' = 'any+read'"},
        {"op=resize,errno=EIO", "rule 1 has key 'op' = 'resize'"},
        {"offset=4k,errno=EIO", "'offset' = '4k': it takes a range of bytes such as 4k-1M"},
        {"offset=8k-4k,errno=EIO", "rule 1 has key 'offset' = '8k-4k'"},
        {"offset=4k-4k,errno=EIO", "rule 1 has key 'offset' = '4k-4k'"},
        {"offset=-4k,errno=EIO", "rule 1 has key 'offset' = '-4k'"},
        {"offset=1-2-3,errno=EIO", "rule 1 has key 'offset' = '1-2-3'"},
        {"offset=0-99999999E,errno=EIO", "rule 1 has key 'offset'"},
        {"op=flush,offset=0-4k,errno=EIO", "rule 1 has key 'offset' for a flush: a flush has no offset"},
        {"skip=-1,errno=EIO", "rule 1 has key 'skip' = '-1': it takes a number of requests"},
        {"skip=99999999999999999999,errno=EIO", "rule 1 has key 'skip'"},
        {"count=0,errno=EIO", "rule 1 has key 'count' = '0': it takes a number from 1 on"},
        {"count=4k,errno=EIO", "rule 1 has key 'count' = '4k'"},
        {"probability=1.5,errno=EIO", "'probability' = '1.5': it takes a number from 0 to 1"},
        {"probability=nan,errno=EIO", "rule 1 has key 'probability' = 'nan'"},
        {"probability=-0.5,errno=EIO", "rule 1 has key 'probability'"},
        {"state=0,errno=EIO", "rule 1 has key 'state' = '0': it takes a number from 1 to 4294967295"},
        {"new-state=4294967296,errno=EIO", "rule 1 has key 'new-state'"},
        {"errno=EOI", "'errno' = 'EOI': it takes the name of an error such as EIO, or a number from 1"},
        {"errno=0", "rule 1 has key 'errno' = '0'"},
        {"errno=4096", "rule 1 has key 'errno' = '4096'"},
        {"errno=", "rule 1 has key 'errno' = ''"},
        {"errno", "rule 1 has key 'errno' = ''"},
        {"delay=soon", "rule 1 has key 'delay' = 'soon': it takes a time such as 20us"},
        {"pause=maybe", "rule 1 has key 'pause' = 'maybe': it takes on or off"},
        {"errno=EIO,torn=x", "rule 1 has key 'torn' = 'x': it takes on or off"},
        {"op=write,torn=on", "rule 1 has key 'torn' without 'errno'"},
        {"op=write,delay=1s,torn=on", "rule 1 has key 'torn' without 'errno'"},
        {"op=read,errno=EIO,torn", "rule 1 has key 'torn' without writes: give op=write"},
        {"errno=EIO,delay=1s", "rule 1 has several of errno, delay and pause"},
        {"pause,delay=0", "rule 1 has several of errno, delay and pause"},
        {"op=read", "rule 1 does nothing: give errno=, delay=, pause or new-state="},
        {"op=read,pause=off", "rule 1 does nothing"},
        {"errno=EIO,corrupt=on", "rule 1 has no key 'corrupt': there are op, offset, skip, count"},
        {"errno=EIO,errno=EIO", "rule 1 has key 'errno' twice: give it once"},
        {"errno=EIO,", "rule 1 ends with ',': leave it out"},
        {",errno=EIO", "rule 1 has no key ''"},
        {"errno=EIO;;", "rule 2 is empty: write key=value, or leave out the ';' before it"},
        {";", "rule 1 is empty"},
        {"a-key-that-is-very-much-longer-than-any-that-there-is=1",
         "rule 1 has no key 'a-key-that-is-very-much-longer-than-any-...': there are"},
    };
    for (const auto& one : cases) {
        auto rules = std::make_unique<FaultRules>();
        Error error;
        CHECK_EQ(rules->parse(one.rules, 0, &error), -EINVAL);
        CHECK_EQ(error.kind, ENGINE_ERROR_INVALID);
        CHECK_EQ(std::string_view(error.field), "rules");
        CHECK(error.says("fault: option 'rules': rule "));
        if (!CHECK(error.says(one.text))) fprintf(stderr, "  %s: %s\n", one.rules, error.message);
    }
}

TEST(there_are_so_many_rules_at_most) {
    std::string text;
    for (unsigned i = 0; i + 1 < FaultRules::most; i++) text += "op=write,errno=EIO;";
    text += "op=read,errno=EIO;";
    auto rules = rules_of(text.c_str());
    CHECK_EQ(meet(*rules, Op::read), FaultRules::most);
    auto more = std::make_unique<FaultRules>();
    Error error;
    CHECK_EQ(more->parse(text + "errno=EIO", 0, &error), -EINVAL);
    CHECK(error.says("more than 64 rules"));
}

// Rubbish of any kind is an error and nothing else.
TEST(any_text_can_be_read) {
    engine::base::Random random(7);
    const std::string pieces[] = {"op",    "=",  ",", ";", "errno", "EIO",    "offset", "4k", "-",
                                  "delay", "1s", " ", "+", "state", "\x80\n", "torn",   "on", "99999999999"};
    unsigned good = 0;
    for (unsigned round = 0; round < 20000; round++) {
        std::string text;
        for (uint64_t i = random.below(12); i != 0; i--) text += pieces[random.below(std::size(pieces))];
        auto rules = std::make_unique<FaultRules>();
        Error error;
        int result = rules->parse(text, 0, &error);
        CHECK(result == 0 || (result == -EINVAL && error.message[0] != '\0'));
        if (result == 0) good++;
    }
    CHECK(good > 10);
}

// --- from several threads

template <class F>
void on_threads(F&& f) {
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 4; i++) threads.emplace_back(f);
    for (std::thread& thread : threads) thread.join();
}

TEST(counts_are_exact_from_several_threads) {
    constexpr unsigned each = 20000;
    auto rules = rules_of("op=read,skip=1000,count=777,errno=EIO;op=write,probability=0.5,count=500,errno=5");
    std::atomic<unsigned> reads{0}, writes{0};
    on_threads([&] {
        for (unsigned i = 0; i < each; i++) {
            if (meet(*rules, Op::read) != 0) reads++;
            if (meet(*rules, Op::write) != 0) writes++;
        }
    });
    CHECK_EQ(reads.load(), 777);
    CHECK_EQ(writes.load(), 500);
}

// Of all that see a state one moves it on, and what did not fire was not counted.
TEST(a_state_is_left_once) {
    for (unsigned round = 0; round < 300; round++) {
        auto rules =
            rules_of("state=1,op=read,count=3,new-state=2,errno=EIO;state=2,op=read,new-state=1,errno=EIO");
        std::atomic<unsigned> fired[3] = {};
        on_threads([&] {
            for (unsigned i = 0; i < 50; i++) fired[meet(*rules, Op::read)]++;
        });
        for (unsigned i = 0; i < 6; i++) fired[meet(*rules, Op::read)]++;  // what was still to come
        CHECK_EQ(fired[1].load(), 3);
        CHECK_EQ(fired[2].load(), 3);
        CHECK_EQ(meet(*rules, Op::read), 0);
        if (check::failures != 0) break;
    }
}

}  // namespace
