// The driver in a process of its own: it shares a sealed memfd with the engine, mapped at another address,
// and two eventfds, nothing else. It verifies what it writes and reads; and it may die at any moment.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "virtio_disk.hh"

using namespace rig;
using namespace engine::virtio;

namespace {

constexpr uint32_t queue_size = 64, depth = 16;
constexpr uint64_t guest_base = 0x80000000;
constexpr uint32_t sectors = 256;
constexpr uint64_t disk_bytes = sectors * sector_bytes;

// Where things lie in the memfd.
struct Cell {
    BlkHeader header;
    uint8_t status;
    alignas(64) uint8_t data[sector_bytes];
};
const RingLayout layout = RingLayout::make(queue_size, 4);
const uint64_t cells_at = (layout.bytes + 4095) / 4096 * 4096;
const uint64_t memory_bytes = cells_at + depth * sizeof(Cell);

struct Plan {
    uint64_t requests;  // 0: until killed
    uint64_t features;
};

// Everything here runs in the child. It leaves by _exit with the line where it failed.
class ChildDriver {
  public:
    ChildDriver(const Plan& plan, int memory_fd, int kick_fd, int call_fd)
        : plan_(plan), kick_fd_(kick_fd), call_fd_(call_fd), random_(plan.features + 3) {
        // In the way, so that the child of a fork does not map the memory where its parent will.
        void* in_the_way = mmap(nullptr, 64 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        void* at = mmap(nullptr, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        if (at == MAP_FAILED || in_the_way == MAP_FAILED) fail(__LINE__);
        memory_ = static_cast<uint8_t*>(at);
        DriverConfig config{memory_, guest_base, memory_bytes, layout, plan.features};
        if (ring_.configure(config, nullptr) != 0) fail(__LINE__);
        ring_.disable_calls();
    }
    uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }
    void run() {
        for (uint64_t done = 0; plan_.requests == 0 || done < plan_.requests;) {
            uint32_t busy = ring_.in_flight();
            while (busy < depth && (plan_.requests == 0 || issued_ < plan_.requests) && issue()) busy++;
            if (ring_.publish()) signal(kick_fd_);
            if (!sleep()) fail(__LINE__);
            void* token = nullptr;
            for (uint32_t written = 0; ring_.reap(&token, &written); done++) {
                finish(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(token)), written);
            }
            if (ring_.broken()) fail(__LINE__);
        }
    }
    [[noreturn]] static void fail(int line) {
        fprintf(stderr, "driver process: failed in line %d (%s)\n", line, strerror(errno));
        _exit(1);
    }
    static void signal(int fd) {
        uint64_t one = 1;
        if (write(fd, &one, sizeof one) != sizeof one) fail(__LINE__);
    }

  private:
    struct Slot {
        bool busy = false, write = false;
        uint32_t sector = 0;
    };

    Cell& cell(uint32_t slot) { return reinterpret_cast<Cell*>(memory_ + cells_at)[slot]; }
    uint64_t guest(const void* at) {
        return guest_base + static_cast<uint64_t>(static_cast<const uint8_t*>(at) - memory_);
    }
    static void fill(uint8_t (&data)[sector_bytes], uint32_t sector, uint32_t generation) {
        guest::Random random((uint64_t{sector} << 32) + generation);
        for (size_t i = 0; i < sector_bytes; i += 8) {
            uint64_t word = generation == 0 ? 0 : random.next();  // the disk begins with zeroes
            memcpy(data + i, &word, 8);
        }
    }
    // False: what it chose is being written or read.
    bool issue() {
        uint32_t slot = 0, sector = random_.below(sectors);
        while (slots_[slot].busy) slot++;
        if (sector_busy_[sector]) return false;
        Cell& to = cell(slot);
        bool write = random_.one_in(2);
        slots_[slot] = {true, write, sector};
        sector_busy_[sector] = true;
        to.header = {little_endian<uint32_t>(write ? blk_out : blk_in), 0, little_endian(uint64_t{sector})};
        to.status = 0xff;
        memset(to.data, 0xee, sizeof to.data);
        if (write) fill(to.data, sector, ++generation_[sector]);
        Element readable[2] = {{guest(&to.header), sizeof to.header}, {guest(to.data), sector_bytes}};
        Element writable[2] = {{guest(to.data), sector_bytes}, {guest(&to.status), 1}};
        bool added = write ? ring_.add({readable, 2}, {writable + 1, 1}, token(slot))
                           : ring_.add({readable, 1}, {writable, 2}, token(slot));
        if (!added) fail(__LINE__);
        issued_++;
        return true;
    }
    static void* token(uint32_t slot) { return reinterpret_cast<void*>(uintptr_t{slot}); }
    void finish(uint32_t slot, uint32_t written) {
        Slot& own = slots_[slot];
        if (slot >= depth || !own.busy || cell(slot).status != blk_ok) fail(__LINE__);
        if (written != (own.write ? 1 : sector_bytes + 1)) fail(__LINE__);
        uint8_t expected[sector_bytes];
        fill(expected, own.sector, generation_[own.sector]);
        if (memcmp(expected, cell(slot).data, sector_bytes) != 0) fail(__LINE__);
        sector_busy_[own.sector] = own.busy = false;
    }
    // False: no call within ten seconds.
    bool sleep() {
        if (ring_.has_used()) return true;
        bool called = true;
        if (ring_.enable_calls()) {
            pollfd wait{call_fd_, POLLIN, 0};
            called = poll(&wait, 1, 10000) == 1;
            uint64_t count;
            if (called && read(call_fd_, &count, sizeof count) != sizeof count) fail(__LINE__);
        }
        ring_.disable_calls();
        return called;
    }

