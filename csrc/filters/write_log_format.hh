// What a write log looks like (docs/write-log.md is its specification). Little-endian, all of it; constants
// and plain structs.
#pragma once

#include <bit>
#include <cstdint>

namespace engine::filters {

static_assert(std::endian::native == std::endian::little, "the structs are written as they are");

constexpr uint64_t log_magic = 0x31474f4c4b4c42ffull;  // "\xffBLKLOG1"
constexpr uint32_t log_version = 1;
constexpr uint32_t entry_magic = 0x59525445;  // "ETRY"
constexpr uint32_t log_block_least = 512;     // bytes

enum class LogOp : uint8_t { write = 1, write_zeroes = 2, discard = 3, flush = 4, resize = 5 };

enum LogFlags : uint8_t {
    log_fua = 1,        // durable by itself
    log_may_unmap = 2,  // as it was asked
    log_failed = 4,     // any of its sectors may have been written, or none
};

// At offset 0, in a block of its own.
struct LogHead {
    uint64_t magic;
    uint32_t version;
    uint32_t block;       // bytes; each entry begins at a multiple of it
    uint64_t id;          // of this log, by chance
    uint64_t disk_bytes;  // when the log was begun
    uint64_t reserved[3];
    uint32_t checksum;  // CRC-32C of all of this with 0 here
    uint32_t end;       // 0
};
static_assert(sizeof(LogHead) == 64);

// In a block of its own; the data of a write follow in the next block.
struct LogEntry {
    uint32_t magic;
    LogOp op;
    uint8_t flags;
    uint16_t reserved;
    uint64_t id;     // of the log
    uint64_t place;  // of this entry in the log, bytes
    uint64_t
        began;  // where the log ended when the request was submitted: what lies before it was completed then
    uint64_t offset;         // of the disk, bytes
    uint64_t length;         // bytes; of a resize: the new size
    uint32_t data_checksum;  // CRC-32C of a write's data, else 0
    uint32_t checksum;       // CRC-32C of all of this with 0 here
    uint64_t end;            // 0
};
static_assert(sizeof(LogEntry) == 64);

}  // namespace engine::filters
