// A hostile guest: its memory, descriptors, indirect tables, indices and event words are made of the input,
// between kicks and while chains are in flight. The device may break the queue; it may not touch memory that
// is not the guest's, complete what was not offered, or fail to start again after a reset.
#include <algorithm>

#include "fuzz.hh"

#include "sim_engine.hh"
#include "virtio_disk.hh"

namespace {

using embedder::Error;
using engine::virtio::MemoryTable;
using fuzz::Input;
using guest::Guest;
using rig::HandDriver;

// The whole block, or the same cut in three, so that elements cross from one region into the next.
engine::virtio::MemoryTableRef table_of(const Guest& guest, bool cut) {
    if (!cut) return guest::one_region(Guest::base, guest.memory.get(), Guest::bytes);
    MemoryTable::Builder builder;
    engine::virtio::MemoryTableRef table;
    Error error;
    const uint64_t ends[] = {Guest::data - Guest::base + 6000, Guest::data - Guest::base + 6007,
                             Guest::bytes};
    uint64_t at = 0;
    for (uint64_t end : ends) {
        CHECK_EQ(builder.add(Guest::base + at, guest.memory.get() + at, end - at, &error), 0);
        at = end;
    }
    CHECK_EQ(builder.build(&table, &error), 0);
    return table;
}

class Attack {
  public:
    Attack(sim::Engine& engine, rig::Disk& disk, Input& input)
        : engine_(engine),
          queue_(disk.core(0)),
          input_(input),
          size_(uint32_t{1} << input.below(7)),
          guest_(clean_guest()) {
        guest_.layout = engine::virtio::RingLayout::make(size_);
        guest_.features = features_of(input);
        guest_.avail = input.flag() ? static_cast<uint16_t>(0xfff0 + input.below(16)) : 0;
        guest_.table = table_of(guest_, input.flag());
    }
    ~Attack() { guest_.table = {}; }
    Attack(const Attack&) = delete;
    Attack& operator=(const Attack&) = delete;

    void run() {
        start();
        for (unsigned i = 0; i < steps_max && !input_.empty(); i++) step();
        settle();
        stop();
        recover();
    }

  private:
    static constexpr unsigned steps_max = 200;
    // Kept from input to input: a mapping each would take most of the time.
    static Guest& clean_guest() {
        static Guest guest(1);
        memset(guest.memory.get(), 0, Guest::bytes);
        return guest;
    }
    static uint64_t features_of(Input& input) {
        uint64_t features = guest::all_features;
        uint8_t without = input.byte();
        if ((without & 1) != 0) features &= ~engine::virtio::feature_event_idx;
        if ((without & 2) != 0) features &= ~engine::virtio::feature_indirect_desc;
        return features;
    }

