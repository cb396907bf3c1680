// The offload pool. Its threads inherit the context's CPUs, since the home thread starts them, and take no
// signals; those idle for long end. What guards what is said in the header.
#include "aio/offload.hh"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <exception>

#include "aio/context.hh"
#include "base/clock.hh"

namespace engine::aio {

namespace {

// A caller-driven context runs on a thread that may take signals; what it starts must not.
class SignalsBlocked {
  public:
    SignalsBlocked() noexcept {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t before_;
};

}  // namespace

OffloadPool::OffloadPool(AioContext* context) noexcept : context_(context) {
    rescue_.pool = this;
    rescue_.fire = [](Timer* timer) { static_cast<Rescue*>(timer)->pool->rescue(); };
    doorbell_.pool = this;
    doorbell_.run = [](Message* message) {
        OffloadPool* pool = static_cast<Doorbell*>(message)->pool;
        std::unique_lock lock(pool->mutex_);
        pool->ringing_ = false;
        pool->deliver(lock);
    };
}

int OffloadPool::open() noexcept {
    return context_->timers().reserve(&rescue_);
}

bool OffloadPool::may_be_quick(const IoOp* op) noexcept {
    return (op->kind == IoKind::read || op->kind == IoKind::write) && !op->direct && op->flags == 0 &&
           op->length <= quick_bytes_max;
}

// With the lock.
void OffloadPool::enqueue(IoOp* op, bool surely) noexcept {
    op->result = surely || !may_be_quick(op) ? kind_surely_slow
                 : average_ns_ < quick_ns    ? kind_quick
                                             : kind_slow;
    queue_.push(op);
    queued_++;
    if (op->result != kind_quick) queued_slow_++;
}

// With the lock: how many more threads the queue is worth. One that is not in a slow operation comes back
// soon.
unsigned OffloadPool::threads_wanted() const noexcept {
    unsigned needed = queued_slow_ + (queued_ > queued_slow_ ? 1 : 0);
    unsigned free = threads_ - idle_ - busy_slow_;
    return needed > free ? needed - free : 0;
}

// With the lock: tells up to `wanted` idle threads to wake, and returns how many.
unsigned OffloadPool::wake_idle(unsigned wanted) noexcept {
    unsigned woken = std::min(wanted, idle_);
    idle_ -= woken;
    tokens_ += woken;
    return woken;
}

// Home only. Wakes and starts what the queue is worth, and lets the lock go.
void OffloadPool::recruit(std::unique_lock<std::mutex>& lock) noexcept {
    unsigned wanted = threads_wanted();
    unsigned woken = wake_idle(wanted);
    bool backlog = queued_ > queued_slow_;
    lock.unlock();
    if (woken > 1) {
        wanted_.notify_all();
    } else if (woken == 1) {
        wanted_.notify_one();
    }
    for (unsigned missing = wanted - woken; missing != 0; missing--) {
        if (start_thread()) continue;
        fail_queued();
        break;
    }
    if (backlog) watch();
}

void OffloadPool::run(IoOp* op) noexcept {
    std::unique_lock lock(mutex_);
    enqueue(op, false);
    recruit(lock);
}

void OffloadPool::run_all(base::Queue<Message>* unknown, base::Queue<Message>* slow) noexcept {
    std::unique_lock lock(mutex_);
    while (Message* op = slow->pop()) enqueue(static_cast<IoOp*>(op), true);
    while (Message* op = unknown->pop()) enqueue(static_cast<IoOp*>(op), false);
    recruit(lock);
}

bool OffloadPool::start_thread() noexcept {
    Slot* slot = nullptr;
    {
        std::lock_guard guard(mutex_);
        for (Slot& candidate : slots_) {
            if (candidate.state == ThreadState::running) continue;
            slot = &candidate;
            break;
        }
        if (slot == nullptr) return false;
        slot->state = ThreadState::running;
        threads_++;
    }
    SignalsBlocked blocked;
    try {
        if (slot->thread.joinable()) slot->thread.join();  // it has ended
        slot->thread = std::thread([this, slot] { work(slot); });
        return true;
    } catch (const std::exception&) {
        std::lock_guard guard(mutex_);
        slot->state = ThreadState::none;
        threads_--;
        return false;
    }
}

// Home only, where no thread could be started. With at least one the operations wait for their turn; with
// none they fail, but not in here.
void OffloadPool::fail_queued() noexcept {
    std::unique_lock lock(mutex_);
    if (threads_ != 0) return;
    while (Message* message = queue_.pop()) {
        static_cast<IoOp*>(message)->result = -ENOMEM;
        finished_.push(message);
        finished_count_++;
    }
    queued_ = queued_slow_ = 0;
    if (finished_count_ != 0) ring(lock);
}

// Home only: looks again soon, while quick operations queue behind one another.
void OffloadPool::watch() noexcept {
    if (rescue_.armed()) return;
    {
        std::lock_guard guard(mutex_);
        rescue_pops_ = pops_;
    }
    context_->timers().arm_reserved(&rescue_, context_->now_ns() + rescue_ns);
}

// With the lock: what runs will not come back soon, and each operation in the queue gets a thread of its own.
void OffloadPool::call_all_slow() noexcept {
    average_ns_ = 4 * quick_ns;
    busy_slow_ += busy_quick_;
    busy_quick_ = 0;
    rescues_++;
    for (Message* message = queue_.front(); message != nullptr; message = message->next) {
        auto* op = static_cast<IoOp*>(message);
        if (op->result == kind_quick) op->result = kind_slow;
    }
    queued_slow_ = queued_;
}

// Home only. One that was thought quick and sleeps holds up those behind it in the queue, and the news of
// those that finished before it.
void OffloadPool::rescue() noexcept {
    std::unique_lock lock(mutex_);
    if (queued_ > queued_slow_ && pops_ == rescue_pops_) call_all_slow();
    recruit(lock);
    lock.lock();
    deliver(lock);
}

// Home only, with the lock, which it lets go: runs the completions that there are.
void OffloadPool::deliver(std::unique_lock<std::mutex>& lock) noexcept {
    Message* finished = finished_.take_all();
    unsigned count = finished_count_;
    finished_count_ = 0;
    lock.unlock();
    if (count != 0) context_->backend().stats.completed.add(count);
    while (finished != nullptr) {
        auto* op = static_cast<IoOp*>(finished);
        finished = finished->next;  // done may free the operation
        if (ENGINE_UNLIKELY(op->traced)) context_->backend().stamp_reaped(op, base::now_ns());
        op->done(op, op->result);
    }
}

// With the lock, which is held again afterwards: one message announces all that has finished when it is read.
void OffloadPool::ring(std::unique_lock<std::mutex>& lock) noexcept {
    if (ringing_ || finished_count_ == 0) return;
    ringing_ = true;
    lock.unlock();
    context_->send(&doorbell_);  // accepted: the context outlives its operations
    lock.lock();
}

void OffloadPool::run_one(std::unique_lock<std::mutex>& lock) noexcept {
    auto* op = static_cast<IoOp*>(queue_.pop());
    auto kind = static_cast<Kind>(op->result);
    queued_--;
    pops_++;
    if (kind != kind_quick) {
        queued_slow_--;
        busy_slow_++;
        ring(lock);  // quick ones before it do not wait for it
    } else {
        busy_quick_++;
    }
    unsigned rescues = rescues_;
    lock.unlock();
    uint64_t start_ns = base::now_ns();
    op->result = op->call(op);
    uint64_t taken_ns = base::now_ns() - start_ns;
    lock.lock();
    (kind == kind_quick && rescues == rescues_ ? busy_quick_ : busy_slow_)--;
    if (kind != kind_surely_slow) {
        // A thread that lost its CPU for a while proves nothing: one sample counts for little.
        average_ns_ = (average_ns_ * 7 + std::min(taken_ns, 4 * quick_ns)) / 8;
    }
    finished_.push(op);
    finished_count_++;
    if (kind != kind_quick || queue_.empty() || finished_count_ >= batch_max) ring(lock);
}

// With the lock. False: this thread may end.
bool OffloadPool::wait_for_work(std::unique_lock<std::mutex>& lock) noexcept {
    if (!queue_.empty()) return true;
    if (stopping_) return false;
    idle_++;
    wanted_.wait_for(lock, std::chrono::seconds(idle_seconds), [this] { return stopping_ || tokens_ != 0; });
    if (tokens_ != 0) {
        tokens_--;
    } else {
        idle_--;
        if (queue_.empty()) return false;
    }
    return true;
}

void OffloadPool::work(Slot* slot) noexcept {
    pthread_setname_np(pthread_self(), "offload");
    std::unique_lock lock(mutex_);
    while (wait_for_work(lock)) {
        while (!queue_.empty()) run_one(lock);
    }
    slot->state = ThreadState::ended;
    threads_--;
}

void OffloadPool::stop() noexcept {
    {
        std::lock_guard guard(mutex_);
        stopping_ = true;
    }
    wanted_.notify_all();
    for (Slot& slot : slots_) {
        if (slot.thread.joinable()) slot.thread.join();
    }
}

}  // namespace engine::aio
