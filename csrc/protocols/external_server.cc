// The program's side of the external driver, and what the two sides share. Any thread; under
// External::mutex_.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "base/clock.hh"
#include "base/error.hh"
#include "base/log.hh"
#include "protocols/external.hh"

namespace engine::block {

// --- memory that may outlive its request

ExternalMemory* ExternalMemory::make(size_t bytes, size_t align) noexcept {
    static_assert(sizeof(ExternalMemory) <= 64);
    size_t whole;
    if (__builtin_add_overflow(bytes, align, &whole)) return nullptr;
    void* block = base::allocate(whole, align);
    if (block == nullptr) return nullptr;
    return new (static_cast<std::byte*>(block) + align - sizeof(ExternalMemory)) ExternalMemory(block, bytes);
}

ExternalMemory* ExternalMemory::of(void* data) noexcept {
    return reinterpret_cast<ExternalMemory*>(static_cast<std::byte*>(data) - sizeof(ExternalMemory));
}

void ExternalMemory::release() noexcept {
    if (references_.fetch_sub_acq_rel(1) == 1) base::deallocate(block_);
}

// --- telling contexts that something has been answered

// Once `told` is set the channel has requests in flight until the message has run, so that it stays.
struct External::Told {
    ExternalChannel* first = nullptr;

    void send() noexcept {
        while (first != nullptr) {
            ExternalChannel* own = first;
            first = own->next_to_tell;
            ENGINE_CHECK(own->channel->context->send(&own->message) == 0);
        }
    }
};

void External::answer(ExternalSlot& slot, Told& told) noexcept {
    ExternalChannel& own = *slot.own;
    slot.state = SlotState::answered;
    own.answered.push(&slot);
    if (own.told) return;
    own.told = true;
    own.next_to_tell = told.first;
    told.first = &own;
    stats_.messages++;
}

aio::Message* External::collect(ExternalChannel& own) noexcept {
    base::Guard guard(mutex_);
    own.told = false;
    aio::Message* chain = own.answered.take_all();
    for (aio::Message* item = chain; item != nullptr; item = item->next) {
        auto* slot = static_cast<ExternalSlot*>(item);
        slot->state = SlotState::free;
        slot->number = 0;
    }
    return chain;
}

// --- slots

External* External::make(Node& node) {
    void* memory = base::allocate(sizeof(External), alignof(External));
    if (memory == nullptr) return nullptr;
    External* made = nullptr;
    try {
        made = new (memory) External;
    } catch (...) {
        base::deallocate(memory);
        throw;
    }
    base::Guard guard(made->mutex_);
    made->node_ = &node;
    base::copy_text(made->program_.text, "(nobody)");
    return made;
}

External::~External() {
    if (fd_ >= 0) ::close(fd_);
    for (Chunk* chunk : chunks_) {
        for (ExternalSlot& slot : chunk->slots) {
            ENGINE_CHECK(slot.state == SlotState::free);
            if (slot.memory != nullptr) slot.memory->release();
        }
        base::Owner<Chunk> owner(chunk);
    }
}

void External::release() noexcept {
    if (references_.fetch_sub_acq_rel(1) != 1) return;
    this->~External();
    base::deallocate(this);
}

bool External::grow() noexcept {
    auto first = static_cast<uint32_t>(chunks_.size()) * chunk_slots;
    if (first + chunk_slots > 1u << index_bits) return false;
    base::Owner<Chunk> chunk = base::make<Chunk>();
    if (chunk == nullptr) return false;
    try {
        chunks_.push_back(chunk.get());
    } catch (const std::bad_alloc&) {
        return false;
    }
    for (uint32_t i = chunk_slots; i-- != 0;) {
        ExternalSlot& slot = chunk->slots[i];
        slot.index = first + i;
        slot.age.slot = &slot;
        slot.next = spare_;
        spare_ = &slot;
    }
    (void)chunk.release();
    return true;
}

ExternalSlot* External::take_slots() noexcept {
    base::Guard guard(mutex_);
    if (spare_ == nullptr && !grow()) return nullptr;
    ExternalSlot* first = spare_;
    ExternalSlot* last = first;
    for (uint32_t i = 1; i < chunk_slots && last->next != nullptr; i++)
        last = static_cast<ExternalSlot*>(last->next);
    spare_ = static_cast<ExternalSlot*>(last->next);
    last->next = nullptr;
    return first;
}

void External::return_slots(ExternalSlot* chain) noexcept {
    base::Guard guard(mutex_);
    while (chain != nullptr) {
        auto* next = static_cast<ExternalSlot*>(chain->next);
        chain->next = spare_;
        spare_ = chain;
        chain = next;
    }
}

// One whose request failed by time: the program is done with it.
void External::return_slot(ExternalSlot& slot) noexcept {
    if (slot.memory != nullptr) {
        slot.memory->release();
        slot.memory = nullptr;
    }
    slot.state = SlotState::free;
    slot.number = 0;
    slot.next = spare_;
    spare_ = &slot;
    stats_.given_up--;
}

ExternalSlot* External::find(uint64_t number) noexcept {
    uint64_t index = number & ((uint64_t{1} << index_bits) - 1);
    if (number == 0 || index / chunk_slots >= chunks_.size()) return nullptr;
    ExternalSlot& slot = chunks_[index / chunk_slots]->slots[index % chunk_slots];
    return slot.number == number ? &slot : nullptr;
}

// --- the node's side

void External::choose(uint64_t most, base::List<Waiter>& chosen) noexcept {
    for (; most != 0 && !waiters_.empty(); most--) {
        Waiter* waiter = waiters_.front();
        waiter->unlink();
        waiter->chosen = true;
        chosen.push_back(waiter);
    }
}

void External::wake(base::List<Waiter>& chosen) noexcept {
    while (Waiter* waiter = chosen.front()) {
        waiter->unlink();
        waiter->woken.set();  // from here on it may be gone
    }
}

void External::signal_fd(bool readable) noexcept {
    if (fd_ < 0 || fd_readable_ == readable) return;
    fd_readable_ = readable;
    uint64_t value = 1;
    // NOLINTNEXTLINE(clang-analyzer-unix.BlockInCriticalSection): an eventfd that never blocks
    ssize_t done = readable ? ::write(fd_, &value, sizeof value) : read(fd_, &value, sizeof value);
    ENGINE_CHECK(done == sizeof value);
}

bool External::offer(aio::Message* chain) noexcept {
    base::List<Waiter> chosen;
    {
        base::Guard guard(mutex_);
        if (!attached_ || stopped_) return false;
        uint64_t count = 0;
        while (chain != nullptr) {
            auto* slot = static_cast<ExternalSlot*>(chain);
            chain = chain->next;
            slot->state = SlotState::queued;
            queue_.push_back(slot);
            count++;
        }
        stats_.queued += static_cast<uint32_t>(count);
        choose(count, chosen);
        signal_fd(true);
    }
    wake(chosen);
    return true;
}

SlotState External::give_up(ExternalSlot& slot) noexcept {
    base::Guard guard(mutex_);
    SlotState was = slot.state;
    if (was == SlotState::queued) {
        slot.base::Link::unlink();
        slot.state = SlotState::free;
        stats_.queued--;
        if (queue_.empty()) signal_fd(false);
    } else if (was == SlotState::taken) {
        slot.state = SlotState::given_up;
        stats_.taken--;
        stats_.given_up++;
    }
    if (was != SlotState::answered) stats_.timed_out++;
    return was;
}

External::Name External::program() noexcept {
    base::Guard guard(mutex_);
    return program_;
}

void External::node_closed() noexcept {
    base::List<Waiter> chosen;
    {
        base::Guard guard(mutex_);
        ENGINE_CHECK(queue_.empty());
        node_ = nullptr;
        choose(UINT64_MAX, chosen);
        signal_fd(true);
    }
    wake(chosen);
    release();
}

// --- the program's side

int External::attach(const char* program, engine_error* error) {
    base::Guard guard(mutex_);
    if (attached_) {
        return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY,
                          {.node = node_->control->name.c_str(), .operation = "attach", .field = "program"},
                          "node %s is served by '%s' already: close that one first",
                          node_->control->name.c_str(), program_.text);
    }
    attached_ = true;
    stopped_ = false;
    base::copy_text(program_.text, program);
    references_.fetch_add_acq_rel(1);
    return 0;
}

