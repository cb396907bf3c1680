// The write-log filter: what changes its disk is written to a log as well, so that any state in which a loss
// of power could have left the disk can be made afterwards (engine/write_log.py).
//
// An entry gets its place when the request has been done below, and the request completes when the entry is
// there. So the place of an entry says that all entries before it had been done by then, and `began` that all
// before that had been done when it was submitted: those are what a flush has made durable. Nothing here
// takes a lock: the end of the log is an atomic that the contexts share.
#include <errno.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/blocking.hh"
#include "block/child_requests.hh"
#include "block/registry.hh"
#include "coro/task.hh"
#include "filters/crc32c.hh"
#include "filters/filter.hh"
#include "filters/write_log_format.hh"

namespace engine::filters {

using block::Bounce;
using block::Channel;
using block::ChildRequest;
using block::ChildRequests;
using block::Node;
using block::Op;
using block::OptionDef;
using block::OptionType;
using block::Request;
using block::VectorCursor;
using coro::Task;

namespace {

constexpr size_t file_child = 0;
constexpr size_t log_child = 1;
constexpr uint64_t full = UINT64_MAX;

// Beside the node's pages, which nobody writes.
struct Log {
    uint64_t id = 0;
    uint32_t block = 0;
    base::Atomic<uint64_t> end{0};  // where the next entry goes

