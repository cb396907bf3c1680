/* The engine inside a C program: one context, a null node and a raw image, blocking I/O, statistics.
 *
 * The calls block and may come from any thread but the engine's own; here there is one thread, and no lock.
 *
 * cc -std=c11 examples/embed.c $(python -m engine --cflags --libs) -o embed && ./embed IMAGE
 */
#include <engine/engine.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 4096, BLOCKS = 16 };

static _Alignas(BLOCK_BYTES) unsigned char written[BLOCK_BYTES];
static _Alignas(BLOCK_BYTES) unsigned char data[BLOCK_BYTES];

/* Every error is one object, whose message is one line. */
static void check(int64_t result, const engine_error *error) {
    if (result >= 0) return;
    fprintf(stderr, "embed: %s\n", error->message);
    exit(1);
}

static engine_node_t *open_node(engine_t *engine, const engine_option *options, size_t count) {
    engine_error error = {.size = sizeof error};
    engine_node_t *node = NULL;
    check(engine_node_open(engine, options, count, &node, &error), &error);
    return node;
}

/* A user says what it does with a node, and what it lets others do meanwhile. */
static engine_user_t *use(engine_node_t *node, uint32_t permissions) {
    engine_error error = {.size = sizeof error};
    engine_user_t *user = NULL;
    check(engine_user_create(node, "embed", permissions, ENGINE_PERM_ALL, &user, &error), &error);
    return user;
}

static void transfer(engine_user_t *user, engine_context_t *context, uint32_t op, void *bytes, uint64_t offset) {
    engine_error error = {.size = sizeof error};
    engine_iovec iov = {.base = bytes, .length = BLOCK_BYTES};
    check(engine_user_io(user, context, op, &iov, 1, offset, BLOCK_BYTES, 0, &error), &error);
}

static void print_statistics(const char *name, engine_node_t *node, engine_context_t *context) {
    engine_node_stats node_stats = {.size = sizeof node_stats};
    engine_context_stats context_stats = {.size = sizeof context_stats};
    engine_error error = {.size = sizeof error};
    check(engine_node_get_stats(node, NULL, &node_stats), &error);
    check(engine_context_get_stats(context, &context_stats), &error);
    printf("%s: %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " bytes read; context: %" PRIu64 " system calls\n",
           name, node_stats.op[ENGINE_OP_READ].requests, node_stats.op[ENGINE_OP_WRITE].requests,
           node_stats.op[ENGINE_OP_READ].bytes, context_stats.system_calls);
}

/* Writes blocks, reads them back, compares. */
static void exercise(engine_user_t *user, engine_context_t *context) {
    engine_error error = {.size = sizeof error};
    for (uint64_t block = 0; block < BLOCKS; block++) {
        memset(written, (int)(block + 1), sizeof written);
        transfer(user, context, ENGINE_OP_WRITE, written, block * BLOCK_BYTES);
        transfer(user, context, ENGINE_OP_READ, data, block * BLOCK_BYTES);
        if (memcmp(written, data, sizeof data) != 0) {
            fprintf(stderr, "embed: block %" PRIu64 " reads otherwise than it was written\n", block);
            exit(1);
        }
    }
    check(engine_user_io(user, context, ENGINE_OP_FLUSH, NULL, 0, 0, 0, 0, &error), &error);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: embed IMAGE      its first %d bytes are overwritten\n", BLOCKS * BLOCK_BYTES);
        return 2;
    }
    engine_error error = {.size = sizeof error};
    engine_config config = {.size = sizeof config};
    engine_t *engine = NULL;
    check(engine_create(&config, &engine, &error), &error);

    engine_context_config context_config = {.size = sizeof context_config, .name = "io0", .poll_max_ns = -1};
    engine_context_t *context = NULL;
    check(engine_context_create(engine, &context_config, &context, &error), &error);

    /* Options are texts, as on a command line; a file name is a file name, whatever is in it. */
    const engine_option null_options[] = {{"driver", "null"}, {"node-name", "nothing"}, {"size", "1G"}};
    engine_node_t *nothing = open_node(engine, null_options, sizeof null_options / sizeof *null_options);
    engine_user_t *reader = use(nothing, ENGINE_PERM_CONSISTENT_READ);
    for (uint64_t block = 0; block < BLOCKS; block++) {
        transfer(reader, context, ENGINE_OP_READ, data, block * BLOCK_BYTES);
    }
    print_statistics("null", nothing, context);

    const engine_option raw_options[] = {
        {"driver", "raw"}, {"node-name", "disk"}, {"file.driver", "file"}, {"file.filename", argv[1]}};
    engine_node_t *disk = open_node(engine, raw_options, sizeof raw_options / sizeof *raw_options);
    engine_user_t *writer = use(disk, ENGINE_PERM_CONSISTENT_READ | ENGINE_PERM_WRITE);
    exercise(writer, context);
    print_statistics("raw", disk, context);

    check(engine_user_close(reader, &error), &error);
    check(engine_user_close(writer, &error), &error);
    check(engine_node_close(nothing, &error), &error);
    check(engine_node_close(disk, &error), &error);
    check(engine_close(engine, &error), &error);
    return 0;
}
