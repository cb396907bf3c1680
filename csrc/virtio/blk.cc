// virtio-blk: what chains mean (VIRTIO 1.2, section 5.2.6). Home thread of the queue's context.
#include "virtio/blk.hh"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.hh"
#include "base/log.hh"
#include "block/entry.hh"

namespace engine::virtio {

using block::Op;

struct BlkQueue::Slot {
    block::Request request;  // first: completed() casts back
    BlkQueue* queue;
    Slot* next_free;
    uint8_t* status;
    Chain chain;
};

bool BlkQueue::poll() {
    if (!running_) return false;
    if (ring_.unpublished()) publish();
    uint64_t taken = 0;
    while (free_ != nullptr && running_) {
        Slot* slot = free_;
        if (!ring_.pop(slot->chain)) {
            if (ring_.broken()) {
                const engine_error& error = ring_.error();
                break_queue(static_cast<engine_error_kind>(error.kind), error.field, error.message);
            }
            break;
        }
        free_ = slot->next_free;
        taken++;
        handle(slot);
    }
    polls_.increment();
    if (taken == 0) return false;
    requests_.add(taken);
    batches_.increment();
    if (ring_.unpublished()) publish();
    return true;
}

bool BlkQueue::prepare_sleep() {
    if (!running_) return false;
    if (disk_.config().polled != 0) return true;
    return !ring_.enable_notifications();
}

inline void BlkQueue::handle(Slot* slot) noexcept {
    Chain& chain = slot->chain;
    BlkHeader header;
    bool whole = chain.read_front(&header, sizeof header);
    slot->status = chain.take_back_byte();
    if (ENGINE_UNLIKELY(slot->status == nullptr)) {
        refuse_without_status(slot);
        return;
    }
    if (ENGINE_UNLIKELY(!whole)) {
        complete(slot, blk_ioerr);
        return;
    }
    const uint32_t type = little_endian(header.type);
    if (ENGINE_LIKELY(type == blk_in || type == blk_out)) {
        transfer(slot, type == blk_in, little_endian(header.sector));
        return;
    }
    switch (type) {
        case blk_flush:
            slot->request.op = Op::flush;
            slot->request.offset = slot->request.length = 0;
            slot->request.flags = 0;
            submit(slot);
            break;
        case blk_discard:
        case blk_write_zeroes:
            range(slot, header);
            break;
        case blk_get_id:
            get_id(slot);
            break;
        default:
            complete(slot, blk_unsupported);
            break;
    }
}

// Nowhere to say what is wrong: the driver cannot be talked to (section 5.2.6.1).
void BlkQueue::refuse_without_status(Slot* slot) noexcept {
    complete(slot, blk_ioerr);
    char reason[96];
    snprintf(reason, sizeof reason, "the chain at head %u has no writable byte for the status",
             slot->chain.head);
    break_queue(ENGINE_ERROR_CORRUPT, "desc.flags", reason);
}

inline void BlkQueue::transfer(Slot* slot, bool in, uint64_t sector) noexcept {
    Chain& chain = slot->chain;
    block::Request& request = slot->request;
    std::span<const iovec> data = in ? chain.writable() : chain.readable();
    uint64_t bytes = in ? chain.writable_bytes : chain.readable_bytes;
    uint64_t offset;
    if (__builtin_mul_overflow(sector, sector_bytes, &offset) || bytes % sector_bytes != 0 ||
        (!in && disk_.config().read_only != 0)) {
        complete(slot, blk_ioerr);
        return;
    }
    request.op = in ? Op::read : Op::write;
    request.flags = !in && disk_.config().write_cache == 0 ? ENGINE_FUA : 0;
    request.offset = offset;
    request.length = bytes;
    request.iov = data.data();
    request.iov_count = static_cast<uint32_t>(data.size());
    submit(slot);
}

// One range a request: that is what max_discard_seg and max_write_zeroes_seg say.
void BlkQueue::range(Slot* slot, const BlkHeader& header) noexcept {
    Chain& chain = slot->chain;
    block::Request& request = slot->request;
    bool discard = little_endian(header.type) == blk_discard;
    BlkRange range;
    if (disk_.config().read_only != 0 || !chain.read_front(&range, sizeof range)) {
        complete(slot, blk_ioerr);
        return;
    }
    uint32_t flags = little_endian(range.flags);
    // Section 5.2.6.2: unknown flags, and unmap on a discard, are unsupported; so is a second range.
    if ((flags & ~blk_range_unmap) != 0 || (discard && flags != 0) || chain.readable_bytes != 0) {
        complete(slot, blk_unsupported);
        return;
    }
    if (__builtin_mul_overflow(little_endian(range.sector), sector_bytes, &request.offset)) {
        complete(slot, blk_ioerr);
        return;
    }
    request.op = discard ? Op::discard : Op::write_zeroes;
    request.length = uint64_t{little_endian(range.sectors)} * sector_bytes;
    request.flags = static_cast<uint8_t>((flags & blk_range_unmap) != 0 ? ENGINE_MAY_UNMAP : 0);
    if (!discard && disk_.config().write_cache == 0) request.flags |= ENGINE_FUA;
    submit(slot);
}

void BlkQueue::get_id(Slot* slot) noexcept {
    char id[blk_id_bytes] = {};
    const std::string& serial = disk_.serial();
    memcpy(id, serial.data(), serial.size() < sizeof id ? serial.size() : sizeof id);
    if (slot->chain.writable_bytes < sizeof id) {
        complete(slot, blk_ioerr);
        return;
    }
    size_t done = 0;
    for (const iovec& part : slot->chain.writable()) {
        size_t n = part.iov_len < sizeof id - done ? part.iov_len : sizeof id - done;
        memcpy(part.iov_base, id + done, n);
        done += n;
    }
    complete(slot, blk_ok);
}

void BlkQueue::submit(Slot* slot) noexcept {
    if (ENGINE_UNLIKELY(call_.traces != nullptr)) slot->request.trace = call_.traces[slot->chain.head];
    block::submit(*port_, &slot->request);
}

void BlkQueue::completed(block::Request* request) noexcept {
    if (ENGINE_UNLIKELY(request->trace != nullptr)) {
        end_trace(request);
        return;
    }
    Slot* slot = reinterpret_cast<Slot*>(request);
    block::OpCounters& counters = slot->queue->op_[static_cast<unsigned>(request->op)];
    counters.requests.increment();
    if (ENGINE_LIKELY(request->result >= 0)) {
        counters.bytes.add(request->length);
        slot->queue->complete(slot, blk_ok);
    } else {
        counters.errors.increment();
        slot->queue->complete(slot, request->result == -ENOTSUP ? blk_unsupported : blk_ioerr);
    }
}

// From here on the trace is its driver's alone.
void BlkQueue::end_trace(block::Request* request) noexcept {
    const aio::AioContext& context = reinterpret_cast<Slot*>(request)->queue->context_;
    request->trace->add(context, nullptr, ENGINE_MARK_COMPLETED, 0, context.now_ns());
    request->trace = nullptr;
    completed(request);
}

void BlkQueue::complete(Slot* slot, BlkStatus status) noexcept {
    uint64_t written = 0;
    if (ENGINE_LIKELY(slot->status != nullptr)) {
        SharedAccess::store(slot->status, static_cast<uint8_t>(status));
        written = slot->chain.writable_bytes + 1;
    }
    ring_.push(slot->chain.head, static_cast<uint32_t>(written));
    slot->next_free = free_;
    free_ = slot;
    done_.increment();
    if (ENGINE_UNLIKELY(!running_)) settle_stop();
}

void BlkQueue::publish() noexcept {
    if (!ring_.publish()) return;
    calls_.increment();
    call_.notify(call_.opaque);
}

// Chains in flight complete, but the driver hears of them no more: it must reset the queue.
void BlkQueue::break_queue(engine_error_kind kind, const char* field, const char* reason) noexcept {
    if (broken_) return;
    broken_ = true;
    base::fail(&error_, kind, EPROTO,
               {.node = disk_.node_name().c_str(), .operation = "virtqueue", .field = field},
               "queue %u of user '%s': %s; the queue is stopped until its driver is attached anew", index_,
               disk_.user()->name.c_str(), reason);
    broken_flag_.set(1);
    base::log(ENGINE_LOG_ERROR, "node %s: %s", error_.node, error_.message);
    publish();
    running_ = false;
    unlink();
    if (call_.notify != nullptr) call_.notify(call_.opaque);  // so that the driver looks and finds out
}

void BlkQueue::settle_stop() noexcept {
    if (ring_.in_flight() != 0 || stopped_ == nullptr) return;
    publish();
    ring_.stop();
    aio::Signal* stopped = stopped_;
    stopped_ = nullptr;
    stopped->set();
}

BlkQueue::BlkQueue(Disk& disk, aio::AioContext& context, unsigned index)
    : disk_(disk), context_(context), index_(index) {}

BlkQueue::~BlkQueue() {
    ENGINE_CHECK(ring_.in_flight() == 0 && !linked());
}

int BlkQueue::open(engine_error* error) {
    int result = block::open_port(disk_.user(), &context_, &port_, error);
    if (result != 0) return result;
    kick_ = new aio::BottomHalf(
        context_, [](void* opaque) { static_cast<BlkQueue*>(opaque)->kicks_.increment(); }, this);
    // Allocated on the home thread, so that it lies near; the turn that runs a kick polls the queue anyway.
    int made = 0;
    result = context_.call_and_wait([&] { made = make_slots(); });
    if (result == 0) result = made;
    if (result == 0) return 0;
    return base::fail_os(error, -result, {.node = disk_.node_name().c_str(), .operation = "make disk"},
                         "queue %u of user '%s': cannot set up %u descriptors on context %s", index_,
                         disk_.user()->name.c_str(), disk_.config().queue_size, context_.name().c_str());
}

int BlkQueue::make_slots() noexcept {
    try {
        slots_.reserve(disk_.config().queue_size);
    } catch (const std::bad_alloc&) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < disk_.config().queue_size; i++) {
        base::Owner<Slot> slot = base::make<Slot>();
        if (slot == nullptr) return -ENOMEM;
        slot->queue = this;
        slot->request.complete = completed;
        slot->next_free = free_;
        free_ = slot.get();
        slots_.push_back(std::move(slot));
    }
    return 0;
}

