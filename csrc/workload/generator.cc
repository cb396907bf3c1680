// The load generator's core. Home thread of its context, but for the control plane at the end.
#include "workload/generator.hh"

#include <algorithm>
#include <cstring>

#include "base/error.hh"
#include "block/entry.hh"

namespace engine::workload {

using base::mix;

Generator::Generator(Instance& engine, const engine_workload_config& config, aio::AioContext& context)
    : engine_(engine), config_(config), context_(context), random_(mix(config.seed + 1)) {
    latency_ = (config.flags & ENGINE_WORKLOAD_NO_LATENCY) == 0;
    verify_ = (config.flags & ENGINE_WORKLOAD_VERIFY) != 0;
    sized_ = config.ops != nullptr;
    open_loop_ = config.rate_iops != 0 || (sized_ && config.replay_speed_ppm != 0);
    end_timer_.generator = due_timer_.generator = this;
    end_timer_.fire = [](aio::Timer* timer) {
        Generator* self = static_cast<Clock*>(timer)->generator;
        if (self->open_loop_) {  // what fell due since the last look still goes out
            self->refill();
            self->issued();
        }
        self->end_issuing_due_before(self->ends_ns_);
        self->finish_if_idle();
    };
    over_message_.generator = this;
    over_message_.run = [](aio::Message* message) {
        Generator* self = static_cast<Over*>(message)->generator;
        self->state_.store_release(2);
        self->over_.set();
    };
    due_timer_.fire = [](aio::Timer* timer) {
        Generator* self = static_cast<Clock*>(timer)->generator;
        self->refill();
        self->issued();
    };
}

// --- what next

void Generator::choose(Ticket& ticket) noexcept {
    if (config_.flush_every != 0 && writes_since_flush_ >= config_.flush_every) {
        writes_since_flush_ = 0;
        ticket.kind = Kind::flush;
        ticket.offset = ticket.length = 0;
        ticket.check = false;
        return;
    }
    uint64_t block;
    if (config_.pattern == ENGINE_RANDOM) {
        block = random_.below(blocks_);
    } else {
        block = next_block_;
        next_block_ = block + 1 == blocks_ ? 0 : block + 1;
    }
    bool read = config_.read_percent >= 100 ||
                (config_.read_percent != 0 && random_.below(100) < config_.read_percent);
    ticket.kind = read ? Kind::read : Kind::write;
    ticket.offset = (first_block_ + block) * config_.block_size;
    ticket.length = config_.block_size;
    if (ENGINE_UNLIKELY(verify_)) {
        ticket.check = read && was_written(ticket.offset);
        if (!read) fill(ticket);
    }
    if (!read) writes_since_flush_++;
}

void Generator::issue_next(uint64_t start_ns) noexcept {
    Ticket& ticket = *free_;
    free_ = ticket.next_free;
    if (ENGINE_UNLIKELY(sized_)) {
        replay_.take(ticket);
    } else {
        choose(ticket);
    }
    ticket.start_ns = start_ns;
    if (traces_.due()) begin_trace(ticket);
    in_flight_++;
    left_--;
    unsigned bucket = 31 - static_cast<unsigned>(__builtin_clz(in_flight_));
    depth_[bucket < 7 ? bucket : 7].increment();
    issue(ticket);
}

// At a rate: the k-th request's intended start.
uint64_t Generator::start_of_due(uint64_t number) const noexcept {
    return started_ns_.get() +
           static_cast<uint64_t>(static_cast<unsigned __int128>(number) * 1000000000u / config_.rate_iops);
}

uint64_t Generator::start_of_next() const noexcept {
    return sized_ ? started_ns_.get() + replay_.due_ns() : start_of_due(due_);
}

// How many requests have their intended start before that time.
uint64_t Generator::due_before(uint64_t ns) const noexcept {
    uint64_t passed_ns = ns - started_ns_.get();
    return static_cast<uint64_t>(
        (static_cast<unsigned __int128>(passed_ns) * config_.rate_iops + 999999999u) / 1000000000u);
}

// Open loop: what is due by then and has found no ticket is never issued. It counts all the same: left out,
// the requests that a stall holds up worst would be those that no percentile knows of.
void Generator::end_issuing_due_before(uint64_t ns) noexcept {
    if (open_loop_ && sized_ && left_ != 0) {
        missed_ = left_;
        missed_before_ns_ = ns;
    } else if (open_loop_ && left_ != 0) {
        uint64_t due = due_before(ns);
        missed_ = due > due_ ? std::min(due - due_, left_) : 0;
    }
    end_issuing();
}

// A missed request has waited from its intended start until now, at least. They are many, maybe, and their
// waits lie at equal distances: a step for each bucket.
void Generator::record_missed() noexcept {
    if (sized_) {
        record_missed_of_replay();
        return;
    }
    uint64_t now_ns = context_.now_ns();
    uint64_t rest = 0;  // of the share of reads, in percent of a request
    unissued_.add(missed_);
    while (missed_ != 0) {
        uint64_t longest_ns = now_ns - start_of_due(due_);
        uint64_t low_ns = base::Histogram::low_of(base::Histogram::bucket_of(longest_ns));
        uint64_t number = std::clamp<uint64_t>(due_before(now_ns - low_ns + 1) - due_, 1, missed_);
        uint64_t shortest_ns = now_ns - start_of_due(due_ + number - 1);
        uint64_t percents = number * config_.read_percent + rest;
        uint64_t reads = std::min(number, percents / 100);
        rest = percents % 100;
        if (latency_) {
            ways_[0].latency_ns.record_many(shortest_ns, longest_ns, reads);
            ways_[1].latency_ns.record_many(shortest_ns, longest_ns, number - reads);
        }
        due_ += number;
        missed_ -= number;
    }
}

// Each has its own time and kind.
void Generator::record_missed_of_replay() noexcept {
    uint64_t now_ns = context_.now_ns();
    for (; missed_ != 0 && start_of_next() < missed_before_ns_; missed_--) {
        uint64_t start_ns = start_of_next();
        Ticket ticket{};
        replay_.take(ticket);
        unissued_.increment();
        if (latency_) ways_[static_cast<unsigned>(ticket.kind)].latency_ns.record(now_ns - start_ns);
    }
    missed_ = 0;
}

void Generator::refill_open_loop() noexcept {
    uint64_t now_ns = context_.now_ns();
    bool late = full_;  // then whatever is due by now had to wait for a ticket
    while (left_ != 0) {
        uint64_t start_ns = start_of_next();
        if (start_ns >= ends_ns_) return;
        if (start_ns > now_ns) {
            if (free_ != nullptr) full_ = false;
            context_.timers().arm_reserved(&due_timer_, start_ns);
            break;
        }
        if (free_ == nullptr) {  // the next completion comes here again; its latency counts from start_ns
            full_ = true;
            return;
        }
        if (late) late_.increment();
        due_++;
        issue_next(start_ns);
    }
}

inline void Generator::refill() noexcept {
    if (ENGINE_UNLIKELY(open_loop_)) {
        refill_open_loop();
    } else {
        while (free_ != nullptr && left_ != 0) issue_next(latency_ ? context_.now_ns() : 0);
    }
}

void Generator::completed(Ticket& ticket, int result) noexcept {
    if (ENGINE_UNLIKELY(ticket.trace != nullptr)) end_trace(ticket, result);
    in_flight_--;
    ticket.next_free = free_;
    free_ = &ticket;
    if (ENGINE_LIKELY(result >= 0)) {
        Way& way = ways_[static_cast<unsigned>(ticket.kind)];
        if (latency_) {
            uint64_t now_ns = context_.now_ns();
            way.latency_ns.record(now_ns > ticket.start_ns ? now_ns - ticket.start_ns : 0);
        }
        way.requests.increment();
        if (ENGINE_UNLIKELY(sized_)) way.bytes.add(ticket.length);
        if (ENGINE_UNLIKELY(verify_)) verify(ticket);
    } else {
        failed(ticket, result);
    }
    if (ENGINE_LIKELY(left_ != 0)) {
        refill();
    } else {
        finish_if_idle();
    }
}

// What it is, already here: a device may refuse it before the graph sees it.
void Generator::begin_trace(Ticket& ticket) noexcept {
    ticket.trace = traces_.draw(context_, latency_ ? ticket.start_ns : context_.now_ns());
    if (ticket.trace == nullptr) return;
    constexpr uint32_t ops[] = {ENGINE_OP_READ, ENGINE_OP_WRITE, ENGINE_OP_FLUSH, ENGINE_OP_DISCARD};
    ticket.trace->op = ops[static_cast<unsigned>(ticket.kind)];
    ticket.trace->offset = ticket.offset;
    ticket.trace->length = ticket.length;
}

void Generator::end_trace(Ticket& ticket, int result) noexcept {
    traces_.ended(ticket.trace, context_.now_ns(), result);
    ticket.trace = nullptr;
}

void Generator::failed(const Ticket& ticket, int result) noexcept {
    if (errors_.get() == 0) {
        error_errnum_.set(static_cast<uint64_t>(-result));
        error_offset_.set(ticket.offset);
    }
    errors_.increment();
    if (result != -EIO) end_issuing();  // what fails for good, such as a missing permission, fails always
}

void Generator::finish_if_idle() noexcept {
    if (in_flight_ != 0 || ended_ || !running_) return;
    ended_ = true;
    running_ = false;
    context_.timers().cancel(&end_timer_);
    context_.timers().cancel(&due_timer_);
    context_.timers().unreserve(&end_timer_);
    context_.timers().unreserve(&due_timer_);
    record_missed();
    end();
    ended_ns_.set(context_.now_ns());
    context_.ready(&over_message_);
}

// --- verify: a block's content follows from its place and the seed: whoever wrote it last

void Generator::fill(const Ticket& ticket) noexcept {
    auto* words = reinterpret_cast<uint64_t*>(buffer(ticket));
    for (uint64_t i = 0; i < config_.block_size / 8; i++)
        words[i] = mix(config_.seed ^ (ticket.offset + i * 8));
}

void Generator::verify(const Ticket& ticket) noexcept {
    if (ticket.kind == Kind::write) mark_written(ticket.offset);
    if (ticket.check && !matches(ticket)) verify_errors_.increment();
}

bool Generator::matches(const Ticket& ticket) noexcept {
    auto* words = reinterpret_cast<const uint64_t*>(buffer(ticket));
    for (uint64_t i = 0; i < config_.block_size / 8; i++) {
        if (words[i] == mix(config_.seed ^ (ticket.offset + i * 8))) continue;
        if (verify_errors_.get() == 0) error_offset_.set(ticket.offset + i * 8);
        return false;
    }
    return true;
}

void Generator::mark_written(uint64_t offset) noexcept {
    uint64_t block = offset / config_.block_size - first_block_;
    written_[block / 64] |= uint64_t{1} << (block % 64);
}

bool Generator::was_written(uint64_t offset) const noexcept {
    uint64_t block = offset / config_.block_size - first_block_;
    return (written_[block / 64] >> (block % 64) & 1) != 0;
}

// --- control plane

int Generator::prepare(engine_error* error) {
    block::Attached target;
    if (int result = block::attached_to(user(), &target, error); result != 0) return result;
    uint64_t bytes = target.bytes;
    base::Where where{.node = target.name.c_str(), .operation = "workload"};
    if (sized_) {
        uint32_t unit = config_.queue != nullptr ? 512 : 1;
        if (int result = replay_.prepare(&config_, bytes, unit, where, error); result != 0) return result;
        make_tickets(replay_.own());
        return 0;
    }
    uint64_t length =
        config_.length == 0 && config_.offset <= bytes ? bytes - config_.offset : config_.length;
    if (config_.offset > bytes || length > bytes - config_.offset || length < config_.block_size ||
        config_.offset % config_.block_size != 0) {
        where.field = "length";
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL, where,
            "a workload of blocks of %u bytes at offset %lu, length %lu does not fit node %s of %lu bytes "
            "(offset in multiples of the block size)",
            config_.block_size, config_.offset, length, where.node, bytes);
    }
    first_block_ = config_.offset / config_.block_size;
    blocks_ = length / config_.block_size;
    if (verify_) written_.assign((blocks_ + 63) / 64, 0);
    make_tickets(UINT64_MAX);
    return 0;
}

