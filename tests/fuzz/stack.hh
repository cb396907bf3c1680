// A stack of nodes, as the input has it, in a simulator; and the plain array that it must agree with. For one
// fuzzer: sector_disk.hh has nothing inline. One thread.
#pragma once

#include <deque>
#include <map>

#include "fuzz.hh"

#include "async_queue.hh"
#include "sector_disk.hh"
#include "sim_engine.hh"
#include "virtio_guest.hh"

namespace stack {

using embedder::Error;
using embedder::info_of;
using fuzz::Input;

constexpr uint64_t bytes_max = 256 << 10;  // of a disk
constexpr uint64_t request_max = 160 << 10;

// Bytes of which each sector has others. Not instrumented: that took a fifth of all time.
__attribute__((no_sanitize("address", "undefined", "coverage"))) inline std::vector<uint8_t> pattern_of(
    uint64_t bytes, uint8_t first) {
    std::vector<uint8_t> pattern(bytes);
    uint8_t* to = pattern.data();
    for (uint64_t at = 0; at < bytes; at++) to[at] = static_cast<uint8_t>(first + at * 7 + (at >> 9));
    return pattern;
}

// What each byte of the disk may be: `now`, or, where that is not known, `else_` as well.
class Model {
  public:
    explicit Model(uint64_t bytes = 0) : now_(bytes), else_(bytes) {}

    uint64_t bytes() const { return now_.size(); }
    void resize(uint64_t bytes) {
        now_.resize(bytes);
        else_.resize(bytes);
    }
    void set(uint64_t offset, const uint8_t* bytes, uint64_t length) {
        if (length == 0) return;
        memcpy(&now_[offset], bytes, length);
        memcpy(&else_[offset], bytes, length);
    }
    // It may have happened, or not.
    void set_perhaps(uint64_t offset, const uint8_t* bytes, uint64_t length) {
        if (length != 0) memcpy(&else_[offset], bytes, length);
    }
    bool known(uint64_t offset, uint64_t length) const {
        return length == 0 || memcmp(&now_[offset], &else_[offset], length) == 0;
    }
    // From now on it is what was read.
    void agree(uint64_t offset, const std::vector<uint8_t>& read) {
        uint64_t length = read.size();
        if (length == 0 || (known(offset, length) && memcmp(&now_[offset], read.data(), length) == 0)) return;
        for (uint64_t i = 0; i < length; i++) {
            uint64_t at = offset + i;
            if (read[i] == now_[at] || read[i] == else_[at]) continue;
            fprintf(stderr, "byte %lu is %u and should be %u or %u\n", at, read[i], now_[at], else_[at]);
            CHECK(false);
        }
        set(offset, read.data(), length);
    }
    std::vector<uint8_t> now(uint64_t offset, uint64_t length) const {
        auto from = now_.begin() + static_cast<ptrdiff_t>(offset);
        return {from, from + static_cast<ptrdiff_t>(length)};
    }

  private:
    std::vector<uint8_t> now_, else_;
};

// An iovec list whose parts are blocks of their own, each as long as it says: the sanitizer sees the byte
// behind.
class Parts {
  public:
    Parts(Input& input, uint64_t bytes) {
        unsigned cuts = input.below(6) == 5 ? 40 : static_cast<unsigned>(input.below(4));
        bool aligned = input.byte() < 64;
        uint64_t left = bytes;
        while (left != 0 || cuts != 0) {
            uint64_t part = left;
            if (cuts != 0) {
                part = std::min(left, cuts > 8 ? 1 + left / cuts : input.below(left + 1));
                if (aligned) part &= ~uint64_t{4095};
                cuts--;
            }
            add(part, aligned ? 0 : input.byte() % 3);
            left -= part;
        }
    }
    const engine_iovec* data() const { return vector_.data(); }
    uint32_t count() const { return static_cast<uint32_t>(vector_.size()); }
    void fill(const std::vector<uint8_t>& from) {
        size_t at = 0;
        for (const engine_iovec& part : vector_) {
            if (part.length != 0) memcpy(part.base, from.data() + at, part.length);
            at += part.length;
        }
    }
    std::vector<uint8_t> content() const {
        std::vector<uint8_t> all;
        for (const engine_iovec& part : vector_) {
            auto* from = static_cast<const uint8_t*>(part.base);
            all.insert(all.end(), from, from + part.length);
        }
        return all;
    }

