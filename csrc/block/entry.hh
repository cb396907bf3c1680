// How requests from outside enter the graph: what they must satisfy, what they hold meanwhile, and the text
// of a failure whose layer left none. No state; any thread.
#pragma once

#include <initializer_list>

#include "aio/signal.hh"
#include "block/graph.hh"

namespace engine::block {

// Operation, flags and the sum of the parts. 0 or -EINVAL.
int check_entry(uint32_t op, uint32_t flags, const engine_iovec* iov, uint32_t iov_count, uint64_t bytes,
                engine_error* error) noexcept;

// Before requests of a user are sent to a context: keeps both from closing, and finds the way in. Blocks, the
// first time.
int begin_use(Instance& engine, User* user, aio::AioContext* context, const char* operation, Port** port,
              engine_error* error);
// When the last of them has completed. Neither may be touched afterwards.
void end_use(User* user, aio::AioContext* context) noexcept;

// For who closes and waits for its last requests: once it has waited for so long, what drivers hold back by
// choice goes on, since nobody may be left who would let it go.
constexpr uint64_t close_patience_ns = 100'000'000;
// Home thread: what is held back now, here and below.
void let_go_below(Port& port) noexcept;
// Waits until `over` on behalf of ports of one context, of which those that are null do not count. Foreign
// threads.
void wait_to_close(aio::Signal& over, aio::AioContext& context, std::initializer_list<Port*> ports) noexcept;

// Fills `error` (which may be null) unless it says something already. Home thread, in the request's
// completion: the channel that it ended on is still there.
void describe_failure(engine_error* error, const Request& request, int errnum) noexcept;

}  // namespace engine::block
