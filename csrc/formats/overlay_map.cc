// What of a disk lies where. Under the node's `meta`.
#include <cerrno>

#include "formats/overlay.hh"

namespace engine::formats {

namespace {

constexpr unsigned clear_steps_max =
    256;  // clusters, or runs of them that are alike, for one hold of the lock

}  // namespace

bool Map::init(const Layout& layout, uint64_t bytes, uint32_t host_clusters) noexcept {
    layout_ = layout;
    bytes_ = bytes;
    uint64_t clusters = (bytes + layout.cluster_bytes() - 1) >> layout.cluster_bits;
    return table_.init(clusters) && space_.init(host_clusters);
}

Extent Map::piece(const Held& meta, uint64_t offset, uint64_t length) const noexcept {
    Table::Found found = table_.find(meta, layout_.index(offset));
    Extent extent;
    if (found.entry == nullptr) {
        extent.source = found.zero ? Source::zero : Source::backing;
        extent.length = std::min(length, (found.alike << layout_.cluster_bits) - layout_.inside(offset));
    } else {
        unsigned first = layout_.sub(offset);
        unsigned end = first + found.entry->run(first, layout_.subs(), &extent.source);
        extent.length = std::min(length, (uint64_t{end} << layout_.sub_bits) - layout_.inside(offset));
        if (extent.source == Source::data) extent.host = layout_.host_offset(found.entry->host, offset);
    }
    if (extent.source != Source::backing) return extent;
    if (offset >= layout_.backing_bytes) {
        extent.source = Source::zero;
    } else {
        extent.length = std::min(extent.length, layout_.backing_bytes - offset);
    }
    return extent;
}

Extent Map::find(const Held& meta, uint64_t offset, uint64_t length, unsigned pieces) const noexcept {
    Extent extent = piece(meta, offset, length);
    while (extent.length < length && --pieces != 0) {
        Extent next = piece(meta, offset + extent.length, length - extent.length);
        if (next.source != extent.source) break;
        if (next.source == Source::data && next.host != extent.host + extent.length) break;
        extent.length += next.length;
    }
    return extent;
}

// Of a range in one cluster. -ENOMEM, -ENOSPC; 1: there is no room in `places`.
int Map::reserve_one(const Exclusive& meta, uint64_t offset, uint64_t length, Places* places) noexcept {
    Entry* entry = table_.make(meta, layout_.index(offset));
    if (entry == nullptr) return -ENOMEM;
    if (entry->host == no_host) {
        if (places->count == Places::most) return 1;
        int64_t cluster = space_.allocate(meta);
        if (cluster < 0) return static_cast<int>(cluster);
        entry->host = static_cast<uint32_t>(cluster);
    }
    uint64_t host = layout_.host_offset(entry->host, offset);
    Extent* last = places->count == 0 ? nullptr : &places->extents[places->count - 1];
    if (last != nullptr && last->host + last->length == host) {
        last->length += length;
    } else if (places->count != Places::most) {
        places->extents[places->count++] = {.source = Source::data, .length = length, .host = host};
    } else {
        return 1;
    }
    entry->writers++;
    places->length += length;
    return 0;
}

void Map::reserve(const Exclusive& meta, uint64_t offset, uint64_t length, Places* places) noexcept {
    places->clears = clears_;
    while (places->length < length) {
        uint64_t at = offset + places->length;
        int result = reserve_one(meta, at, layout_.within(at, length - places->length), places);
        if (result < 0) places->error = result;
        if (result != 0) return;
    }
}

// Gives up a host cluster that is of no use. One that cannot go waits for what is written there next.
bool Map::let_go(const Exclusive& meta, Entry& entry) noexcept {
    if (!entry.idle() || !space_.drop(meta, entry.host)) return false;
    entry.host = no_host;
    return true;
}

Map::Committed Map::commit(const Exclusive& meta, uint64_t offset, const Places& places,
                           bool written) noexcept {
    Committed outcome;
    for (uint64_t done = 0, part; done < places.length; done += part) {
        uint64_t at = offset + done;
        part = layout_.within(at, places.length - done);
        Entry& entry = *table_.make(meta, layout_.index(at));  // it is there: it has a writer
        entry.writers--;
        bool cleared = entry.cleared > places.clears;
        outcome.again = outcome.again || (written && cleared);
        if (written && !cleared) {
            SubSet subs = layout_.subset(at, part);
            entry.zero.remove(subs);
            entry.data.add(subs);
        } else {
            outcome.dropped |= let_go(meta, entry);
        }
    }
    return outcome;
}

// One cluster, or a run of them. 0: no memory.
uint64_t Map::clear_step(const Exclusive& meta, uint64_t offset, uint64_t length, bool* dropped) noexcept {
    uint64_t index = layout_.index(offset);
    uint64_t leaf_bytes = Table::leaf_entries << layout_.cluster_bits;
    bool whole_leaf = offset % leaf_bytes == 0 && length >= std::min(leaf_bytes, bytes_ - offset);
    bool without_leaf = table_.find(meta, index).entry == nullptr;
    Extent extent = piece(meta, offset, length);
    if (extent.source == Source::zero && (without_leaf || !whole_leaf)) {
        // Whoever is writing there must do it again all the same: an older write, whose place was hidden
        // before, may have come to the host cluster last.
        if (!without_leaf) note_clear(*table_.make(meta, index));
        return extent.length;
    }
    if (whole_leaf) {
        bool cleared = table_.clear_leaf(meta, index, [&](Entry& entry) {
            note_clear(entry);
            *dropped |= let_go(meta, entry);
        });
        return cleared ? std::min(leaf_bytes, length) : 0;
    }
    Entry* entry = table_.make(meta, index);
    if (entry == nullptr) return 0;
    uint64_t part = layout_.within(offset, length);
    SubSet subs = layout_.subset(offset, part);
    entry->zero.add(subs);
    entry->data.remove(subs);
    note_clear(*entry);
    *dropped |= let_go(meta, *entry);
    return part;
}

uint64_t Map::clear(const Exclusive& meta, uint64_t offset, uint64_t length, bool* dropped) noexcept {
    uint64_t done = 0;
    for (unsigned step = 0; step < clear_steps_max && done < length; step++) {
        uint64_t part = clear_step(meta, offset + done, length - done, dropped);
        if (part == 0) break;
        done += part;
    }
    return done;
}

}  // namespace engine::formats
