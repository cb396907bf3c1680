// An entropy device (VIRTIO 1.2, section 5.4) on the same ring and the same contexts as virtio-blk, of which
// it knows nothing: the ring serves any device. The device runs on its context, the driver on the test's
// thread.
#include <sched.h>

#include "aio/bottom_half.hh"
#include "virtio_guest.hh"

using namespace engine;
using namespace guest;

namespace {

// Fills whatever the driver lets it write, from a generator that the test can repeat.
class EntropyDevice final : private aio::Poller {
  public:
    EntropyDevice(aio::AioContext& context, uint64_t seed)
        : context_(context),
          random_(seed),
          kick_(new aio::BottomHalf(
              context, [](void* self) { static_cast<EntropyDevice*>(self)->kicks_++; }, this)) {}
    ~EntropyDevice() {
        context_.call_and_wait([this] {
            unlink();
            ring_.stop();
        });
        aio::BottomHalf::destroy(kick_);
    }
    int start(MemoryTableRef memory, const RingConfig& config, engine_error* error) {
        int result = 0;
        context_.call_and_wait([&] {
            result = ring_.configure(std::move(memory), config, error);
            if (result != 0) return;
            ring_.disable_notifications();
            if (!linked()) context_.add_poller(this);
        });
        return result;
    }
    void kick() { kick_->schedule(); }
    // The driver waits for this to move.
    std::atomic<uint64_t> calls{0};
    std::atomic<bool> broken{false};

  private:
    bool poll() override {
        Chain chain;
        bool progress = false;
        while (ring_.pop(chain)) {
            fill(chain);
            ring_.push(chain.head, static_cast<uint32_t>(chain.writable_bytes));
            progress = true;
        }
        if (ring_.broken()) {
            broken = true;
            unlink();
        }
        if (ring_.publish()) calls.fetch_add(1);
        return progress;
    }
    bool has_work() override { return ring_.has_work(); }
    bool prepare_sleep() override { return !ring_.enable_notifications(); }
    void end_sleep() override { ring_.disable_notifications(); }

    void fill(const Chain& chain) {
        for (const iovec& part : chain.writable()) {
            auto* bytes = static_cast<uint8_t*>(part.iov_base);
            for (size_t i = 0; i < part.iov_len; i++) bytes[i] = static_cast<uint8_t>(random_.next() >> 56);
        }
    }

    aio::AioContext& context_;
    DeviceRing ring_;
    Random random_;
    aio::BottomHalf* kick_;
    uint64_t kicks_ = 0;
};

struct Context {
    Context() {
        aio::ContextConfig config;
        config.name = "rng";
        config.poll_max_ns = 0;
        engine_error error{};
        if (aio::AioContext::create(std::move(config), &context, &error) != 0) abort();
    }
    ~Context() { context->stop(); }
    std::unique_ptr<aio::AioContext> context;
};

// Sleeps as a driver does: asks for a call, looks once more, waits for it.
bool wait_for_used(DriverRing& driver, EntropyDevice& device) {
    for (double end = check::seconds() + 5; check::seconds() < end;) {
        uint64_t calls = device.calls;
        if (driver.has_used() || !driver.enable_calls()) return true;
        while (device.calls == calls && check::seconds() < end) sched_yield();
    }
    return false;
}

void draw(uint64_t features, uint32_t indirect_entries, uint32_t chains) {
    constexpr uint32_t size = 16;
    constexpr uint64_t base = 0x4000000;
    RingLayout layout = RingLayout::make(size, indirect_entries);
    const uint64_t bytes = layout.bytes + (64 << 10);
    Block memory = guest::block(bytes);
    Context on;
    EntropyDevice device(*on.context, 42);
    DriverRing driver;
    engine_error error{};
    REQUIRE(driver.configure({memory.get(), base, bytes, layout, features}, &error) == 0);
    REQUIRE(device.start(one_region(base, memory.get(), bytes),
                         {size, base + layout.desc, base + layout.avail, base + layout.used, features},
                         &error) == 0);
    Random expected(42), shape(1);
    for (uint32_t i = 0; i < chains; i++) {
        Element parts[3];
        uint32_t count = shape.below(3) + 1, total = 0;
        for (uint32_t p = 0; p < count; p++) {
            parts[p] = {base + layout.bytes + 4096 * p, shape.below(100) + 1};
            total += parts[p].len;
        }
        REQUIRE(driver.add({}, {parts, count}, &parts));
        if (driver.publish()) device.kick();
        REQUIRE(wait_for_used(driver, device));
        void* token;
        uint32_t written = 0;
        REQUIRE(driver.reap(&token, &written) && token == &parts && written == total);
        for (uint32_t p = 0; p < count; p++) {
            const uint8_t* found = memory.get() + layout.bytes + 4096 * p;
            for (uint32_t b = 0; b < parts[p].len; b++) {
                REQUIRE(found[b] == static_cast<uint8_t>(expected.next() >> 56));
            }
        }
    }
    CHECK(device.calls > 0 && !device.broken);
}

TEST(an_entropy_device_on_the_same_ring) {
    draw(0, 0, 3000);
}
TEST(an_entropy_device_with_event_index) {
    draw(feature_event_idx, 0, 3000);
}
TEST(an_entropy_device_with_indirect_tables) {
    draw(all_features, 4, 3000);
}

TEST(a_bad_chain_stops_the_device_alone) {
    Guest driver(16), second(16);
    Context on;
    EntropyDevice device(*on.context, 1), other(*on.context, 2);
    engine_error error{};
    REQUIRE(device.start(driver.table, driver.config(), &error) == 0);
    REQUIRE(other.start(second.table, second.config(), &error) == 0);
    driver.desc(0, Guest::data, 64, desc_f_write | desc_f_next, 0);  // a loop
    driver.offer(0);
    device.kick();
    for (int i = 0; i < 5000 && !device.broken; i++) usleep(1000);
    CHECK(device.broken);
    second.desc(0, Guest::data, 64, desc_f_write);
    second.offer(0);
    other.kick();
    for (int i = 0; i < 5000 && second.used_idx() == 0; i++) usleep(1000);
    CHECK_EQ(second.used_idx(), 1u);
    CHECK_EQ(second.used_len(0), 64u);
}

}  // namespace
