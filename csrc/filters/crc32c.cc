// CRC-32C: the polynomial 0x1edc6f41, bits reversed.
#include "filters/crc32c.hh"

#include <engine/base.h>

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace engine::filters {

namespace {

constexpr std::array<uint32_t, 256> make_table() noexcept {
    constexpr uint32_t polynomial = 0x82f63b78;
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < table.size(); i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = (value & 1) != 0 ? value >> 1 ^ polynomial : value >> 1;
        table[i] = value;
    }
    return table;
}

constexpr std::array<uint32_t, 256> table = make_table();

#if defined(__x86_64__)
[[gnu::target("sse4.2")]] uint32_t by_instruction(const void* data, size_t bytes, uint32_t before) noexcept {
    const auto* at = static_cast<const unsigned char*>(data);
    uint64_t value = ~before;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        value = _mm_crc32_u64(value, word);
    }
    auto rest = static_cast<uint32_t>(value);
    for (; bytes != 0; bytes--) rest = _mm_crc32_u8(rest, *at++);
    return ~rest;
}
#endif

}  // namespace

uint32_t crc32c_by_table(const void* data, size_t bytes, uint32_t before) noexcept {
    const auto* at = static_cast<const unsigned char*>(data);
    uint32_t value = ~before;
    for (; bytes != 0; bytes--) value = value >> 8 ^ table[(value ^ *at++) & 0xff];
    return ~value;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t before) noexcept {
#if defined(__x86_64__)
    static const bool has_instruction = __builtin_cpu_supports("sse4.2");
    if (has_instruction) return by_instruction(data, bytes, before);
#endif
    return crc32c_by_table(data, bytes, before);
}

}  // namespace engine::filters

uint32_t engine_crc32c(const void* data, uint64_t bytes, uint32_t before) {
    return engine::filters::crc32c(data, bytes, before);
}
