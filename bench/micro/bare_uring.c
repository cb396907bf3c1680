/* The mark for reads of a file: the shortest liburing loop that keeps `depth` random reads in flight. Nothing
 * of the engine is in it: no graph, no statistics, no time stamps. One thread, no locks. Prints one JSON
 * object.
 *
 * usage: bare_uring FILE DEPTH COUNT CPU SEED [direct] [spread=N]      4 KiB reads; CPU -1: not pinned;
 * spread: they go to N buffers in turn, not to one for each slot */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 4096, DEPTH_MAX = 1024 };

struct loop {
    struct io_uring ring;
    int fd;
    unsigned depth;
    char* buffers;
    uint64_t buffer_count; /* more than depth: used in turn */
    uint64_t next_buffer;
    uint64_t blocks;
    uint64_t random;
};

static void fail(const char* what, int error) {
    fprintf(stderr, "bare_uring: %s: %s\n", what, strerror(error));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* wyrand, scaled to the number of blocks by a multiplication: as the engine's load generator chooses offsets.
 */
static uint64_t next_offset(struct loop* loop) {
    loop->random += 0xa0761d6478bd642fu;
    unsigned __int128 product = (unsigned __int128)loop->random * (loop->random ^ 0xe7037ed1a0b428dbu);
    uint64_t value = (uint64_t)(product >> 64) ^ (uint64_t)product;
    return (uint64_t)(((unsigned __int128)value * loop->blocks) >> 64) * BLOCK_BYTES;
}

static void prepare(struct loop* loop, uint64_t slot) {
    struct io_uring_sqe* sqe = io_uring_get_sqe(&loop->ring);
    uint64_t buffer = slot;
    if (loop->buffer_count > loop->depth) {
        buffer = loop->next_buffer;
        loop->next_buffer = buffer + 1 == loop->buffer_count ? 0 : buffer + 1;
    }
    io_uring_prep_read(sqe, loop->fd, loop->buffers + buffer * BLOCK_BYTES, BLOCK_BYTES, next_offset(loop));
    io_uring_sqe_set_data64(sqe, slot);
}

static void open_file(struct loop* loop, const char* path, int direct) {
    struct stat st;
    loop->fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (loop->fd < 0 || fstat(loop->fd, &st) != 0) fail(path, errno);
    loop->blocks = (uint64_t)st.st_size / BLOCK_BYTES;
    if (loop->blocks == 0) fail(path, EINVAL);
    size_t bytes = (size_t)loop->buffer_count * BLOCK_BYTES;
    if (posix_memalign((void**)&loop->buffers, BLOCK_BYTES, bytes) != 0) fail("buffers", ENOMEM);
    memset(loop->buffers, 1, bytes);
}

/* Returns the number of io_uring_enter calls. */
static uint64_t drive(struct loop* loop, uint64_t count) {
    uint64_t issued = 0, done = 0, enters = 0;
    for (; issued < loop->depth && issued < count; issued++) prepare(loop, issued);
    while (done < count) {
        int result = io_uring_submit_and_wait(&loop->ring, 1);
        if (result < 0 && result != -EINTR) fail("io_uring_enter", -result);
        enters++;
        struct io_uring_cqe* cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&loop->ring, head, cqe) {
            if (cqe->res != BLOCK_BYTES) fail("read", cqe->res < 0 ? -cqe->res : EIO);
            if (issued < count) {
                prepare(loop, cqe->user_data);
                issued++;
            }
            seen++;
        }
        io_uring_cq_advance(&loop->ring, seen);
        done += seen;
    }
    return enters;
}

int main(int argc, char** argv) {
    struct loop loop = {.depth = argc < 6 ? 0 : (unsigned)atoi(argv[2])};
    loop.buffer_count = loop.depth;
    int direct = 0, wrong = argc < 6;
    for (int i = 6; i < argc; i++) {
        if (strcmp(argv[i], "direct") == 0) {
            direct = 1;
        } else if (strncmp(argv[i], "spread=", 7) == 0) {
            uint64_t spread = strtoull(argv[i] + 7, NULL, 10);
            if (spread > loop.depth) loop.buffer_count = spread;
        } else {
            wrong = 1;
        }
    }
    if (wrong) {
        fprintf(stderr, "usage: bare_uring FILE DEPTH COUNT CPU SEED [direct] [spread=N]\n");
        return 2;
    }
    uint64_t count = strtoull(argv[3], NULL, 10);
    int cpu = atoi(argv[4]);
    loop.random = strtoull(argv[5], NULL, 10);
    if (loop.depth < 1 || loop.depth > DEPTH_MAX || count == 0) fail("DEPTH or COUNT", EINVAL);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0) fail("CPU", errno);
    }
    open_file(&loop, argv[1], direct);
    int result =
        io_uring_queue_init(loop.depth, &loop.ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    if (result < 0) fail("io_uring_setup", -result);
    uint64_t start = now_ns();
    uint64_t enters = drive(&loop, count);
    double seconds = (double)(now_ns() - start) / 1e9;
    io_uring_queue_exit(&loop.ring);
    close(loop.fd);
    free(loop.buffers);
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"iops\": %.1f, \"enters\": %llu}\n",
           (unsigned long long)count, seconds, (double)count / seconds, (unsigned long long)enters);
    return 0;
}
