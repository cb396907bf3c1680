// One seed: two stages on one storage, with the power gone in between, and the storage looked at after each.
#pragma once

#include <cstdio>
#include <string>

#include "coverage.hh"

namespace lab {

struct Outcome {
    std::string failure;  // empty: none
    uint64_t operations = 0;
    uint64_t virtual_ns = 0;
    uint64_t hash = 0;  // of the history
    Coverage coverage;
};

Outcome run_seed(uint64_t seed, FILE* trace);

}  // namespace lab
