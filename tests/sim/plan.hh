// What a seed has chosen: the disk, the graph above it, who works on it, what goes wrong.
#pragma once

#include <string>

#include "base/random.hh"
#include "storage.hh"

namespace lab {

enum class Shape : unsigned { bare, window, filtered, overlay, verified };

struct Plan {
    explicit Plan(uint64_t seed_number);
    std::string text() const;  // for a reader

    uint64_t seed;
    Shape shape;
    bool power_loss;
    uint64_t cut_at;  // operation of the storage
    uint64_t
        operations;  // of all lanes together, in each of the two stages; more where the first was cut short
    unsigned contexts;
    unsigned direct_lanes, async_lanes, queue_lanes;
    unsigned depth;
    bool write_cache;   // of the virtio disk
    bool generator;     // a load generator verifies a disk beside
    bool filters_fail;  // requests fail in filters, too
    Faults faults;
    // --- of the disk and the node
    uint64_t bytes;
    uint64_t capacity;  // it may grow to
    uint64_t alignment;
    bool direct;
    uint64_t max_transfer;
    uint32_t ops;
    bool fua;
    unsigned detect_zeroes;  // off, on, unmap
    bool discard;
    uint64_t cluster;
    bool data_in_memory;  // of the overlay
};

}  // namespace lab
