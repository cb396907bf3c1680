/* Rings of liburing for engine.uring. One thread at a time is in a ring; nothing here has a lock. */
#include "uring/ring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

_Static_assert(URING_COOP_TASKRUN == IORING_SETUP_COOP_TASKRUN, "numbered as the kernel does");
_Static_assert(URING_SINGLE_ISSUER == IORING_SETUP_SINGLE_ISSUER, "numbered as the kernel does");
_Static_assert(URING_DEFER_TASKRUN == IORING_SETUP_DEFER_TASKRUN, "numbered as the kernel does");
_Static_assert(sizeof(uring_timespec) == sizeof(struct __kernel_timespec), "handed to the kernel as it is");

struct uring_ring {
    struct io_uring ring;
    uint32_t cq_entries;
    uint32_t outstanding; /* prepared or in flight: each posts one completion here */
};

static struct __kernel_timespec *kernel_time(const uring_timespec *time) {
    return (struct __kernel_timespec *)time; /* liburing does not write to it */
}

/* ---- life ---- */

int uring_open(uint32_t entries, uint32_t cq_entries, uint32_t flags, uring_ring_t **out, uring_info *info) {
    uring_ring_t *made = calloc(1, sizeof *made);
    if (made == NULL) return -ENOMEM;
    struct io_uring_params params = {.flags = flags | (cq_entries ? IORING_SETUP_CQSIZE : 0),
                                     .cq_entries = cq_entries};
    int result = io_uring_queue_init_params(entries, &made->ring, &params);
    if (result < 0) {
        free(made);
        return result;
    }
    /* Without these a time-out would take an entry of the submission queue, and completions could be lost. */
    uint32_t needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
    if ((params.features & needed) != needed) {
        uring_free(made);
        return -EOPNOTSUPP;
    }
    made->cq_entries = params.cq_entries;
    info->features = params.features;
    info->sq_entries = params.sq_entries;
    info->cq_entries = params.cq_entries;
    info->fd = made->ring.ring_fd;
    *out = made;
    return 0;
}

void uring_free(uring_ring_t *ring) {
    io_uring_queue_exit(&ring->ring);
    free(ring);
}

int uring_probe(uring_ring_t *ring, uint8_t *supported, uint32_t capacity) {
    struct io_uring_probe *probe = io_uring_get_probe_ring(&ring->ring);
    if (probe == NULL) return -EOPNOTSUPP;
    uint32_t count = (uint32_t)probe->last_op + 1;
    if (count > capacity) count = capacity;
    for (uint32_t i = 0; i < count; i++) supported[i] = i < probe->ops_len && (probe->ops[i].flags & IO_URING_OP_SUPPORTED);
    io_uring_free_probe(probe);
    return (int)count;
}

/* ---- counts ---- */

uint32_t uring_prepared(const uring_ring_t *ring) { return io_uring_sq_ready(&ring->ring); }

uint32_t uring_in_flight(const uring_ring_t *ring) { return ring->outstanding - uring_prepared(ring); }

uint32_t uring_ready(const uring_ring_t *ring) { return io_uring_cq_ready(&ring->ring); }

/* ---- preparing ---- */

static int room(const uring_ring_t *ring) {
    if (io_uring_sq_space_left(&ring->ring) == 0) return -EBUSY;
    return ring->outstanding < ring->cq_entries ? 0 : -ENOSPC;
}

/* There is room. The number is set by `done`, because preparing leaves it as it was. */
static struct io_uring_sqe *next_entry(uring_ring_t *ring) { return io_uring_get_sqe(&ring->ring); }

static int done(uring_ring_t *ring, struct io_uring_sqe *sqe, uint64_t number) {
    io_uring_sqe_set_data64(sqe, number);
    ring->outstanding++;
    return 0;
}

int uring_nop(uring_ring_t *ring, uint64_t number) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_nop(sqe);
    return done(ring, sqe, number);
}

int uring_read(uring_ring_t *ring, uint64_t number, int fd, void *data, uint32_t bytes, uint64_t offset) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_read(sqe, fd, data, bytes, offset);
    return done(ring, sqe, number);
}

int uring_write(uring_ring_t *ring, uint64_t number, int fd, const void *data, uint32_t bytes, uint64_t offset) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_write(sqe, fd, data, bytes, offset);
    return done(ring, sqe, number);
}

int uring_fsync(uring_ring_t *ring, uint64_t number, int fd, int data_only) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_fsync(sqe, fd, data_only ? IORING_FSYNC_DATASYNC : 0);
    return done(ring, sqe, number);
}

int uring_timeout(uring_ring_t *ring, uint64_t number, const uring_timespec *after, uint32_t count) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_timeout(sqe, kernel_time(after), count, 0);
    return done(ring, sqe, number);
}

int uring_poll(uring_ring_t *ring, uint64_t number, int fd, uint32_t events) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_poll_add(sqe, fd, events);
    return done(ring, sqe, number);
}

int uring_message(uring_ring_t *ring, uint64_t number, int target, uint32_t value, uint64_t data) {
    int result = room(ring);
    if (result < 0) return result;
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_msg_ring(sqe, target, value, data | UINT64_C(1) << 63, 0);
    return done(ring, sqe, number);
}

int uring_cancel(uring_ring_t *ring, uint64_t number) {
    if (room(ring) == -EBUSY) return -EBUSY; /* the kernel keeps completions that overflow (NODROP) */
    struct io_uring_sqe *sqe = next_entry(ring);
    io_uring_prep_cancel64(sqe, number, 0);
    return done(ring, sqe, URING_CANCEL);
}

void uring_disarm(uring_ring_t *ring) {
    struct io_uring_sq *queue = &ring->ring.sq;
    uint32_t mask = queue->ring_entries - 1;
    for (uint32_t i = queue->sqe_tail - uring_prepared(ring); i != queue->sqe_tail; i++) {
        struct io_uring_sqe *sqe = &queue->sqes[i & mask];
        uint64_t number = sqe->user_data;
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data64(sqe, number);
    }
}

/* ---- submitting and reaping ---- */

int uring_submit(uring_ring_t *ring) { return io_uring_submit(&ring->ring); }

int uring_wait(uring_ring_t *ring, uint32_t count, const uring_timespec *after) {
    if (count == 0) {
        int result = io_uring_get_events(&ring->ring);
        return result < 0 ? result : 0;
    }
    struct io_uring_cqe *cqe;
    return io_uring_wait_cqes(&ring->ring, &cqe, count, kernel_time(after), NULL);
}

int uring_submit_and_wait(uring_ring_t *ring, uint32_t count, const uring_timespec *after) {
    if (after == NULL) return io_uring_submit_and_wait(&ring->ring, count);
    struct io_uring_cqe *cqe;
    return io_uring_submit_and_wait_timeout(&ring->ring, &cqe, count, kernel_time(after), NULL);
}

uint32_t uring_reap(uring_ring_t *ring, uint64_t *numbers, int32_t *results, uint32_t capacity) {
    struct io_uring_cqe *cqe;
    unsigned head;
    uint32_t seen = 0;
    io_uring_for_each_cqe(&ring->ring, head, cqe) {
        if (seen == capacity) break;
        numbers[seen] = cqe->user_data;
        results[seen] = cqe->res;
        if ((cqe->user_data >> 63) == 0) ring->outstanding--;
        seen++;
    }
    io_uring_cq_advance(&ring->ring, seen);
    return seen;
}
