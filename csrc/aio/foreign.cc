// Timers and fd handlers for callers on any thread. The state is the home thread's; commands reach it by
// message.
#include "aio/foreign.hh"

#include <fcntl.h>
#include <poll.h>

#include <new>

#include "base/alloc.hh"

namespace engine::aio {

int ForeignTimer::send(Action action, uint64_t deadline_ns) noexcept {
    if (context_.on_home()) {
        return apply(action, deadline_ns);
    }
    base::Owner<Command> command = base::make<Command>();
    if (command == nullptr) return -ENOMEM;
    command->timer = this;
    command->deadline_ns = deadline_ns;
    command->action = action;
    command->run = [](Message* message) {
        base::Owner<Command> self(static_cast<Command*>(message));
        // Who sent it was told that `done` will run.
        if (self->timer->apply(self->action, self->deadline_ns) != 0) self->timer->finish(0);
        self->timer->release();
    };
    references_.fetch_add_acq_rel(1);
    int result = context_.send(command.get());
    if (result == 0) {
        (void)command.release();
    } else {
        release();
    }
    return result;
}

int ForeignTimer::apply(Action action, uint64_t deadline_ns) noexcept {
    if (action == Action::cancel) {
        if (context_.timers().cancel(&timer_)) finish(0);
        return 0;
    }
    if (context_.winding_up() || destroyed_) return -ESHUTDOWN;
    return context_.timers().arm(&timer_, deadline_ns);
}

void ForeignTimer::destroy_now() noexcept {
    destroyed_ = true;
    if (context_.timers().cancel(&timer_)) finish(0);
    release();
}

int ForeignTimer::arm(uint64_t deadline_ns) noexcept {
    return send(Action::arm, deadline_ns);
}
int ForeignTimer::cancel() noexcept {
    return send(Action::cancel, 0);
}

void ForeignTimer::destroy(ForeignTimer* timer) noexcept {
    if (timer->context_.on_home()) {
        timer->destroy_now();
    } else if (timer->context_.send(&timer->destruction_) != 0) {
        timer->release();  // a context that has closed holds no timer
    }
}

int ForeignFdHandler::create(AioContext& context, int fd, Function on_read, Function on_write,
                             PollFunction poll, void* opaque, ForeignFdHandler** out) {
    if (fcntl(fd, F_GETFD) < 0) return -errno;
    auto* self = new ForeignFdHandler;
    self->context_ = &context;
    self->on_read_ = on_read;
    self->on_write_ = on_write;
    self->poll_ = poll;
    self->opaque_ = opaque;
    self->handler_.owner = self;
    self->handler_.fd = fd;
    self->handler_.events = (on_read != nullptr ? POLLIN : 0) | (on_write != nullptr ? POLLOUT : 0);
    self->handler_.ready = [](FdHandler* handler, uint32_t events) {
        static_cast<Owned*>(handler)->owner->ready(events);
    };
    self->handler_.released = [](FdHandler* handler) { delete static_cast<Owned*>(handler)->owner; };
    int added = 0;
    auto add = [&] {
        // Of a context that is closing nothing may be watched: it would point to a handler that others free.
        if (context.winding_up()) {
            added = -ESHUTDOWN;
            return;
        }
        added = context.backend().add_fd(&self->handler_);
        if (added == 0 && poll != nullptr) context.add_poller(self);
    };
    int result = 0;
    if (context.on_home()) {
        add();
    } else {
        result = context.call_and_wait(add);
    }
    if (result == 0) result = added;
    if (result != 0) {
        delete self;
        return result;
    }
    *out = self;
    return 0;
}

void ForeignFdHandler::destroy(ForeignFdHandler* handler) noexcept {
    auto remove = [handler] {
        handler->context_->remove_poller(handler);
        handler->context_->backend().remove_fd(&handler->handler_);
    };
    if (handler->context_->on_home()) {
        remove();
    } else if (handler->context_->call_and_wait(remove) == -ESHUTDOWN) {
        delete handler;
    }
}

bool ForeignFdHandler::poll() {
    if (!has_work()) return false;
    on_read_(opaque_);
    return true;
}

void ForeignFdHandler::ready(uint32_t events) noexcept {
    if (on_read_ != nullptr && (events & (POLLIN | POLLHUP | POLLERR)) != 0) on_read_(opaque_);
    if (handler_.removed) return;
    if (on_write_ != nullptr && (events & (POLLOUT | POLLERR)) != 0) on_write_(opaque_);
}

}  // namespace engine::aio
