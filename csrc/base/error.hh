// Filling the one error object. Every function that can fail takes `engine_error*` (which may be null) and
// returns 0 or a negative errno.
#pragma once

#include <engine/base.h>

#include <cstdarg>

namespace engine::base {

struct Where {
    const char* node = nullptr;
    const char* operation = nullptr;
    const char* field = nullptr;
    uint64_t offset = UINT64_MAX;
    uint64_t request_id = 0;
};

// Returns -errnum, so that `return fail(...)` reads well.
int fail(engine_error* error, engine_error_kind kind, int errnum, const Where& where, const char* format, ...)
    __attribute__((format(printf, 5, 6)));

// For the kernel's refusals: the message is followed by ": " and the kernel's own words.
int fail_os(engine_error* error, int errnum, const Where& where, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

void clear(engine_error* error) noexcept;

// Copies as much as fits and always terminates.
void copy_text(char* to, size_t capacity, const char* from) noexcept;
template <size_t N>
void copy_text(char (&to)[N], const char* from) noexcept {
    copy_text(to, N, from);
}

}  // namespace engine::base
