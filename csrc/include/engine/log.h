/* What the engine has to say that no caller asked for: a fallback, a broken queue, a flush that failed. Rare
 * things, one line each; nothing on the request path logs.
 *
 * Process-wide, like the allocation hook. Records go to the hook on the thread that has something to say, usually
 * a context's own; and to a queue, where it is open, which the program empties from a thread of its own. With
 * neither they go nowhere. In the child of a fork the queue starts empty. */
#ifndef ENGINE_LOG_H
#define ENGINE_LOG_H

#include <engine/base.h>

ENGINE_BEGIN_DECLS

/* As in Python's logging. */
enum engine_log_level { ENGINE_LOG_INFO = 20, ENGINE_LOG_WARNING = 30, ENGINE_LOG_ERROR = 40 };
enum engine_log_limits { ENGINE_LOG_QUEUE = 256 };

typedef struct engine_log_record {
    uint32_t size;
    uint32_t level;     /* engine_log_level */
    uint64_t time_ns;   /* since 1970 */
    char message[496];  /* one line, cut off where it is longer */
} engine_log_record;

typedef void engine_log_hook(const engine_log_record *record, void *opaque);

/* The hook must not block, nor call the engine; its calls are serialised, and once it has been replaced no call
 * of the old one is under way. NULL: none. */
ENGINE_API void engine_set_log_hook(engine_log_hook *hook, void *opaque);

/* Opens the queue, or lets it go: counted. The last close drops what is left. */
ENGINE_API void engine_log_open(void);
ENGINE_API void engine_log_close(void);
/* The oldest record; waits for one at most timeout_ns (UINT64_MAX: for ever). 1, or 0: there is none. A queue
 * that is full drops new records; the next one taken is followed by one that says how many. */
ENGINE_API int engine_log_take(engine_log_record *record, uint64_t timeout_ns);
/* Makes a take() that waits, or else the next one that would, return 0. */
ENGINE_API void engine_log_wake(void);

ENGINE_END_DECLS

#endif