  private:
    void add(uint64_t length, unsigned shift) {
        memory_.push_back(guest::block(length + shift));
        vector_.push_back({memory_.back().get() + shift, length});
    }
    std::vector<guest::Block> memory_;
    std::vector<engine_iovec> vector_;
};

// The nodes. What is below is closed with them.
class Stack {
  public:
    Stack(sim::Engine& engine, Input& input) : engine_(engine) {
        engine_node_t* node = bottom(input, "bottom");
        if (input.below(3) == 0) node = overlay(input, node);
        for (uint64_t levels = input.below(4); levels != 0; levels--) node = level(input, node);
        top = node;
        user = embedder::Engine::user(top, "fuzzer");
        bytes_ = info_of(top).bytes;
    }
    ~Stack() {
        Error error;
        CHECK_EQ(engine_user_close(user, &error), 0);
        while (!nodes_.empty()) {
            CHECK_EQ(engine_node_close(nodes_.back(), &error), 0);
            nodes_.pop_back();
        }
    }
    Stack(const Stack&) = delete;
    Stack& operator=(const Stack&) = delete;

    sim::Engine& engine() const { return engine_; }
    engine_node_t* node(uint64_t index) const { return nodes_[index % nodes_.size()]; }
    uint64_t bytes() const { return bytes_; }
    // A discard may leave anything that was there, or zeroes; and a write may find no room.
    bool may_run_out() const { return may_run_out_; }
    // What is on the disk at first.
    Model model() const {
        Model model(bytes_);
        const std::vector<uint8_t> pattern = pattern_of(std::min(pattern_bytes_, bytes_), 1);
        model.set(0, pattern.data(), pattern.size());
        return model;
    }

    engine_node_t* top = nullptr;
    engine_user_t* user = nullptr;

  private:
    engine_node_t* bottom(Input& input, const char* name) {
        uint64_t bytes = size(input);
        uint64_t kind = input.below(8);
        if (kind < 3) return memory(input, name, bytes);
        if (kind < 4) return keep(engine_.open_disk(engine_.simulator.files().add(bytes), bytes));
        if (kind < 7) return sectors(input, name, bytes);
        return verified(sectors(input, name, bytes));
    }
    uint64_t size(Input& input) {
        uint64_t blocks = input.below(8) == 0 ? 16 + input.below(32) : 1 + input.below(8);
        return blocks * 4096 + (input.flag() ? 0 : 512);
    }

