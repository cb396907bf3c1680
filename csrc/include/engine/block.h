/* Block nodes: the graph, its drivers and their options, users with permissions, and blocking I/O. */
#ifndef ENGINE_BLOCK_H
#define ENGINE_BLOCK_H

#include <engine/aio.h>

ENGINE_BEGIN_DECLS

typedef struct engine_node engine_node_t;
typedef struct engine_user engine_user_t;

enum engine_op {
    ENGINE_OP_READ = 0,
    ENGINE_OP_WRITE = 1,
    ENGINE_OP_FLUSH = 2,
    ENGINE_OP_DISCARD = 3,
    ENGINE_OP_WRITE_ZEROES = 4,
    ENGINE_OP_RESIZE = 5,       /* offset: the new size in bytes */
    ENGINE_OP_BLOCK_STATUS = 6,
    ENGINE_OP_COPY_RANGE = 7,   /* engine_user_copy_range() */
    ENGINE_OP_COUNT = 8,
};

enum engine_request_flags {
    ENGINE_FUA = 1,         /* write: durable before it completes */
    ENGINE_MAY_UNMAP = 2,   /* write zeroes: may deallocate */
    ENGINE_NO_FALLBACK = 4, /* write zeroes: fail rather than write a buffer of zeroes */
};

/* Permissions: what a user does, and what it lets others do. Bits as in QEMU's BLK_PERM_*. */
enum engine_permission {
    ENGINE_PERM_CONSISTENT_READ = 1,
    ENGINE_PERM_WRITE = 2,
    ENGINE_PERM_WRITE_UNCHANGED = 4,
    ENGINE_PERM_RESIZE = 8,
    ENGINE_PERM_ALL = 15,
};

/* One option: a dotted key and its value as text ("file.filename", "a.img"; sizes "4k"; booleans "on"/"off"). */
typedef struct engine_option {
    const char *key;
    const char *value;
} engine_option;

typedef struct engine_option_info {
    uint32_t size;
    uint32_t required;
    const char *key;
    const char *type;          /* "string" "bool" "int" "size" "enum" "time" "node" */
    const char *default_value; /* NULL: none */
    const char *values;        /* enum: "a|b|c"; int, size: "min..max"; else NULL */
    const char *text;
} engine_option_info;

typedef struct engine_driver_info {
    uint32_t size;
    uint32_t option_count;
    const char *name;
    const char *layer;         /* "protocol" "format" "filter" */
    const char *text;
} engine_driver_info;

/* The driver table is the one source for options. Drivers are in order of name. */
ENGINE_API uint32_t engine_driver_count(void);
ENGINE_API int engine_driver_get(uint32_t index, engine_driver_info *info);
ENGINE_API int engine_driver_get_option(uint32_t driver, uint32_t index, engine_option_info *info);
/* The role of a child that nodes of this driver have, under which its options stand ("file"); NULL: no more. */
ENGINE_API const char *engine_driver_get_role(uint32_t driver, uint32_t index);

typedef struct engine_node_info {
    uint32_t size;
    uint32_t read_only;
    char name[64];
    char driver[32];
    char filename[1024];        /* protocols with a file; else empty */
    uint64_t bytes;             /* size of the disk */
    uint32_t request_alignment; /* offsets and lengths that need no bounce buffer, bytes */
    uint32_t memory_alignment;  /* buffers that need none, bytes */
    uint64_t max_transfer;      /* of the driver, bytes: longer requests are split; 0: none */
    uint32_t child_count;
    uint32_t user_count;
    uint32_t ops;               /* bit 1 << engine_op for each operation that works without emulation */
    uint32_t holes;             /* 1: block status of this driver tells data from holes */
    uint64_t id;                /* of the node in traces */
} engine_node_info;

typedef struct engine_op_stats {
    uint64_t requests;
    uint64_t bytes;
    uint64_t errors;
    uint64_t reserved;
} engine_op_stats;

typedef struct engine_node_stats {
    uint32_t size;
    uint32_t channels;
    uint64_t in_flight;
    engine_op_stats op[8]; /* by engine_op */
} engine_node_stats;

ENGINE_API int engine_node_open(engine_t *engine, const engine_option *options, size_t count,
                                engine_node_t **out, engine_error *error);
/* EBUSY, naming the users, while any is attached. */
ENGINE_API int engine_node_close(engine_node_t *node, engine_error *error);
ENGINE_API engine_node_t *engine_node_find(engine_t *engine, const char *name);
ENGINE_API int engine_node_get_info(engine_node_t *node, engine_node_info *info);
ENGINE_API engine_node_t *engine_node_get_child(engine_node_t *node, uint32_t index, char *role, size_t role_size);
/* Changes under load. Requests that enter above the place of the change wait, those inside leave, the change is
 * made, and those that waited go on through it. `timeout_ns` (0: 30 s) bounds the wait: -ETIMEDOUT names the
 * node, context and request that did not leave, and nothing was changed.
 *
 * Opens a filter (its layer is "filter"; `file` is not to be given) above a node: all users of the node, nodes
 * above included, use the filter from then on. */
