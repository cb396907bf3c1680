// csrc/uring, the rings of engine.uring, as its caller must be able to rely on them: room, counts, what is
// disarmed and what is cancelled. Skipped where the kernel refuses io_uring. One thread; nothing is guarded.
#include <poll.h>

#include <cerrno>
#include <memory>

#include "check.hh"

extern "C" {
#include "uring/ring.h"
}

namespace {

constexpr uint64_t message_bit = uint64_t{1} << 63;
constexpr uring_timespec long_time = {30, 0};

struct Reaped {
    uint64_t numbers[16];
    int32_t results[16];
    uint32_t count;
};

class Ring {
  public:
    explicit Ring(uint32_t entries, uint32_t cq_entries = 0, uint32_t flags = 0) {
        result = uring_open(entries, cq_entries, flags, &ring, &info);
    }
    ~Ring() {
        if (result == 0) uring_free(ring);
    }
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    Reaped reap() {
        Reaped reaped;
        reaped.count = uring_reap(ring, reaped.numbers, reaped.results, 16);
        return reaped;
    }

    uring_ring_t* ring = nullptr;
    uring_info info = {};
    int result;
};

// False, once told, where the host has no io_uring: other tests show that such hosts are served.
bool works() {
    Ring ring(1);
    if (ring.result == 0) return true;
    printf("io_uring is refused here: %s\n", strerror(-ring.result));
    return false;
}

TEST(room_is_of_both_queues) {
    if (!works()) return;
    Ring ring(2, 4);
    REQUIRE(ring.result == 0);
    CHECK_EQ(ring.info.sq_entries, 2);
    CHECK_EQ(ring.info.cq_entries, 4);
    for (uint64_t number = 1; number <= 4; number++) {
        CHECK_EQ(uring_timeout(ring.ring, number, &long_time, 0), 0);
        if (number % 2 == 0) CHECK_EQ(uring_submit(ring.ring), 2);
    }
    CHECK_EQ(uring_in_flight(ring.ring), 4);
    CHECK_EQ(uring_nop(ring.ring, 5), -ENOSPC);
    CHECK_EQ(uring_cancel(ring.ring, 1), 0);  // for which there is always room
    CHECK_EQ(uring_cancel(ring.ring, 2), 0);
    CHECK_EQ(uring_cancel(ring.ring, 3), -EBUSY);
    CHECK(uring_submit_and_wait(ring.ring, 4, &long_time) >= 0);
    Reaped reaped = ring.reap();
    CHECK_EQ(reaped.count, 4);
    unsigned cancelled = 0;
    for (uint32_t i = 0; i < reaped.count; i++) {
        if (reaped.numbers[i] != URING_CANCEL) cancelled += reaped.results[i] == -ECANCELED;
    }
    CHECK_EQ(cancelled, 2);
    CHECK_EQ(uring_in_flight(ring.ring), 2);
}

TEST(a_full_submission_queue) {
    if (!works()) return;
    Ring ring(2);
    REQUIRE(ring.result == 0);
    CHECK_EQ(uring_nop(ring.ring, 1), 0);
    CHECK_EQ(uring_nop(ring.ring, 2), 0);
    CHECK_EQ(uring_nop(ring.ring, 3), -EBUSY);
    CHECK_EQ(uring_prepared(ring.ring), 2);
    CHECK_EQ(uring_in_flight(ring.ring), 0);
    CHECK_EQ(uring_submit(ring.ring), 2);
    CHECK_EQ(uring_wait(ring.ring, 2, &long_time), 0);
    CHECK_EQ(uring_ready(ring.ring), 2);
    Reaped reaped = ring.reap();
    CHECK_EQ(reaped.numbers[0], 1);
    CHECK_EQ(reaped.numbers[1], 2);
    CHECK_EQ(uring_in_flight(ring.ring), 0);
}

TEST(what_is_disarmed_does_nothing) {
    if (!works()) return;
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    Ring ring(4);
    REQUIRE(ring.result == 0);
    CHECK_EQ(uring_nop(ring.ring, 1), 0);  // so that the entries do not start at 0
    CHECK_EQ(uring_submit(ring.ring), 1);
    for (uint64_t number = 2; number <= 5; number++) {
        CHECK_EQ(uring_write(ring.ring, number, ends[1], "x", 1, 0), 0);
    }
    uring_disarm(ring.ring);
    CHECK_EQ(uring_prepared(ring.ring), 4);
    CHECK_EQ(uring_submit(ring.ring), 4);
    CHECK_EQ(uring_wait(ring.ring, 5, &long_time), 0);
    Reaped reaped = ring.reap();
    CHECK_EQ(reaped.count, 5);
    for (uint32_t i = 0; i < reaped.count; i++) {
        CHECK_EQ(reaped.numbers[i], i + 1);
        CHECK_EQ(reaped.results[i], 0);  // a write of one byte would answer 1
    }
    char byte;
    CHECK_EQ(read(ends[0], &byte, 1), -1);
    close(ends[0]);
    close(ends[1]);
}

TEST(operations_answer) {
    if (!works()) return;
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    Ring ring(8);
    REQUIRE(ring.result == 0);
    auto data = std::make_unique<char[]>(3);
    CHECK_EQ(uring_poll(ring.ring, 1, ends[0], POLLIN), 0);
    CHECK_EQ(uring_write(ring.ring, 2, ends[1], "abc", 3, 0), 0);
    CHECK(uring_submit_and_wait(ring.ring, 2, &long_time) >= 0);
    CHECK_EQ(ring.reap().count, 2);
    CHECK_EQ(uring_read(ring.ring, 3, ends[0], data.get(), 3, 0), 0);
    CHECK(uring_submit_and_wait(ring.ring, 1, nullptr) >= 0);
    Reaped reaped = ring.reap();
    CHECK_EQ(reaped.results[0], 3);
    CHECK_EQ(memcmp(data.get(), "abc", 3), 0);
    CHECK_EQ(uring_fsync(ring.ring, 4, ends[0], 1), 0);
    CHECK(uring_submit_and_wait(ring.ring, 1, &long_time) >= 0);
    CHECK_EQ(ring.reap().results[0], -EINVAL);  // no pipe can
    close(ends[0]);
    close(ends[1]);
}

TEST(waiting_ends_in_time) {
    if (!works()) return;
    Ring ring(2, 0, 0);
    REQUIRE(ring.result == 0);
    const uring_timespec soon = {0, 1000000};
    CHECK_EQ(uring_wait(ring.ring, 1, &soon), -ETIME);
    CHECK_EQ(uring_submit_and_wait(ring.ring, 1, &soon), -ETIME);
    CHECK_EQ(uring_wait(ring.ring, 0, nullptr), 0);
    CHECK_EQ(uring_timeout(ring.ring, 7, &soon, 0), 0);
    CHECK(uring_submit_and_wait(ring.ring, 1, &long_time) >= 0);
    Reaped reaped = ring.reap();
    CHECK_EQ(reaped.numbers[0], 7);
    CHECK_EQ(reaped.results[0], -ETIME);
}

TEST(a_message_is_no_request_of_its_target) {
    if (!works()) return;
    Ring from(2), to(2);
    REQUIRE(from.result == 0 && to.result == 0);
    CHECK_EQ(uring_message(from.ring, 1, to.info.fd, 42, 43), 0);
    CHECK(uring_submit_and_wait(from.ring, 1, &long_time) >= 0);
    if (from.reap().results[0] == -EINVAL) return;  // before Linux 5.18
    CHECK_EQ(uring_wait(to.ring, 1, &long_time), 0);
    Reaped reaped = to.reap();
    CHECK_EQ(reaped.numbers[0], 43 | message_bit);
    CHECK_EQ(reaped.results[0], 42);
    CHECK_EQ(uring_in_flight(to.ring), 0);
}

TEST(wrong_sizes_and_the_probe) {
    if (!works()) return;
    Ring none(0);
    CHECK_EQ(none.result, -EINVAL);
    Ring ring(1);
    uint8_t supported[URING_OPERATIONS_MAX];
    int count = uring_probe(ring.ring, supported, URING_OPERATIONS_MAX);
    CHECK(count > 22);
    CHECK_EQ(supported[0], 1);   // nop
    CHECK_EQ(supported[22], 1);  // read
    CHECK_EQ(uring_probe(ring.ring, supported, 3), 3);
}

}  // namespace
