// What the tests of locks under the explorer share: a scenario that must hold within bounds and at random,
// and a bug that must be found by both. Defines the allocation of the core as malloc: include it in one file.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/alloc.hh"
#include "check.hh"
#include "explorer.hh"

void* engine::base::allocate(size_t bytes, size_t align) noexcept {
    return aligned_alloc(align, (bytes + align - 1) / align * align);
}
void engine::base::deallocate(void* block) noexcept {
    free(block);
}

namespace explore {

// What a scenario shares, destroyed when it has ended. After a failure the fibers are in the midst of
// something: it is left behind. So it is under a bug that may break the object unseen, for its destructor to
// find, where a failed check ends the process.
struct Ends {
    bool ended = false;
};
template <class T, class... Args>
std::shared_ptr<T> make_state(Args... args) {
    return std::shared_ptr<T>(new T(args...), [](T* state) {
        if (state->ended && !mutated(Mutation::compare_exchange_is_two_steps)) delete state;
    });
}

struct Bounds {
    unsigned preemptions = 2;
    unsigned stale_reads = 3;
    unsigned detours = UINT_MAX;  // that many: no bound

    Options options() const {
        Options options;
        options.preemptions = preemptions;
        options.stale_reads = stale_reads;
        options.detours = detours;
        return options;
    }
};

inline void must_hold(const Scenario& scenario, const Bounds& bounds) {
    Options options = bounds.options();
    Report report = explore(options, scenario);
    CHECK(report.failed || report.complete);
    printf("     %llu executions, all with at most %u preemptions, %u stale reads%s\n",
           static_cast<unsigned long long>(report.executions), bounds.preemptions, bounds.stale_reads,
           bounds.detours == UINT_MAX ? "" : (", " + std::to_string(bounds.detours) + " detours").c_str());
    if (!report.failed) {
        options.random_executions = 20000;
        report = explore(options, scenario);
    }
    CHECK(!report.failed);
    if (report.failed) {
        fprintf(stderr, "%s\nschedule %s\n%s", report.what.c_str(), report.schedule.c_str(),
                report.trace.c_str());
    }
}

inline void must_hold(const Scenario& scenario, unsigned preemptions, unsigned stale_reads) {
    must_hold(scenario, {.preemptions = preemptions, .stale_reads = stale_reads});
}

// By search and by random choices, and its schedule must show it again.
inline void must_be_found(Mutation mutation, const std::vector<Scenario>& scenarios, const char* expected,
                          const Bounds& bounds = {}) {
    set_mutation(mutation);
    for (uint64_t random_executions : {0, 50000}) {
        bool found = false;
        for (const Scenario& scenario : scenarios) {
            Options options = bounds.options();
            options.random_executions = random_executions;
            options.executions_max = 300000;
            Report report = explore(options, scenario);
            if (!report.failed) continue;
            found = true;
            CHECK(report.what.find(expected) != std::string::npos);
            CHECK_EQ(replay(options, scenario, report.schedule).what, report.what);
            printf("     found after %llu %s executions: %s\n",
                   static_cast<unsigned long long>(report.executions),
                   random_executions != 0 ? "random" : "searched", report.what.c_str());
            break;
        }
        CHECK(found);
    }
    set_mutation(Mutation::none);
}

}  // namespace explore