// `most`: requests that there are.
void Generator::make_tickets(uint64_t most) {
    left_ = config_.count == 0 || config_.count > most ? most : config_.count;
    traces_.set_up(config_.trace_every, config_.seed);
    tickets_.resize(config_.iodepth);
    for (uint32_t i = config_.iodepth; i-- > 0;) {
        tickets_[i] = {};
        tickets_[i].index = i;
        tickets_[i].next_free = free_;
        free_ = &tickets_[i];
    }
}

int Generator::begin_running() {
    aio::TimerHeap& timers = context_.timers();
    int result = timers.reserve(&end_timer_);
    if (result != 0) return result;
    result = timers.reserve(&due_timer_);
    if (result != 0) {
        timers.unreserve(&end_timer_);
        return result;
    }
    try {
        begin();
    } catch (const std::bad_alloc&) {
        timers.unreserve(&end_timer_);
        timers.unreserve(&due_timer_);
        return -ENOMEM;
    }
    running_ = true;
    uint64_t now_ns = context_.now_ns();
    started_ns_.set(now_ns);
    if (config_.runtime_ns != 0) {
        ends_ns_ = now_ns + config_.runtime_ns;
        timers.arm_reserved(&end_timer_, ends_ns_);
    }
    refill();
    issued();
    if (left_ == 0) finish_if_idle();  // a stop came in before
    return 0;
}

