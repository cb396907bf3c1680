// How requests from outside enter the graph: what they must satisfy, what they hold meanwhile, and the text
// of a failure whose layer left none. No state; any thread.
#pragma once

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

// Fills `error` (which may be null) unless it says something already. Home thread, in the request's
// completion: the channel that it ended on is still there.
void describe_failure(engine_error* error, const Request& request, int errnum) noexcept;

}  // namespace engine::block
