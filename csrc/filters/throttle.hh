// What the C interface wants of the throttle filter. Control plane.
#pragma once

#include "block/node.hh"

namespace engine::filters {

// New limits for the group of a throttle node; the options are those of the driver that start with "limits.",
// and what is not given is unlimited.
int set_throttle(block::Node& node, block::OptionBag bag, engine_error* error);

}  // namespace engine::filters
