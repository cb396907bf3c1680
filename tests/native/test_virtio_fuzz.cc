// Seeded random chains against a virtio-blk queue: types, sectors, lengths, directions, links, flags.
// Whatever comes, every chain is answered or the queue breaks; requests that are well formed get the status
// that a model foretells. The test's thread is the guest. One seed is one history; it is printed with a
// failure and can be given in ENGINE_FUZZ_SEED.
#include <algorithm>
#include <cinttypes>

#include "virtio_disk.hh"

using namespace rig;
using guest::Guest;
using guest::Random;

namespace {

constexpr uint32_t queue_size = 64;
constexpr uint64_t disk_sectors = 2048;
constexpr uint64_t chains_wanted = 60'000;

// Each chain of a batch has memory of its own, so that none overwrites another's status; the table of an
// indirect chain lies at the end of it.
constexpr uint32_t batch_max = 16;
constexpr uint64_t lot_bytes = 16384, table_at = 12288;

struct Chain {
    std::vector<HandDriver::Part> parts;
    int expected = -1;  // virtio::BlkStatus; -1: anything that is a status
    uint64_t status_at = 0;
    bool hostile = false;
};

class Fuzzer {
  public:
    Fuzzer(BlkQueue& queue, uint64_t seed, uint32_t hostile_one_in)
        : driver_(queue, queue_size), random_(seed), hostile_one_in_(hostile_one_in) {}

    void run() {
        while (chains < chains_wanted && check::failures == 0) batch();
    }
    uint64_t chains = 0, broken = 0, by_status[3] = {};

  private:
    uint64_t lot(uint32_t index) const { return Guest::data + index * lot_bytes; }

    void batch() {
        uint32_t count = random_.below(batch_max) + 1, next = 0;
        std::vector<Chain> offered;
        for (uint32_t i = 0; i < count; i++) {
            Chain chain = make(i);
            uint32_t needed = static_cast<uint32_t>(chain.parts.size());
            bool indirect = random_.one_in(3) && needed <= 256;
            if (next + (indirect ? 1 : needed) > queue_size) break;
            driver_.guest.put_head(static_cast<uint16_t>(next));
            lay_out(chain, lot(i), next, indirect);
            next += indirect ? 1 : needed;
            offered.push_back(std::move(chain));
        }
        if (hostile_one_in_ != 0 && random_.one_in(hostile_one_in_ * 4)) spoil_ring();
        driver_.guest.show();
        driver_.queue.kick();
        chains += offered.size();
        // A hostile chain may lead through the descriptors of others and write where they expect their
        // status.
        bool hostile = spoilt_ || std::any_of(offered.begin(), offered.end(),
                                              [](const Chain& chain) { return chain.hostile; });
        if (driver_.wait_used() && !driver_.is_broken()) {
            for (const Chain& chain : offered) {
                if (!hostile) verify(chain);
            }
        } else if (CHECK(driver_.is_broken())) {  // else it hangs
            broken++;
            CHECK(hostile);
            driver_.reset();
        }
        if (spoilt_) driver_.reset();
        spoilt_ = false;
    }

    void verify(const Chain& chain) {
        uint8_t status = *driver_.guest.host(chain.status_at);
        if (!CHECK(status <= virtio::blk_unsupported)) return;
        by_status[status]++;
        if (chain.expected >= 0) CHECK_EQ(status, chain.expected);
    }

    // A request that may be wrong, but not so wrong that the ring breaks.
    Chain make(uint32_t index) {
        const uint64_t at = lot(index), data = at + 64, status = at + 48;
        static constexpr uint32_t types[] = {0, 1, 4, 8, 11, 13, 0, 1, 2, 99};
        uint32_t type = types[random_.below(10)];
        uint64_t sector =
            random_.one_in(8) ? random_.next() >> random_.below(64) : random_.below(disk_sectors);
        put(at, virtio::BlkHeader{type, 0, sector});
        Chain chain;
        chain.status_at = status;
        *driver_.guest.host(status) = HandDriver::untouched;
        uint32_t header = random_.one_in(40) ? random_.below(15) + 1 : 16;
        split(&chain, at, header, false);
        uint64_t readable = 0, writable = 0;
        virtio::BlkRange range{};
        if (type == 11 || type == 13) {
            range = {random_.one_in(8) ? random_.next() : random_.below(disk_sectors),
                     random_.one_in(8) ? static_cast<uint32_t>(random_.next()) : random_.below(64),
                     random_.one_in(2) ? 0 : random_.below(4)};
            put(data, range);
            readable = random_.one_in(4) ? random_.below(64) : 16;
        } else {
            (type == 1 || random_.one_in(20) ? readable : writable) = length();
        }
        split(&chain, data, static_cast<uint32_t>(readable), false);
        split(&chain, data + 5000, static_cast<uint32_t>(writable), true);
        chain.parts.push_back({status, 1, true});
        if (header == 16) chain.expected = foretell({type, 0, sector}, range, readable, writable);
        if (header != 16) chain.expected = header + readable < 16 ? int{virtio::blk_ioerr} : -1;
        if (hostile_one_in_ != 0 && random_.one_in(hostile_one_in_)) spoil(&chain);
        return chain;
    }
    uint32_t length() { return random_.one_in(3) ? random_.below(4097) : 512 * random_.below(9); }