int BlkQueue::refuse_start(const RingConfig& config, engine_error* error) {
    base::Where where{.node = disk_.node_name().c_str(), .operation = "attach driver"};
    if (aio::AioContext* here = aio::AioContext::current(); here != nullptr) {
        return base::fail(
            error, ENGINE_ERROR_INVALID, EDEADLK, where,
            "attaching to queue %u of user '%s' would block context %s, on whose own thread it was "
            "called: call it from another thread",
            index_, disk_.user()->name.c_str(), here->name().c_str());
    }
    if (config.size > disk_.config().queue_size) {
        where.field = "size";
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL, where,
            "a ring of %u descriptors for queue %u of user '%s', which has %u: take at most that many",
            config.size, index_, disk_.user()->name.c_str(), disk_.config().queue_size);
    }
    if (attached_.exchange_acq_rel(1) != 0) {
        return base::fail(
            error, ENGINE_ERROR_CONFLICT, EBUSY, where,
            "queue %u of user '%s' is driven by another workload or call: wait for it or use another "
            "queue",
            index_, disk_.user()->name.c_str());
    }
    return 0;
}

int BlkQueue::start(MemoryTableRef memory, const RingConfig& config, CallNotifier call, engine_error* error) {
    if (int refused = refuse_start(config, error); refused != 0) return refused;
    disk_.user()->references.fetch_add_acq_rel(1);
    int configured = 0;
    int result = context_.call_and_wait([&] {
        configured = ring_.configure(std::move(memory), config, error);
        if (configured != 0) return;
        call_ = call;
        broken_ = false;
        broken_flag_.set(0);
        running_ = true;
        ring_.disable_notifications();
        context_.add_poller(this);
    });
    if (result == 0) result = configured;
    if (result != 0) release();
    return result;
}

