// The lab's program: runs seeds, one after another, and says what they reached.
//
//   lab --from N --count M     seeds N, N + 1, …; on standard output lines that another program reads:
//                                  begin SEED            before each
//                                  failed SEED TEXT
//                                  done SEEDS FAILED OPERATIONS VIRTUAL_NS
//                                  reached EVENT SEEDS
//   lab --seed N [--trace]     one of them, and its history; twice, so that a history that differs is found
//
// A seed that ends the process is the one that was begun last.
#include <engine/log.h>
#include <signal.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.hh"
#include "seed.hh"

namespace {

constexpr unsigned seconds_max = 60;   // of a seed: it hangs
constexpr uint64_t repeat_every = 20;  // seeds: is it the same history again?

struct Totals {
    uint64_t seeds = 0, failed = 0, operations = 0, virtual_ns = 0;
    uint64_t reached[lab::event_count] = {};
};

std::string live(uint64_t seed, FILE* trace, Totals& totals) {
    alarm(seconds_max);
    check::failures = 0;
    lab::Outcome outcome;
    try {
        outcome = lab::run_seed(seed, trace);
    } catch (const check::Failure&) {
        outcome.failure = "a REQUIRE has failed";
    }
    if (outcome.failure.empty() && check::failures != 0) outcome.failure = "a CHECK has failed";
    totals.seeds++;
    totals.operations += outcome.operations;
    totals.virtual_ns += outcome.virtual_ns;
    for (unsigned i = 0; i < lab::event_count; i++) totals.reached[i] += outcome.coverage.reached(i) ? 1 : 0;
    if (outcome.failure.empty() && (trace != nullptr || seed % repeat_every == 0)) {
        lab::Outcome other = lab::run_seed(seed, nullptr);
        if (other.hash != outcome.hash) outcome.failure = "two runs of the seed differ";
    }
    totals.failed += outcome.failure.empty() ? 0 : 1;
    return outcome.failure;
}

int run_one(uint64_t seed, bool trace) {
    FILE* out = trace ? stdout : fopen("/dev/null", "w");
    Totals totals;
    std::string failure = live(seed, out, totals);
    printf("seed %" PRIu64 ": %" PRIu64 " operations in %.3f s of virtual time: %s\n", seed,
           totals.operations, static_cast<double>(totals.virtual_ns) / 1e9,
           failure.empty() ? "as it should be" : failure.c_str());
    return failure.empty() ? 0 : 1;
}

int run_many(uint64_t from, uint64_t count) {
    Totals totals;
    for (uint64_t seed = from; seed < from + count; seed++) {
        printf("begin %" PRIu64 "\n", seed);
        fflush(stdout);
        std::string failure = live(seed, nullptr, totals);
        if (!failure.empty()) printf("failed %" PRIu64 " %s\n", seed, failure.c_str());
    }
    printf("done %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", totals.seeds, totals.failed,
           totals.operations, totals.virtual_ns);
    for (unsigned i = 0; i < lab::event_count; i++) {
        printf("reached %s %" PRIu64 "\n", lab::event_names[i], totals.reached[i]);
    }
    return totals.failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t from = 0, count = 0, seed = 0;
    bool one = false, trace = false;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--trace") == 0) {
            trace = true;
        } else if (strcmp(argv[i], "--from") == 0 && more) {
            from = strtoull(argv[++i], nullptr, 10);
        } else if (strcmp(argv[i], "--count") == 0 && more) {
            count = strtoull(argv[++i], nullptr, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && more) {
            seed = strtoull(argv[++i], nullptr, 10);
            one = true;
        } else {
            fprintf(stderr, "usage: lab --from N --count M | lab --seed N [--trace]\n");
            return 2;
        }
    }
    return one ? run_one(seed, trace) : run_many(from, count);
}
