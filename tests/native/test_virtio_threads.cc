// Driver and device on two threads, for each way of suppressing notifications: both sides now poll, now sleep
// until the other one wakes them. A notification that gets lost ends in a time-out.
#include <poll.h>
#include <sys/eventfd.h>

#include <thread>
#include <vector>

#include "virtio_guest.hh"

using namespace guest;

namespace {

constexpr int lost_ms = 20000;

// The memory model is that of the machine in a plain build; the thread sanitizer's is slow and sees data
// races.
#if defined(__SANITIZE_THREAD__)
constexpr uint32_t races = 60000;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr uint32_t races = 60000;
#else
constexpr uint32_t races = 600000;
#endif
#else
constexpr uint32_t races = 600000;
#endif

// What a kick or a call is to a program: an eventfd; or, to meet the other side within nanoseconds of a
// store, a word to spin on.
class Bell {
  public:
    explicit Bell(bool spin) : fd_(spin ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
    ~Bell() {
        if (fd_ >= 0) close(fd_);
    }
    Bell(const Bell&) = delete;
    Bell& operator=(const Bell&) = delete;

    void ring() {
        const uint64_t one = 1;
        ++rung;
        if (fd_ < 0) {
            word_.store(1, std::memory_order_release);
        } else if (write(fd_, &one, sizeof one) != sizeof one) {
            abort();
        }
    }
    bool wait() {  // false: nobody rang
        ++waits;
        if (fd_ < 0) return spin();
        pollfd waiting{fd_, POLLIN, 0};
        if (poll(&waiting, 1, lost_ms) != 1) return false;
        uint64_t count;
        return read(fd_, &count, sizeof count) == sizeof count;
    }

    uint64_t rung = 0;   // by the side that rings
    uint64_t waits = 0;  // by the side that waits

  private:
    bool spin() {
        double end = 0;
        for (unsigned spins = 1; word_.exchange(0, std::memory_order_acquire) == 0; ++spins) {
            if (spins % 512 != 0) continue;
            std::this_thread::yield();
            const double now = check::seconds();
            if (end == 0) end = now + lost_ms / 1000.0;
            if (now > end) return false;
        }
        return true;
    }

    int fd_;
    std::atomic<uint32_t> word_{0};
};

struct Shared {
    Shared(uint32_t count, uint32_t indirect, uint64_t features, bool spin)
        : chains(count), pair(128, indirect, features), kick(spin), call(spin), hasty(spin) {}
    const uint32_t chains;
    Pair pair;
    Bell kick, call;
    const bool hasty;  // ask to be woken at once, so that it happens as the other side publishes
    std::atomic<bool> failed{false};  // and do not go on waiting for the other
};

// Polls a while, then asks to be woken, looks once more and sleeps. True: there may be work.
template <class Look, class Enable, class Disable>
bool await(Shared& shared, Random& random, Bell& bell, const Look& look, const Enable& enable,
           const Disable& disable) {
    const uint32_t patience = shared.hasty ? 4 : random.one_in(4) ? 1 : 300;
    for (uint32_t spins = random.below(patience); spins != 0; --spins) {
        if (look()) return true;
    }
    if (!shared.hasty && random.one_in(8)) std::this_thread::yield();
    if (enable()) {
        if (!bell.wait()) {
            shared.failed = true;
            return false;
        }
    }
    if (random.one_in(2)) disable();
    return !shared.failed;
}

void serve(Shared& shared) {
    DeviceRing& ring = shared.pair.device;
    Random random(11);
    Chain chain;
    std::vector<Chain> held;
    for (uint32_t completed = 0; completed < shared.chains;) {
        const uint32_t most = 1 + random.below(64);
        while (held.size() < most && ring.pop(chain)) held.push_back(chain);
        if (held.empty()) {
            if (!check::report(!ring.broken(), __FILE__, __LINE__, ring.error().message))
                shared.failed = true;
            auto look = [&] { return ring.has_work(); };
            if (!await(
                    shared, random, shared.kick, look, [&] { return ring.enable_notifications(); },
                    [&] { ring.disable_notifications(); })) {
                return;
            }
            continue;
        }
        // The answer is the question with its bits turned over, so that a chain mixed up is seen.
        for (Chain& one : held) {
            uint64_t question = 0;
            if (!one.read_front(&question, sizeof question)) shared.failed = true;
            question = ~question;
            memcpy(one.writable()[0].iov_base, &question, sizeof question);
            ring.push(one.head, sizeof question);
        }
        completed += static_cast<uint32_t>(held.size());
        held.clear();
        if (ring.publish()) shared.call.ring();
    }
}

void drive(Shared& shared, uint32_t depth_max) {
    DriverRing& ring = shared.pair.driver;
    Random random(12);
    struct Request {
        uint8_t* question;
        Element elements[2];
    };
    std::vector<Request> requests(depth_max);
    std::vector<Request*> idle;
    for (uint32_t i = 0; i < depth_max; ++i) {
        const uint64_t where = shared.pair.data() + 64 * i;
        requests[i] = {shared.pair.host(where), {{where, 8}, {where + 16, 8}}};
        idle.push_back(&requests[i]);
    }
    uint64_t added = 0;
    for (uint32_t reaped = 0; reaped < shared.chains;) {
        for (uint32_t burst = 1 + random.below(depth_max);
             burst != 0 && !idle.empty() && added < shared.chains; --burst) {
            Request* request = idle.back();
            memcpy(request->question, &++added, 8);
            if (!ring.add({request->elements, 1}, {request->elements + 1, 1}, request)) {
                --added;
                break;
            }
            idle.pop_back();
        }
        if (ring.publish()) shared.kick.ring();
        void* token;
        uint32_t written, before = reaped;
        while (ring.reap(&token, &written)) {
            auto* request = static_cast<Request*>(token);
            uint64_t question, answer;
            memcpy(&question, request->question, 8);
            memcpy(&answer, request->question + 16, 8);
            if (answer != ~question || written != 8) shared.failed = true;
            idle.push_back(request);
            ++reaped;
        }
        if (!check::report(!ring.broken(), __FILE__, __LINE__, ring.error().message)) shared.failed = true;
        if (shared.failed) return;
        if (reaped != before || ring.in_flight() == 0) continue;
        auto look = [&] { return ring.has_used(); };
        if (!await(
                shared, random, shared.call, look, [&] { return ring.enable_calls(); },
                [&] { ring.disable_calls(); })) {
            return;
        }
    }
}

void hammer(uint32_t chains, uint64_t features, uint32_t indirect, uint32_t depth_max, bool spin = false) {
    Shared shared(chains, indirect, features, spin);
    std::thread device(serve, std::ref(shared));
    drive(shared, depth_max);
    if (shared.failed) shared.kick.ring();
    device.join();
    CHECK(!shared.failed);
    CHECK_EQ(shared.pair.driver.in_flight() + shared.pair.device.in_flight(), 0u);
    // Both slept, and both were spared most of the notifications.
    CHECK(shared.kick.waits > 100 && shared.call.waits > 100);
    printf("     kicks: %lu, waited for %lu times; calls: %lu, waited for %lu times\n", shared.kick.rung,
           shared.kick.waits, shared.call.rung, shared.call.waits);
}

}  // namespace

TEST(two_threads_with_event_index) {
    hammer(1000000, feature_event_idx, 0, 64);
}
TEST(two_threads_with_flags) {
    hammer(1000000, 0, 0, 64);
}
TEST(two_threads_with_event_index_one_at_a_time_and_tables) {
    hammer(100000, all_features, 4, 2);
}
// Every chain is a race between publishing and falling asleep, on both sides.
TEST(two_threads_that_race_to_sleep_with_event_index) {
    hammer(races, feature_event_idx, 0, 1, true);
}
TEST(two_threads_that_race_to_sleep_with_flags) {
    hammer(races, 0, 0, 1, true);
}