ENGINE_API int engine_node_insert_filter(engine_node_t *below, const engine_option *options, size_t count,
                                         uint64_t timeout_ns, engine_node_t **out, engine_error *error);
/* All users of a filter use what is below it from then on; closes the filter. `freed` (may be NULL): the node
 * below, where it was opened along with the filter and now is the caller's to close; else NULL. */
ENGINE_API int engine_node_remove_filter(engine_node_t *filter, uint64_t timeout_ns, engine_node_t **freed,
                                         engine_error *error);
/* All users of one node use another from then on, which is not smaller. Both stay open, and the one that was opened
 * along with a node above it is the caller's to close from then on. Where `to` is above `from`, an overlay say, its
 * own use of `from` stays. */
ENGINE_API int engine_node_replace(engine_node_t *from, engine_node_t *to, uint64_t timeout_ns,
                                   engine_error *error);

/* Sum over its channels; `context` NULL: all of them. */
ENGINE_API int engine_node_get_stats(engine_node_t *node, engine_context_t *context, engine_node_stats *stats);

/* A user of a node: what it does and what it shares, by name, so that a conflict can name both sides. */
ENGINE_API int engine_user_create(engine_node_t *node, const char *name, uint32_t permissions, uint32_t shared,
                                  engine_user_t **out, engine_error *error);
/* EBUSY while requests, workloads or disks use it. */
ENGINE_API int engine_user_close(engine_user_t *user, engine_error *error);

/* How often changes of the graph made the requests of a user wait, over all contexts. */
typedef struct engine_pause_stats {
    uint32_t size;
    uint32_t reserved;
    uint64_t count;
    uint64_t total_ns;
    uint64_t longest_ns;
} engine_pause_stats;
ENGINE_API int engine_user_get_pauses(engine_user_t *user, engine_pause_stats *stats);
/* New limits for a throttle node and all that share its group, at once: options of the driver that start with
 * "limits."; what is not given is unlimited. Requests that wait are looked at again within 100 ms. */
ENGINE_API int engine_throttle_set(engine_node_t *node, const engine_option *options, size_t count,
                                   engine_error *error);
/* Lets all go that a fault node holds by `pause`, on every context. Returns how many requests that were, or -errno;
 * -EDEADLK on a context's own thread. What a fault node holds also goes on, as if resumed, where the node must come
 * to rest (a filter comes or goes at it, above or below, it is replaced or resized), and where a queue, workload
 * or copy that waits for it is closed. A blocking call waits until one of these. */
ENGINE_API int engine_fault_resume(engine_node_t *node, engine_error *error);

typedef struct engine_iovec {
    void *base;
    size_t length;
} engine_iovec;

/* One request, and wait for it. `context` NULL: main. Returns bytes (reads, writes) or 0, or -errno. */
ENGINE_API int64_t engine_user_io(engine_user_t *user, engine_context_t *context, uint32_t op,
                                  const engine_iovec *iov, uint32_t iov_count, uint64_t offset, uint64_t bytes,
                                  uint32_t flags, engine_error *error);

enum engine_extent_flags { ENGINE_EXTENT_DATA = 1, ENGINE_EXTENT_ZERO = 2, ENGINE_EXTENT_UNWRITTEN = 4 };
typedef struct engine_extent {
    uint64_t offset;
    uint64_t length;
    uint32_t flags; /* engine_extent_flags */
    uint32_t reserved;
} engine_extent;
/* Block status from `offset`, at most `bytes`: fills up to `capacity` extents, returns how many, or -errno. */
ENGINE_API int64_t engine_user_block_status(engine_user_t *user, engine_context_t *context, uint64_t offset,
                                            uint64_t bytes, engine_extent *extents, uint32_t capacity,
                                            engine_error *error);

/* Copies a range from what one user may read to what another may write, and waits for it; both on `context`
 * (NULL: main). Where both lie in files as they are the kernel copies (copy_file_range: file systems that can let
 * the files share the blocks), else it is read and written, 1 MiB at a time. Ranges of one node may overlap. Returns
 * `bytes`, or -errno: then how much was copied is not known. */
ENGINE_API int64_t engine_user_copy_range(engine_user_t *source, uint64_t source_offset, engine_user_t *target,
                                          uint64_t target_offset, uint64_t bytes, engine_context_t *context,
                                          engine_error *error);

ENGINE_END_DECLS

#endif
