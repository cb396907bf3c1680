// The simulator and its backend. One thread, no lock; the seed decides what a kernel and a scheduler would.
#include "aio/sim.hh"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "aio/context.hh"
#include "base/assert.hh"

namespace engine::aio {

// --- files

int SimFiles::add(uint64_t bytes) {
    files_.emplace_back(bytes);
    return first_fd + static_cast<int>(files_.size() - 1);
}

uint64_t SimFiles::latency_ns(const IoOp&, base::Random& random) {
    return random.between(latency_min_ns, latency_max_ns);
}

int64_t SimFiles::perform(IoOp& op) {
    if (op.kind == IoKind::call) return op.call(&op);
    if (op.fd < first_fd || static_cast<size_t>(op.fd - first_fd) >= files_.size()) return -EBADF;
    std::vector<std::byte>& file = bytes(op.fd);
    uint64_t left = op.offset < file.size() ? file.size() - op.offset : 0;
    switch (op.kind) {
        case IoKind::read:
        case IoKind::write: {
            if (op.kind == IoKind::write && op.length > left) return -ENOSPC;
            uint64_t at = op.offset;
            for (uint32_t i = 0; i < op.iov_count && left != 0; i++) {
                auto length = std::min<uint64_t>(op.iov[i].iov_len, left);
                if (op.kind == IoKind::read) {
                    memcpy(op.iov[i].iov_base, file.data() + at, length);
                } else {
                    memcpy(file.data() + at, op.iov[i].iov_base, length);
                }
                at += length;
                left -= length;
            }
            return static_cast<int64_t>(at - op.offset);
        }
        case IoKind::fallocate:
            if ((op.flags & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) == 0) return -EOPNOTSUPP;
            if (left != 0) memset(file.data() + op.offset, 0, std::min(op.length, left));
            return 0;
        default:
            return 0;  // it lies in memory: a sync has nothing to do
    }
}

// --- the backend: operations in flight, each with the time at which it will be done

class SimBackend final : public Backend {
  public:
    explicit SimBackend(Simulator& simulator) noexcept : simulator_(simulator) {}
    ~SimBackend() override { ENGINE_CHECK(first_ == nullptr); }

    engine_backend_kind kind() const noexcept override { return ENGINE_BACKEND_SIM; }
    void queue(IoOp* op) noexcept override {
        stats.submitted.increment();
        uint64_t latency_ns = simulator_.handler_->latency_ns(*op, simulator_.random_);
        op->result = static_cast<int64_t>(simulator_.now_ns_ + latency_ns);  // nobody else needs it before
        op->next = nullptr;
        op->submitted_ns = simulator_.now_ns_;
        Message** end = &first_;
        while (*end != nullptr) end = &(*end)->next;
        *end = op;
    }
    void submit() noexcept override {}
    bool has_completions() const noexcept override { return next_done_ns() <= simulator_.now_ns_; }
    // One of those that are done, so that a turn of another context may come between two.
    void reap() noexcept override {
        uint64_t count = 0;
        for_each([&](IoOp* op) { count += done(op) ? 1 : 0; });
        if (count == 0) return;
        uint64_t chosen = simulator_.random_.below(count);
        Message** link = &first_;
        for (;; link = &(*link)->next) {
            ENGINE_CHECK(*link != nullptr);  // there are `count` of them
            if (done(static_cast<IoOp*>(*link)) && chosen-- == 0) break;
        }
        auto* op = static_cast<IoOp*>(*link);
        *link = op->next;
        stats.completed.increment();
        op->reaped_ns = simulator_.now_ns_;
        op->done(op, simulator_.serve(*op));
    }
    uint64_t next_done_ns() const noexcept {
        uint64_t next_ns = UINT64_MAX;
        for_each([&](IoOp* op) { next_ns = std::min(next_ns, static_cast<uint64_t>(op->result)); });
        return next_ns;
    }

    void wait(int64_t) noexcept override {}
    void wake() noexcept override {}  // the simulator sees the message
    int enter_thread(engine_error*) noexcept override { return 0; }
    int pollable_fd() const noexcept override { return -1; }
    // Descriptors belong to the world outside.
    int add_fd(FdHandler*) noexcept override { return -ENOTSUP; }
    void remove_fd(FdHandler*) noexcept override {}
    void forget_fds() noexcept override {}

