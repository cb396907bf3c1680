// The copy loop. Home thread of its context, but for the control plane at the end.
#include "jobs/copy.hh"

#include <algorithm>
#include <cstring>

#include "base/clock.hh"
#include "base/error.hh"
#include "block/entry.hh"

namespace engine::jobs {

using block::Op;
using block::Request;

namespace {

constexpr uint32_t chunks_default = 16;
constexpr uint32_t chunks_max = 1024;
constexpr uint32_t chunk_default = 1 << 20;
constexpr uint32_t chunk_max = 1 << 30;
constexpr uint32_t shared_default = ENGINE_PERM_CONSISTENT_READ | ENGINE_PERM_WRITE_UNCHANGED;

bool all_zero(const std::byte* bytes, size_t length) noexcept {
    return length == 0 || (bytes[0] == std::byte{0} && memcmp(bytes, bytes + 1, length - 1) == 0);
}

bool native(const block::Node& node, Op op) noexcept {
    return (node.native_ops & block::bit(op)) != 0;
}

block::Node& node_of(engine_node_t* handle) noexcept {
    return *reinterpret_cast<block::Node*>(handle);
}

}  // namespace

Copy::Copy(Instance& engine, const engine_copy_config& config, aio::AioContext& context)
    : engine_(engine),
      config_(config),
      context_(context),
      source_(node_of(config.source).control->name),
      target_(node_of(config.target).control->name) {
    error_.size = scan_error_.size = sizeof(engine_error);
    scan_.copy = over_note_.copy = this;
    scan_.complete = [](Request* request) { static_cast<Scan*>(request)->copy->scanned(); };
    over_note_.run = [](aio::Message* message) {
        Copy* self = static_cast<OverNote*>(message)->copy;
        self->state_.store_release(over);
        self->over_.set();
    };
}

// --- what next

void Copy::advance() noexcept {
    bool complete = position_ == end_ && in_flight_ == 0;
    if (cancelled_.load_relaxed() != 0 && !stopping_ && !complete) {
        stopping_ = true;
        result_ =
            base::fail(&error_, ENGINE_ERROR_OS, ECANCELED, {.node = target_.c_str(), .operation = "copy"},
                       "copy of node %s to node %s: cancelled after %lu of %lu bytes", source_.c_str(),
                       target_.c_str(), data_bytes_.get() + zero_bytes_.get(), total_.get());
    }
    while (!stopping_ && position_ < end_ && free_ != nullptr) {
        if (!known_at_position()) {
            if (!scanning_) scan();
            break;
        }
        begin(next_piece());
    }
    if (in_flight_ != 0) return;
    if (stopping_ || flushed_) {
        end();
    } else {
        flush();
    }
}

// Where data is, from here on.
void Copy::scan() noexcept {
    scanning_ = true;
    in_flight_++;
    base::clear(&scan_error_);
    scan_.op = Op::block_status;
    scan_.error = &scan_error_;
    scan_.offset = position_;
    scan_.length = end_ - position_;
    scan_.extents = extents_;
    scan_.extent_capacity = extents_at_a_time;
    block::submit(*source_port_, &scan_);
}

void Copy::scanned() noexcept {
    scanning_ = false;
    in_flight_--;
    extent_ = 0;
    extent_count_ = scan_.result > 0 ? static_cast<uint32_t>(scan_.result) : 0;
    if (scan_.result == 0 || scan_.result == -ENOTSUP) {
        can_scan_ = false;  // then all of it counts as data
    } else if (scan_.result < 0) {
        failed(scan_, scan_error_);
    }
    advance();
}

bool Copy::known_at_position() noexcept {
    if (!can_scan_) return true;
    while (extent_ < extent_count_ && extents_[extent_].offset + extents_[extent_].length <= position_) {
        extent_++;
    }
    return extent_ < extent_count_;
}

// Ends of pieces are aligned: a block that is data in part is data.
Copy::Piece Copy::next_piece() const noexcept {
    uint64_t until = end_;
    bool zero = false;
    if (can_scan_) {
        const engine_extent& extent = extents_[extent_];
        uint64_t extent_end = extent.offset + extent.length;
        zero = (extent.flags & ENGINE_EXTENT_ZERO) != 0 && extent.offset <= position_;
        if (zero && extent_end < end_) {
            until = extent_end / alignment_ * alignment_;
            zero = until > position_;
        }
        if (!zero) until = (extent_end + alignment_ - 1) / alignment_ * alignment_;
        if (until > end_) until = end_;
    }
    uint64_t most = zero ? zeroes_ : chunk_;
    return {until - position_ < most ? until - position_ : most, zero};
}

void Copy::begin(const Piece& piece) noexcept {
    uint64_t at = position_;
    position_ += piece.length;
    if (piece.zero && (config_.flags & ENGINE_COPY_TARGET_IS_ZERO) != 0) {
        zero_bytes_.add(piece.length);
        return;
    }
    Slot& slot = *free_;
    free_ = slot.next_free;
    in_flight_++;
    slot.offset = at;
    slot.length = piece.length;
    if (piece.zero) {
        submit_zeroes(slot);
    } else {
        slot.stage = Stage::read;
        slot.set_buffer(slot.buffer, piece.length);
        submit(slot, Op::read, 0);
    }
}

// --- a chunk's way

void Copy::submit(Slot& slot, Op op, uint8_t flags) noexcept {
    base::clear(&slot.told);
    slot.op = op;
    slot.flags = flags;
    slot.error = &slot.told;
    block::submit(slot.stage == Stage::read ? *source_port_ : *target_port_, &slot);
}

void Copy::submit_zeroes(Slot& slot) noexcept {
    slot.stage = Stage::zero;
    slot.iov = nullptr;
    slot.iov_count = 0;
    submit(slot, Op::write_zeroes, ENGINE_MAY_UNMAP);
}

void Copy::completed(Slot& slot) noexcept {
    if (slot.result < 0) {
        failed(slot, slot.told);
    } else if (slot.stage != Stage::read) {
        (slot.stage == Stage::zero ? zero_bytes_ : data_bytes_).add(slot.length);
    } else if (!stopping_) {  // after a failure nothing more is written
        if (write_out(slot)) return;
        zero_bytes_.add(slot.length);
    }
    slot.next_free = free_;
    free_ = &slot;
    in_flight_--;
    advance();
}

// What has been read goes to the target. False: there is nothing to write.
bool Copy::write_out(Slot& slot) noexcept {
    if ((config_.flags & ENGINE_COPY_DETECT_ZEROES) != 0 && all_zero(slot.buffer, slot.length)) {
        if ((config_.flags & ENGINE_COPY_TARGET_IS_ZERO) != 0) return false;
        submit_zeroes(slot);
    } else {
        slot.stage = Stage::write;
        submit(slot, Op::write, 0);
    }
    return true;
}

// The first failure is the copy's.
void Copy::failed(const Request& request, const engine_error& told) noexcept {
    if (stopping_) return;
    stopping_ = true;
    result_ = static_cast<int>(request.result);
    if (told.kind != ENGINE_ERROR_NONE) {
        error_ = told;
        return;
    }
    const char* name = request.channel->node->control->name.c_str();
    base::fail_os(
        &error_, -result_,
        {.node = name, .operation = op_name(request.op), .offset = request.offset, .request_id = request.id},
        "copy of node %s to node %s: node %s: %s of %lu bytes at offset %lu failed", source_.c_str(),
        target_.c_str(), name, op_name(request.op), request.length, request.offset);
}

void Copy::flush() noexcept {
    flushed_ = true;
    ENGINE_CHECK(free_ != nullptr);  // nothing is in flight
    Slot& slot = *free_;
    free_ = slot.next_free;
    in_flight_++;
    slot.stage = Stage::flush;
    slot.offset = slot.length = 0;
    slot.iov = nullptr;
    slot.iov_count = 0;
    submit(slot, Op::flush, 0);
}

void Copy::end() noexcept {
    ended_ns_.set(base::now_ns());
    context_.ready(&over_note_);
}

int Copy::begin_running() noexcept {
    uint32_t chunks = config_.chunks == 0 ? chunks_default : config_.chunks;
    slots_ = base::make_array<Slot>(chunks);
    buffers_ = base::make_array<std::byte>(chunks * chunk_, memory_alignment_);
    if (slots_ == nullptr || buffers_ == nullptr) return -ENOMEM;
    for (uint32_t i = chunks; i-- != 0;) {
        Slot& slot = slots_[i];
        slot.copy = this;
        slot.buffer = buffers_.get() + i * chunk_;
        slot.told.size = sizeof slot.told;
        slot.complete = [](Request* request) {
            auto* self = static_cast<Slot*>(request);
            self->copy->completed(*self);
        };
        slot.next_free = free_;
        free_ = &slot;
    }
    started_ns_.set(base::now_ns());
    advance();
    return 0;
}

// --- control plane

int Copy::check(const block::Node& source, const block::Node& target, engine_error* error) {
    base::Where where{.node = source_.c_str(), .operation = "copy"};
    auto refuse = [&](const char* field, const char* why, uint64_t given) {
        where.field = field;
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "copy of node %s to node %s: %s: %lu %s", source_.c_str(), target_.c_str(), field,
                          given, why);
    };
    if (&source == &target) {
        where.field = "target";
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "copy: node %s would be copied to itself", source_.c_str());
    }
    chunk_ = config_.chunk_size == 0 ? chunk_default : config_.chunk_size;
    for (const block::Node* node : {&source, &target}) {
        alignment_ = std::max<uint64_t>(alignment_, node->best_request_alignment);
        memory_alignment_ = std::max<size_t>(memory_alignment_, node->best_memory_alignment);
    }
    constexpr uint32_t flags = ENGINE_COPY_DETECT_ZEROES | ENGINE_COPY_TARGET_IS_ZERO;
    if ((config_.flags & ~flags) != 0) return refuse("flags", "has unknown bits", config_.flags);
    if (config_.chunks > chunks_max) return refuse("chunks", "is more than 1024", config_.chunks);
    if (config_.chunk_size > chunk_max || config_.chunk_size % alignment_ != 0)
        return refuse("chunk_size", "is no multiple of both nodes' alignment, up to 1 GiB",
                      config_.chunk_size);
    if (config_.offset % alignment_ != 0)
        return refuse("offset", "is no multiple of both nodes' alignment", config_.offset);
    uint64_t bytes = source.bytes.load_relaxed();
    if (config_.offset > bytes || config_.length > bytes - config_.offset)
        return refuse("length", "bytes at that offset reach past the end of the source", config_.length);
    position_ = config_.offset;
    end_ = config_.length == 0 ? bytes : config_.offset + config_.length;
    total_.set(end_ - position_);
    if (end_ > target.bytes.load_relaxed()) {
        where = {.node = target_.c_str(), .operation = "copy", .field = "target"};
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL, where,
            "copy of node %s to node %s: the target has %lu bytes, %lu are needed: resize it first",
            source_.c_str(), target_.c_str(), target.bytes.load_relaxed(), end_);
    }
    zeroes_ = native(target, Op::write_zeroes) ? zeroes_max : chunk_;
    can_scan_ = source.holes && native(source, Op::block_status);
    return 0;
}