    Plan plan_;
    int kick_fd_, call_fd_;
    uint8_t* memory_ = nullptr;
    DriverRing ring_;
    guest::Random random_;
    uint64_t issued_ = 0;
    Slot slots_[depth];
    uint32_t generation_[sectors] = {};
    bool sector_busy_[sectors] = {};
};

// From one process to the other: each closes the end that it does not use, so that a reader notices a death.
struct Pipe {
    Pipe() {
        if (pipe2(ends, O_CLOEXEC) != 0) abort();
    }
    ~Pipe() {
        use(0);
        use(1);
    }
    void use(int end) {
        if (ends[1 - end] >= 0) close(ends[1 - end]);
        ends[1 - end] = -1;
    }
    bool get(uint64_t* word) { return read(ends[0], word, sizeof *word) == sizeof *word; }
    void put(uint64_t word) {
        if (write(ends[1], &word, sizeof word) != sizeof word) ChildDriver::fail(__LINE__);
    }
    int ends[2];
};

int make_memory(bool sealed) {
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(memory_bytes)) != 0) abort();
    if (sealed && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) abort();
    return fd;
}

// Forked before the engine exists, so that the child has nothing of it: made first, joined last.
struct Child {
    explicit Child(const Plan& plan) : memory_fd(make_memory(true)) {
        pid = fork();
        ready.use(pid != 0 ? 0 : 1);
        go.use(pid != 0 ? 1 : 0);
        if (pid == 0) run(plan);
    }
    ~Child() {
        if (pid > 0) kill(pid, SIGKILL), join();
        for (int fd : {memory_fd, kick_fd, call_fd}) close(fd);
    }
    int join() {
        int status = 0;
        waitpid(pid, &status, 0);
        pid = -1;
        return status;
    }
    // Where the child has mapped the memory, once the ring in it is set up; 0: it died.
    uint64_t wait_ready() {
        uint64_t address = 0;
        return ready.get(&address) ? address : 0;
    }
    void start() { go.put(1); }

    [[noreturn]] void run(const Plan& plan) {
        alarm(60);
        ChildDriver driver(plan, memory_fd, kick_fd, call_fd);
        ready.put(driver.address());
        uint64_t word;
        if (!go.get(&word)) _exit(1);
        driver.run();
        _exit(0);
    }
    int memory_fd;
    int kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    Pipe ready, go;
    pid_t pid = -1;
};

// The engine's end: kicks come through an fd handler of the queue's context, calls go out through an eventfd.
struct Served {
    Served(Child& other, engine_context_t* on, BlkQueue& driven, uint64_t features)
        : child(other), queue(driven) {
        uint64_t address = child.wait_ready();
        REQUIRE(address != 0);
        engine_error error{};
        MemoryTable::Builder builder;
        MemoryTableRef table;
        require(builder.map_fd(guest_base, child.memory_fd, 0, memory_bytes, &error) == 0, "map_fd", error);
        require(builder.build(&table, &error) == 0, "build", error);
        CHECK(reinterpret_cast<uint64_t>(table->regions()[0].host) != address);
        RingConfig config{queue_size, guest_base + layout.desc, guest_base + layout.avail,
                          guest_base + layout.used, features};
        CallNotifier call{[](void* self) { ChildDriver::signal(static_cast<Child*>(self)->call_fd); },
                          &child};
        require(queue.start(std::move(table), config, call, &error) == 0, "start", error);
        require(engine_fd_handler_new(on, child.kick_fd, &Served::kicked, nullptr, nullptr, this, &handler,
                                      &error) == 0,
                "engine_fd_handler_new", error);
    }
    ~Served() {
        engine_fd_handler_delete(handler);
        queue.stop();
    }
    static void kicked(void* opaque) {
        auto* self = static_cast<Served*>(opaque);
        uint64_t count;
        if (read(self->child.kick_fd, &count, sizeof count) == sizeof count) self->queue.kick();
    }
    Child& child;
    BlkQueue& queue;
    engine_fd_handler_t* handler = nullptr;
};

