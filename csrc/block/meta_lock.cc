// The slots of `meta` and their end.
#include "block/meta_lock.hh"

#include "base/alloc.hh"

namespace engine::block {

void MetaLock::set_up(Node& node) {
    lock_.set_label({.name = "meta",
                     .owner = node.control->name.c_str(),
                     .rank = coro::LockRank::meta,
                     .id = node.control->id});
    Instance& engine = *node.control->engine;
    if (engine.lock_profile) lock_.enable_profile();
    std::lock_guard guard(engine.control);
    node.control->meta = this;
}

MetaLock::Slot* MetaLock::slot_of(aio::AioContext& context) noexcept {
    ENGINE_ASSERT(context.on_home());
    base::Guard guard(list_mutex_);
    for (OwnedSlot* slot = slots_; slot != nullptr; slot = slot->next) {
        if (slot->context == &context) return &slot->slot;
    }
    base::Owner<OwnedSlot> made = base::make<OwnedSlot>(context);
    if (made == nullptr) return nullptr;
    try {
        lock_.add(made->slot);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
    made->next = slots_;
    slots_ = made.release();
    return &slots_->slot;
}

// A slot leaves its lock under the lock, which only a context can take.
void MetaLock::close(Node& node) noexcept {
    Instance& engine = *node.control->engine;
    {
        std::lock_guard guard(engine.control);
        node.control->meta = nullptr;
    }
    if (slots_ == nullptr) return;
    int result = engine.main()->call_and_wait([this, &engine] {
        coro::LockChain chain(engine.executor());
        Exclusive guard = lock_.try_lock_exclusive(chain);
        ENGINE_CHECK(guard);
        for (OwnedSlot* slot = slots_; slot != nullptr; slot = slot->next) lock_.remove(guard, slot->slot);
    });
    ENGINE_CHECK(result == 0);
    while (slots_ != nullptr) {
        base::Owner<OwnedSlot> slot(slots_);
        slots_ = slot->next;
    }
}

uint64_t MetaLock::acquisitions() const noexcept {
    base::Guard guard(list_mutex_);
    uint64_t sum = lock_.acquisitions();
    for (OwnedSlot* slot = slots_; slot != nullptr; slot = slot->next) sum += slot->slot.acquisitions();
    return sum;
}

uint64_t MetaLock::contended() const noexcept {
    base::Guard guard(list_mutex_);
    uint64_t sum = lock_.contended();
    for (OwnedSlot* slot = slots_; slot != nullptr; slot = slot->next) sum += slot->slot.contended();
    return sum;
}

void MetaLock::read_profile(engine_histogram* wait, engine_histogram* hold) const noexcept {
    base::Guard guard(list_mutex_);
    lock_.read_profile(wait, hold);
    for (OwnedSlot* slot = slots_; slot != nullptr; slot = slot->next) slot->slot.read_profile(wait, hold);
}

}  // namespace engine::block
