// From the caller's tokens to its requests: an intrusive hash table, chained, that never shrinks. No lock:
// its owner guards it. Tokens need not be unique.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/alloc.hh"

namespace engine::block {

// T has `token` and `T* same_bucket`.
template <class T>
class TokenTable {
  public:
    uint32_t size() const noexcept { return count_; }
    // False when memory is short; what is there stays.
    bool reserve(size_t more) noexcept {
        size_t wanted = bucket_count_ == 0 ? buckets_first : bucket_count_;
        while (wanted < count_ + more) wanted *= 2;
        if (wanted == bucket_count_) return true;
        base::Owner<T*[]> grown = base::make_array<T*>(wanted);
        if (grown == nullptr) return false;
        base::Owner<T*[]> old = std::exchange(buckets_, std::move(grown));
        size_t old_count = std::exchange(bucket_count_, wanted);
        count_ = 0;
        for (size_t i = 0; i < old_count; i++) {
            while (T* item = old[i]) {
                old[i] = item->same_bucket;
                insert(item);
            }
        }
        return true;
    }
    // There is room: see reserve().
    void insert(T* item) noexcept {
        T*& bucket = bucket_of(item->token);
        item->same_bucket = bucket;
        bucket = item;
        count_++;
    }
    void remove(T* item) noexcept {
        T** link = &bucket_of(item->token);
        while (*link != item) link = &(*link)->same_bucket;
        *link = item->same_bucket;
        count_--;
    }
    template <class F>
    void for_each(uint64_t token, F&& f) noexcept {
        if (bucket_count_ == 0) return;
        for (T* item = bucket_of(token); item != nullptr; item = item->same_bucket) {
            if (item->token == token) f(item);
        }
    }

  private:
    static constexpr size_t buckets_first = 128;
    // Tokens count up, or are addresses: the high half of a product has all their bits in it.
    T*& bucket_of(uint64_t token) noexcept {
        uint64_t mixed = (token * 0x9e3779b97f4a7c15u) >> 32;
        return buckets_[mixed & (bucket_count_ - 1)];
    }

    base::Owner<T*[]> buckets_;
    size_t bucket_count_ = 0;
    uint32_t count_ = 0;
};

}  // namespace engine::block