    void start() {
        Error error;
        offered_ = 0;
        begun_ = guest_.avail;
        guest_.show();
        SharedAccess::store(guest_.at<uint16_t>(guest_.layout.used + 2), begun_);
        int result = queue_.start(guest_.table, guest_.config(guest_.avail), {notify, this}, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
    }
    void stop() {
        queue_.stop();
        check_used();
    }
    static void notify(void* opaque) { static_cast<Attack*>(opaque)->calls_++; }

    bool broken() const {
        engine_queue_stats stats{};
        queue_.read_stats(&stats);
        return stats.broken != 0;
    }
    void settle() {
        engine_.simulator.run_until([] { return false; });
    }
    // The device shows no more chains than were offered, and only whole statuses of the ring.
    void check_used() const {
        auto used = static_cast<uint16_t>(guest_.used_idx() - begun_);
        if (!tampered_) CHECK(used <= offered_);
    }

    // An address that means something, mostly; descriptors and rings are within reach too.
    uint64_t address() {
        uint8_t kind = input_.byte();
        if (kind < 4) return input_.number<uint64_t>();
        if (kind < 16) return Guest::base + input_.below(Guest::bytes);
        if (kind < 24) return Guest::base + Guest::bytes - input_.below(32);
        return Guest::data + (kind % 32) * uint64_t{512} + (kind >= 192 ? input_.below(512) : 0);
    }
    uint32_t length() {
        uint8_t kind = input_.byte();
        if (kind < 4) return input_.number<uint32_t>();
        if (kind < 32) return 16;
        if (kind < 64) return 1;
        if (kind < 160) return 512 * (kind % 16);
        return static_cast<uint32_t>(input_.below(8192));
    }
    uint64_t table() {
        uint8_t kind = input_.byte();
        if (kind >= 128) return Guest::base + guest_.layout.desc;
        return Guest::data + (uint64_t{128} << 10) + (kind % 16) * uint64_t{256} + (kind >= 112 ? 1 : 0);
    }

    void descriptor() {
        uint64_t in = table();
        auto index = static_cast<uint32_t>(input_.below(in == Guest::base + guest_.layout.desc ? size_ : 16));
        uint64_t at = address();
        uint32_t bytes = length(), flags = input_.byte(), next = input_.byte();
        if (flags < 240) flags &= 3;  // neither the rest, nor indirect
        guest_.entry(in, index, at, bytes, flags,
                     flags >= 240 ? input_.number<uint16_t>() : next % (size_ + 1));
    }
    // A request as a driver would lay it out: header, data, status; from descriptor `first` on, or in a
    // table.
    void request() {
        uint32_t first = static_cast<uint32_t>(input_.below(size_));
        uint8_t kind = input_.byte();
        bool indirect = (kind & 1) != 0;
        uint32_t parts = 2 + (kind >> 1) % 8;
        uint64_t in = indirect ? Guest::data + (uint64_t{128} << 10) + first * uint64_t{256}
                               : Guest::base + guest_.layout.desc;
        bool device_writes = (kind & 32) != 0;
        engine::virtio::BlkHeader header{types[input_.below(std::size(types))], 0, input_.position(2048)};
        bool ranged =
            header.type == engine::virtio::blk_discard || header.type == engine::virtio::blk_write_zeroes;
        engine::virtio::BlkRange range{input_.position(2048), ranged ? length() / 512 : 0,
                                       input_.byte() % 4u};
        uint64_t at = Guest::data + first * uint64_t{64};
        memcpy(guest_.host(at), &header, sizeof header);
        memcpy(guest_.host(at + 16), &range, sizeof range);
        for (uint32_t i = 0; i < parts; i++) {
            uint32_t index = indirect ? i : (first + i) % size_;
            bool last = i + 1 == parts;
            uint32_t flags = (last ? 0u : 1u) | ((last || (i != 0 && device_writes)) ? 2u : 0u);
            uint32_t next = indirect ? i + 1 : (index + 1) % size_;
            if (i == 0 || (i == 1 && ranged && !last)) {
                guest_.entry(in, index, at + 16 * i, 16, flags & 1, next);
            } else {
                uint64_t data = last ? at + 32 : address();
                guest_.entry(in, index, data, last ? 1 : length(), flags, next);
            }
        }
        if (indirect) guest_.desc(first, in, 16 * parts, engine::virtio::desc_f_indirect);
        offer(static_cast<uint16_t>(first));
    }
    // Mostly one that there is; the first that there is not; any at all.
    uint16_t head(uint8_t kind) {
        if (kind < 170) return static_cast<uint16_t>(input_.below(size_));
        return kind < 173 ? static_cast<uint16_t>(size_) : input_.number<uint16_t>();
    }
    void offer(uint16_t head) {
        guest_.offer(head);
        offered_++;
    }

    // Bytes of the input anywhere in the guest's memory, the rings included.
    void scribble() {
        std::string bytes = input_.text(input_.below(64));
        uint64_t at = input_.flag() ? input_.below(guest_.layout.bytes + 1) : input_.below(Guest::bytes);
        size_t count = std::min<uint64_t>(bytes.size(), Guest::bytes - at);
        if (count != 0) memcpy(guest_.memory.get() + at, bytes.data(), count);
        if (at < guest_.layout.bytes) tampered_ = true;
    }
    void spoil_index() {
        guest_.avail = static_cast<uint16_t>(guest_.avail + input_.number<uint16_t>());
        guest_.show();
        tampered_ = true;
    }
    void reset() {
        settle();
        stop();
        memset(guest_.memory.get(), 0, guest_.layout.bytes);
        guest_.avail = 0;
        tampered_ = false;
        start();
    }

    void step() {
        uint8_t kind = input_.byte();
        if (kind < 88) {
            descriptor();
        } else if (kind < 144) {
            request();
        } else if (kind < 176) {
            offer(head(kind));
        } else if (kind < 216) {
            queue_.kick();
        } else if (kind < 232) {
            for (unsigned left = kind - 216u; left != 0 && engine_.simulator.step(); left--) {
            }
        } else if (kind < 240) {
            SharedAccess::store(guest_.used_event(), input_.number<uint16_t>());
        } else if (kind < 246) {
            scribble();
        } else if (kind < 248) {
            spoil_index();
        } else if (kind < 252) {
            settle();
            if (!broken()) check_used();
        } else {
            reset();
        }
    }

    // After a reset the same queue serves a flush, whatever happened before.
    void recover() {
        memset(guest_.memory.get(), 0, guest_.layout.bytes);
        guest_.avail = 0;
        tampered_ = false;
        start();
        engine::virtio::BlkHeader header{engine::virtio::blk_flush, 0, 0};
        memcpy(guest_.host(Guest::data), &header, sizeof header);
        uint64_t status = Guest::data + 64;
        *guest_.host(status) = HandDriver::untouched;
        if (size_ >= 2) {
            guest_.desc(0, Guest::data, 16, engine::virtio::desc_f_next, 1);
            guest_.desc(1, status, 1, engine::virtio::desc_f_write);
            offer(0);
            queue_.kick();
            settle();
            CHECK_EQ(guest_.used_idx(), 1);
            CHECK_EQ(*guest_.host(status), engine::virtio::blk_ok);
        }
        stop();
    }

    using SharedAccess = engine::virtio::SharedAccess;
    static constexpr uint32_t types[] = {0, 1, 0, 1, 4, 8, 11, 13, 2, 99};

    sim::Engine& engine_;
    rig::BlkQueue& queue_;
    Input& input_;
    const uint32_t size_;
    Guest& guest_;
    uint16_t begun_ = 0;
    uint32_t offered_ = 0;
    bool tampered_ = false;  // the indices are no longer ours: they say nothing
    uint64_t calls_ = 0;
};

}  // namespace

void fuzz::run(Input& input) {
    sim::Engine engine(1);
    uint8_t kind = input.byte();
    engine_node_t* node = (kind & 1) != 0
                              ? engine.open({{"driver", "memory"}, {"size", "1M"}, {"discard", "unmap"}})
                              : engine.open({{"driver", "null"}, {"size", "1M"}, {"latency-ns", "30us"}});
    {
        engine_disk_config config = rig::Disk::defaults();
        config.write_cache = (kind & 2) != 0 ? 1 : 0;
        config.read_only = (kind & 12) == 12 ? 1 : 0;
        rig::Disk disk(node, {engine.context_handle(1)}, config);
        Attack(engine, disk, input).run();
    }
    Error error;
    CHECK_EQ(engine_node_close(node, &error), 0);
}