int Generator::create(Instance& engine, const engine_workload_config& config, std::unique_ptr<Generator>* out,
                      engine_error* error) {
    auto* chosen = reinterpret_cast<aio::AioContext*>(config.context);
    aio::AioContext& context = chosen != nullptr ? *chosen : *engine.main();
    auto made = config.queue != nullptr ? make_queue_generator(engine, config, context)
                                        : make_node_generator(engine, config, context);
    int result = made->prepare(error);
    if (result != 0) return result;
    if (!context.hold()) {
        return base::fail(error, ENGINE_ERROR_CLOSED, ESHUTDOWN,
                          {.operation = "workload", .field = "context"}, "context %s is closed",
                          context.name().c_str());
    }
    try {
        result = made->attach(error);
    } catch (const std::bad_alloc&) {
        context.let_go();
        throw;
    }
    if (result != 0) {
        context.let_go();
        return result;
    }
    made->attached_ = true;
    *out = std::move(made);
    return 0;
}

int Generator::start(engine_error* error) {
    uint32_t fresh = 0;
    while (!state_.compare_exchange_acq_rel(fresh, 1)) {
        if (fresh == 0) continue;
        return base::fail(error, ENGINE_ERROR_INVALID, EALREADY, {.operation = "start workload"},
                          "a workload runs once: make another");
    }
    int begun = 0;
    int result = context_.call_and_wait([this, &begun] { begun = begin_running(); });
    if (result == 0) result = begun;
    if (result == 0) return 0;
    state_.store_release(0);
    return base::fail_os(error, -result, {.operation = "start workload"},
                         "cannot start a workload on context %s", context_.name().c_str());
}

