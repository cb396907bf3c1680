/* Jobs: long work on nodes, native from end to end. A copy reads one node and writes another, on one context. */
#ifndef ENGINE_JOB_H
#define ENGINE_JOB_H

#include <engine/block.h>

ENGINE_BEGIN_DECLS

typedef struct engine_copy engine_copy_t;

enum engine_copy_flags {
    ENGINE_COPY_DETECT_ZEROES = 1,  /* data that is all zeroes is not written as data */
    ENGINE_COPY_TARGET_IS_ZERO = 2, /* the target reads as zeroes: what is zero is left out */
};

typedef struct engine_copy_config {
    uint32_t size;
    uint32_t flags;            /* engine_copy_flags */
    engine_node_t *source;
    engine_node_t *target;     /* at least as large as what is copied */
    engine_context_t *context; /* where it runs; NULL: main */
    uint64_t offset;           /* of the range, in both nodes, bytes; aligned for both */
    uint64_t length;           /* 0: to the end of the source */
    uint32_t chunk_size;       /* bytes a request, aligned for both; 0: 1 MiB */
    uint32_t chunks;           /* in flight, at most 1024; 0: 16 */
    uint32_t source_shared;    /* engine_permission that others may hold meanwhile; 0: all but write and resize */
    uint32_t target_shared;
    uint64_t reserved[8];
} engine_copy_config;

typedef struct engine_copy_progress {
    uint32_t size;
    uint32_t running;          /* 1: begun and not over */
    uint64_t total;            /* bytes */
    uint64_t done;             /* copied, written as zeroes or left out */
    uint64_t data_bytes;       /* of done: read and written */
    uint64_t zero_bytes;       /* of done: known to be zero */
    uint64_t started_ns;       /* engine clock; 0: not yet */
    uint64_t ended_ns;         /* now, while it runs */
    uint64_t reserved[8];
} engine_copy_progress;

/* Attaches as a reader of the source and as a writer of the target. A conflict names the other user. */
ENGINE_API int engine_copy_create(engine_t *engine, const engine_copy_config *config, engine_copy_t **out,
                                  engine_error *error);
/* A copy runs once. */
ENGINE_API int engine_copy_start(engine_copy_t *copy, engine_error *error);
/* 0: everything is copied, and the target has been flushed. -ETIMEDOUT: still running after timeout_ns
 * (UINT64_MAX: no limit). -ECANCELED, or the first failure, which `error` tells with node and offset.
 * -EINVAL: not started. -EDEADLK on a context's thread. */
ENGINE_API int engine_copy_wait(engine_copy_t *copy, uint64_t timeout_ns, engine_error *error);
/* Nothing new is begun; what is in flight completes. Does not wait. */
ENGINE_API int engine_copy_cancel(engine_copy_t *copy);
ENGINE_API int engine_copy_get_progress(engine_copy_t *copy, engine_copy_progress *progress);
/* Cancels, waits, frees. */
ENGINE_API int engine_copy_close(engine_copy_t *copy);

ENGINE_END_DECLS

#endif
