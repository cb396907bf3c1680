/* Version, ABI rules, the error object, the allocation hook.
 *
 * ABI rules, everywhere: a struct that crosses the boundary starts with its `size`, which the caller sets to
 * sizeof; reserved fields are zero; handles are opaque; a function that can fail returns 0 or a negative errno
 * and fills the error object that it was given (which may be NULL). There is no thread-local last error.
 * These headers are plain declarations, so that cffi can read them as they are. */
#ifndef ENGINE_BASE_H
#define ENGINE_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ENGINE_API __attribute__((visibility("default")))
#else
#define ENGINE_API
#endif

#ifdef __cplusplus
#define ENGINE_BEGIN_DECLS extern "C" {
#define ENGINE_END_DECLS }
#else
#define ENGINE_BEGIN_DECLS
#define ENGINE_END_DECLS
#endif

ENGINE_BEGIN_DECLS

enum engine_error_kind {
    ENGINE_ERROR_NONE = 0,
    ENGINE_ERROR_OS = 1,          /* the kernel refused: errnum is its answer */
    ENGINE_ERROR_INVALID = 2,     /* an argument or option is wrong: field names it */
    ENGINE_ERROR_UNSUPPORTED = 3, /* a valid wish that this driver, build or host cannot fulfil */
    ENGINE_ERROR_CORRUPT = 4,     /* an image or ring contradicts its specification; or its reference (verify) */
    ENGINE_ERROR_REFUSED = 5,     /* policy: what was refused is in field */
    ENGINE_ERROR_LIMIT = 6,       /* a limit of the engine or of the host was reached */
    ENGINE_ERROR_CONFLICT = 7,    /* another user or process holds what was asked for */
    ENGINE_ERROR_CLOSED = 8,      /* the object is closed, or belongs to the parent of a fork */
};

/* One error object through every layer. Strings are NUL-terminated and never overflow. */
typedef struct engine_error {
    uint32_t size;
    uint32_t kind;       /* engine_error_kind */
    int32_t errnum;      /* positive errno */
    uint32_t reserved;
    uint64_t offset;     /* bytes, in the node or file; UINT64_MAX: none */
    uint64_t request_id; /* 0: none */
    char node[64];
    char operation[32];
    char field[64];
    char message[512];   /* one line: what, where, why, what to do */
} engine_error;

typedef struct engine_build_info {
    uint32_t size;
    uint32_t optimised; /* 1: compiled with optimisation and without debug checks */
    uint32_t sanitized; /* 1: built with a sanitizer */
    uint32_t reserved;
    char version[32];
    char compiler[64];
    char liburing[32];  /* version of the headers it was compiled with */
    char flags[128];
} engine_build_info;

/* Called before each allocation of the core; a non-zero return makes that allocation fail. For tests. */
typedef int engine_allocation_hook(size_t bytes, void *opaque);

ENGINE_API const char *engine_version(void);
ENGINE_API void engine_get_build_info(engine_build_info *info);
ENGINE_API void engine_set_allocation_hook(engine_allocation_hook *hook, void *opaque);
/* Monotonic nanoseconds on the engine's own clock (the time stamp counter where it is invariant). */
ENGINE_API uint64_t engine_now_ns(void);
/* CRC-32C of `bytes` at `data`, going on from `before` (0: nothing came before), as write logs have it. */
ENGINE_API uint32_t engine_crc32c(const void *data, uint64_t bytes, uint32_t before);
/* The name of that clock: "tsc" or "clock_gettime". */
ENGINE_API const char *engine_clock_name(void);

ENGINE_END_DECLS

#endif
