// What most native tests read, compiled once where meson's b_pch is on. Nothing may depend on it.
#include <atomic>
#include <functional>
#include <random>
#include <set>
#include <thread>

#include "../../../csrc/pch/library.hh"
#include "../embedder.hh"
