/* Engines and AioContexts: event loops with bottom halves, timers and fd handlers, pinned to CPUs.
 *
 * Threading: every function here may be called from any thread unless it says "home only". Blocking calls
 * made on a context's own thread are refused with EDEADLK; any call after fork() answers with ENGINE_ERROR_CLOSED. */
#ifndef ENGINE_AIO_H
#define ENGINE_AIO_H

#include <engine/base.h>

ENGINE_BEGIN_DECLS

typedef struct engine_instance engine_t;
typedef struct engine_context engine_context_t;
typedef struct engine_bh engine_bh_t;
typedef struct engine_timer engine_timer_t;
typedef struct engine_fd_handler engine_fd_handler_t;

enum engine_locking { ENGINE_LOCKING_PER_NODE = 0, ENGINE_LOCKING_GLOBAL = 1 };
enum engine_backend_kind {
    ENGINE_BACKEND_AUTO = 0,
    ENGINE_BACKEND_IO_URING = 1,
    ENGINE_BACKEND_THREADS = 2,
    ENGINE_BACKEND_SIM = 3, /* what a simulated context says of itself; only a simulator makes one */
};
enum engine_limits { ENGINE_MAX_CPUS = 1024, ENGINE_CPU_WORDS = 16, ENGINE_HISTOGRAM_BUCKETS = 1920 };

typedef struct engine_config {
    uint32_t size;
    uint32_t locking;      /* engine_locking */
    uint32_t lock_profile; /* 1: wait and hold histograms for every lock */
    uint32_t backend;      /* engine_backend_kind of the context main */
    /* What all its nodes and queues may use together; 0: the default. */
    uint64_t max_bounce_bytes; /* of buffers for requests that do not suit a driver (64 MiB); at the limit such
                                * requests take turns at a buffer that is set aside */
    uint64_t max_requests;     /* in completion queues, not yet drained (1 Mi); at the limit submitting fails
                                * with EAGAIN */
    uint64_t max_descriptors;  /* files that nodes keep open (no limit); at the limit opening fails with EMFILE */
    uint64_t reserved[5];
} engine_config;

/* Log-linear histogram of nanoseconds: 32 linear buckets for each power of two.
 * Bucket i < 64 counts the value i itself. For i >= 64, with e = i / 32 - 1 and m = i % 32, it counts the
 * values from (32 + m) << e up to, and not including, (33 + m) << e. */
typedef struct engine_histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t min; /* UINT64_MAX when empty */
    uint64_t max;
    uint64_t buckets[1920];
} engine_histogram;

typedef struct engine_context_config {
    uint32_t size;
    uint32_t backend;      /* engine_backend_kind */
    const char *name;      /* at most 31 bytes, unique in the engine */
    const int32_t *cpus;   /* CPUs to pin to; NULL: not pinned */
    uint32_t cpu_count;
    int32_t sched_policy;  /* as in sched(7): 0 other, 1 fifo, 2 round-robin */
    int32_t sched_priority;
    uint32_t queue_depth;  /* entries of the submission ring; 0: 256 */
    int64_t poll_max_ns;   /* longest busy poll before sleeping; 0 never; -1: default, 32768 */
    uint32_t caller_driven; /* 1: no thread of its own; engine_context_run_once() drives it. No CPUs, no policy */
    uint32_t reserved0;
    uint64_t reserved[7];
} engine_context_config;

/* What is so, read back from the kernel; never what was asked. */
typedef struct engine_context_info {
    uint32_t size;
    uint32_t backend;                  /* ENGINE_BACKEND_IO_URING, _THREADS or _SIM */
    char name[32];
    char backend_reason[160];          /* why this backend: features, or the reason for a fallback */
    uint64_t cpus[16];                 /* effective affinity of the thread, one bit a CPU */
    uint64_t worker_cpus[16];          /* the same of its I/O workers; all zero: none is running */
    uint32_t worker_count;
    int32_t numa_node;                 /* of the CPU it last ran on; -1 unknown */
    int32_t last_cpu;
    int32_t tid;
    int64_t poll_max_ns;
    uint64_t voluntary_switches;
    uint64_t involuntary_switches;
    uint64_t cpu_user_ns;              /* of the thread alone */
    uint64_t cpu_system_ns;
    uint32_t id;                       /* of the context in traces */
    uint32_t reserved0;
} engine_context_info;

typedef struct engine_context_stats {
    uint32_t size;
    uint32_t reserved0;
    uint64_t turns;             /* of the loop */
    uint64_t bottom_halves;     /* run */
    uint64_t messages;          /* taken from the inbox */
    uint64_t ready_items;       /* run from the ready queue */
    uint64_t timers;            /* fired */
    uint64_t fd_events;
    uint64_t wakeups;           /* times it was woken from sleep by another thread */
    uint64_t sleeps;
    uint64_t system_calls;      /* io_uring_enter, epoll_wait, preadv2 …; of the loop's own making */
    uint64_t submitted;         /* operations handed to the kernel or a worker */
    uint64_t completed;
    uint64_t submit_batches;
    uint64_t offloaded;         /* operations run by the offload pool */
    uint64_t poll_attempts;
    uint64_t poll_successes;
    uint64_t poll_ns;           /* spent busy polling */
    uint64_t sleep_ns;          /* spent asleep in the kernel */
    uint64_t poll_current_ns;   /* the adaptive budget now */
    uint64_t lock_acquisitions; /* of the engine's mutex, global mode only */
    uint64_t lock_wait_ns;
    uint64_t lock_hold_ns;
    uint64_t reserved[8];
} engine_context_stats;

