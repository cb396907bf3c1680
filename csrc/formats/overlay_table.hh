// The table of an overlay: what each sub-cluster of the disk is, and where its data lies; and the host
// clusters of the data node. Both are guarded by the node's `meta`, whose guard is a parameter as the proof:
// of either kind to read, exclusive to change.
//
// Invariants:
//   a sub-cluster is data, zero, or neither: then it is that of the backing node;
//   an entry with data, or with writers, has a host cluster, and no other entry has the same;
//   a host cluster is free, of one entry, or on its way back: dropped, at rest (awaiting grace), rested;
//   no more than spare() are on their way back, so with twice as many as the disk has clusters one is free.
#pragma once

#include <array>
#include <span>

#include "base/alloc.hh"
#include "block/meta_lock.hh"

namespace engine::formats {

using Held = block::MetaLock::Held;
using Exclusive = block::MetaLock::Exclusive;

constexpr uint32_t no_host = UINT32_MAX;
constexpr unsigned subs_max = 128;                    // sub-clusters of a cluster
constexpr uint64_t clusters_max = uint64_t{1} << 30;  // of a disk

// A set of sub-clusters of one cluster.
class SubSet {
  public:
    // Those from `first` on.
    static SubSet range(unsigned first, unsigned count) noexcept {
        SubSet set;
        for (unsigned word = 0; word < words; word++) {
            set.words_[word] = below(first + count, word) & ~below(first, word);
        }
        return set;
    }
    bool has(unsigned sub) const noexcept { return (words_[sub / bits] >> (sub % bits) & 1) != 0; }
    bool empty() const noexcept { return (words_[0] | words_[1]) == 0; }
    void add(const SubSet& other) noexcept {
        for (unsigned word = 0; word < words; word++) words_[word] |= other.words_[word];
    }
    void remove(const SubSet& other) noexcept {
        for (unsigned word = 0; word < words; word++) words_[word] &= ~other.words_[word];
    }
    // The first one from `first` on that is in the set if `in`, or is not; `end` where there is none before.
    unsigned next(unsigned first, unsigned end, bool in) const noexcept {
        for (unsigned at = first; at < end; at = (at / bits + 1) * bits) {
            uint64_t word = in ? words_[at / bits] : ~words_[at / bits];
            word &= ~uint64_t{0} << (at % bits);
            if (word == 0) continue;
            unsigned found = at / bits * bits + static_cast<unsigned>(__builtin_ctzll(word));
            return found < end ? found : end;
        }
        return end;
    }

  private:
    static constexpr unsigned bits = 64;
    static constexpr unsigned words = subs_max / bits;
    // The bits of a word that stand for those below `end`.
    static uint64_t below(unsigned end, unsigned word) noexcept {
        unsigned first = word * bits;
        if (end <= first) return 0;
        return end - first >= bits ? ~uint64_t{0} : (uint64_t{1} << (end - first)) - 1;
    }
    uint64_t words_[words] = {};
};

enum class Source : uint8_t { backing, data, zero };

// One cluster of the disk.
struct Entry {
    SubSet data;
    SubSet zero;
    uint32_t host = no_host;
    uint32_t writers = 0;  // writes on their way to the host cluster, which have yet to make their part data
    uint64_t cleared = 0;  // the number of the last clear that came while there were writers

    // How many sub-clusters from `first` on, below `end`, are alike, and what.
    unsigned run(unsigned first, unsigned end, Source* source) const noexcept;
    // Its host cluster is of no use.
    bool idle() const noexcept { return host != no_host && writers == 0 && data.empty(); }
};

// From a cluster's index to its entry, in three steps; sparse. A leaf of nothing but zeroes takes no memory
// either, so that a whole disk can be discarded.
class Table {
  public:
    static constexpr uint64_t leaf_entries = 1024;

    Table() noexcept = default;
    Table(const Table&) = delete;
    Table& operator=(const Table&) = delete;
    ~Table();
    // False: no memory.
    bool init(uint64_t clusters) noexcept;