  private:
    bool done(const IoOp* op) const noexcept {
        return static_cast<uint64_t>(op->result) <= simulator_.now_ns_;
    }
    template <class F>
    void for_each(F&& f) const noexcept {
        for (Message* op = first_; op != nullptr; op = op->next) f(static_cast<IoOp*>(op));
    }

    Simulator& simulator_;
    Message* first_ = nullptr;  // in the order of submission
};

// --- the simulator

Simulator::Simulator(uint64_t seed) : random_(base::mix(seed + 1)), trace_(base::mix(seed)) {
    ENGINE_CHECK(Waiter::here() == nullptr);
    Waiter::here() = this;
}

Simulator::~Simulator() {
    ENGINE_CHECK(members_.empty() && Waiter::here() == this);
    Waiter::here() = nullptr;
}

std::unique_ptr<Backend> Simulator::join(AioContext& context) {
    ENGINE_CHECK(Waiter::here() == this);
    auto backend = std::make_unique<SimBackend>(*this);
    members_.push_back({&context, backend.get(), next_number_});
    context.clock_ = &now_ns_;
    context.id_base_ = next_number_++ << 48;  // of the simulation: the same in every run
    return backend;
}

void Simulator::leave(const AioContext& context) noexcept {
    std::erase_if(members_, [&](const Member& member) { return member.context == &context; });
}

int64_t Simulator::serve(IoOp& op) noexcept {
    uint64_t number = ++operations_;
    auto fault = std::find_if(faults_.begin(), faults_.end(),
                              [number](const Fault& one) { return one.number == number; });
    int64_t result = fault != faults_.end() ? -fault->errnum : handler_->perform(op);
    trace(static_cast<uint64_t>(op.kind) << 56 ^ op.offset);
    trace(op.length);
    trace(static_cast<uint64_t>(result));
    return result;
}

unsigned Simulator::count_runnable() const noexcept {
    auto count = std::count_if(members_.begin(), members_.end(),
                               [](const Member& member) { return member.context->sim_runnable(); });
    return static_cast<unsigned>(count);
}

Simulator::Member& Simulator::pick_runnable() noexcept {
    uint64_t chosen = random_.below(count_runnable());
    for (Member& member : members_) {
        if (member.context->sim_runnable() && chosen-- == 0) return member;
    }
    ENGINE_CHECK(false);
    return members_.front();
}

uint64_t Simulator::next_event_ns() const noexcept {
    uint64_t next_ns = UINT64_MAX;
    for (const Member& member : members_) {
        next_ns =
            std::min({next_ns, member.context->timers().next_deadline_ns(), member.backend->next_done_ns()});
    }
    return next_ns;
}

bool Simulator::step(uint64_t limit_ns) noexcept {
    if (count_runnable() == 0) {
        uint64_t next_ns = next_event_ns();
        if (next_ns == UINT64_MAX || next_ns > limit_ns) return false;
        now_ns_ = std::max(now_ns_, next_ns);
    }
    Member& member = pick_runnable();
    AioContext& context = *member.context;
    uint64_t number = member.number;  // a turn may end with fewer members
    steps_++;
    context.sim_turn(static_cast<unsigned>(random_.between(1, batch_max)));
    now_ns_ += random_.below(turn_ns_max + 1);
    trace(number);
    trace(now_ns_);
    return true;
}

bool Simulator::wait(Signal& signal, uint64_t timeout_ns) noexcept {
    uint64_t end_ns;
    if (__builtin_add_overflow(now_ns_, timeout_ns, &end_ns)) end_ns = UINT64_MAX;
    while (!signal.is_set()) {
        if (now_ns_ >= end_ns) return false;
        if (step(end_ns)) continue;
        if (end_ns == UINT64_MAX) {
            fprintf(stderr, "simulator: a blocking call waits, and nothing is left to happen\n");
            abort();
        }
        now_ns_ = end_ns;
    }
    return true;
}

// --- of the context

bool AioContext::sim_runnable() noexcept {
    return !resting_ || !inbox_.empty() || backend_->has_completions() ||
           timers_.next_deadline_ns() <= now_ns();
}

void AioContext::sim_turn(unsigned budget) noexcept {
    Home home(*this);
    uint64_t before = work_done();
    end_rest();
    begin_rest(turn(budget, budget));
    config_.simulator->trace(work_done() - before);
}

void AioContext::stop_simulated() noexcept {
    if (stopping_) return;
    {
        Home home(*this);
        stopping_ = true;
        wind_up();
    }
    config_.simulator->leave(*this);
    backend_.reset();
}

}  // namespace engine::aio
