// The shadow model: what a disk may say, kept beside it in plain memory.
//
// The disk is cells of 32 bytes. Every change writes into each of its cells a value that is its own and the
// cell's. A change has a beginning and an end on a counter that both advance; it is *certain* when it
// succeeded, else it may have been done, or not, in each of its cells. A change is *overwritten* in a cell,
// for somebody who looks from a given moment on, by a certain one that began after its end and ended before
// that moment: then its value must not be seen there any more. So
//
//   a read returns, in each cell, the value of a change that began before the read's end and is not
//   overwritten for a look from its beginning on; after a power loss each cell holds the value of a change
//   that began before it and is not overwritten by a *durable* one: certain, and FUA, or ended before the
//   beginning of a flush that had succeeded by then; an extent that is said to be zero could be read as
//   zeroes; a request past the end is refused where every size of that time is too small, and never where
//   none is.
//
// A discard makes zeroes of what it likes: it is never certain. A copy brings the values of the library, a
// disk that nobody changes. What shrinking cuts off is zero when it comes back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lab {

constexpr uint64_t cell_bytes = 32;
constexpr uint64_t words_each = cell_bytes / 8;

enum class Kind : uint8_t { write, zeroes, discard, copy };

// The value of a cell of the library.
uint64_t library_value(uint64_t cell) noexcept;
// Makes a cell of a value; 0: zeroes.
void fill_cell(std::byte* cell, uint64_t value) noexcept;
// False: it is torn, or no value at all.
bool value_of_cell(const std::byte* cell, uint64_t* value) noexcept;

class Shadow {
  public:
    // `capacity`: it never grows beyond that, bytes.
    Shadow(uint64_t bytes, uint64_t capacity)
        : initial_(capacity / cell_bytes), changes_of_(capacity / cell_bytes) {
        sizes_.push_back({bytes, 0, 0, true});
    }

    uint64_t now() const noexcept { return clock_; }
    uint64_t tick() noexcept { return ++clock_; }
    void set_initial(uint64_t cell, uint64_t value) { initial_[cell] = value; }

    // Returns its number. offset, length: multiples of a cell; what lies past the end is no part of it.
    uint32_t begin(Kind kind, uint64_t offset, uint64_t length, bool fua, uint64_t source_offset = 0);
    void end(uint32_t change, bool certain);
    // What the change writes.
    void fill(uint32_t change, std::byte* data) const;
    // Is another one under way there? For the statistics.
    bool overlaps(uint64_t offset, uint64_t length, uint32_t than) const;

    // "" or what is wrong. `began`: what tick() said before.
    std::string check_read(uint64_t offset, uint64_t length, const std::byte* data, uint64_t began) const;
    std::string check_zero_extent(uint64_t offset, uint64_t length, uint64_t began) const;

    void flushed(uint64_t began);
    // Nothing that ends from here on is known to have been done. Then the survivors are looked at.
    void lose_power();
    std::string check_survivor(uint64_t offset, uint64_t length, const std::byte* data) const;
    // … and are what there is.
    void adopt(uint64_t bytes, const std::byte* data);

    uint32_t begin_resize(uint64_t bytes);
    void end_resize(uint32_t resize, bool certain);
    uint64_t size() const noexcept { return sizes_.back().bytes; }
    // Could the end have been there at some time since `began`?
    bool may_fit(uint64_t end, uint64_t began) const;
    bool may_not_fit(uint64_t end, uint64_t began) const;
    bool may_survive(uint64_t bytes) const;

  private:
    static constexpr uint64_t never = UINT64_MAX;
    struct Change {
        Kind kind;
        bool certain;
        bool fua;
        uint64_t offset, length, source_offset;
        uint64_t began, ended;
    };
    struct Size {
        uint64_t bytes;
        uint64_t began, ended;
        bool certain;
    };

    uint64_t value_in(uint32_t number, uint64_t cell) const noexcept;
    bool overwrites(const Change& later, uint64_t ended, uint64_t before) const noexcept;
    bool is_durable(const Change& change) const noexcept;
    // Could `value` be seen in that cell?
    bool explained(uint64_t cell, uint64_t value, uint64_t looked_from, bool after_loss) const;
    std::string check(uint64_t offset, uint64_t length, const std::byte* data, uint64_t looked_from,
                      bool after_loss) const;
    std::string history(uint64_t cell) const;

    std::vector<uint64_t> initial_;
    std::vector<std::vector<uint32_t>> changes_of_;  // of each cell
    std::vector<Change> changes_;
    std::vector<Size> sizes_;
    uint64_t clock_ = 0;
    uint64_t horizon_ = 0;  // what ended before is durable
    uint32_t epoch_ = 0;    // power losses so far
};

}  // namespace lab
