// Headers that most of the library reads, compiled once where meson's b_pch is on (the sanitizer builds: it
// saves a third of their time). Nothing may depend on it: the builds without it do not see this file.
#include <algorithm>
#include <array>
#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "aio/context.hh"
#include "base/error.hh"
#include "block/graph.hh"
#include "coro/task.hh"
