/* The load generator: closed and open loop, over a node or through a virtqueue. */
#ifndef ENGINE_WORKLOAD_H
#define ENGINE_WORKLOAD_H

#include <engine/queue.h>
#include <engine/trace.h>

ENGINE_BEGIN_DECLS

typedef struct engine_workload engine_workload_t;

enum engine_pattern { ENGINE_SEQUENTIAL = 0, ENGINE_RANDOM = 1 };
enum engine_workload_flags {
    ENGINE_WORKLOAD_NO_LATENCY = 1, /* no time stamps, no histograms */
    ENGINE_WORKLOAD_VERIFY = 2,     /* writes carry a pattern, reads of written blocks are checked */
    ENGINE_WORKLOAD_WRAP = 4,       /* replay: what lies beyond the end of the range wraps around */
};

/* One operation of a trace that is replayed. */
typedef struct engine_replay_op {
    uint64_t time_ns;         /* since the beginning; one that is less than those before it starts with them */
    uint64_t offset;          /* bytes */
    uint32_t length;          /* bytes; at most 1 GiB of a read or write */
    uint32_t op;              /* ENGINE_OP_READ, _WRITE, _FLUSH or _DISCARD */
} engine_replay_op;

typedef struct engine_workload_config {
    uint32_t size;
    uint32_t pattern;         /* engine_pattern */
    uint32_t read_percent;    /* 100: reads only */
    uint32_t block_size;      /* bytes */
    uint32_t iodepth;         /* requests in flight; open loop: the most */
    uint32_t flags;           /* engine_workload_flags */
    uint64_t count;           /* requests; 0: until runtime_ns; replay: until either, or its end */
    uint64_t runtime_ns;      /* 0: until count */
    uint64_t rate_iops;       /* 0: closed loop; else open loop, latency from the intended start */
    uint64_t seed;
    uint64_t offset;          /* of the range worked on, bytes */
    uint64_t length;          /* 0: to the end */
    uint32_t flush_every;     /* a flush after that many writes; 0: never */
    uint32_t trace_every;     /* one request in so many is traced; 0: none */
    engine_user_t *user;      /* either a user of a node … */
    engine_queue_t *queue;    /* … or a virtqueue */
    engine_context_t *context; /* where the generator runs; NULL: with its queue, or main */
    const engine_replay_op *ops; /* replay: in place of pattern, read_percent and block_size; NULL: none. It stays
                                   as it is until the workload is closed, and several may share it. */
    uint64_t op_count;
    uint64_t op_first;        /* this workload takes ops[op_first] … */
    uint64_t op_stride;       /* … and each that is so many further on; 0: 1 */
    uint64_t replay_speed_ppm; /* 1000000: at the recorded times, latency from the intended start; 2000000: twice as
                                  fast; 0: as fast as iodepth allows */
    uint64_t reserved[3];
} engine_workload_config;

typedef struct engine_workload_result {
    uint32_t size;
    uint32_t running;         /* 1: not over yet; the figures are a snapshot */
    int32_t error_errnum;     /* the first failed request */
    uint32_t open_loop;
    uint64_t error_offset;
    uint64_t errors;
    uint64_t verify_errors;
    uint64_t requests[2];     /* completed: reads, writes */
    uint64_t bytes[2];
    uint64_t flushes;
    uint64_t started_ns;      /* engine clock */
    uint64_t ended_ns;
    uint64_t late;            /* open loop: requests issued after their intended start because iodepth was full */
    uint64_t depth[8];        /* submissions seen at depth 1, 2, 4, 8, 16, 32, 64, >= 128 (bucket by floor) */
    engine_histogram latency_ns[2];
    uint64_t discards;
    uint64_t discard_bytes;
    engine_histogram flush_latency_ns;
    engine_histogram discard_latency_ns;
    uint64_t unissued;        /* open loop: requests that fell due, found iodepth full to the end, and were never
                                 issued; in latency_ns all the same, with their wait until then */
} engine_workload_result;

ENGINE_API int engine_workload_create(engine_t *engine, const engine_workload_config *config,
                                      engine_workload_t **out, engine_error *error);
ENGINE_API int engine_workload_start(engine_workload_t *workload, engine_error *error);
/* No new requests; those in flight complete. */
ENGINE_API int engine_workload_stop(engine_workload_t *workload);
/* 0 when it is over, -ETIMEDOUT after timeout_ns (UINT64_MAX: no limit), -EDEADLK on a context's thread. */
ENGINE_API int engine_workload_wait(engine_workload_t *workload, uint64_t timeout_ns);
ENGINE_API int engine_workload_get_result(engine_workload_t *workload, engine_workload_result *result);
/* Of one that is not running: its traces, the latest first, evenly drawn from beginning to end; of more than
 * a bounded number it keeps fewer, and `every` says how many requests there were for each. Writes at most
 * `capacity` of them, and to `count` how many there are. -EBUSY while it is running. */
ENGINE_API int engine_workload_get_traces(engine_workload_t *workload, engine_trace *traces, uint64_t capacity,
                                          uint64_t *count, uint32_t *every);
/* Stops, waits, frees. */
ENGINE_API int engine_workload_close(engine_workload_t *workload);

/* Adds `from` into `into`. */
ENGINE_API void engine_histogram_merge(engine_histogram *into, const engine_histogram *from);
/* The upper bound of the bucket that holds the given share (0.0 to 1.0) of all values; 0 when empty. */
ENGINE_API uint64_t engine_histogram_percentile(const engine_histogram *histogram, double share);

ENGINE_END_DECLS

#endif