ENGINE_API int engine_create(const engine_config *config, engine_t **out, engine_error *error);
/* Closes what is left, in order; blocks until every thread has ended. */
ENGINE_API int engine_close(engine_t *engine, engine_error *error);

/* The context `main` exists from the start, is not pinned, and lives until the engine closes. */
ENGINE_API int engine_context_create(engine_t *engine, const engine_context_config *config,
                                     engine_context_t **out, engine_error *error);
ENGINE_API engine_context_t *engine_context_find(engine_t *engine, const char *name);
/* EBUSY, naming the users, while queues, workloads or other users are attached. */
ENGINE_API int engine_context_close(engine_context_t *context, engine_error *error);
ENGINE_API int engine_context_get_info(engine_context_t *context, engine_context_info *info, engine_error *error);
ENGINE_API int engine_context_get_stats(engine_context_t *context, engine_context_stats *stats);
ENGINE_API int engine_context_set_poll(engine_context_t *context, int64_t poll_max_ns);
/* Returns when the callbacks of this context that were running or accepted at the call are over, those of bottom
 * halves and timers that were deleted before it included: then what their `opaque` points to may be freed.
 * -EDEADLK on a context's own thread; -ESHUTDOWN for a context that has been closed: it runs nothing any more. */
ENGINE_API int engine_context_barrier(engine_context_t *context);

/* Caller-driven contexts, for a foreign event loop: watch the descriptor for reading, and call run_once with
 * time-out 0 when it is readable. The first run_once fixes the thread (another may follow once that has ended);
 * callbacks run inside it. A blocking call on that thread drives its contexts while it waits. With io_uring a
 * completion may end an epoll_wait() of that thread with EINTR, as a signal would: call it again. */

/* Waits for work, at most timeout_ns (0: not at all; negative: without limit), and runs what there is. 1: it ran
 * something; 0: nothing came, or a signal did; EBUSY on another thread, EDEADLK inside a callback. */
ENGINE_API int engine_context_run_once(engine_context_t *context, int64_t timeout_ns, engine_error *error);
/* Readable when run_once has something to do, due timers included, and until the first run_once. It is the
 * context's and lives as long as the engine: take it out of your loop before closing either. */
ENGINE_API int engine_context_fileno(engine_context_t *context);
/* Makes a run_once that waits, or the next one, return. Any thread. */
ENGINE_API int engine_context_wake(engine_context_t *context);

/* Bottom halves. 0: the callback will run, exactly once for each time it was not already scheduled;
 * -ESHUTDOWN: it never will. Callbacks run on the context's thread and must not block. */
typedef void engine_bh_fn(void *opaque);
ENGINE_API engine_bh_t *engine_bh_new(engine_context_t *context, engine_bh_fn *fn, void *opaque);
ENGINE_API int engine_bh_schedule(engine_bh_t *bh);
/* Afterwards a schedule that came before does not run, unless it is running already. */
ENGINE_API void engine_bh_cancel(engine_bh_t *bh);
ENGINE_API void engine_bh_delete(engine_bh_t *bh);
ENGINE_API int engine_schedule_oneshot(engine_context_t *context, engine_bh_fn *fn, void *opaque);

/* Timers, on the engine's clock. Arming again moves the deadline. A cancel from elsewhere is a message: the
 * callback `done` runs on the context's thread exactly once for each arming, with fired = 1 or 0 (cancelled). */
typedef void engine_timer_fn(void *opaque, int fired);
ENGINE_API engine_timer_t *engine_timer_new(engine_context_t *context, engine_timer_fn *done, void *opaque);
ENGINE_API int engine_timer_arm(engine_timer_t *timer, uint64_t deadline_ns);
ENGINE_API int engine_timer_cancel(engine_timer_t *timer);
ENGINE_API void engine_timer_delete(engine_timer_t *timer);

/* Level-triggered. `poll`, if given, is called while the context busy-polls: non-zero when there is work. */
typedef int engine_poll_fn(void *opaque);
ENGINE_API int engine_fd_handler_new(engine_context_t *context, int fd, engine_bh_fn *on_read,
                                     engine_bh_fn *on_write, engine_poll_fn *poll, void *opaque,
                                     engine_fd_handler_t **out, engine_error *error);
/* Blocks until no callback of it can run any more. On the context's own thread it does so at once. */
ENGINE_API void engine_fd_handler_delete(engine_fd_handler_t *handler);

/* The locks of the engine, for reports. */
typedef struct engine_lock_info {
    uint32_t size;
    uint32_t rank;           /* 0 global, 1 edges, 2 meta, 3 reqs */
    char owner[64];          /* node name; "engine" for the global mutex */
    char lock[16];           /* "global", "edges", "meta", "reqs" */
    uint64_t acquisitions;
    uint64_t contended;
    engine_histogram wait_ns;  /* only with lock_profile */
    engine_histogram hold_ns;
} engine_lock_info;
ENGINE_API uint32_t engine_lock_count(engine_t *engine);
ENGINE_API int engine_lock_get(engine_t *engine, uint32_t index, engine_lock_info *info);

/* Probing, for `engine doctor`: 0 where the backend works here; else -errno, with the reason in error. */
ENGINE_API int engine_probe_backend(uint32_t backend, char *features, size_t features_size, engine_error *error);

ENGINE_END_DECLS

#endif
