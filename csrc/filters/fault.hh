// What the C interface wants of the fault filter. Control plane.
#pragma once

#include "block/node.hh"

namespace engine::filters {

// Lets all go that rules of a fault node hold by `pause`, on every context. How many that were, or -errno.
// Foreign threads only.
int resume_faults(block::Node& node, engine_error* error);

}  // namespace engine::filters
