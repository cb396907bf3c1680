/* Rings of liburing as engine.uring sees them: each call below is one step of the interpreter, so that Ctrl-C
 * cannot leave a request half prepared. Not a part of the engine's core, nor of its C interface.
 *
 * Threading: one thread at a time is in a ring; the caller sees to it. What a request points to (buffer,
 * timespec) must stay until its completion was reaped. Functions return 0 or more, or a negative errno. */
#ifndef ENGINE_URING_RING_H
#define ENGINE_URING_RING_H

#include <stdint.h>

typedef struct uring_ring uring_ring_t;

enum uring_limits { URING_ENTRIES_MAX = 32768, URING_OPERATIONS_MAX = 256 };

/* Of uring_open: as the kernel numbers them. */
enum uring_flags { URING_COOP_TASKRUN = 0x100, URING_SINGLE_ISSUER = 0x1000, URING_DEFER_TASKRUN = 0x2000 };

/* Requests have numbers of the caller's from 1 to 2^63 - 1. URING_CANCEL is the number of what uring_cancel
 * sends; a number with bit 63 set is a message from another ring, and no request of this one. */
enum uring_numbers { URING_CANCEL = 0 };

typedef struct uring_info {
    uint32_t features;   /* IORING_FEAT_*, one bit each */
    uint32_t sq_entries; /* what the kernel made of the wish: a power of two */
    uint32_t cq_entries;
    int32_t fd;
} uring_info;

typedef struct uring_timespec {
    int64_t seconds;
    int64_t nanoseconds;
} uring_timespec;

/* cq_entries 0: twice the entries. -EOPNOTSUPP: the kernel's io_uring is too old (before 5.11). */
int uring_open(uint32_t entries, uint32_t cq_entries, uint32_t flags, uring_ring_t **out, uring_info *info);
/* Unmaps and closes. Requests in flight are not waited for: see to it before. */
void uring_free(uring_ring_t *ring);
/* supported[i] is 1 where the kernel knows operation i; returns how many were filled. */
int uring_probe(uring_ring_t *ring, uint8_t *supported, uint32_t capacity);

uint32_t uring_prepared(const uring_ring_t *ring);  /* not yet submitted */
uint32_t uring_in_flight(const uring_ring_t *ring); /* submitted, and not yet reaped */
uint32_t uring_ready(const uring_ring_t *ring);     /* completions to be reaped */

/* Preparing: -EBUSY where the submission queue is full, -ENOSPC where there would be no room for one more
 * completion; nothing is prepared then. */
int uring_nop(uring_ring_t *ring, uint64_t number);
int uring_read(uring_ring_t *ring, uint64_t number, int fd, void *data, uint32_t bytes, uint64_t offset);
int uring_write(uring_ring_t *ring, uint64_t number, int fd, const void *data, uint32_t bytes, uint64_t offset);
int uring_fsync(uring_ring_t *ring, uint64_t number, int fd, int data_only);
int uring_timeout(uring_ring_t *ring, uint64_t number, const uring_timespec *after, uint32_t count);
int uring_poll(uring_ring_t *ring, uint64_t number, int fd, uint32_t events);
int uring_message(uring_ring_t *ring, uint64_t number, int target, uint32_t value, uint64_t data);
/* Of the request with that number; -EBUSY alone: its completion always has room. */
int uring_cancel(uring_ring_t *ring, uint64_t number);
/* What was prepared and not yet submitted becomes no-ops, with their numbers. */
void uring_disarm(uring_ring_t *ring);

/* How many the kernel took. */
int uring_submit(uring_ring_t *ring);
/* Blocks until `count` completions are ready: 0, or -ETIME, or -EINTR for signal handlers to run. count 0: only
 * lets the kernel deliver. `after` NULL: no limit. */
int uring_wait(uring_ring_t *ring, uint32_t count, const uring_timespec *after);
/* Both in one system call. 0 or more where it waited; fewer may be ready all the same. */
int uring_submit_and_wait(uring_ring_t *ring, uint32_t count, const uring_timespec *after);
/* Copies completions out, oldest first; returns how many. */
uint32_t uring_reap(uring_ring_t *ring, uint64_t *numbers, int32_t *results, uint32_t capacity);

#endif