uint32_t External::pop(engine_external_request* out, uint32_t max) noexcept {
    uint32_t count = 0;
    for (; count < max && !queue_.empty(); count++) {
        ExternalSlot& slot = *queue_.front();
        slot.base::Link::unlink();
        slot.state = SlotState::taken;
        slot.number = next_number_++ << index_bits | slot.index;
        out[count] = {.id = slot.number,
                      .op = static_cast<uint32_t>(slot.op),
                      .flags = slot.flags,
                      .offset = slot.offset,
                      .length = slot.length,
                      .iov = reinterpret_cast<const engine_iovec*>(slot.iov),
                      .iov_count = slot.iov_count,
                      .extent_capacity = slot.extent_capacity,
                      .extents = slot.extents,
                      .request_id = slot.id,
                      .reserved = {}};
    }
    stats_.queued -= count;
    stats_.taken += count;
    stats_.requests += count;
    if (queue_.empty()) signal_fd(false);
    return count;
}

int64_t External::take(engine_external_request* out, uint32_t max, uint64_t timeout_ns) noexcept {
    uint64_t start_ns = timeout_ns == 0 || timeout_ns == UINT64_MAX ? 0 : base::monotonic_ns();
    bool last = timeout_ns == 0 || max == 0;
    for (;;) {
        Waiter waiter;
        {
            base::Guard guard(mutex_);
            if (node_ == nullptr || stopped_) return -ESHUTDOWN;
            uint32_t count = pop(out, max);
            if (count != 0 || last) return count;
            waiters_.push_back(&waiter);
        }
        uint64_t left_ns = UINT64_MAX;
        if (timeout_ns != UINT64_MAX) {
            uint64_t gone_ns = base::monotonic_ns() - start_ns;
            left_ns = gone_ns < timeout_ns ? timeout_ns - gone_ns : 0;
        }
        if (waiter.woken.wait_for(left_ns)) continue;
        last = true;  // and looks once more: it may have been chosen just now
        base::Mutex& mutex = mutex_;
        mutex.lock();
        bool chosen = waiter.chosen;
        if (!chosen) waiter.unlink();
        mutex.unlock();
        if (chosen) waiter.woken.wait();
    }
}

