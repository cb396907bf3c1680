// The harness of the fuzzers. A fuzzer is one file that defines run(Input&), and a line in meson.build. CHECK
// and REQUIRE of tests/native/check.hh end the process, so that libFuzzer keeps the input. One input is one
// history: what a fuzzer does depends on nothing else, so it runs on one thread and reads no clock.
#pragma once

#define CHECK_WITHOUT_MAIN

#include <cstdlib>
#include <string>

#include "check.hh"

namespace fuzz {

// The bytes of one input, taken from the front. Past the end they are zeroes.
class Input {
  public:
    Input(const uint8_t* data, size_t size) noexcept : at_(data), left_(size) {}

    size_t left() const noexcept { return left_; }
    bool empty() const noexcept { return left_ == 0; }
    template <class T>
    T number() noexcept {
        T value = 0;
        size_t bytes = sizeof value < left_ ? sizeof value : left_;
        if (bytes != 0) memcpy(&value, at_, bytes);
        skip(bytes);
        return value;
    }
    uint8_t byte() noexcept { return number<uint8_t>(); }
    bool flag() noexcept { return (byte() & 1) != 0; }
    // Takes no more bytes than a number below `end` (not 0) needs.
    uint64_t below(uint64_t end) noexcept {
        uint64_t value = end <= 1          ? 0
                         : end <= 1 << 8   ? byte()
                         : end <= 1 << 16  ? number<uint16_t>()
                         : end <= 1u << 31 ? number<uint32_t>()
                                           : number<uint64_t>();
        return end == 0 ? 0 : value % end;
    }
    // A size or an offset: mostly one that matters to a disk of `end` bytes, now and then any at all.
    uint64_t position(uint64_t end) noexcept {
        uint8_t kind = byte();
        if (kind < 4) return number<uint64_t>();
        if (kind < 8) return end - below(4);
        uint64_t value = below(end + 1);
        if (kind < 64) return value & ~uint64_t{4095};
        if (kind < 160) return value & ~uint64_t{511};
        return value;
    }
    // At most `most` bytes, as they are.
    std::string text(size_t most) {
        size_t bytes = most < left_ ? most : left_;
        std::string taken(reinterpret_cast<const char*>(at_), bytes);
        skip(bytes);
        return taken;
    }
    // Up to the next `end`, which is taken too.
    std::string text_until(char end) {
        const void* found = left_ == 0 ? nullptr : memchr(at_, end, left_);
        size_t bytes =
            found == nullptr ? left_ : static_cast<size_t>(static_cast<const uint8_t*>(found) - at_);
        std::string taken = text(bytes);
        skip(found == nullptr ? 0 : 1);
        return taken;
    }

  private:
    void skip(size_t bytes) noexcept {
        at_ += bytes;
        left_ -= bytes;
    }
    const uint8_t* at_;
    size_t left_;
};

// What the fuzzer defines.
void run(Input& input);

}  // namespace fuzz

// So that an input alone repeats a failure, whatever the environment. An allocation that is too large fails
// as it does without a sanitizer.
extern "C" const char* __asan_default_options() {
    return "allocator_may_return_null=1:detect_stack_use_after_return=1:strict_string_checks=1";
}
extern "C" const char* __ubsan_default_options() {
    return "print_stacktrace=1:halt_on_error=1";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    check::fatal = abort;
    fuzz::Input input(data, size);
    fuzz::run(input);
    return 0;
}