struct Host {
    Host() : file(disk_bytes) {
        node =
            engine.open({{"driver", "raw"}, {"file.driver", "file"}, {"file.filename", file.path.c_str()}});
        disk = std::make_unique<rig::Disk>(node, std::vector{io0, io1});
    }
    TemporaryFile file;
    Engine engine;
    engine_context_t* io0 = engine.context("io0", two_cpus().first);
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node = nullptr;
    std::unique_ptr<rig::Disk> disk;
};

void serve(uint64_t features) {
    constexpr uint64_t requests = 100'000;
    Child child({requests, features});
    Host host;
    {
        Served served(child, host.io0, host.disk->core(0), features);
        child.start();
        int status = child.join();
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    engine_queue_stats stats = host.disk->stats(0);
    CHECK_EQ(stats.completed, requests);
    CHECK_EQ(stats.broken, 0u);
    CHECK(stats.kicks > 0 && stats.calls > 0 && stats.calls <= requests);
    // It went through to the node, and nothing of it through other queues.
    CHECK_EQ(stats.op[ENGINE_OP_READ].requests + stats.op[ENGINE_OP_WRITE].requests, requests);
    CHECK_EQ(host.disk->stats(1).requests, 0u);
}

TEST(a_driver_in_another_process) {
    serve(0);
}
TEST(a_driver_in_another_process_with_event_index) {
    serve(feature_event_idx);
}
TEST(a_driver_in_another_process_with_indirect_tables) {
    serve(feature_event_idx | feature_indirect_desc);
}

TEST(a_driver_that_is_killed_leaves_a_clean_queue) {
    for (uint64_t after : {1u, 700u, 5000u}) {
        Child child({0, feature_event_idx});
        Host host;
        std::vector<uint8_t> sector(sector_bytes);
        {
            Served served(child, host.io0, host.disk->core(0), feature_event_idx);
            child.start();
            for (double end = check::seconds() + 20; host.disk->stats(0).requests < after; usleep(20)) {
                REQUIRE(check::seconds() < end);
            }
            REQUIRE(kill(child.pid, SIGKILL) == 0);
            int status = child.join();
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            // The other queue does not notice, before and after.
            CHECK_EQ(engine_queue_io(host.disk->queue(1), ENGINE_OP_READ, sector.data(), 0, 512, 0, nullptr),
                     0);
        }
        engine_queue_stats stats = host.disk->stats(0);
        CHECK_EQ(stats.in_flight, 0u);
        CHECK_EQ(stats.broken, 0u);
        CHECK_EQ(engine_queue_io(host.disk->queue(1), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, nullptr), 0);
        // And another driver takes over.
        CHECK_EQ(engine_queue_io(host.disk->queue(0), ENGINE_OP_READ, sector.data(), 0, 512, 0, nullptr), 0);
    }
}

TEST(memory_that_its_owner_could_take_away_is_refused) {
    engine_error error{};
    MemoryTable::Builder builder;
    int unsealed = make_memory(false);
    CHECK_EQ(builder.map_fd(guest_base, unsealed, 0, memory_bytes, &error), -EPERM);
    CHECK_EQ(error.kind, uint32_t{ENGINE_ERROR_REFUSED});
    CHECK(mentions(error, "F_SEAL_SHRINK") && mentions(error, "F_ADD_SEALS"));
    close(unsealed);
    TemporaryFile file(static_cast<off_t>(memory_bytes));
    CHECK_EQ(builder.map_fd(guest_base, file.fd, 0, memory_bytes, &error), -EPERM);
    CHECK(mentions(error, "memfd_create"));
    int sealed = make_memory(true);
    CHECK(ftruncate(sealed, 0) != 0);  // the owner tries
    CHECK_EQ(builder.map_fd(guest_base, sealed, 0, memory_bytes, &error), 0);
    close(sealed);
}

}  // namespace
