// The drivers of this build. A new one is a folder of its own and a line here and in registry.cc.
#pragma once

#include "block/node.hh"

namespace engine::block {

extern const Driver delay_driver;
extern const Driver external_driver;
extern const Driver fault_driver;
extern const Driver file_driver;
extern const Driver memory_driver;
extern const Driver null_driver;
extern const Driver overlay_driver;
extern const Driver passthrough_driver;
extern const Driver raw_driver;
extern const Driver throttle_driver;
extern const Driver verify_driver;
extern const Driver write_log_driver;

}  // namespace engine::block