int Copy::attach(engine_error* error) {
    std::string reading = "copy to " + target_;
    std::string writing = "copy from " + source_;
    uint32_t source_shared = config_.source_shared != 0 ? config_.source_shared : shared_default;
    uint32_t target_shared = config_.target_shared != 0 ? config_.target_shared : shared_default;
    int result = block::create_user(&node_of(config_.source), reading.c_str(), ENGINE_PERM_CONSISTENT_READ,
                                    source_shared, &reader_, error);
    if (result == 0)
        result = block::create_user(&node_of(config_.target), writing.c_str(), ENGINE_PERM_WRITE,
                                    target_shared, &writer_, error);
    if (result == 0) result = block::open_port(reader_, &context_, &source_port_, error);
    if (result == 0) result = block::open_port(writer_, &context_, &target_port_, error);
    return result;
}

void Copy::detach() noexcept {
    if (reader_ != nullptr) block::close_user(reader_, nullptr);
    if (writer_ != nullptr) block::close_user(writer_, nullptr);
    reader_ = writer_ = nullptr;
    if (held_) context_.let_go();
    held_ = false;
}

int Copy::create(Instance& engine, const engine_copy_config& config, std::unique_ptr<Copy>* out,
                 engine_error* error) {
    base::Where where{.operation = "copy"};
    if (config.source == nullptr || config.target == nullptr) {
        where.field = config.source == nullptr ? "source" : "target";
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where, "copy: a node is needed as %s",
                          where.field);
    }
    auto* chosen = reinterpret_cast<aio::AioContext*>(config.context);
    aio::AioContext& context = chosen != nullptr ? *chosen : *engine.main();
    if (node_of(config.source).control->engine != &engine ||
        node_of(config.target).control->engine != &engine || context.instance != &engine) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "copy: source, target and context must belong to this engine");
    }
    std::unique_ptr<Copy> copy(new Copy(engine, config, context));
    int result = copy->check(node_of(config.source), node_of(config.target), error);
    if (result != 0) return result;
    if (!context.hold()) {
        where.field = "context";
        return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN, where, "context %s is closed",
                          context.name().c_str());
    }
    copy->held_ = true;
    result = copy->attach(error);
    if (result == 0) *out = std::move(copy);
    return result;
}

