// What the request layer does for drivers that cannot do it themselves: offsets, lengths and buffers that do
// not suit them, requests that are too long for them, FUA as write and flush, zeroes as writes; writes of
// zeroes found out (detect-zeroes); and changes of a tracked node, which wait for one another. Home thread of
// the request's context.
#pragma once

#include "block/node.hh"

namespace engine::block {

// Does the driver get it as it is? Of requests within the disk, by an operation that the driver has. Write
// zeroes never: whether a driver can do it may turn out only when it tries. What does not is for emulate(),
// but for copy_range, which fails.
bool suits_driver(const Channel& channel, const Request& request) noexcept;

// Takes the request over and finishes it.
void emulate(Channel& channel, Request* request) noexcept;

}  // namespace engine::block