namespace {
base::Owner<char[]> copy_of(const char* text) noexcept {
    size_t bytes = strnlen(text, sizeof(engine_error::message)) + 1;
    base::Owner<char[]> copy = base::make_array<char>(bytes);
    if (copy != nullptr) base::copy_text(copy.get(), bytes, text);
    return copy;
}
}  // namespace

int64_t External::complete(const engine_external_completion* done, uint32_t count) noexcept {
    Told told;
    int64_t accepted = 0;
    {
        base::Guard guard(mutex_);
        for (uint32_t i = 0; i < count; i++) {
            ExternalSlot* slot = find(done[i].id);
            bool known =
                slot != nullptr && (slot->state == SlotState::taken || slot->state == SlotState::given_up);
            bool keeps = known && (done[i].flags & ENGINE_EXTERNAL_KEEP) != 0 && slot->memory != nullptr;
            if (keeps) slot->memory->keep();
            if (!known || slot->state == SlotState::given_up) {
                stats_.late++;
                if (known) return_slot(*slot);
                continue;
            }
            slot->kept = keeps;
            slot->answer = done[i].result;
            if (done[i].result < 0 && done[i].message != nullptr) slot->text = copy_of(done[i].message);
            stats_.taken--;
            stats_.completed++;
            answer(*slot, told);
            accepted++;
        }
    }
    told.send();
    return accepted;
}

int64_t External::forward(const uint64_t* ids, uint32_t count) noexcept {
    Told told;
    int64_t accepted = 0;
    {
        base::Guard guard(mutex_);
        if (node_ != nullptr && node_->control->children.empty()) return -ENOTSUP;
        for (uint32_t i = 0; i < count; i++) {
            ExternalSlot* slot = find(ids[i]);
            if (slot == nullptr || slot->state != SlotState::taken) {
                stats_.late++;
                if (slot != nullptr && slot->state == SlotState::given_up) return_slot(*slot);
                continue;
            }
            slot->forward = true;
            stats_.taken--;
            stats_.forwarded++;
            answer(*slot, told);
            accepted++;
        }
    }
    told.send();
    return accepted;
}

int External::watch() noexcept {
    base::Guard guard(mutex_);
    if (fd_ >= 0) return fd_;
    int made = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (made < 0) return -errno;
    fd_ = made;
    signal_fd(!queue_.empty() || node_ == nullptr || stopped_);
    return fd_;
}

User* External::child() noexcept {
    base::Guard guard(mutex_);
    if (node_ == nullptr || node_->control->children.empty()) return nullptr;
    return node_->control->children[0].user;
}

void External::read_stats(engine_external_stats* out) noexcept {
    base::Guard guard(mutex_);
    *out = stats_;
}

void External::abandon_queued(Told& told) noexcept {
    while (!queue_.empty()) {
        ExternalSlot& slot = *queue_.front();
        slot.base::Link::unlink();
        slot.abandoned = true;
        stats_.queued--;
        answer(slot, told);
    }
}

int External::stop() noexcept {
    Told told;
    base::List<Waiter> chosen;
    {
        base::Guard guard(mutex_);
        stopped_ = true;
        abandon_queued(told);
        choose(UINT64_MAX, chosen);
        signal_fd(true);
    }
    wake(chosen);
    told.send();
    return 0;
}

int External::detach() noexcept {
    Told told;
    uint64_t left = 0;
    Name node_name{};
    Name program{};
    {
        base::Guard guard(mutex_);
        attached_ = false;
        left = stats_.queued + stats_.taken;
        program = program_;
        if (node_ != nullptr) base::copy_text(node_name.text, node_->control->name.c_str());
        abandon_queued(told);
        for (Chunk* chunk : chunks_) {
            for (ExternalSlot& slot : chunk->slots) {
                if (slot.state == SlotState::given_up) return_slot(slot);
                if (slot.state != SlotState::taken) continue;
                slot.abandoned = true;
                stats_.taken--;
                answer(slot, told);
            }
        }
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
        fd_readable_ = false;
    }
    if (left != 0) {
        base::log(ENGINE_LOG_WARNING,
                  "node %s: %s stopped serving it with %lu requests to be done; they have failed",
                  node_name.text, program.text, left);
    }
    told.send();
    release();
    return 0;
}

}  // namespace engine::block
