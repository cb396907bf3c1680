// The table of an overlay and the host clusters of its data node. Under the node's `meta`.
#include "formats/overlay_table.hh"

#include <cerrno>

namespace engine::formats {

unsigned Entry::run(unsigned first, unsigned end, Source* source) const noexcept {
    if (data.has(first)) {
        *source = Source::data;
        return data.next(first, end, false) - first;
    }
    if (zero.has(first)) {
        *source = Source::zero;
        return zero.next(first, end, false) - first;
    }
    *source = Source::backing;
    return zero.next(first, data.next(first, end, true), true) - first;
}

// --- Table

Table::~Table() {
    for (uint64_t i = 0; i < middle_count_; i++) {
        base::Owner<Middle> middle(middles_[i]);
        if (middle == nullptr) continue;
        for (LeafRef& ref : middle->leaves) base::Owner<Leaf>(ref.leaf).reset();
    }
}

bool Table::init(uint64_t clusters) noexcept {
    uint64_t count = (clusters + middle_entries - 1) / middle_entries;
    middles_ = base::make_array<Middle*>(count);
    if (middles_ != nullptr) middle_count_ = count;
    return middles_ != nullptr;
}

Table::Found Table::find(const Held&, uint64_t index) const noexcept {
    const Middle* middle = middles_[index / middle_entries];
    if (middle == nullptr) return {nullptr, false, middle_entries - index % middle_entries};
    const LeafRef& ref = middle->leaves[index / leaf_entries % middle_leaves];
    if (ref.leaf == nullptr) return {nullptr, ref.zero, leaf_entries - index % leaf_entries};
    return {&ref.leaf->entries[index % leaf_entries], false, 1};
}

Table::LeafRef* Table::make_ref(uint64_t index) noexcept {
    Middle*& middle = middles_[index / middle_entries];
    if (middle == nullptr) middle = base::make<Middle>().release();
    return middle == nullptr ? nullptr : &middle->leaves[index / leaf_entries % middle_leaves];
}

Entry* Table::make(const Exclusive&, uint64_t index) noexcept {
    LeafRef* ref = make_ref(index);
    if (ref == nullptr) return nullptr;
    if (ref->leaf == nullptr) {
        ref->leaf = base::make<Leaf>().release();
        if (ref->leaf == nullptr) return nullptr;
        if (ref->zero) {
            for (Entry& entry : ref->leaf->entries) entry.zero = SubSet::range(0, subs_max);
        }
        ref->zero = false;
    }
    return &ref->leaf->entries[index % leaf_entries];
}

// --- HostSpace

HostSpace::~HostSpace() {
    for (uint32_t at = 0; at < unused_; at += chunk_links)
        base::Owner<Chunk>(chunks_[at / chunk_links]).reset();
}

bool HostSpace::init(uint32_t clusters) noexcept {
    chunks_ = base::make_array<Chunk*>((uint64_t{clusters} + chunk_links - 1) / chunk_links);
    if (chunks_ != nullptr) clusters_ = clusters;
    return chunks_ != nullptr;
}

void HostSpace::push(List& list, uint32_t cluster) noexcept {
    next_of(cluster) = list.first;
    if (list.first == no_host) list.last = cluster;
    list.first = cluster;
}

uint32_t HostSpace::pop(List& list) noexcept {
    uint32_t cluster = list.first;
    if (cluster != no_host) list.first = next_of(cluster);
    return cluster;
}

void HostSpace::append(List& list, List& other) noexcept {
    if (other.first == no_host) return;
    next_of(other.last) = list.first;
    if (list.first == no_host) list.last = other.last;
    list.first = other.first;
    other = List();
}

int64_t HostSpace::allocate(const Exclusive&) noexcept {
    uint32_t cluster = pop(free_);
    if (cluster != no_host) return cluster;
    if (unused_ == clusters_) return -ENOSPC;
    if (unused_ % chunk_links == 0) {
        Chunk*& chunk = chunks_[unused_ / chunk_links];
        chunk = base::make<Chunk>().release();
        if (chunk == nullptr) return -ENOMEM;
    }
    return unused_++;
}

bool HostSpace::drop(const Exclusive&, uint32_t cluster) noexcept {
    if (returning_ == spare()) return false;
    returning_++;
    push(dropped_, cluster);
    return true;
}

bool HostSpace::begin_rest(const Exclusive&) noexcept {
    ENGINE_ASSERT(resting_.first == no_host);
    append(resting_, dropped_);
    return resting_.first != no_host;
}

void HostSpace::end_rest(const Exclusive&, bool grace_passed) noexcept {
    append(grace_passed ? rested_ : dropped_, resting_);
}

unsigned HostSpace::take_rested(const Exclusive&, std::span<uint32_t> out) noexcept {
    unsigned count = 0;
    while (count < out.size() && rested_.first != no_host) out[count++] = pop(rested_);
    return count;
}

void HostSpace::free(const Exclusive&, std::span<const uint32_t> clusters) noexcept {
    for (size_t i = clusters.size(); i-- != 0;) push(free_, clusters[i]);
    returning_ -= static_cast<uint32_t>(clusters.size());
}

}  // namespace engine::formats