int Copy::start(engine_error* error) {
    uint32_t fresh = made;
    while (!state_.compare_exchange_acq_rel(fresh, started)) {
        if (fresh == made) continue;
        return base::fail(error, ENGINE_ERROR_INVALID, EALREADY, {.operation = "start copy"},
                          "a copy runs once: make another");
    }
    int begun = 0;
    int result = context_.call_and_wait([this, &begun] { begun = begin_running(); });
    if (result == 0) result = begun;
    if (result == 0) return 0;
    state_.store_release(made);
    return base::fail_os(error, -result, {.operation = "start copy"}, "cannot start a copy on context %s",
                         context_.name().c_str());
}

int Copy::wait(uint64_t timeout_ns, engine_error* error) noexcept {
    if (aio::AioContext::current() != nullptr) return -EDEADLK;
    if (state_.load_acquire() == made) return -EINVAL;
    if (!over_.wait_for(timeout_ns)) return -ETIMEDOUT;
    if (result_ != 0 && error != nullptr) {
        uint32_t size = error->size;
        *error = error_;
        error->size = size;
    }
    return result_;
}

void Copy::cancel() noexcept {
    cancelled_.store_release(1);
}

void Copy::close() noexcept {
    cancel();
    if (state_.load_acquire() != made) block::wait_to_close(over_, context_, {source_port_, target_port_});
    detach();
}

Copy::~Copy() {
    close();
}

void Copy::read_progress(engine_copy_progress* out) const noexcept {
    out->running = state_.load_acquire() == started ? 1 : 0;
    out->total = total_.get();
    out->data_bytes = data_bytes_.get();
    out->zero_bytes = zero_bytes_.get();
    out->done = out->data_bytes + out->zero_bytes;
    out->started_ns = started_ns_.get();
    out->ended_ns = out->running != 0 ? base::now_ns() : ended_ns_.get();
}

}  // namespace engine::jobs
