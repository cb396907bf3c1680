// ENGINE_ASSERT holds in debug and sanitizer builds; ENGINE_CHECK in every build, for what must never go on.
#pragma once

namespace engine::base {
[[noreturn, gnu::cold]] void check_failed(const char* expression, const char* file, int line) noexcept;
}

#define ENGINE_CHECK(expression)                   \
    (__builtin_expect(!!(expression), 1) ? (void)0 \
                                         : ::engine::base::check_failed(#expression, __FILE__, __LINE__))
#ifdef NDEBUG
#define ENGINE_ASSERT(expression) ((void)sizeof(!(expression)))
#else
#define ENGINE_ASSERT(expression) ENGINE_CHECK(expression)
#endif

#define ENGINE_LIKELY(x) __builtin_expect(!!(x), 1)
#define ENGINE_UNLIKELY(x) __builtin_expect(!!(x), 0)
