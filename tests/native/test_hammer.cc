// Two contexts hammer a few blocks of one node with requests that overlap and are not aligned, while filters
// come and go above it. Afterwards the history is checked: every byte that was read, and every byte that is
// left, comes from a write that nothing had overwritten for good by then.
#include <climits>
#include <thread>

#include "base/random.hh"
#include "sector_disk.hh"

using namespace sector_disk;

namespace {

constexpr uint64_t disk_bytes = 4096;  // eight blocks
constexpr uint64_t bytes_max = 1500;   // of a request
constexpr unsigned depth = 4;          // requests in flight, on each context
constexpr unsigned filters_min = 3;    // that come and go meanwhile

struct Event {
    Op op = Op::read;
    uint64_t offset = 0;
    uint64_t length = 0;
    unsigned char value = 0;  // what is written, everywhere
    uint64_t began = 0;       // in the order of all beginnings and ends
    uint64_t ended = 0;
    std::vector<unsigned char> found{};  // by a read

    bool covers(uint64_t byte) const { return byte - offset < length; }
    bool changes() const { return op != Op::read; }
};

// Could a read from `began` to `ended` find this value in this byte? Of a discard only whole blocks need go.
bool explained(const std::vector<const Event*>& changes, uint64_t byte, unsigned char value, uint64_t began,
               uint64_t ended) {
    auto overwritten = [&](const Event& event) {
        for (const Event* later : changes) {
            bool for_good = later->op != Op::discard && later->covers(byte);
            if (for_good && later->began > event.ended && later->ended < began) return true;
        }
        return false;
    };
    Event blank{.op = Op::write_zeroes, .length = disk_bytes};  // before all
    if (value == 0 && !overwritten(blank)) return true;
    for (const Event* event : changes) {
        if (event->covers(byte) && event->value == value && event->began < ended && !overwritten(*event)) {
            return true;
        }
    }
    return false;
}

struct Hammer;

struct Blow : Request {
    Hammer* hammer = nullptr;
    Event event;
    bool recorded = true;
    std::vector<unsigned char> buffer;
};

// One context's requests: each that completes begins the next, until so many are done; and then reads that
// are not looked at, until enough filters have come and gone.
struct Hammer {
    std::atomic<uint64_t>* clock = nullptr;
    std::atomic<bool>* enough = nullptr;
    Port* port = nullptr;
    base::Random random{0};
    std::vector<Event> history;
    Blow blows[depth];
    unsigned left = 0;
    std::atomic<unsigned> running{depth};

    void begin(engine_context_t* context, uint64_t seed, unsigned rounds) {
        random = base::Random(seed);
        left = rounds;
        embedder::run_on(context, [this] {
            for (Blow& blow : blows) {
                blow.hammer = this;
                blow.complete = [](Request* request) {
                    auto* self = static_cast<Blow*>(request);
                    self->hammer->ended(self);
                };
                strike(&blow);
            }
        });
    }
    void strike(Blow* blow) {
        if (left == 0 && enough->load()) {
            running--;
            return;
        }
        blow->recorded = left != 0;
        if (left != 0) left--;
        constexpr Op ops[] = {Op::read,  Op::read,         Op::write,  Op::write,
                              Op::write, Op::write_zeroes, Op::discard};
        Event& event = blow->event;
        event.op = blow->recorded ? ops[random.below(7)] : Op::read;
        event.offset = random.below(disk_bytes);
        event.length = 1 + random.below(std::min(bytes_max, disk_bytes - event.offset));
        bool whole = random.below(3) == 0;
        if (whole) {
            event.length = (event.length + event.offset % 512 + 511) / 512 * 512;
            event.offset = event.offset / 512 * 512;
        }
        event.value = event.op == Op::write ? static_cast<unsigned char>(1 + random.below(255)) : 0;
        blow->op = event.op;
        blow->offset = event.offset;
        blow->length = event.length;
        blow->flags = event.op == Op::write && random.below(4) == 0 ? ENGINE_FUA : 0;
        blow->iov = nullptr;
        blow->iov_count = 0;
        if (event.op == Op::read || event.op == Op::write) {
            blow->buffer.assign(event.length, event.value);
            blow->set_buffer(blow->buffer.data(), event.length);
        }
        event.began = clock->fetch_add(1);
        submit(*port, blow);
    }
    void ended(Blow* blow) {
        blow->event.ended = clock->fetch_add(1);
        CHECK(blow->result >= 0);
        if (blow->op == Op::read) blow->event.found = blow->buffer;
        if (blow->recorded) history.push_back(std::move(blow->event));
        blow->event = Event();
        strike(blow);
    }
};

struct History {
    std::vector<Event> events;
    std::vector<const Event*> changes[disk_bytes];  // of each byte

