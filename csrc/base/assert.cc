// The end of a process whose state is not what it must be. Any thread.
#include "base/assert.hh"

#include <cstdio>
#include <cstdlib>

namespace engine::base {

void check_failed(const char* expression, const char* file, int line) noexcept {
    fprintf(stderr, "engine: check failed: %s (%s:%d)\n", expression, file, line);
    abort();
}

}  // namespace engine::base
