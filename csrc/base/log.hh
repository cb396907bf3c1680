// Saying what nobody asked for: one line, to the hook or queue of engine/log.h. Any thread; takes a
// process-wide mutex, so never on the request path.
#pragma once

#include <engine/log.h>

namespace engine::base {

// False: nobody listens, and it went nowhere.
bool log(engine_log_level level, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

}  // namespace engine::base
