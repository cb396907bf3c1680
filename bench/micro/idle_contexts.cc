// What an idle context keeps resident: the growth of this process's resident memory for N contexts, divided
// by N. No lock: the main thread alone does it.
//
// usage: idle_contexts N
#include <ctime>

#include "micro.hh"

namespace {

// Kilobytes, from /proc/self/smaps_rollup: with shared pages, so that nothing is missed.
uint64_t resident_kib() {
    FILE* file = fopen("/proc/self/smaps_rollup", "re");
    if (file == nullptr) micro::fail("/proc/self/smaps_rollup", strerror(errno));
    char line[256];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, file) != nullptr) {
        if (sscanf(line, "Rss: %llu kB", &kib) == 1) break;
    }
    fclose(file);
    if (kib == 0) micro::fail("/proc/self/smaps_rollup", "has no Rss");
    return kib;
}

// Long enough for a context to have stopped polling and gone to sleep.
void settle() {
    timespec pause{0, 200'000'000};
    nanosleep(&pause, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) micro::fail("usage", "idle_contexts N");
    uint64_t count = micro::number(argv[1], "N");
    if (count == 0 || count > 200) micro::fail("N", "must be from 1 to 200");
    micro::Engine engine;
    engine.add_context("first", -1, -1);  // pays for what is shared by all
    settle();
    uint64_t before = resident_kib();
    for (uint64_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "idle%llu", static_cast<unsigned long long>(i));
        engine.add_context(name, -1, -1);
    }
    settle();
    uint64_t after = resident_kib();
    printf("{\"contexts\": %llu, \"resident_bytes_each\": %llu}\n", static_cast<unsigned long long>(count),
           static_cast<unsigned long long>((after - before) * 1024 / count));
    return 0;
}
