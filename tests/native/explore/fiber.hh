// A stack of its own and the way onto it: ucontext, which makes a system call at every switch, or on x86-64 a
// few instructions instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace explore {

#if defined(__x86_64__)

// Saves what the System V ABI says a function preserves, on the stack that is left, and takes it from the
// other one.
extern "C" void explore_switch_stack(void** save, void* load);
asm(R"(
    .text
    .type explore_switch_stack, @function
explore_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size explore_switch_stack, . - explore_switch_stack
)");

#endif

class FiberContext {
  public:
    // The next switch to it calls `entry`, which never returns, on an empty stack.
    void prepare(void (*entry)()) {
        if (stack_ == nullptr) stack_.reset(new char[stack_bytes]);
#if defined(__x86_64__)
        // Six registers, the address to return to, and a null one for entry's own, with the stack as after a
        // call.
        auto top = reinterpret_cast<uintptr_t>(stack_.get() + stack_bytes) & ~uintptr_t{15};
        auto words = reinterpret_cast<uintptr_t*>(top) - 8;
        for (int i = 0; i < 8; i++) words[i] = 0;
        words[6] = reinterpret_cast<uintptr_t>(entry);
        saved_ = words;
#else
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = stack_bytes;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
#endif
    }

    // Leaves the running fiber, which is `from`; returns when somebody switches back to it.
    static void switch_over(FiberContext& from, FiberContext& to) {
#if defined(__x86_64__)
        explore_switch_stack(&from.saved_, to.saved_);
#else
        swapcontext(&from.context_, &to.context_);
#endif
    }

  private:
    static constexpr size_t stack_bytes = 128 * 1024;
#if defined(__x86_64__)
    void* saved_ = nullptr;
#else
    ucontext_t context_;
#endif
    std::unique_ptr<char[]> stack_;
};

}  // namespace explore
