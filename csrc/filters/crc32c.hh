// CRC-32C (Castagnoli; RFC 3720, appendix B.4), by the processor's instruction where there is one. Any
// thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace engine::filters {

// Of `bytes` at `data`, going on from that of what came before (0: nothing).
uint32_t crc32c(const void* data, size_t bytes, uint32_t before = 0) noexcept;
// Without the instruction: for its test.
uint32_t crc32c_by_table(const void* data, size_t bytes, uint32_t before = 0) noexcept;

}  // namespace engine::filters