    struct Found {
        const Entry* entry;  // null: there is none for any of `alike` clusters from there on, which are …
        bool zero;           // … all zero, or all backing
        uint64_t alike;
    };
    Found find(const Held& meta, uint64_t index) const noexcept;
    // Null: no memory.
    Entry* make(const Exclusive& meta, uint64_t index) noexcept;
    // Makes all of a leaf zero; f(entry) lets go of its host cluster, if it can. False: no memory, nothing
    // done.
    template <class F>
    bool clear_leaf(const Exclusive& meta, uint64_t index, F&& f) noexcept {
        (void)meta;
        LeafRef* ref = make_ref(index);
        if (ref == nullptr) return false;
        bool in_use = false;
        if (ref->leaf != nullptr) {
            for (Entry& entry : ref->leaf->entries) {
                entry.zero = SubSet::range(0, subs_max);
                entry.data = SubSet();
                f(entry);
                in_use = in_use || entry.host != no_host;
            }
        }
        if (!in_use) {
            base::Owner<Leaf>(ref->leaf).reset();
            *ref = {.leaf = nullptr, .zero = true};
        }
        return true;
    }

  private:
    struct Leaf {
        std::array<Entry, leaf_entries> entries;
    };
    struct LeafRef {
        Leaf* leaf = nullptr;
        bool zero = false;  // without a leaf
    };
    static constexpr uint64_t middle_leaves = 1024;
    struct Middle {
        std::array<LeafRef, middle_leaves> leaves;
    };
    static constexpr uint64_t middle_entries = middle_leaves * leaf_entries;

    LeafRef* make_ref(uint64_t index) noexcept;

    base::Owner<Middle*[]> middles_;
    uint64_t middle_count_ = 0;
};

// The clusters of the data node. All memory that a cluster's way back takes is found when it is first handed
// out.
class HostSpace {
  public:
    HostSpace() noexcept = default;
    HostSpace(const HostSpace&) = delete;
    HostSpace& operator=(const HostSpace&) = delete;
    ~HostSpace();
    // False: no memory.
    bool init(uint32_t clusters) noexcept;

    uint32_t clusters() const noexcept { return clusters_; }
    uint32_t spare() const noexcept { return clusters_ / 2; }
    // A cluster; or -ENOSPC, -ENOMEM. Those that have been used come first, the lowest of a batch first.
    int64_t allocate(const Exclusive& meta) noexcept;
    // False: as many as may be are on their way back, so it stays where it is.
    bool drop(const Exclusive& meta, uint32_t cluster) noexcept;

    // --- the way back, one at a time
    // What has been dropped so far is at rest. False: nothing has.
    bool begin_rest(const Exclusive& meta) noexcept;
    // Grace has passed; or it could not be had, and everything is as before.
    void end_rest(const Exclusive& meta, bool grace_passed) noexcept;
    // Some of those that have rested. Nobody reads or writes them.
    unsigned take_rested(const Exclusive& meta, std::span<uint32_t> out) noexcept;
    void free(const Exclusive& meta, std::span<const uint32_t> clusters) noexcept;

  private:
    struct List {
        uint32_t first = no_host;
        uint32_t last = no_host;
    };
    static constexpr uint32_t chunk_links = 16384;
    struct Chunk {
        std::array<uint32_t, chunk_links> next;
    };
    uint32_t& next_of(uint32_t cluster) noexcept {
        return chunks_[cluster / chunk_links]->next[cluster % chunk_links];
    }
    void push(List& list, uint32_t cluster) noexcept;
    uint32_t pop(List& list) noexcept;
    void append(List& list, List& other) noexcept;

    base::Owner<Chunk*[]> chunks_;
    uint32_t clusters_ = 0;
    uint32_t unused_ = 0;     // the first that has never been handed out
    uint32_t returning_ = 0;  // on their way back
    List free_, dropped_, resting_, rested_;
};

}  // namespace engine::formats