void BlkQueue::stop() noexcept {
    aio::Signal stopped;
    int result = context_.call_and_wait([&] {
        running_ = false;
        unlink();
        stopped_ = &stopped;
        settle_stop();
    });
    if (result == 0) block::wait_to_close(stopped, context_, {disk_.user()->find_port(&context_)});
    release();
}

void BlkQueue::release() noexcept {
    attached_.store_release(0);
    disk_.user()->references.fetch_sub_acq_rel(1);  // last: the disk may be closed now
}

void BlkQueue::close() noexcept {
    if (kick_ != nullptr) aio::BottomHalf::destroy(kick_);
    kick_ = nullptr;
    // The kick's last message has run when this returns; nobody can send another.
    context_.call_and_wait([this] { slots_.clear(); });
}

void BlkQueue::read_stats(engine_queue_stats* out) {
    out->completed = done_.get();
    out->requests = requests_.get();  // after it, so that it is never the smaller one
    if (out->requests < out->completed) out->requests = out->completed;
    out->kicks = kicks_.get();
    out->calls = calls_.get();
    out->polls = polls_.get();
    out->batches = batches_.get();
    // Two loads are no snapshot: what came between them does not count as in flight.
    out->in_flight = std::min<uint64_t>(out->requests - out->completed, disk_.config().queue_size);
    for (unsigned i = 0; i < block::op_count; i++) {
        out->op[i].requests = op_[i].requests.get();
        out->op[i].bytes = op_[i].bytes.get();
        out->op[i].errors = op_[i].errors.get();
    }
    out->broken = static_cast<uint32_t>(broken_flag_.get());
    if (out->broken != 0) context_.call_and_wait([&] { out->error = error_; });
}

}  // namespace engine::virtio
