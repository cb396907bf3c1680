/* Asynchronous requests: completion queues with a descriptor, arrays of requests in one message, and one buffer
 * read or written at many offsets. */
#ifndef ENGINE_ASYNC_H
#define ENGINE_ASYNC_H

#include <engine/block.h>

ENGINE_BEGIN_DECLS

/* Where completions wait to be taken: any context fills it, one thread drains it. One for each event loop that
 * wants them. Any thread may submit and cancel. */
typedef struct engine_cq engine_cq_t;

typedef struct engine_request {
    uint32_t size;            /* of this struct; the same in all elements of an array */
    uint32_t op;              /* engine_op, without ENGINE_OP_RESIZE and ENGINE_OP_COPY_RANGE, which have calls of their own */
    uint64_t token;           /* the caller's name for it: it comes back with the completion */
    uint64_t offset;
    uint64_t bytes;
    void *buffer;             /* read, write: one buffer of `bytes`; or NULL, and iov */
    const engine_iovec *iov;  /* at most 1024; stays the caller's, as all buffers, until the completion is drained */
    uint32_t iov_count;
    uint32_t flags;           /* engine_request_flags */
    engine_extent *extents;   /* block status: where its answer goes */
    uint32_t extent_capacity;
    uint32_t reserved0;
    uint64_t reserved[2];
} engine_request;

typedef struct engine_completion {
    uint64_t token;
    int64_t result;            /* read, write: bytes; block status: extents; else 0; or -errno */
    const engine_error *error; /* of a failure, good until the next drain; NULL: there was none */
} engine_completion;

/* One buffer, many offsets: part i is the `length` bytes at buffer + i * length, read or written at offsets[i]. */
typedef struct engine_many {
    uint32_t size;
    uint32_t op;               /* ENGINE_OP_READ or ENGINE_OP_WRITE */
    void *buffer;              /* count * length bytes */
    const uint64_t *offsets;   /* count of them */
    int64_t *results;          /* count of them: length, or -errno */
    uint64_t count;
    uint64_t length;           /* bytes of each */
    uint32_t iodepth;          /* parts in flight, 1 to 1024; 0: 64 */
    uint32_t flags;            /* ENGINE_FUA */
    uint32_t stop_at_failure;  /* 1: nothing new after the first; what was not begun has -ECANCELED */
    uint32_t reserved0;
    uint64_t reserved[4];
} engine_many;

typedef struct engine_cq_stats {
    uint32_t size;
    uint32_t in_flight;      /* submitted, and not drained */
    uint64_t batches;        /* calls of engine_submit and engine_submit_many */
    uint64_t submitted;      /* requests in them; one of engine_submit_many counts once */
    uint64_t drained;
    uint64_t notifications;  /* writes to the descriptor by contexts */
    uint64_t drains;         /* calls */
    uint64_t cancels;        /* requests that were asked to stop */
    uint64_t reserved[4];
} engine_cq_stats;

ENGINE_API int engine_cq_create(engine_t *engine, engine_cq_t **out, engine_error *error);
/* Waits for what is in flight, and lets go of what filters hold back (throttle, delay, fault) when that takes long;
 * completions that nobody drained are lost. An engine closes after its queues. */
ENGINE_API int engine_cq_close(engine_cq_t *cq, engine_error *error);
/* Readable while there is something to drain, level-triggered; now and then without reason. Only to be polled. */
ENGINE_API int engine_cq_fileno(engine_cq_t *cq);
/* Takes up to `capacity` completions, without waiting, and returns how many. What it gives back stays good until
 * the next drain: one thread at a time. */
ENGINE_API int64_t engine_cq_drain(engine_cq_t *cq, engine_completion *out, size_t capacity);
ENGINE_API int engine_cq_get_stats(engine_cq_t *cq, engine_cq_stats *stats);

/* One message for the whole array. 0: each completes exactly once; -errno: none was begun. Their order is that of
 * the array, not that of their completion. `context` NULL: main. The first request of a user on a context waits for
 * that context. */
ENGINE_API int engine_submit(engine_cq_t *cq, engine_user_t *user, engine_context_t *context,
                             const engine_request *requests, size_t count, engine_error *error);
/* All parts as one request, whose completion carries what engine_user_many would return, and its error. */
ENGINE_API int engine_submit_many(engine_cq_t *cq, engine_user_t *user, engine_context_t *context,
                                  const engine_many *many, uint64_t token, engine_error *error);
/* Asks the requests of that token to stop: each still completes exactly once, with -ECANCELED or with its result.
 * Returns how many there are that were not drained. */
ENGINE_API int64_t engine_cancel(engine_cq_t *cq, uint64_t token);
/* Waits until nothing that was submitted before is with a context: of a user, on a context, or, with NULL, of any.
 * It need not be drained. -ETIMEDOUT; timeout_ns UINT64_MAX: no limit. */
ENGINE_API int engine_cq_wait(engine_cq_t *cq, engine_user_t *user, engine_context_t *context, uint64_t timeout_ns,
                              engine_error *error);

/* The same without a queue: waits for all parts. Returns how many succeeded, with the error of the first that did
 * not; with stop_at_failure -errno of that; else -errno where nothing was begun, or -ECANCELED. */
ENGINE_API int64_t engine_user_many(engine_user_t *user, engine_context_t *context, const engine_many *many,
                                    engine_error *error);

ENGINE_END_DECLS

#endif
