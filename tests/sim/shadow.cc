// The shadow model.
#include "shadow.hh"

#include <algorithm>
#include <cstring>

#include "base/random.hh"

namespace lab {

namespace {

constexpr uint64_t step = 0x9e3779b97f4a7c15;  // from word to word of a cell

uint64_t value_from(uint64_t a, uint64_t b) noexcept {
    return engine::base::mix(engine::base::mix(a) ^ b) | 1;
}

}  // namespace

uint64_t library_value(uint64_t cell) noexcept {
    return value_from(UINT64_MAX, cell);
}

void fill_cell(std::byte* cell, uint64_t value) noexcept {
    for (uint64_t i = 0; i < words_each; i++) {
        uint64_t word = value == 0 ? 0 : value + i * step;
        memcpy(cell + 8 * i, &word, 8);
    }
}

bool value_of_cell(const std::byte* cell, uint64_t* value) noexcept {
    uint64_t words[words_each];
    memcpy(words, cell, cell_bytes);
    *value = words[0];
    for (uint64_t i = 1; i < words_each; i++) {
        if (words[i] != (words[0] == 0 ? 0 : words[0] + i * step)) return false;
    }
    return true;
}

// --- changes

uint32_t Shadow::begin(Kind kind, uint64_t offset, uint64_t length, bool fua, uint64_t source_offset) {
    auto number = static_cast<uint32_t>(changes_.size());
    changes_.push_back({kind, false, fua, offset, length, source_offset, tick(), never});
    uint64_t end = std::min<uint64_t>((offset + length) / cell_bytes, changes_of_.size());
    for (uint64_t cell = offset / cell_bytes; cell < end; cell++) changes_of_[cell].push_back(number);
    return number;
}

void Shadow::end(uint32_t change, bool certain) {
    changes_[change].ended = tick();
    changes_[change].certain = certain && changes_[change].kind != Kind::discard;
}

uint64_t Shadow::value_in(uint32_t number, uint64_t cell) const noexcept {
    const Change& change = changes_[number];
    switch (change.kind) {
        case Kind::write:
            return value_from(uint64_t{epoch_} << 32 | number, cell);
        case Kind::copy:
            return library_value(cell - change.offset / cell_bytes + change.source_offset / cell_bytes);
        default:
            return 0;
    }
}

void Shadow::fill(uint32_t change, std::byte* data) const {
    uint64_t first = changes_[change].offset / cell_bytes;
    for (uint64_t i = 0; i < changes_[change].length / cell_bytes; i++) {
        fill_cell(data + i * cell_bytes, value_in(change, first + i));
    }
}

bool Shadow::overlaps(uint64_t offset, uint64_t length, uint32_t than) const {
    uint64_t end = std::min<uint64_t>((offset + length) / cell_bytes, changes_of_.size());
    for (uint64_t cell = offset / cell_bytes; cell < end; cell++) {
        for (uint32_t number : changes_of_[cell]) {
            if (number != than && changes_[number].ended == never) return true;
        }
    }
    return false;
}

// --- what may be seen

bool Shadow::overwrites(const Change& later, uint64_t ended, uint64_t before) const noexcept {
    return later.certain && later.began > ended && later.ended < before;
}

bool Shadow::is_durable(const Change& change) const noexcept {
    return change.certain && (change.fua || change.ended < horizon_);
}

bool Shadow::explained(uint64_t cell, uint64_t value, uint64_t looked_from, bool after_loss) const {
    auto overwritten = [&](uint64_t ended) {
        return std::any_of(changes_of_[cell].begin(), changes_of_[cell].end(), [&](uint32_t number) {
            const Change& later = changes_[number];
            return overwrites(later, ended, looked_from) && (!after_loss || is_durable(later));
        });
    };
    if (initial_[cell] == value && !overwritten(0)) return true;
    return std::any_of(changes_of_[cell].begin(), changes_of_[cell].end(), [&](uint32_t number) {
        return value_in(number, cell) == value && !overwritten(changes_[number].ended);
    });
}

std::string Shadow::check(uint64_t offset, uint64_t length, const std::byte* data, uint64_t looked_from,
                          bool after_loss) const {
    for (uint64_t at = 0; at < length; at += cell_bytes) {
        uint64_t value;
        uint64_t cell = (offset + at) / cell_bytes;
        const char* wrong = nullptr;
        if (!value_of_cell(data + at, &value)) {
            wrong = "is torn";
        } else if (!explained(cell, value, looked_from, after_loss)) {
            wrong = "holds what it must not";
        }
        if (wrong == nullptr) continue;
        char text[96];
        snprintf(text, sizeof text,
                 "the cell at offset %lu %s (%016lx), looked at from %lu on: ", offset + at, wrong, value,
                 looked_from);
        return text + history(cell);
    }
    return "";
}

std::string Shadow::history(uint64_t cell) const {
    constexpr const char* kinds[] = {"write", "zeroes", "discard", "copy"};
    char text[128];
    snprintf(text, sizeof text, "it began as %016lx, durable up to %lu", initial_[cell], horizon_);
    std::string all = text;
    for (uint32_t number : changes_of_[cell]) {
        const Change& change = changes_[number];
        snprintf(text, sizeof text, "; #%u %s%s %lu..%ld%s %016lx", number,
                 kinds[static_cast<unsigned>(change.kind)], change.fua ? " fua" : "", change.began,
                 static_cast<int64_t>(change.ended), change.certain ? "" : " uncertain",
                 value_in(number, cell));
        all += text;
    }
    return all;
}

std::string Shadow::check_read(uint64_t offset, uint64_t length, const std::byte* data,
                               uint64_t began) const {
    return check(offset, length, data, began, false);
}

std::string Shadow::check_zero_extent(uint64_t offset, uint64_t length, uint64_t began) const {
    uint64_t end = (offset + length) / cell_bytes;
    for (uint64_t cell = (offset + cell_bytes - 1) / cell_bytes; cell < end; cell++) {
        if (!explained(cell, 0, began, false)) {
            return "offset " + std::to_string(cell * cell_bytes) +
                   " lies in an extent that reads as zeroes, and must not: " + history(cell);
        }
    }
    return "";
}

// --- power

void Shadow::flushed(uint64_t began) {
    horizon_ = std::max(horizon_, began);
}

void Shadow::lose_power() {
    for (Change& change : changes_) {
        if (change.ended == never) change.certain = false;
    }
    tick();
}

std::string Shadow::check_survivor(uint64_t offset, uint64_t length, const std::byte* data) const {
    return check(offset, length, data, never, true);
}

void Shadow::adopt(uint64_t bytes, const std::byte* data) {
    epoch_++;
    changes_.clear();
    for (std::vector<uint32_t>& each : changes_of_) each.clear();
    for (uint64_t cell = 0; cell < initial_.size(); cell++) {
        uint64_t value = 0;
        if ((cell + 1) * cell_bytes <= bytes) value_of_cell(data + cell * cell_bytes, &value);
        initial_[cell] = value;
    }
    sizes_.assign(1, {bytes, 0, tick(), true});
    horizon_ = 0;
}

// --- size

uint32_t Shadow::begin_resize(uint64_t bytes) {
    sizes_.push_back({bytes, tick(), never, false});
    uint64_t before = sizes_[sizes_.size() - 2].bytes;
    if (bytes < before) {
        auto number = begin(Kind::zeroes, bytes, before - bytes, false);
        return number;
    }
    return UINT32_MAX;
}

void Shadow::end_resize(uint32_t resize, bool certain) {
    if (resize != UINT32_MAX) end(resize, certain);
    sizes_.back().ended = tick();
    sizes_.back().certain = certain;
    if (!certain) sizes_.pop_back();  // it says so before anything is done
}

bool Shadow::may_fit(uint64_t end, uint64_t began) const {
    for (size_t i = 0; i < sizes_.size(); i++) {
        bool gone = i + 1 < sizes_.size() && sizes_[i + 1].certain && sizes_[i + 1].ended < began;
        if (!gone && end <= sizes_[i].bytes) return true;
    }
    return false;
}

bool Shadow::may_not_fit(uint64_t end, uint64_t began) const {
    for (size_t i = 0; i < sizes_.size(); i++) {
        bool gone = i + 1 < sizes_.size() && sizes_[i + 1].certain && sizes_[i + 1].ended < began;
        if (!gone && end > sizes_[i].bytes) return true;
    }
    return false;
}

bool Shadow::may_survive(uint64_t bytes) const {
    for (size_t i = 0; i < sizes_.size(); i++) {
        bool gone = i + 1 < sizes_.size() && sizes_[i + 1].certain && sizes_[i + 1].ended < horizon_;
        if (!gone && bytes == sizes_[i].bytes) return true;
    }
    return false;
}

}  // namespace lab
