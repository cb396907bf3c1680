// What the request layer does for drivers that cannot do it themselves: FUA as write and flush, zeroes as
// writes. Home thread of the request's context.
#pragma once

#include "block/node.hh"

namespace engine::block {

// Write zeroes always takes this way: whether a driver can do it may turn out only when it tries.
inline bool needs_emulation(const Node& node, const Request& request) noexcept {
    return request.op == Op::write_zeroes ||
           (request.op == Op::write && (request.flags & ~node.native_write_flags) != 0);
}

// Takes the request over and finishes it.
void emulate(Channel& channel, Request* request) noexcept;

}  // namespace engine::block