    uint64_t round(uint64_t bytes) const noexcept { return (bytes + block - 1) / block * block; }
    // The place of an entry, or `full`.
    uint64_t take(uint64_t bytes, uint64_t limit) noexcept {
        uint64_t place = end.load_relaxed();
        do {
            if (place > limit || bytes > limit - place) return full;
        } while (!end.compare_exchange_acq_rel(place, place + bytes));
        return place;
    }
};

struct WriteLogState {
    Log* log;
};

struct WriteLogChannel {
    ChildRequests::Pool parts;
};

Log& log_of(const Channel& channel) noexcept {
    return *channel.node->state<WriteLogState>().log;
}

template <class T>
uint32_t checksum_of(T record) noexcept {
    record.checksum = 0;
    return crc32c(&record, sizeof record);
}

int64_t explain(const Request& request, int errnum, const char* what) noexcept {
    const char* name = request.channel->node->control->name.c_str();
    base::fail(
        request.error, errnum == ENOSPC ? ENGINE_ERROR_OS : ENGINE_ERROR_LIMIT, errnum,
        {.node = name, .operation = op_name(request.op), .offset = request.offset, .request_id = request.id},
        "node %s: %s of %lu bytes at offset %lu: %s", name, op_name(request.op), request.length,
        request.offset, what);
    return -errnum;
}

int64_t no_memory(const Request& request) noexcept {
    return explain(request, ENOMEM, "no memory for its entry in the log");
}

LogEntry describe(const Log& log, const Request& request, uint64_t offset, uint64_t length) noexcept {
    LogEntry entry{};
    entry.magic = entry_magic;
    entry.op = request.op == Op::write          ? LogOp::write
               : request.op == Op::write_zeroes ? LogOp::write_zeroes
               : request.op == Op::discard      ? LogOp::discard
               : request.op == Op::flush        ? LogOp::flush
                                                : LogOp::resize;
    if ((request.flags & ENGINE_FUA) != 0) entry.flags |= log_fua;
    if ((request.flags & ENGINE_MAY_UNMAP) != 0) entry.flags |= log_may_unmap;
    entry.id = log.id;
    entry.began = log.end.load_acquire();  // pairs with take()
    entry.offset = request.op == Op::resize ? 0 : offset;
    entry.length = request.op == Op::resize ? request.offset : length;
    return entry;
}

// What has been done below goes to the log: 0, or -errno with the reason.
Task<int64_t> append(Channel& channel, const Request& origin, LogEntry& entry, const std::byte* data) {
    Log& log = log_of(channel);
    const Node& target = *channel.children[log_child]->node;
    uint64_t data_bytes = entry.op == LogOp::write ? entry.length : 0;
    base::Owner<std::byte[]> head = base::make_array<std::byte>(log.block, target.best_memory_alignment);
    if (head == nullptr) co_return no_memory(origin);
    entry.place = log.take(log.block + log.round(data_bytes), target.bytes.load_relaxed());
    if (entry.place == full) {
        co_return explain(origin, ENOSPC, "the log is full: give it a larger node, and a new log");
    }
    if (data_bytes != 0) entry.data_checksum = crc32c(data, data_bytes);
    entry.checksum = checksum_of(entry);
    memset(head.get(), 0, log.block);
    memcpy(head.get(), &entry, sizeof entry);
    iovec vector[2] = {{head.get(), log.block}, {const_cast<std::byte*>(data), data_bytes}};
    ChildRequests parts(channel, channel.state<WriteLogChannel>().parts, &origin);
    ChildRequest* part = parts.make(Op::write, entry.place, log.block + data_bytes);
    if (part != nullptr) {
        part->iov = vector;
        part->iov_count = data_bytes != 0 ? 2 : 1;
        parts.submit(part, log_child);
    }
    int64_t result = co_await parts;
    co_return part == nullptr ? no_memory(origin) : result;
}

// Done below; then it goes to the log, also if it failed and may have been done in part.
Task<int64_t> pass_and_append(Channel& channel, const Request& origin, Op op, uint64_t offset,
                              uint64_t length, std::byte* data) {
    LogEntry entry = describe(log_of(channel), origin, offset, length);
    ChildRequests parts(channel, channel.state<WriteLogChannel>().parts, &origin);
    ChildRequest* part = parts.make(op, offset, length);
    if (part != nullptr) {
        part->flags = origin.flags;
        if (data != nullptr) part->set_buffer(data, length);
        parts.submit(part, file_child);
    }
    int64_t result = co_await parts;
    if (part == nullptr) co_return no_memory(origin);
    bool changes = op != Op::flush && op != Op::resize && result != -ENOTSUP;
    if (result < 0 && !changes) co_return result;
    if (result < 0) entry.flags |= log_failed;
    int64_t logged = co_await append(channel, origin, entry, data);
    co_return result < 0 ? result : logged;
}

// In pieces that fit a bounce buffer: who writes may change its memory meanwhile, and the disk and the log
// must get the same.
Task<int64_t> write_through(Channel& channel, const Request& origin) {
    Bounce bounce;
    block::TracedWait wait(origin, ENGINE_WAIT_MEMORY);
    int64_t result = co_await Bounce::take(channel, origin.length, bounce);
    wait.over();
    if (result < 0) co_return no_memory(origin);
    VectorCursor cursor(origin.iov, origin.iov_count);
    for (uint64_t done = 0; done < origin.length && result >= 0;) {
        uint64_t length = std::min<uint64_t>(bounce.bytes(), origin.length - done);
        cursor.copy_to(bounce.data(), length);
        result =
            co_await pass_and_append(channel, origin, Op::write, origin.offset + done, length, bounce.data());
        done += length;
    }
    co_return result;
}

struct Ended : coro::Callback<int64_t> {
    Request* request = nullptr;
};

void start(Channel& channel, Request* request) noexcept {
    base::Owner<Ended> ended = base::make<Ended>();
    if (ended == nullptr) {
        fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM, "node %s: no memory for a request",
                   channel.node->control->name.c_str());
        return;
    }
    ended->request = request;
    ended->completed = [](coro::Callback<int64_t>* callback, int64_t result) {
        base::Owner<Ended> self(static_cast<Ended*>(callback));
        const Channel& here = *self->request->channel;
        if (self->request->op == Op::resize && result >= 0) {
            here.node->bytes.store_relaxed(here.children[file_child]->node->bytes.load_relaxed());
        }
        finish(self->request, result);
    };
    auto* callback = static_cast<coro::Callback<int64_t>*>(ended.release());
    if (request->op == Op::write) {
        coro::start(channel.executor(), write_through(channel, *request), callback);
    } else {
        coro::start(
            channel.executor(),
            pass_and_append(channel, *request, request->op, request->offset, request->length, nullptr),
            callback);
    }
}

void write_log_submit(Channel& channel, Request* request) {
    if (request->op == Op::read || request->op == Op::block_status) {
        pass(channel, request);
    } else {
        start(channel, request);
    }
}

// --- control plane

int refuse_log(engine_error* error, const char* field, int errnum, const Node& log, const char* what) {
    const char* name = log.control->name.c_str();
    return base::fail(error, ENGINE_ERROR_INVALID, errnum,
                      {.node = name, .operation = "open", .field = field}, "write-log: node %s: %s", name,
                      what);
}

// A new log on the node, for a disk of that size.
int begin_log(Node& node, Log& log, bool overwrite, uint64_t disk_bytes, engine_error* error) {
    const Node& target = *node.control->children[log_child].node;
    if (target.bytes.load_relaxed() < 4ul * log.block) {
        return refuse_log(error, "log", EINVAL, target,
                          "too small for a log: at least four blocks are needed");
    }
    base::Owner<std::byte[]> memory = base::make_array<std::byte>(log.block, target.best_memory_alignment);
    if (memory == nullptr) throw std::bad_alloc();
    int64_t result = block::read_child(node, log_child, 0, memory.get(), log.block, error);
    if (result < 0) return static_cast<int>(result);
    LogHead head{};
    memcpy(&head, memory.get(), sizeof head);
    if (head.magic == log_magic && !overwrite) {
        return refuse_log(error, "overwrite", EEXIST, target,
                          "holds a write log already: keep it and use another node, or give overwrite=on");
    }
    if (getrandom(&log.id, sizeof log.id, 0) != sizeof log.id) {
        return base::fail_os(error, errno, {.operation = "open"}, "write-log: no random number for the log");
    }
    head = {};
    head.magic = log_magic;
    head.version = log_version;
    head.block = log.block;
    head.id = log.id;
    head.disk_bytes = disk_bytes;
    head.checksum = checksum_of(head);
    memset(memory.get(), 0, log.block);
    memcpy(memory.get(), &head, sizeof head);
    result = block::write_child(node, log_child, 0, memory.get(), log.block, ENGINE_FUA, error);
    return static_cast<int>(std::min<int64_t>(result, 0));
}

int write_log_open(Node& node, const block::OpenArguments& arguments) {
    const Node& file = *node.control->children[file_child].node;
    const Node& target = *node.control->children[log_child].node;
    open_above_child(node, arguments);
    node.native_ops &= block::ops_of_data;  // a copy by the kernel would not be logged
    // Entries have whole sectors, and a bounce buffer is there in any case (block/bounce.hh).
    node.request_alignment = std::max(log_block_least, file.best_request_alignment);
    node.best_request_alignment = node.request_alignment;
    uint64_t bytes = file.bytes.load_relaxed();
    if (bytes % node.request_alignment != 0) {
        return refuse_log(arguments.error, "file", EINVAL, file,
                          "its size is not a multiple of the sector size of the log");
    }
    base::Owner<Log> log = base::make<Log>();
    if (log == nullptr) throw std::bad_alloc();
    log->block = std::max(log_block_least, target.best_request_alignment);
    log->end.store_relaxed(log->block);
    if (!arguments.read_only) {
        int result = begin_log(node, *log, arguments.options.boolean("overwrite"), bytes, arguments.error);
        if (result != 0) return result;
    }
    node.state<WriteLogState>().log = log.release();
    return 0;
}

void write_log_close(Node& node) {
    base::Owner<Log> log(node.state<WriteLogState>().log);
}

int write_log_open_channel(Channel& channel) {
    new (channel.state_memory.get()) WriteLogChannel;
    return 0;
}

void write_log_close_channel(Channel& channel) {
    channel.state<WriteLogChannel>().~WriteLogChannel();
}

const OptionDef write_log_options[] = {
    {"overwrite", OptionType::boolean, "off", nullptr, "begin a new log where 'log' holds one already"},
};

const block::ChildDef write_log_children[] = {{"file", true}, {"log", true}};

}  // namespace

}  // namespace engine::filters

namespace engine::block {

const Driver write_log_driver{
    .name = "write-log",
    .layer = "filter",
    .text = "logs what changes its disk, so that every state after a loss of power can be made again",
    .options = filters::write_log_options,
    .children = filters::write_log_children,
    .state_size = sizeof(filters::WriteLogState),
    .channel_state_size = sizeof(filters::WriteLogChannel),
    .open = filters::write_log_open,
    .close = filters::write_log_close,
    .open_channel = filters::write_log_open_channel,
    .close_channel = filters::write_log_close_channel,
    .submit = filters::write_log_submit,
};

}  // namespace engine::block
