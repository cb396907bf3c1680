// What a seed chooses.
#include "plan.hh"

#include <engine/block.h>

#include <algorithm>
#include <cstdio>

namespace lab {

Plan::Plan(uint64_t seed_number) : seed(seed_number) {
    engine::base::Random random(engine::base::mix(seed ^ 0x1ab0));
    auto one_in = [&](uint32_t n) { return random.below(n) == 0; };
    shape = static_cast<Shape>(random.below(4));
    power_loss = seed % 2 == 0;
    operations = 1100 + random.below(300);
    cut_at = 1 + random.below(operations);
    contexts = 2 + static_cast<unsigned>(random.below(3));
    direct_lanes = 1 + static_cast<unsigned>(random.below(3));
    async_lanes = static_cast<unsigned>(random.below(2));
    queue_lanes = static_cast<unsigned>(random.below(3));
    depth = 1 + static_cast<unsigned>(random.below(6));
    write_cache = !one_in(3);
    generator = one_in(4);
    faults.slow = one_in(2) ? 50 : 0;
    faults.short_transfer = one_in(2) ? 20 : 0;
    faults.transient = one_in(3) ? 50 : 0;
    faults.read_error = one_in(4) ? 100 : 0;
    faults.write_error = one_in(4) ? 100 : 0;
    faults.no_space = one_in(5) ? 100 : 0;
    faults.sync_error = one_in(6) ? 20 : 0;
    bytes = (32 + random.below(5) * 16) << 10;
    capacity = bytes + (64 << 10);
    constexpr uint64_t alignments[] = {1, 512, 512, 4096};
    alignment = alignments[random.below(4)];
    faults.unit = std::max<uint64_t>(alignment, sector_bytes);
    direct = alignment != 1 && one_in(2);
    // The file driver goes on in the middle of a block only where that is no matter.
    if (alignment != 1 && !direct) faults.short_transfer = 0;
    max_transfer = one_in(3) ? 8192 : 0;
    ops = 255;
    if (one_in(4)) ops &= ~(1u << ENGINE_OP_WRITE_ZEROES);
    if (one_in(4)) ops &= ~(1u << ENGINE_OP_DISCARD);
    if (one_in(3)) ops &= ~(1u << ENGINE_OP_COPY_RANGE);
    fua = !one_in(3);
    detect_zeroes = one_in(3) ? 1 + static_cast<unsigned>(random.below(2)) : 0;
    discard = !one_in(3);
    cluster = 4096u << random.below(2);
    data_in_memory = one_in(3);
    filters_fail = one_in(4);
    if (one_in(5)) {
        shape = Shape::verified;
        // Where one child alone has failed, children differ: by a write, or a read that completes a block.
        faults.write_error = faults.no_space = 0;
        if (alignment != 1) faults.read_error = 0;
        faults.misdirected = one_in(3) ? 0 : 40;
    }
}

std::string Plan::text() const {
    constexpr const char* shapes[] = {"bare", "window", "filtered", "overlay", "verified"};
    char line[512];
    snprintf(
        line, sizeof line,
        "seed %lu: %s disk of %lu bytes, alignment %lu%s, max transfer %lu, ops %x%s, detect-zeroes %u, "
        "discard %d; %u contexts, lanes %u direct, %u async, %u queue, depth %u%s%s; power lost at %ld; one "
        "in: read error %u, write error %u, sync error %u, no space %u, interrupted %u, short %u, slow %u, "
        "misdirected %u",
        seed, shapes[static_cast<unsigned>(shape)], bytes, alignment, direct ? " direct" : "", max_transfer,
        ops, fua ? "" : " without fua", detect_zeroes, discard, contexts, direct_lanes, async_lanes,
        queue_lanes, depth, write_cache ? "" : " writethrough", generator ? ", a generator" : "",
        power_loss ? static_cast<int64_t>(cut_at) : -1, faults.read_error, faults.write_error,
        faults.sync_error, faults.no_space, faults.transient, faults.short_transfer, faults.slow,
        faults.misdirected);
    return line;
}

}  // namespace lab
