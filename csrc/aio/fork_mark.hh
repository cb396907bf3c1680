// Tells the process that made it from a child of fork(), by a page that the kernel empties in the child.
// Written once, in the constructor; any thread may ask, at the price of a load.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace engine::aio {

class ForkMark {
  public:
    ForkMark() : bytes_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
        void* page = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) throw std::bad_alloc();
        (void)madvise(page, bytes_, MADV_WIPEONFORK);  // before Linux 4.14 nothing can be told
        word_ = new (page) uint32_t{1};
    }
    ~ForkMark() { munmap(word_, bytes_); }
    ForkMark(const ForkMark&) = delete;
    ForkMark& operator=(const ForkMark&) = delete;

    bool same_process() const noexcept { return *word_ != 0; }

  private:
    size_t bytes_;
    uint32_t* word_;
};

}  // namespace engine::aio