    // What VIRTIO 1.2, section 5.2.6, wants of a null disk of disk_sectors.
    static int foretell(const virtio::BlkHeader& header, const virtio::BlkRange& range, uint64_t readable,
                        uint64_t writable) {
        auto fits = [](uint64_t sector, uint64_t bytes) {
            return sector <= disk_sectors && bytes <= (disk_sectors - sector) * 512;
        };
        switch (header.type) {
            case virtio::blk_in:
            case virtio::blk_out: {
                uint64_t bytes = header.type == virtio::blk_in ? writable : readable;
                return bytes % 512 == 0 && fits(header.sector, bytes) ? virtio::blk_ok : virtio::blk_ioerr;
            }
            case virtio::blk_flush:
                return virtio::blk_ok;
            case virtio::blk_get_id:
                return writable >= 20 ? virtio::blk_ok : virtio::blk_ioerr;
            case virtio::blk_discard:
            case virtio::blk_write_zeroes: {
                if (readable < 16) return virtio::blk_ioerr;
                uint32_t known = header.type == virtio::blk_write_zeroes ? virtio::blk_range_unmap : 0;
                if (readable > 16 || (range.flags & ~known) != 0) return virtio::blk_unsupported;
                return fits(range.sector, uint64_t{range.sectors} * 512) ? virtio::blk_ok : virtio::blk_ioerr;
            }
            default:
                return virtio::blk_unsupported;
        }
    }

    template <class T>
    void put(uint64_t at, const T& value) {
        memcpy(driver_.guest.host(at), &value, sizeof value);
    }
    // `bytes` in one element or up to four.
    void split(Chain* chain, uint64_t at, uint32_t bytes, bool writable) {
        for (uint32_t left = bytes, pieces = 3; left != 0; pieces--) {
            uint32_t part = pieces == 0 || random_.one_in(2) ? left : random_.below(left) + 1;
            chain->parts.push_back({at, part, writable});
            at += part;
            left -= part;
        }
    }

    // Now it may break everything.
    void spoil(Chain* chain) {
        chain->hostile = true;
        auto& parts = chain->parts;
        HandDriver::Part& part = parts[random_.below(static_cast<uint32_t>(parts.size()))];
        switch (random_.below(7)) {
            case 0:
                part.address = random_.next();
                break;
            case 1:
                part.length = 0;
                break;
            case 2:
                part.length = static_cast<uint32_t>(random_.next()) | 0x80000000;
                break;
            case 3:
                part.writable = !part.writable;
                break;
            case 4:
                parts.pop_back();
                break;
            case 5:
                std::swap(parts.front(), parts.back());
                break;
            case 6:
                parts.insert(parts.begin() + 1, 150, {part.address, 1, part.writable});
                break;
        }
    }

    void lay_out(const Chain& chain, uint64_t at, uint32_t first, bool indirect) {
        const uint64_t table = indirect ? at + table_at : Guest::base + driver_.guest.layout.desc;
        const uint32_t begin = indirect ? 0 : first, count = static_cast<uint32_t>(chain.parts.size());
        for (uint32_t i = 0; i < count; i++) {
            uint32_t flags = chain.parts[i].writable ? virtio::desc_f_write : 0;
            uint32_t next = begin + i + 1;
            if (i + 1 < count) flags |= virtio::desc_f_next;
            if (chain.hostile && random_.one_in(50)) flags ^= 1u << random_.below(3);
            if (chain.hostile && random_.one_in(50)) next = static_cast<uint32_t>(random_.next()) & 0xffff;
            driver_.guest.entry(table, begin + i, chain.parts[i].address, chain.parts[i].length, flags, next);
        }
        uint32_t bytes =
            chain.hostile && random_.one_in(10) ? static_cast<uint32_t>(random_.next()) : 16 * count;
        if (indirect) driver_.guest.desc(first, table, bytes, virtio::desc_f_indirect);
    }

    // Heads and the index.
    void spoil_ring() {
        spoilt_ = true;
        if (random_.one_in(2)) {
            driver_.guest.avail = static_cast<uint16_t>(random_.next());
        } else {
            driver_.guest.put_head(static_cast<uint16_t>(random_.next()));
        }
    }

    HandDriver driver_;
    Random random_;
    uint32_t hostile_one_in_;
    bool spoilt_ = false;
};

uint64_t seed() {
    const char* given = getenv("ENGINE_FUZZ_SEED");
    return given != nullptr ? strtoull(given, nullptr, 0) : 1;
}

void fuzz(uint64_t salt, uint32_t hostile_one_in, const char* latency) {
    Engine engine;
    engine_context_t* io0 = engine.context("io0");
    engine_context_t* io1 = engine.context("io1");
    engine_node_t* node = engine.open({{"driver", "null"},
                                       {"size", "1M"},
                                       {"read-zeroes", "on"},
                                       {"latency-ns", latency},
                                       {"discard", "unmap"}});
    Disk disk(node, {io0, io1});
    uint64_t number = seed() + salt;
    Fuzzer fuzzer(disk.core(0), number, hostile_one_in);
    fuzzer.run();
    if (check::failures != 0)
        fprintf(stderr, "seed %" PRIu64 ", chain %" PRIu64 "\n", number - salt, fuzzer.chains);
    printf("     %" PRIu64 " chains: %" PRIu64 " ok, %" PRIu64 " ioerr, %" PRIu64 " unsupp; %" PRIu64
           " breaks\n",
           fuzzer.chains, fuzzer.by_status[0], fuzzer.by_status[1], fuzzer.by_status[2], fuzzer.broken);
    for (uint64_t times : fuzzer.by_status) CHECK(times > 100);
    CHECK_EQ(fuzzer.broken != 0, hostile_one_in != 0);
    CHECK_EQ(engine_queue_io(disk.queue(1), ENGINE_OP_FLUSH, nullptr, 0, 0, 0, nullptr), 0);
}

TEST(well_formed_chains_get_the_foretold_status) {
    fuzz(0, 0, "0");
}
TEST(hostile_chains_break_at_most_the_queue) {
    fuzz(1000, 8, "0");
}
TEST(hostile_chains_while_others_are_in_flight) {
    fuzz(2000, 40, "30us");
}

}  // namespace
