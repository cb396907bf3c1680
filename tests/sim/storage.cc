// The simulated disk.
#include "storage.hh"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "base/assert.hh"

namespace lab {

using engine::aio::IoKind;
using engine::aio::SimFiles;

int Storage::add(uint64_t bytes) {
    files_.emplace_back();
    File& file = files_.back();
    file.cache.resize(bytes);
    int fd = SimFiles::first_fd + static_cast<int>(files_.size() - 1);
    settle(fd);
    return fd;
}

void Storage::settle(int fd) {
    File& file = this->file(fd);
    file.durable = file.cache;
    file.durable_size = file.cache.size();
    file.versions.assign((file.cache.size() + sector_bytes - 1) / sector_bytes, {});
    file.dirty.clear();
    file.sizes.clear();
}

void Storage::resize(int fd, uint64_t bytes) {
    File& file = this->file(fd);
    uint64_t before = file.cache.size();
    order_++;
    if (bytes < before) {
        for (uint64_t at = bytes; at < before; at += sector_bytes) {
            uint64_t length = std::min(sector_bytes - at % sector_bytes, before - at);
            memset(file.cache.data() + at, 0, length);
            keep_version(file, at / sector_bytes);
        }
    }
    file.cache.resize(bytes);
    file.durable.resize(std::max<uint64_t>(file.durable.size(), bytes));
    file.versions.resize(std::max<size_t>(file.versions.size(), (bytes + sector_bytes - 1) / sector_bytes));
    file.sizes.emplace_back(order_, bytes);
}

void Storage::put_bytes(int fd, uint64_t offset, std::vector<std::byte>& data) {
    iovec part{data.data(), data.size()};
    IoOp op;
    op.iov = &part;
    op.iov_count = 1;
    put(file(fd), offset, op, data.size(), false, false);
}

// --- what survives

void Storage::keep_version(File& file, uint64_t sector) {
    if (!volatile_cache) return;
    std::vector<Version>& versions = file.versions[sector];
    if (versions.empty()) file.dirty.push_back(sector);
    if (versions.empty() || versions.back().order != order_) versions.push_back({order_, false, {}});
    uint64_t at = sector * sector_bytes;
    memcpy(versions.back().data.data(), file.cache.data() + at,
           std::min(sector_bytes, file.cache.size() - at));
}

void Storage::commit(File& file, uint64_t up_to) {
    std::erase_if(file.dirty, [&](uint64_t sector) {
        std::vector<Version>& versions = file.versions[sector];
        auto covered = std::find_if(versions.rbegin(), versions.rend(),
                                    [up_to](const Version& one) { return one.order <= up_to && !one.lost; });
        if (covered != versions.rend()) {
            uint64_t at = sector * sector_bytes;
            if (file.durable.size() < at + sector_bytes) file.durable.resize(at + sector_bytes);
            memcpy(file.durable.data() + at, covered->data.data(), sector_bytes);
            versions.erase(versions.begin(), covered.base());
        }
        return versions.empty();
    });
    while (!file.sizes.empty() && file.sizes.front().first <= up_to) {
        file.durable_size = file.sizes.front().second;
        file.sizes.erase(file.sizes.begin());
    }
}

void Storage::survive(File& file) {
    std::map<uint64_t, unsigned> fates;  // of each write: 1: a sector of it is there, 2: one is not
    uint64_t choice = random_.below(3);  // nothing, everything, anything
    for (uint64_t sector : file.dirty) {
        std::vector<Version>& versions = file.versions[sector];
        uint64_t count = versions.size();
        uint64_t kept = choice == 0 ? 0 : choice == 1 ? count : random_.below(count + 1);
        for (uint64_t i = 0; i < count; i++) {
            if (i + 1 >= kept) fates[versions[i].order] |= i + 1 == kept ? 1 : 2;
        }
        if (kept != 0) {
            uint64_t at = sector * sector_bytes;
            if (file.durable.size() < at + sector_bytes) file.durable.resize(at + sector_bytes);
            memcpy(file.durable.data() + at, versions[kept - 1].data.data(), sector_bytes);
        }
        versions.clear();
    }
    bool lost = false;
    for (auto [order, fate] : fates) {
        if (fate == 3) coverage_.reach(Event::torn_by_power);
        if ((fate & 1) != 0 && lost) coverage_.reach(Event::reordered_by_power);
        lost = lost || (fate & 2) != 0;
    }
    if (lost) coverage_.reach(Event::lost_by_power);
    uint64_t size = file.durable_size;
    uint64_t kept = random_.below(file.sizes.size() + 1);
    if (kept != 0) size = file.sizes[kept - 1].second;
    file.durable.resize(size);
    file.cache = file.durable;
}

void Storage::cut_power() {
    if (!powered_) return;
    powered_ = false;
    for (Flight& flight : flights_) {
        flight.cut = true;
        if (flight.op->kind == IoKind::fdatasync) coverage_.reach(Event::power_lost_in_sync);
    }
    if (on_cut != nullptr) on_cut(opaque);
}

void Storage::restore_power() {
    for (size_t i = 0; i < files_.size(); i++) {
        survive(files_[i]);
        settle(SimFiles::first_fd + static_cast<int>(i));
    }
    flights_.clear();
    powered_ = true;
    cut_at_ = 0;
    misdirected_ = 0;
}

// --- operations

uint64_t Storage::latency_ns(const IoOp& op, Random& random) {
    uint64_t latency_ns = random.between(2000, 120000);
    if (one_in(faults.slow)) {
        latency_ns *= 100;
        coverage_.reach(Event::slow_operation);
    }
    if (op.kind == IoKind::call) return latency_ns;
    Flight flight{&op, order_, 0, false, false};
    if (powered_ && op.kind == IoKind::write && random_.below(2) == 0) {
        flight.result = write(op);
        flight.early = true;
        coverage_.reach(Event::early_write);
    }
    flight.order = order_;
    flights_.push_back(flight);
    return latency_ns;
}

Storage::Flight Storage::take(const IoOp& op) {
    auto found = std::find_if(flights_.begin(), flights_.end(),
                              [&op](const Flight& flight) { return flight.op == &op; });
    ENGINE_CHECK(found != flights_.end());
    Flight flight = *found;
    flights_.erase(found);
    return flight;
}

int64_t Storage::perform(IoOp& op) {
    if (op.kind == IoKind::call) return op.call(&op);
    if (++operations_ == cut_at_) {
        cut_power();
        coverage_.reach(Event::power_lost);
    }
    Flight flight = take(op);
    if (!powered_) return after_cut(op, flight);
    if (flight.early) return flight.result;
    switch (op.kind) {
        case IoKind::read:
            return read(op);
        case IoKind::write:
            return write(op);
        case IoKind::fallocate:
            return zero(op);
        default:
            return sync(op, flight);
    }
}

int64_t Storage::after_cut(IoOp& op, const Flight& flight) {
    if (flight.cut && !flight.early && random_.below(2) == 0) {
        if (op.kind == IoKind::write) put(file(op.fd), op.offset, op, op.length, true, false);
        if (op.kind == IoKind::fdatasync) commit(file(op.fd), flight.order);
    }
    coverage_.reach(Event::failed_after_power);
    return -EIO;
}

namespace {

// Calls f(part, length) for the first `length` bytes of the vector.
template <class F>
void for_parts(const IoOp& op, uint64_t length, F&& f) {
    for (uint32_t i = 0; i < op.iov_count && length != 0; i++) {
        uint64_t part = std::min<uint64_t>(op.iov[i].iov_len, length);
        f(static_cast<std::byte*>(op.iov[i].iov_base), part);
        length -= part;
    }
}

}  // namespace

uint64_t Storage::place(const IoOp& op) {
    uint64_t size = file(op.fd).cache.size();
    if (op.fd != misdirected_fd || op.length > size || !one_in(faults.misdirected)) return op.offset;
    uint64_t places = (size - op.length) / faults.unit + 1;
    return std::min(random_.below(places) * faults.unit + op.offset % faults.unit, size - op.length);
}

int64_t Storage::read(IoOp& op) {
    File& file = this->file(op.fd);
    if (one_in(faults.transient)) {
        coverage_.reach(Event::transient_error);
        return -EAGAIN;
    }
    uint64_t length = op.offset < file.cache.size() ? std::min(op.length, file.cache.size() - op.offset) : 0;
    if (one_in(faults.read_error)) {
        for_parts(op, length, [](std::byte* part, uint64_t bytes) { memset(part, 0xee, bytes); });
        coverage_.reach(Event::read_error);
        return -EIO;
    }
    if (length > faults.unit && one_in(faults.short_transfer)) {
        length = random_.between(1, (length - 1) / faults.unit) * faults.unit;
        coverage_.reach(Event::short_transfer);
    }
    uint64_t at = place(op);
    if (at != op.offset) {
        misdirected_++;
        coverage_.reach(Event::misdirected_read);
    }
    length = std::min(length, file.cache.size() - at);
    for_parts(op, length, [&](std::byte* part, uint64_t bytes) {
        memcpy(part, file.cache.data() + at, bytes);
        at += bytes;
    });
    return static_cast<int64_t>(length);
}

int64_t Storage::write(const IoOp& op) {
    File& file = this->file(op.fd);
    if (one_in(faults.transient)) {
        coverage_.reach(Event::transient_error);
        return -EINTR;
    }
    if (op.offset > file.cache.size() || op.length > file.cache.size() - op.offset) return -EFBIG;
    if (one_in(faults.no_space)) {
        coverage_.reach(Event::no_space);
        return -ENOSPC;
    }
    if (one_in(faults.write_error)) {
        put(file, op.offset, op, op.length, true, false);
        coverage_.reach(Event::write_error);
        return -EIO;
    }
    uint64_t length = op.length;
    if (length > faults.unit && one_in(faults.short_transfer)) {
        length = random_.between(1, (length - 1) / faults.unit) * faults.unit;
        coverage_.reach(Event::short_transfer);
    }
    uint64_t at = place(op);
    if (at != op.offset) {
        misdirected_++;
        coverage_.reach(Event::misdirected_write);
    }
    put(file, at, op, length, false, (op.flags & RWF_DSYNC) != 0);
    return static_cast<int64_t>(length);
}

void Storage::put(File& file, uint64_t offset, const IoOp& op, uint64_t length, bool torn, bool durable) {
    order_++;
    std::vector<std::byte> data(length);
    uint64_t filled = 0;
    for_parts(op, length, [&](const std::byte* part, uint64_t bytes) {
        memcpy(data.data() + filled, part, bytes);
        filled += bytes;
    });
    unsigned done = 0, left_out = 0;
    for (uint64_t at = offset; at < offset + length;) {
        uint64_t sector = at / sector_bytes;
        uint64_t bytes = std::min((sector + 1) * sector_bytes, offset + length) - at;
        if (!torn || random_.below(2) == 0) {
            memcpy(file.cache.data() + at, data.data() + (at - offset), bytes);
            keep_version(file, sector);
            done++;
            if (durable && volatile_cache) {
                uint64_t start = sector * sector_bytes;
                memcpy(file.durable.data() + start, file.versions[sector].back().data.data(),
                       std::min(sector_bytes, file.durable.size() - start));
                file.versions[sector].clear();
                std::erase(file.dirty, sector);
            }
        } else {
            left_out++;
        }
        at += bytes;
    }
    if (done != 0 && left_out != 0) coverage_.reach(Event::torn_by_error);
}

int64_t Storage::zero(const IoOp& op) {
    File& file = this->file(op.fd);
    if ((op.flags & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) == 0) return -EOPNOTSUPP;
    if (one_in(faults.no_space)) {
        coverage_.reach(Event::no_space);
        return -ENOSPC;
    }
    order_++;
    uint64_t end = std::min<uint64_t>(op.offset + op.length, file.cache.size());
    for (uint64_t at = op.offset; at < end;) {
        uint64_t sector = at / sector_bytes;
        uint64_t bytes = std::min((sector + 1) * sector_bytes, end) - at;
        memset(file.cache.data() + at, 0, bytes);
        keep_version(file, sector);
        at += bytes;
    }
    return 0;
}

int64_t Storage::sync(IoOp& op, const Flight& flight) {
    File& file = this->file(op.fd);
    if (one_in(faults.transient)) {
        coverage_.reach(Event::transient_error);
        return -EINTR;
    }
    if (one_in(faults.sync_error)) {
        for (uint64_t sector : file.dirty) {
            for (Version& version : file.versions[sector]) version.lost = true;
        }
        coverage_.reach(Event::sync_error);
        return -EIO;
    }
    if (file.dirty.empty()) coverage_.reach(Event::sync_covers_nothing_new);
    commit(file, flight.order);
    return 0;
}

}  // namespace lab
