// Cancellation: whoever may want something to end early keeps a CancelSource and hands its token down; what
// waits hangs a hook on it. What is cancelled ends once, with -ECANCELED or with its result, whichever came
// first; until then its buffers stay its own. Home thread of one executor; no lock.
//
//   good: CancelSource source;  Task<int64_t> task = copy(channel, source.token());  …  source.cancel();
//   bad:  to forget the task after cancel(): it is still to be awaited
#pragma once

#include <cerrno>

#include "base/assert.hh"
#include "base/list.hh"

namespace engine::coro {

class CancelSource;

// A copy of it is as good; the source outlives all. An empty one is never cancelled.
class CancelToken {
  public:
    CancelToken() noexcept = default;
    bool cancelled() const noexcept;

  private:
    friend class CancelSource;
    friend class CancelHook;
    explicit CancelToken(CancelSource& source) noexcept : source_(&source) {}
    CancelSource* source_ = nullptr;
};

// What is called when the source is cancelled: once, while it is attached. It resumes nobody, it completes
// what somebody waits for.
class CancelHook : private base::Link {
  public:
    explicit CancelHook(void (*function)(CancelHook*) noexcept) noexcept : function_(function) {}
    // -ECANCELED: too late, it will not be called. 0: it will be, if the token is ever cancelled.
    int attach(const CancelToken& token) noexcept;
    void detach() noexcept { unlink(); }

  private:
    friend class CancelSource;
    friend class base::List<CancelHook>;
    void (*function_)(CancelHook*) noexcept;
};

class CancelSource {
  public:
    CancelSource() noexcept : from_parent_(*this) {}
    // Cancelled with the parent as well.
    explicit CancelSource(const CancelToken& parent) noexcept : from_parent_(*this) {
        cancelled_ = from_parent_.attach(parent) != 0;
    }
    CancelSource(const CancelSource&) = delete;
    CancelSource& operator=(const CancelSource&) = delete;
    // Nothing hangs on it any more.
    ~CancelSource() { ENGINE_CHECK(hooks_.empty()); }

    CancelToken token() noexcept { return CancelToken(*this); }
    bool cancelled() const noexcept { return cancelled_; }
    void cancel() noexcept {
        cancelled_ = true;
        // A hook may detach others.
        while (CancelHook* hook = hooks_.front()) {
            hook->detach();
            hook->function_(hook);
        }
    }

  private:
    friend class CancelHook;
    struct FromParent : CancelHook {
        CancelSource& source;
        explicit FromParent(CancelSource& owner) noexcept
            : CancelHook([](CancelHook* hook) noexcept { static_cast<FromParent*>(hook)->source.cancel(); }),
              source(owner) {}
    };

    base::List<CancelHook> hooks_;
    bool cancelled_ = false;
    FromParent from_parent_;
};

inline bool CancelToken::cancelled() const noexcept {
    return source_ != nullptr && source_->cancelled();
}

inline int CancelHook::attach(const CancelToken& token) noexcept {
    ENGINE_ASSERT(!linked());
    if (token.source_ == nullptr) return 0;
    if (token.source_->cancelled_) return -ECANCELED;
    token.source_->hooks_.push_back(this);
    return 0;
}

}  // namespace engine::coro