    void index() {
        for (const Event& event : events) {
            if (!event.changes()) continue;
            for (uint64_t i = 0; i < event.length; i++) changes[event.offset + i].push_back(&event);
        }
    }
    unsigned unexplained() const {
        unsigned wrong = 0;
        for (const Event& event : events) {
            for (uint64_t i = 0; i < event.found.size(); i += 7) {  // every seventh will do
                uint64_t byte = event.offset + i;
                if (!explained(changes[byte], byte, event.found[i], event.began, event.ended)) wrong++;
            }
        }
        return wrong;
    }
};

void hammer(Bench& bench, unsigned rounds) {
    std::atomic<uint64_t> clock{1};
    std::atomic<bool> enough{false};
    Hammer hammers[2];
    for (unsigned i = 0; i < 2; i++) {
        engine_context_t* context = bench.engine.context(i == 0 ? "io0" : "io1");
        hammers[i].clock = &clock;
        hammers[i].enough = &enough;
        hammers[i].port = bench.port(context);
        hammers[i].begin(context, 100 + i, rounds);
    }
    unsigned filters = 0;
    while (hammers[0].running.load() != 0 || hammers[1].running.load() != 0) {
        Error error;
        engine_node_t* filter = nullptr;
        engine_option options[] = {{"driver", "passthrough"}, {"node-name", "over"}};
        CHECK_EQ(engine_node_insert_filter(api::wrap(bench.node), options, 2, 0, &filter, &error), 0);
        if (filter == nullptr) break;
        CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
        enough = ++filters >= filters_min;
    }
    enough = true;
    REQUIRE(eventually([&] { return hammers[0].running.load() + hammers[1].running.load() == 0; }));
    CHECK(filters >= filters_min);
    History history;
    for (Hammer& each : hammers) {
        history.events.insert(history.events.end(), each.history.begin(), each.history.end());
    }
    CHECK_EQ(history.events.size(), 2 * rounds);
    history.index();
    CHECK_EQ(history.unexplained(), 0);
    unsigned wrong = 0;
    for (uint64_t byte = 0; byte < disk_bytes; byte++) {
        if (!explained(history.changes[byte], byte, bench.byte(byte), clock.load(), UINT64_MAX)) wrong++;
    }
    CHECK_EQ(wrong, 0);
}

Demands small() {
    Demands demands;
    demands.bytes = disk_bytes;
    return demands;
}

TEST(history_tells_an_overwritten_byte) {
    Event first{.op = Op::write, .offset = 0, .length = 8, .value = 1, .began = 1, .ended = 2};
    Event second{.op = Op::write, .offset = 4, .length = 8, .value = 2, .began = 3, .ended = 4};
    std::vector<const Event*> both{&first, &second};
    CHECK(explained(both, 0, 1, 5, 6));
    CHECK(!explained(both, 4, 1, 5, 6));  // it was lost
    CHECK(explained(both, 4, 2, 5, 6));
    CHECK(!explained(both, 4, 0, 5, 6));
    CHECK(explained(both, 4, 1, 3, 6));  // the second was not over
    CHECK(!explained(both, 0, 9, 5, 6));
}

TEST(overlapping_requests_of_two_contexts) {
    Bench bench(small());
    hammer(bench, 1500);
}

// Nothing but reads, writes and flushes: FUA, zeroes and discards are made of those.
TEST(overlapping_requests_that_are_emulated) {
    Demands demands = small();
    demands.native_ops = bit(Op::read) | bit(Op::write) | bit(Op::flush);
    demands.native_write_flags = 0;
    demands.max_transfer = 1024;
    Bench bench(demands);
    hammer(bench, 1500);
}

TEST(overlapping_requests_with_zero_detection) {
    Bench bench(small(), {{"detect-zeroes", "unmap"}, {"discard", "unmap"}});
    hammer(bench, 1500);
}

}  // namespace