    engine_node_t* memory(Input& input, const char* name, uint64_t bytes) {
        std::string text = std::to_string(bytes);
        return keep(engine_.open({{"driver", "memory"},
                                  {"node-name", name},
                                  {"size", text.c_str()},
                                  {"discard", input.flag() ? "unmap" : "ignore"}}));
    }
    // One that is particular.
    engine_node_t* sectors(Input& input, const char* name, uint64_t bytes) {
        using namespace engine::block;
        uint8_t kind = input.byte(), can = input.byte();
        sector_disk::Demands demands;
        demands.request_alignment = (kind & 3) == 3 ? 4096 : (kind & 3) == 2 ? 1 : 512;
        demands.memory_alignment = (kind & 12) == 12 ? 1 : (kind & 12) == 8 ? 4096 : 512;
        demands.max_transfer = (kind & 48) == 48 ? UINT64_MAX : (kind & 48) == 32 ? 4096 : 20480;
        demands.bytes = demands.request_alignment == 4096 ? bytes & ~uint64_t{4095} : bytes;
        demands.native_ops = bit(Op::read) | bit(Op::write) | bit(Op::flush);
        if ((can & 1) == 0) demands.native_ops |= bit(Op::write_zeroes);
        if ((can & 2) == 0) demands.native_ops |= bit(Op::discard);
        demands.native_write_flags = 0;
        if ((can & 4) == 0) demands.native_write_flags |= ENGINE_FUA;
        if ((can & 8) == 0) demands.native_write_flags |= ENGINE_MAY_UNMAP;
        if ((can & 16) == 0) demands.native_write_flags |= ENGINE_NO_FALLBACK;
        sector_disk::demands = demands;
        OptionBag bag;
        bag.set("node-name", name);
        bag.set("discard", (can & 32) != 0 ? "unmap" : "ignore");
        bag.set("detect-zeroes", (can & 64) == 0 ? "off" : (can & 32) != 0 ? "unmap" : "on");
        Node* node = nullptr;
        Error error;
        int result = open_node(*engine::api::unwrap(engine_.handle()), sector_disk::disk_driver,
                               std::move(bag), &node, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        return keep(engine::api::wrap(node));
    }

    // Beside a reference, which is new as well.
    engine_node_t* verified(engine_node_t* file) {
        std::string name = info_of(file).name, reference = name + "-reference";
        std::string bytes = std::to_string(info_of(file).bytes);
        keep(engine_.open({{"driver", "memory"}, {"node-name", reference.c_str()}, {"size", bytes.c_str()}}));
        return keep(engine_.open({{"driver", "verify"},
                                  {"file", name.c_str()},
                                  {"reference", reference.c_str()},
                                  {"discard", "unmap"}}));
    }

    // A pattern shines through where nothing was written.
    engine_node_t* overlay(Input& input, engine_node_t* below) {
        static const char* const clusters[] = {"4k", "8k", "64k"};
        std::string name = info_of(below).name;
        uint64_t bytes = info_of(below).bytes;
        fill_with_pattern(below, bytes);
        std::string size = std::to_string(bytes / 2 + input.below(bytes));
        const char* cluster = clusters[input.below(3)];
        bool own = input.flag();
        std::vector<engine_option> options{
            {"driver", "overlay"}, {"backing", name.c_str()}, {"cluster-size", cluster}};
        if (input.flag()) options.push_back({"size", size.c_str()});
        if (input.flag()) options.push_back({"discard", input.flag() ? "unmap" : "ignore"});
        std::string data;
        if (!own) {
            data = info_of(bottom(input, "data")).name;
            options.push_back({"file", data.c_str()});
        }
        may_run_out_ = !own;
        engine_node_t* node = nullptr;
        Error error;
        int result = engine_node_open(engine_.handle(), options.data(), options.size(), &node, &error);
        if (result != 0) {  // a child demands more than a cluster
            CHECK_EQ(result, -EINVAL);
            may_run_out_ = false;
            return below;
        }
        return keep(node);
    }
    void fill_with_pattern(engine_node_t* node, uint64_t bytes) {
        engine_user_t* filler = embedder::Engine::user(node, "filler");
        std::vector<uint8_t> data = pattern_of(bytes, 1);
        Error error;
        CHECK_EQ(embedder::io(filler, ENGINE_OP_WRITE, data.data(), 0, bytes, 0, &error), bytes);
        CHECK_EQ(engine_user_close(filler, &error), 0);
        patterned_ = true;
        pattern_bytes_ = bytes;
    }

    engine_node_t* level(Input& input, engine_node_t* below) {
        std::string name = info_of(below).name;
        uint64_t kind = input.below(4);
        std::vector<engine_option> options{{"file", name.c_str()}};
        std::string offset, size;
        if (kind < 2 && !patterned_) {
            uint64_t bytes = info_of(below).bytes;
            uint64_t alignment = info_of(below).request_alignment;
            uint64_t from = (kind == 0 ? input.below(bytes / 2 + 1) : 0) & ~(alignment - 1);
            uint64_t length = ((bytes - from) / 2 + input.below((bytes - from) / 2 + 1)) & ~(alignment - 1);
            offset = std::to_string(from);
            size = std::to_string(length);
            options.push_back({"driver", "raw"});
            options.push_back({"offset", offset.c_str()});
            if (input.flag()) options.push_back({"size", size.c_str()});
        } else if (kind == 2) {
            options.push_back({"driver", "throttle"});
            options.push_back({"limits.iops-total", "100000"});
            options.push_back({"limits.bps-write", "200M"});
        } else {
            options.push_back({"driver", "passthrough"});
        }
        uint64_t more = input.below(8);
        if (more == 1) options.push_back({"detect-zeroes", "on"});
        if (more == 2) options.push_back({"discard", "unmap"});
        if (more == 3) options.push_back({"cache.no-flush", "on"});
        engine_node_t* node = nullptr;
        Error error;
        int result = engine_node_open(engine_.handle(), options.data(), options.size(), &node, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        return keep(node);
    }
    engine_node_t* keep(engine_node_t* node) {
        nodes_.push_back(node);
        return node;
    }

    sim::Engine& engine_;
    std::vector<engine_node_t*> nodes_;
    uint64_t bytes_ = 0, pattern_bytes_ = 0;
    bool patterned_ = false;  // the first pattern_bytes_ bytes below the overlay
    bool may_run_out_ = false;
};

}  // namespace stack
