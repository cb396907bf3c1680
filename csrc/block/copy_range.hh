// Copies from what one user may read to what another may write, both on one context. Where both ranges lie in
// files as they are (Driver::locate, and copy_range among the target's operations) the kernel copies, or lets
// the files share their blocks; everywhere else it is a read and a write at a time.
//
//   1. A copy by the kernel is inside both nodes from beginning to end. It enters both in one step, and
//      neither where a port is parked: a change of the graph that waits for both never finds one that is
//      inside the first and waits for the second.
//   2. What is read and written enters through the ports, and is inside neither node while it waits for the
//      other.
//   3. Ranges may overlap, also where the two users stand at different levels of one stack: then it goes from
//      the end that is not overwritten, as memmove does.
//   4. A piece that the kernel does not copy is read and written, and the next is the kernel's again, unless
//      there is no way.
#pragma once

#include "block/port.hh"
#include "coro/task.hh"

namespace engine::block {

struct CopyRange {
    Port& source;
    uint64_t source_offset;
    Port& target;
    uint64_t target_offset;
    uint64_t length;
    engine_error* error;

    coro::Executor& executor() const noexcept { return *target.context; }
};

// Home thread of the ports' context. 0, or -errno: then how much was copied is not known.
coro::Task<int64_t> copy_range(const CopyRange& what);

}  // namespace engine::block
