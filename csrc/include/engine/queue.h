/* virtio-blk devices and their virtqueues: the split ring of VIRTIO 1.2, section 2.7. */
#ifndef ENGINE_QUEUE_H
#define ENGINE_QUEUE_H

#include <engine/block.h>

ENGINE_BEGIN_DECLS

typedef struct engine_disk engine_disk_t;   /* a virtio-blk device on a node */
typedef struct engine_queue engine_queue_t; /* one virtqueue of it, served by one context */

typedef struct engine_disk_config {
    uint32_t size;
    uint32_t queue_count;
    uint32_t queue_size;      /* descriptors; a power of two, at most 32768; 0: 256 */
    uint32_t read_only;
    uint32_t write_cache;     /* 1: writeback, FLUSH is offered; 0: writethrough */
    uint32_t event_index;     /* 1: VIRTIO_F_EVENT_IDX */
    uint32_t indirect;        /* 1: VIRTIO_F_INDIRECT_DESC */
    uint32_t polled;          /* 1: the context looks at the rings every turn and never asks for kicks */
    const char *name;         /* of the user on the node */
    const char *serial;       /* at most 20 bytes (VIRTIO_BLK_T_GET_ID) */
    engine_context_t *const *contexts; /* queue i is served by contexts[i]; queue_count of them */
    uint64_t reserved[8];
} engine_disk_config;

typedef struct engine_queue_stats {
    uint32_t size;
    uint32_t broken;          /* 1: the driver broke the rules; see error */
    uint64_t requests;        /* chains taken */
    uint64_t completed;
    uint64_t kicks;           /* notifications received */
    uint64_t calls;           /* notifications sent */
    uint64_t polls;           /* looks at the ring without a kick */
    uint64_t batches;         /* looks that found something */
    uint64_t in_flight;
    engine_error error;       /* of a broken queue */
    engine_op_stats op[8];    /* by engine_op */
} engine_queue_stats;

ENGINE_API int engine_disk_create(engine_node_t *node, const engine_disk_config *config, engine_disk_t **out,
                                  engine_error *error);
/* Stops the queues, waits for what is in flight, leaves the node alone. EBUSY while workloads drive them. */
ENGINE_API int engine_disk_close(engine_disk_t *disk, engine_error *error);
ENGINE_API engine_queue_t *engine_disk_get_queue(engine_disk_t *disk, uint32_t index);
ENGINE_API int engine_queue_get_stats(engine_queue_t *queue, engine_queue_stats *stats);

/* One request through the ring by an in-process driver on the calling thread, and wait for it.
 * READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES; offset and bytes in multiples of 512. Returns 0 or -errno. */
ENGINE_API int engine_queue_io(engine_queue_t *queue, uint32_t op, void *data, uint64_t offset, uint64_t bytes,
                               uint32_t flags, engine_error *error);
/* VIRTIO_BLK_T_GET_ID: fills 20 bytes. */
ENGINE_API int engine_queue_get_id(engine_queue_t *queue, char id[20], engine_error *error);

ENGINE_END_DECLS

#endif
