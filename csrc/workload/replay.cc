// A recorded list of operations: what is checked before it starts, and what comes next.
#include "workload/replay.hh"

#include "workload/generator.hh"

namespace engine::workload {

namespace {
constexpr uint64_t data_most = uint64_t{1} << 30;     // bytes of a read or write, as of any workload
constexpr uint64_t buffers_most = uint64_t{4} << 30;  // bytes of all requests in flight
constexpr uint64_t time_most = 1000000000000000000u;  // 10^9 seconds
constexpr uint64_t speed_most = 1000000000u;          // a thousand times as fast

bool carries_data(const engine_replay_op& op) noexcept {
    return op.op == ENGINE_OP_READ || op.op == ENGINE_OP_WRITE;
}
}  // namespace

int Replay::check(const engine_workload_config& config, engine_error* error) {
    auto invalid = [&](const char* field, const char* text) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, {.operation = "workload", .field = field},
                          "workload: %s: %s", field, text);
    };
    if (config.op_count == 0) return invalid("op_count", "a replay needs at least one operation");
    if (config.op_first >= config.op_count) return invalid("op_first", "lies beyond the last operation");
    if (config.replay_speed_ppm > speed_most)
        return invalid("replay_speed_ppm", "at most 10^9, a thousand times as fast as recorded");
    if (config.rate_iops != 0) return invalid("rate_iops", "a replay has times of its own");
    if (config.flush_every != 0) return invalid("flush_every", "a replay has flushes of its own");
    if ((config.flags & ENGINE_WORKLOAD_VERIFY) != 0)
        return invalid("flags", "a replay writes no pattern that could be checked");
    return 0;
}

int Replay::check_operation(uint64_t index, uint32_t unit, base::Where where, engine_error* error) const {
    const engine_replay_op& op = ops_[index];
    auto invalid = [&](const char* what) {
        where.field = "ops";
        where.offset = op.offset;
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "operation %lu of the replay (kind %u, offset %lu, length %u) %s", index, op.op,
                          op.offset, op.length, what);
    };
    if (op.op > ENGINE_OP_DISCARD) return invalid("is no read, write, flush or discard");
    if (op.time_ns > time_most || (timed() && scaled(op.time_ns, speed_ppm_) > time_most))
        return invalid("is due after more than 10^9 seconds");
    if (op.op == ENGINE_OP_FLUSH) return 0;
    if (op.length == 0) return invalid("has no length");
    if (carries_data(op) && op.length > data_most) return invalid("is longer than 1 GiB");
    if (op.offset % unit != 0 || op.length % unit != 0)
        return invalid("is not made of whole sectors of 512 bytes, as a queue needs them");
    if (op.length > span_) return invalid("is longer than the range that it is replayed onto");
    if (!wrap_ && op.offset > span_ - op.length)
        return invalid("lies beyond the end: replay it onto a larger node, or let it wrap around");
    return 0;
}

int Replay::prepare(engine_workload_config* config, uint64_t bytes, uint32_t unit, base::Where where,
                    engine_error* error) {
    ops_ = config->ops;
    count_ = config->op_count;
    at_ = config->op_first;
    stride_ = config->op_stride == 0 ? 1 : config->op_stride;
    speed_ppm_ = config->replay_speed_ppm;
    at_recorded_speed_ = speed_ppm_ == 1000000;
    wrap_ = (config->flags & ENGINE_WORKLOAD_WRAP) != 0;
    base_ = config->offset;
    if (base_ > bytes || config->length > bytes - base_ || base_ % unit != 0 || config->length % unit != 0) {
        where.field = "length";
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL, where,
            "a replay onto the range at offset %lu, length %lu does not fit node %s of %lu bytes "
            "(in multiples of %u)",
            base_, config->length, where.node, bytes, unit);
    }
    span_ = config->length != 0 ? config->length : bytes - base_;
    uint64_t longest = unit;
    for (uint64_t n = own(), index = at_; n > 0; n--, index += stride_) {
        if (int result = check_operation(index, unit, where, error); result != 0) return result;
        if (carries_data(ops_[index]) && ops_[index].length > longest) longest = ops_[index].length;
    }
    if (longest * config->iodepth > buffers_most) {
        where.field = "iodepth";
        return base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, where,
                          "%u requests in flight of up to %lu bytes need more than the 4 GiB that a replay "
                          "has for buffers: choose a smaller iodepth",
                          config->iodepth, longest);
    }
    config->block_size = static_cast<uint32_t>(longest);
    return 0;
}

void Replay::take(Ticket& ticket) noexcept {
    const engine_replay_op& op = ops_[at_];
    if (op.time_ns > latest_ns_) latest_ns_ = op.time_ns;
    at_ += stride_;  // `own()` operations are taken, so what this makes of the last one does not matter
    ticket.kind = static_cast<Kind>(op.op);
    ticket.check = false;
    if (ticket.kind == Kind::flush) {
        ticket.offset = ticket.length = 0;
        return;
    }
    uint64_t offset = op.offset;
    if (ENGINE_UNLIKELY(offset > span_ - op.length)) {
        offset %= span_;
        if (offset > span_ - op.length) offset = span_ - op.length;
    }
    ticket.offset = base_ + offset;
    ticket.length = op.length;
}

}  // namespace engine::workload
