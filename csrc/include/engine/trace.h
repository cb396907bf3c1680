/* What became of sampled requests: marks with times, made by whatever the request went through. */
#ifndef ENGINE_TRACE_H
#define ENGINE_TRACE_H

#include <engine/base.h>

ENGINE_BEGIN_DECLS

enum engine_mark {
    ENGINE_MARK_POPPED = 0,    /* a device took it, or its front end handed it to the graph */
    ENGINE_MARK_ENTERED = 1,   /* a node */
    ENGINE_MARK_LEFT = 2,      /* a node: done there */
    ENGINE_MARK_WAIT = 3,      /* it is held up; `detail`: engine_wait */
    ENGINE_MARK_WAITED = 4,    /* no more */
    ENGINE_MARK_QUEUED = 5,    /* an operation for the kernel, with the context's backend */
    ENGINE_MARK_SUBMITTED = 6, /* with the kernel: about to make the system call */
    ENGINE_MARK_REAPED = 7,    /* the context has seen that the kernel is done */
    ENGINE_MARK_COMPLETED = 8, /* back from the graph */
};

enum engine_wait {
    ENGINE_WAIT_LOCK = 0,    /* for `meta` of the node */
    ENGINE_WAIT_OVERLAP = 1, /* for requests that it overlaps */
    ENGINE_WAIT_HELD = 2,    /* held back by choice: throttle, delay, fault */
    ENGINE_WAIT_CHANGE = 3,  /* for a change of the graph */
    ENGINE_WAIT_MEMORY = 4,  /* for bounce memory */
    ENGINE_WAIT_DEVICE = 5,  /* the time that a driver takes for itself, instead of a device */
};

typedef struct engine_trace_mark {
    uint64_t at_ns;   /* engine clock */
    uint32_t node;    /* engine_node_info.id; 0: none */
    uint16_t context; /* engine_context_info.id */
    uint8_t kind;     /* engine_mark */
    uint8_t detail;
} engine_trace_mark;

/* Marks stand in the order in which they were made, but for SUBMITTED and REAPED, which are added when the
 * operation is done: sort by time. A request that is served in parts has marks of all of them. */
typedef struct engine_trace {
    uint64_t request_id;
    uint64_t start_ns; /* open loop: the intended start */
    uint64_t end_ns;   /* its front end knows */
    uint64_t offset;   /* bytes */
    uint64_t length;
    uint32_t op;       /* engine_op */
    int32_t result;    /* 0 or -errno */
    uint32_t mark_count;
    uint32_t marks_lost; /* for which there was no room */
    uint32_t front_context; /* of its front end, engine_context_info.id */
    uint32_t reserved0;
    engine_trace_mark marks[64];
} engine_trace;

ENGINE_END_DECLS

#endif