int Generator::stop() noexcept {
    if (state_.load_acquire() != 1) return 0;
    auto stop_now = [this] {
        if (running_) {
            if (open_loop_) refill();  // what has fallen due since the last turn
            issued();
            end_issuing_due_before(std::min(context_.now_ns() + 1, ends_ns_));
        } else {
            end_issuing();  // it has not begun: nothing was due
        }
        finish_if_idle();
    };
    if (context_.on_home()) {
        stop_now();
        return 0;
    }
    int result = context_.call_and_wait(stop_now);
    return result == -EDEADLK ? result : 0;
}

int Generator::wait(uint64_t timeout_ns) noexcept {
    if (aio::AioContext::current() != nullptr) return -EDEADLK;
    if (state_.load_acquire() == 0) return -EINVAL;
    return over_.wait_for(timeout_ns) ? 0 : -ETIMEDOUT;
}

void Generator::close() noexcept {
    if (!attached_) return;
    stop();
    aio::AioContext& entry = entry_context();
    if (state_.load_acquire() != 0) block::wait_to_close(over_, entry, {user()->find_port(&entry)});
    detach();
    attached_ = false;
    context_.let_go();
}

Generator::~Generator() {
    ENGINE_CHECK(!attached_);
}

int Generator::read_traces(engine_trace* out, uint64_t capacity, uint64_t* count,
                           uint32_t* every) const noexcept {
    if (state_.load_acquire() == 1) return -EBUSY;
    *count = traces_.kept();
    *every = traces_.every();
    traces_.read(out, capacity);
    return 0;
}

void Generator::read_result(engine_workload_result* out) const noexcept {
    out->running = state_.load_acquire() == 1 ? 1 : 0;
    out->error_errnum = static_cast<int32_t>(error_errnum_.get());
    out->open_loop = open_loop_ ? 1 : 0;
    out->error_offset = error_offset_.get();
    out->errors = errors_.get();
    out->verify_errors = verify_errors_.get();
    out->started_ns = started_ns_.get();
    out->ended_ns = out->running != 0 ? context_.now_ns() : ended_ns_.get();
    out->late = late_.get();
    out->unissued = unissued_.get();
    for (unsigned i = 0; i < 8; i++) out->depth[i] = depth_[i].get();
    for (unsigned kind = 0; kind < 2; kind++) {
        out->requests[kind] = ways_[kind].requests.get();
        out->bytes[kind] = sized_ ? ways_[kind].bytes.get() : out->requests[kind] * config_.block_size;
    }
    const Way &flush = ways_[2], &discard = ways_[3];
    out->flushes = flush.requests.get();
    out->discards = discard.requests.get();
    out->discard_bytes = discard.bytes.get();
    engine_histogram* latencies[] = {&out->latency_ns[0], &out->latency_ns[1], &out->flush_latency_ns,
                                     &out->discard_latency_ns};
    for (unsigned kind = 0; kind < 4; kind++) {
        base::Histogram::reset(latencies[kind]);
        ways_[kind].latency_ns.add_to(latencies[kind]);
    }
}

}  // namespace engine::workload
