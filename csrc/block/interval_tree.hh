// Intervals that know who of them overlaps whom: a treap by start, each subtree with its greatest end.
// Intrusive; no allocation, no lock: whoever owns the tree guards it.
#pragma once

#include <cstdint>

#include "base/assert.hh"

namespace engine::block {

// [start, end) and an age by which those with the same start are told apart: no two have the same.
struct Interval {
    Interval* left = nullptr;
    Interval* right = nullptr;
    uint64_t start = 0;
    uint64_t end = 0;
    uint64_t age = 0;
    uint64_t most = 0;  // the greatest end in this subtree
    uint32_t priority = 0;
};

class IntervalTree {
  public:
    IntervalTree() noexcept = default;
    IntervalTree(const IntervalTree&) = delete;
    IntervalTree& operator=(const IntervalTree&) = delete;
    ~IntervalTree() { ENGINE_CHECK(root_ == nullptr); }

    bool empty() const noexcept { return root_ == nullptr; }
    void insert(Interval* item) noexcept {
        item->left = item->right = nullptr;
        item->priority = mix(item->age);
        update(item);
        Interval* below = nullptr;
        Interval* above = nullptr;
        split(root_, *item, &below, &above);
        root_ = merge(merge(below, item), above);
    }
    void erase(Interval* item) noexcept { root_ = remove(root_, item); }

    // Calls f(item) for those that overlap [start, end), in order, until it says no.
    template <class F>
    void for_overlaps(uint64_t start, uint64_t end, F&& f) const noexcept {
        visit(root_, start, end, f);
    }

  private:
    // Ages come one after another; the tree is balanced by what looks like chance.
    static uint32_t mix(uint64_t age) noexcept {
        age *= 0x9e3779b97f4a7c15;
        return static_cast<uint32_t>((age ^ (age >> 29)) >> 16);
    }
    static bool before(const Interval& a, const Interval& b) noexcept {
        return a.start != b.start ? a.start < b.start : a.age < b.age;
    }
    static void update(Interval* item) noexcept {
        item->most = item->end;
        if (item->left != nullptr && item->left->most > item->most) item->most = item->left->most;
        if (item->right != nullptr && item->right->most > item->most) item->most = item->right->most;
    }
    // Into those before `at`, and the others.
    static void split(Interval* tree, const Interval& at, Interval** below, Interval** above) noexcept {
        if (tree == nullptr) {
            *below = *above = nullptr;
        } else if (before(*tree, at)) {
            split(tree->right, at, &tree->right, above);
            *below = tree;
            update(tree);
        } else {
            split(tree->left, at, below, &tree->left);
            *above = tree;
            update(tree);
        }
    }
    // All of `below` come before all of `above`.
    static Interval* merge(Interval* below, Interval* above) noexcept {
        if (below == nullptr) return above;
        if (above == nullptr) return below;
        if (below->priority > above->priority) {
            below->right = merge(below->right, above);
            update(below);
            return below;
        }
        above->left = merge(below, above->left);
        update(above);
        return above;
    }
    static Interval* remove(Interval* tree, const Interval* item) noexcept {
        ENGINE_CHECK(tree != nullptr);
        if (tree == item) return merge(tree->left, tree->right);
        if (before(*item, *tree)) {
            tree->left = remove(tree->left, item);
        } else {
            tree->right = remove(tree->right, item);
        }
        update(tree);
        return tree;
    }
    template <class F>
    static bool visit(Interval* tree, uint64_t start, uint64_t end, F& f) noexcept {
        if (tree == nullptr || tree->most <= start) return true;
        if (!visit(tree->left, start, end, f)) return false;
        if (tree->start >= end) return true;
        if (tree->end > start && !f(tree)) return false;
        return visit(tree->right, start, end, f);
    }

    Interval* root_ = nullptr;
};

}  // namespace engine::block
