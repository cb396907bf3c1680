// Requests of one channel that wait for their time, each for its own: ordered by deadline, equal ones as they
// came, with one timer of the channel's context. Home thread of that context.
//
//   Driver::open_channel   new (place) Waiting; waiting->open(channel)
//   Driver::submit         waiting.add(request, delay_ns)
//   Driver::hurry, cancel, close_channel: the functions of these names
#pragma once

#include "base/alloc.hh"
#include "block/node.hh"

namespace engine::filters {

class Waiting : private aio::Timer {
  public:
    // 0 or -ENOMEM. What has waited is passed on to the child.
    [[nodiscard]] int open(block::Channel& channel) noexcept;
    // With nothing waiting.
    void close() noexcept;

    // Takes the request over: it goes on `delay_ns` from now, in a hurry at once; without memory it fails.
    void add(block::Request* request, uint64_t delay_ns) noexcept;
    // `on`: all that waits goes on, and nothing waits until this is called with false.
    void hurry(bool on) noexcept;
    bool hurrying() const noexcept { return hurrying_; }
    // True: it waited here and is its caller's now.
    bool remove(const block::Request* request) noexcept;

  private:
    struct Entry {
        uint64_t due_ns = 0;
        uint64_t number = 0;  // in the order of coming
        block::Request* request = nullptr;
    };
    static bool later(const Entry& a, const Entry& b) noexcept {
        return a.due_ns != b.due_ns ? a.due_ns > b.due_ns : a.number > b.number;
    }
    bool make_room() noexcept;
    void let_go(uint64_t now_ns) noexcept;  // what is due by then
    void wait_for_first() noexcept;
    void look() noexcept;

    block::Channel* channel_ = nullptr;
    base::Owner<Entry[]> heap_;  // the next one first
    size_t size_ = 0;
    size_t capacity_ = 0;
    uint64_t next_number_ = 0;
    bool hurrying_ = false;
};

}  // namespace engine::filters
