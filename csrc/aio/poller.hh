// What a context looks at while it is awake instead of waiting to be told: virtqueues, user fd handlers.
// Home thread only.
#pragma once

#include "base/list.hh"

namespace engine::aio {

class Poller : public base::Link {
  public:
    // Once a turn: do what work there is. True when there was some.
    virtual bool poll() = 0;
    // While the context busy-polls: is there work? A look, nothing more (global mode: without the lock).
    virtual bool has_work() = 0;
    // Before the context sleeps: ask the other side for notifications, then look once more. True: there is
    // work.
    virtual bool prepare_sleep() = 0;
    // After it slept, or decided not to: no notifications needed.
    virtual void end_sleep() = 0;

  protected:
    ~Poller() = default;
};

}  // namespace engine::aio
