// A place in a scatter-gather vector that moves on: slices of it for a driver that takes no more at a time,
// and copies between it and a buffer. No allocation; any thread.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace engine::block {

class VectorCursor {
  public:
    VectorCursor(const iovec* iov, uint32_t count) noexcept : part_(iov), end_(iov + count) {}

    // The next bytes, at most `most` in at most parts.size() parts. How many parts; their bytes in `bytes`.
    uint32_t slice(uint64_t most, std::span<iovec> parts, uint64_t* bytes) const noexcept {
        VectorCursor at = *this;
        uint32_t count = 0;
        *bytes = 0;
        while (count < parts.size() && *bytes < most && at.skip_empty()) {
            size_t length = std::min<uint64_t>(at.part_->iov_len - at.within_, most - *bytes);
            parts[count++] = {at.data(), length};
            *bytes += length;
            at.advance(length);
        }
        return count;
    }
    void advance(uint64_t bytes) noexcept {
        for_each(bytes, [](std::byte*, size_t) {});
    }
    // How many parts the next bytes lie in.
    size_t parts(uint64_t bytes) const noexcept {
        VectorCursor at = *this;
        size_t count = 0;
        at.for_each(bytes, [&count](std::byte*, size_t) { count++; });
        return count;
    }
    void clear(uint64_t bytes) noexcept {
        for_each(bytes, [](std::byte* at, size_t length) { memset(at, 0, length); });
    }
    void copy_to(std::byte* to, uint64_t bytes) noexcept {
        for_each(bytes, [&to](const std::byte* from, size_t length) {
            memcpy(to, from, length);
            to += length;
        });
    }
    void copy_from(const std::byte* from, uint64_t bytes) noexcept {
        for_each(bytes, [&from](std::byte* to, size_t length) {
            memcpy(to, from, length);
            from += length;
        });
    }
    // How many of the next bytes, from the first on, are the same there.
    uint64_t same_as(const std::byte* other, uint64_t bytes) const noexcept {
        VectorCursor at = *this;
        uint64_t same = 0;
        bool differs = false;
        at.for_each(bytes, [&](const std::byte* mine, size_t length) {
            if (differs) return;
            size_t alike = length;
            if (memcmp(mine, other + same, length) != 0) {
                alike = static_cast<size_t>(std::mismatch(mine, mine + length, other + same).first - mine);
                differs = true;
            }
            same += alike;
        });
        return same;
    }
    // Nothing but zeroes from here to the end of the vector?
    bool zeroes() const noexcept {
        VectorCursor at = *this;
        for (; at.skip_empty(); at.part_++, at.within_ = 0) {
            if (!all_zero(at.data(), at.part_->iov_len - at.within_)) return false;
        }
        return true;
    }

  private:
    std::byte* data() const noexcept { return static_cast<std::byte*>(part_->iov_base) + within_; }
    // False at the end.
    bool skip_empty() noexcept {
        while (part_ != end_ && within_ == part_->iov_len) {
            part_++;
            within_ = 0;
        }
        return part_ != end_;
    }
    template <class F>
    void for_each(uint64_t bytes, F&& f) noexcept {
        while (bytes != 0 && skip_empty()) {
            size_t length = std::min<uint64_t>(part_->iov_len - within_, bytes);
            f(data(), length);
            within_ += length;
            bytes -= length;
        }
    }
    // Most data differs in its first bytes; the rest of what does not is compared with itself, shifted.
    static bool all_zero(const std::byte* at, size_t bytes) noexcept {
        size_t head = std::min<size_t>(bytes, 16);
        for (size_t i = 0; i < head; i++) {
            if (at[i] != std::byte{0}) return false;
        }
        return bytes <= 16 || memcmp(at, at + 16, bytes - 16) == 0;
    }

    const iovec* part_;
    const iovec* end_;
    size_t within_ = 0;
};

}  // namespace engine::block
