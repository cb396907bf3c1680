// Building, searching and unmapping memory tables. A builder belongs to one thread; see memory.hh.
#include "virtio/memory.hh"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <new>

#include "base/error.hh"

namespace engine::virtio {

using base::fail;
using base::fail_os;
using base::Where;

MemoryTable::~MemoryTable() {
    for (const Mapping& mapping : mappings_) munmap(mapping.start, mapping.length);
}

const MemoryRegion* MemoryTable::find(uint64_t guest) const noexcept {
    auto after = std::upper_bound(regions_.begin(), regions_.end(), guest,
                                  [](uint64_t address, const MemoryRegion& r) { return address < r.guest; });
    if (after == regions_.begin()) return nullptr;
    const MemoryRegion& region = *(after - 1);
    return guest - region.guest < region.length ? &region : nullptr;
}

void MemoryTableRef::release() noexcept {
    // acq_rel: pairs with itself, so that every use by another holder comes before the unmapping.
    if (table_ != nullptr && table_->references_.fetch_sub_acq_rel(1) == 1)
        base::Deleter<const MemoryTable>()(table_);
}

uint8_t* MemoryCursor::translate_part(uint64_t guest, uint64_t* length) noexcept {
    const MemoryRegion* region = table_ == nullptr ? nullptr : table_->find(guest);
    if (region == nullptr) return nullptr;
    last_ = *region;
    uint64_t offset = guest - region->guest;
    *length = std::min(*length, region->length - offset);
    return region->host + offset;
}

// Also makes room, so that what follows a success cannot fail for want of memory.
int MemoryTable::Builder::check(uint64_t guest, uint64_t length, engine_error* error) {
    const Where where{.operation = "memory-table", .field = "region", .offset = guest};
    if (length == 0) return fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "a memory region has no bytes");
    if (guest + (length - 1) < guest) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                    "a memory region of %" PRIu64 " bytes at guest address 0x%" PRIx64
                    " wraps around the address space",
                    length, guest);
    }
    if (table_ == nullptr) table_ = base::make<MemoryTable>(MemoryTable::Key());
    try {
        if (table_ == nullptr) throw std::bad_alloc();
        if (table_->regions_.capacity() == table_->regions_.size()) {
            const size_t room = table_->regions_.size() * 2 + 4;
            table_->mappings_.reserve(room);
            table_->regions_.reserve(room);
        }
    } catch (const std::bad_alloc&) {
        return fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where, "no memory for the table of memory regions");
    }
    if (table_->regions_.size() == max_regions) {
        return fail(error, ENGINE_ERROR_LIMIT, E2BIG, where, "more than %zu memory regions", max_regions);
    }
    for (const MemoryRegion& other : table_->regions_) {
        // Neither starts inside the other.
        if (guest - other.guest < other.length || other.guest - guest < length) {
            return fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                        "memory regions overlap: %" PRIu64 " bytes at guest address 0x%" PRIx64
                        " and %" PRIu64 " bytes at 0x%" PRIx64,
                        length, guest, other.length, other.guest);
        }
    }
    return 0;
}

int MemoryTable::Builder::add(uint64_t guest, void* host, uint64_t length, engine_error* error) {
    if (host == nullptr) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL,
                    {.operation = "memory-table", .field = "host", .offset = guest},
                    "a memory region has no host address");
    }
    if (int result = check(guest, length, error); result != 0) return result;
    table_->regions_.push_back({guest, length, static_cast<uint8_t*>(host)});
    return 0;
}

namespace {

// Why this descriptor cannot be mapped for a guest, or 0. The order matters: only once shrinking is sealed
// does the size that is read stay true. (A hole that is punched reads as zeroes; it does not fault.)
int check_shared_file(int fd, uint64_t offset, uint64_t length, uint64_t* granule, engine_error* error) {
    const Where where{.operation = "map-memory", .field = "F_SEAL_SHRINK", .offset = offset};
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 && errno == EINVAL) {
        return fail(error, ENGINE_ERROR_REFUSED, EPERM, where,
                    "descriptor %d cannot carry F_SEAL_SHRINK: shared memory must come from "
                    "memfd_create(MFD_ALLOW_SEALING), so that its owner cannot truncate it under the queue",
                    fd);
    }
    if (seals < 0) return fail_os(error, errno, where, "cannot read the seals of descriptor %d", fd);
    if ((seals & F_SEAL_SHRINK) == 0) {
        return fail(error, ENGINE_ERROR_REFUSED, EPERM, where,
                    "memfd %d lacks F_SEAL_SHRINK: its owner could truncate it under the queue; "
                    "seal it with fcntl(F_ADD_SEALS) before it is shared",
                    fd);
    }
    struct stat status;
    if (fstat(fd, &status) != 0) return fail_os(error, errno, where, "cannot read the size of memfd %d", fd);
    uint64_t size = static_cast<uint64_t>(status.st_size);
    if (offset > size || length > size - offset) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL,
                    {.operation = "map-memory", .field = "length", .offset = offset},
                    "memfd %d has %" PRIu64 " bytes: a region of %" PRIu64 " bytes at offset %" PRIu64
                    " does not fit",
                    fd, size, length, offset);
    }
    *granule = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    struct statfs system;
    if (fstatfs(fd, &system) == 0 && system.f_type == HUGETLBFS_MAGIC) {
        *granule = std::max<uint64_t>(*granule, static_cast<uint64_t>(system.f_bsize));
    }
    return 0;
}

}  // namespace

int MemoryTable::Builder::map_fd(uint64_t guest, int fd, uint64_t offset, uint64_t length,
                                 engine_error* error) {
    if (int result = check(guest, length, error); result != 0) return result;
    uint64_t granule = 0;
    if (int result = check_shared_file(fd, offset, length, &granule, error); result != 0) return result;
    // The kernel maps whole pages; huge ones are also unmapped whole.
    uint64_t lead = offset & (granule - 1);
    uint64_t mapped = (lead + length + granule - 1) & ~(granule - 1);
    void* start =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset - lead));
    if (start == MAP_FAILED) {
        return fail_os(error, errno, {.operation = "map-memory", .field = "fd", .offset = offset},
                       "cannot map %" PRIu64 " bytes of memfd %d", length, fd);
    }
    table_->regions_.push_back({guest, length, static_cast<uint8_t*>(start) + lead});
    table_->mappings_.push_back({start, mapped});
    return 0;
}

int MemoryTable::Builder::build(MemoryTableRef* out, engine_error* error) {
    if (table_ == nullptr || table_->regions_.empty()) {
        return fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "memory-table", .field = "region"},
                    "a memory table needs at least one region");
    }
    std::sort(table_->regions_.begin(), table_->regions_.end(),
              [](const MemoryRegion& a, const MemoryRegion& b) { return a.guest < b.guest; });
    *out = MemoryTableRef(table_.release());
    return 0;
}

}  // namespace engine::virtio
