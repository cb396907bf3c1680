/* A block driver in the embedding program: the requests of a node with driver `external` are taken and completed
 * in batches, by any number of the program's own threads or from its own event loop.
 *
 * The node is opened like any other (its options: `ops`, `size`, `timeout` …; `file` makes a filter of it), then
 * the program attaches. Requests that come while no program is attached fail with ENXIO.
 *
 * Threading: any thread, except that take() with a time-out is refused with EDEADLK on a context's own thread.
 * Nothing may be under way on a handle that is being closed. */
#ifndef ENGINE_EXTERNAL_H
#define ENGINE_EXTERNAL_H

#include <engine/block.h>

ENGINE_BEGIN_DECLS

typedef struct engine_external engine_external_t;

/* One request. With a `timeout` (the default) the data lies in memory of the driver's own, so that a request can
 * fail by time while the program still works on it; without one it is the submitter's, and there is no copy. */
typedef struct engine_external_request {
    uint64_t id;              /* for completing it; never used again */
    uint32_t op;              /* engine_op */
    uint32_t flags;           /* engine_request_flags */
    uint64_t offset;          /* bytes; resize: the new size */
    uint64_t length;          /* bytes */
    const engine_iovec *iov;  /* read: to be filled; write: to be read; good until the request is completed */
    uint32_t iov_count;
    uint32_t extent_capacity;
    engine_extent *extents;   /* block status: to be filled, from `offset` on, in order and without gaps */
    uint64_t request_id;      /* as in errors and traces */
    uint64_t reserved[2];
} engine_external_request;

enum engine_external_flags {
    ENGINE_EXTERNAL_KEEP = 1, /* the program goes on using the first `iov` part: engine_external_release() ends it */
};

typedef struct engine_external_completion {
    uint64_t id;
    int64_t result;      /* 0, or the number of extents filled; -errno */
    const char *message; /* why it failed, one line; NULL: the errno says all. Copied */
    uint32_t flags;      /* engine_external_flags */
    uint32_t reserved;
} engine_external_completion;

typedef struct engine_external_stats {
    uint32_t size;
    uint32_t queued;     /* requests that wait to be taken, now */
    uint32_t taken;      /* with the program, now */
    uint32_t given_up;   /* with the program, now, though they have failed by time */
    uint64_t requests;   /* that reached the program */
    uint64_t completed;  /* by it, those that failed included */
    uint64_t forwarded;  /* by it */
    uint64_t timed_out;
    uint64_t late;       /* completions of what had failed by time, or was never taken */
    uint64_t messages;   /* sent to contexts: one carries all that is completed meanwhile */
    uint64_t reserved[8];
} engine_external_stats;

/* The program that serves `node`, under a name for errors. EBUSY, naming it, while another is attached. */
ENGINE_API int engine_external_attach(engine_node_t *node, const char *program, engine_external_t **out,
                                      engine_error *error);
/* Up to `max` requests, oldest first; waits for the first one at most timeout_ns (0: not at all; UINT64_MAX: for
 * ever). Returns how many; -ESHUTDOWN once the node is closed or the program has stopped. */
ENGINE_API int64_t engine_external_take(engine_external_t *external, engine_external_request *requests, uint32_t max,
                                        uint64_t timeout_ns);
/* Ends requests that were taken, on their own contexts. Returns how many; the others had failed by time, or were
 * completed before. */
ENGINE_API int64_t engine_external_complete(engine_external_t *external, const engine_external_completion *done,
                                            uint32_t count);
/* Passes requests on to the child `file` as they came. Returns how many, as above; -ENOTSUP without a child. */
ENGINE_API int64_t engine_external_forward(engine_external_t *external, const uint64_t *ids, uint32_t count);
/* Readable while there is something to take, and for good once take() answers -ESHUTDOWN. Closed with the
 * handle. Or -errno. */
ENGINE_API int engine_external_get_fd(engine_external_t *external);
/* For I/O of the program's own on the child `file`: the user that holds the node's permissions there. NULL: no
 * child. Good until the node is closed, with no call on it under way then; not to be closed. */
ENGINE_API engine_user_t *engine_external_get_child(engine_external_t *external);
ENGINE_API int engine_external_get_stats(engine_external_t *external, engine_external_stats *stats);
/* No more requests: every take() answers -ESHUTDOWN, and what is not taken fails. What is taken may be completed. */
ENGINE_API int engine_external_stop(engine_external_t *external);
/* The program is done with all memory of requests; those that it did not complete fail with ENXIO. */
ENGINE_API int engine_external_close(engine_external_t *external);
/* Ends the use of memory that was kept by ENGINE_EXTERNAL_KEEP: its `base`. Also after the handle is closed. */
ENGINE_API void engine_external_release(void *memory);

ENGINE_END_DECLS

#endif
