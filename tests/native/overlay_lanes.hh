// A load on an overlay that verifies: random reads, writes, discards and zeroes from two contexts, whose
// parts of the disk lie in the same clusters, against a model; and readers of all of it, who know what may
// lie where.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <climits>
#include <functional>

#include "api/handles.hh"
#include "base/random.hh"
#include "block/graph_tasks.hh"
#include "embedder.hh"

namespace overlay_lanes {

using namespace engine::block;

constexpr uint64_t cluster = 4096;  // what the overlays are opened with

// What the disk below holds; or zeroes.
inline char pattern(uint64_t offset) {
    return static_cast<char>('0' + offset / 512 % 61);
}

// What is written somewhere starts with this, so that it is known for what it is if it turns up elsewhere.
inline void tag(char* at, uint64_t offset) {
    uint64_t word = engine::base::mix(offset + 1);
    memcpy(at, &word, sizeof word);
}

// An open node and who uses it.
struct View {
    engine_node_t* node = nullptr;
    engine_user_t* user = nullptr;

    std::vector<char> read(uint64_t offset, uint64_t bytes) const {
        embedder::Error error;
        std::vector<char> data(bytes, '?');
        CHECK_EQ(embedder::io(user, ENGINE_OP_READ, data.data(), offset, bytes, 0, &error), bytes);
        return data;
    }
};

// A stream of random requests, one at a time, in parts of the disk that are its own, with what they must
// hold.
class Lane : Request {
  public:
    void add(const View& view, uint64_t at, uint64_t bytes) { parts_.push_back({at, view.read(at, bytes)}); }
    void begin(engine_user_t* user, engine_context_t* on, uint64_t seed, unsigned rounds) {
        embedder::Error told;
        REQUIRE(open_port(engine::api::unwrap(user), engine::api::unwrap(on), &port_, &told) == 0);
        random_ = engine::base::Random(seed);
        left_ = rounds;
        complete = [](Request* request) { static_cast<Lane*>(request)->completed(); };
        run = [](engine::aio::Message* message) {
            static_cast<Lane*>(static_cast<Request*>(message))->next_one();
        };
        CHECK_EQ(engine::api::unwrap(on)->send(this), 0);
    }
    void stop() { stopping_.store(true, std::memory_order_relaxed); }
    bool done() const { return over_.load(std::memory_order_acquire); }
    void check(const View& view) const {
        CHECK_EQ(wrong_, 0);
        for (const Part& part : parts_) CHECK(view.read(part.offset, part.holds.size()) == part.holds);
    }

  private:
    struct Part {
        uint64_t offset;
        std::vector<char> holds;
    };

    void next_one() {
        if (left_-- == 0 || stopping_.load(std::memory_order_relaxed)) {
            over_.store(true, std::memory_order_release);
            return;
        }
        Part& part = parts_[random_.below(parts_.size())];
        uint64_t subs = part.holds.size() / 512;
        uint64_t first = random_.below(3) == 0 ? 0 : random_.below(subs);
        uint64_t count = random_.below(3) == 0 ? subs - first : 1 + random_.below(subs - first);
        constexpr Op ops[] = {Op::read, Op::read, Op::write, Op::write, Op::discard, Op::write_zeroes};
        op = ops[random_.below(6)];
        offset = part.offset + first * 512;
        length = count * 512;
        model_ = part.holds.data() + first * 512;
        iov = nullptr;
        iov_count = 0;
        flags = op == Op::write && random_.below(4) == 0 ? ENGINE_FUA : 0;
        if (op == Op::read || op == Op::write) {
            data_.resize(length);
            char with = static_cast<char>(random_.next());
            for (char& c : data_) c = with++;
            for (uint64_t at = 0; at < length; at += 512) tag(data_.data() + at, offset + at);
            set_buffer(data_.data(), length);
        }
        submit(*port_, this);
    }
    void completed() {
        CHECK(result >= 0);
        if (op == Op::read && memcmp(data_.data(), model_, length) != 0) wrong_++;
        if (op == Op::write) memcpy(model_, data_.data(), length);
        if (op == Op::discard || op == Op::write_zeroes) memset(model_, 0, length);
        next_one();
    }

    Port* port_ = nullptr;
    engine::base::Random random_{0};
    std::vector<Part> parts_;
    std::vector<char> data_;
    char* model_ = nullptr;
    unsigned left_ = 0;
    unsigned wrong_ = 0;
    std::atomic<bool> stopping_{false};
    std::atomic<bool> over_{false};
};

// Reads anywhere, so many times or until all lanes are done. It may meet a write, but nothing that was
// written elsewhere.
class Scanner : Request {
  public:
    void begin(const View& view, engine_context_t* on, uint64_t bytes, uint64_t seed, unsigned rounds,
               std::function<bool()> finished) {
        embedder::Error told;
        REQUIRE(open_port(engine::api::unwrap(view.user), engine::api::unwrap(on), &port_, &told) == 0);
        random_ = engine::base::Random(seed);
        bytes_ = bytes;
        left_ = rounds;
        finished_ = std::move(finished);
        op = Op::read;
        complete = [](Request* request) { static_cast<Scanner*>(request)->completed(); };
        run = [](engine::aio::Message* message) {
            static_cast<Scanner*>(static_cast<Request*>(message))->next_one();
        };
        CHECK_EQ(engine::api::unwrap(on)->send(this), 0);
    }
    bool done() const { return over_.load(std::memory_order_acquire); }
    unsigned wrong() const { return wrong_; }

  private:
    void next_one() {
        if (left_-- == 0 || finished_()) {
            over_.store(true, std::memory_order_release);
            return;
        }
        offset = random_.below(bytes_ / 512) * 512;
        length = (1 + random_.below(std::min<uint64_t>(bytes_ - offset, 2 * cluster) / 512)) * 512;
        data_.assign(length, 0);
        set_buffer(data_.data(), length);
        submit(*port_, this);
    }
    void completed() {
        CHECK(result >= 0);
        for (uint64_t at = 0; at < length; at += 512) {
            char wanted[sizeof(uint64_t)];
            tag(wanted, offset + at);
            for (unsigned i = 0; i < sizeof wanted; i++) {
                char byte = data_[at + i];
                if (byte != wanted[i] && byte != 0 && byte != pattern(offset + at)) wrong_++;
            }
        }
        next_one();
    }

    Port* port_ = nullptr;
    engine::base::Random random_{0};
    std::function<bool()> finished_;
    std::vector<char> data_;
    uint64_t bytes_ = 0;
    unsigned left_ = 0;
    unsigned wrong_ = 0;
    std::atomic<bool> over_{false};
};

// Each cluster of the first half of the disk has parts of a lane on either context; the lanes also have
// ranges of many clusters of their own in the second half.
class Lanes {
  public:
    explicit Lanes(unsigned rounds) : rounds_(rounds) {}
    Lanes() : rounds_(UINT_MAX) {}  // until they are stopped

    void begin(const View& view, const std::array<engine_context_t*, 2>& contexts, uint64_t seed) {
        engine_node_info info{};
        info.size = sizeof info;
        CHECK_EQ(engine_node_get_info(view.node, &info), 0);
        uint64_t half = info.bytes / 2;
        for (uint64_t at = 0; at < half; at += cluster) {
            uint64_t lane = at / cluster % count;
            lanes_[lane].add(view, at, cluster / 2);
            lanes_[count + lane].add(view, at + cluster / 2, cluster / 2);
        }
        uint64_t range = half / lanes_.size();
        for (unsigned i = 0; i < lanes_.size(); i++) lanes_[i].add(view, half + i * range, range);
        for (unsigned i = 0; i < lanes_.size(); i++) {
            lanes_[i].begin(view.user, contexts[i / count], seed + i, rounds_);
        }
        auto finished = [this] { return lanes_done(); };
        for (unsigned i = 0; i < scanners_.size(); i++) {
            scanners_[i].begin(view, contexts[i % 2], info.bytes, seed + 50 + i, rounds_, finished);
        }
    }
    void stop() {
        for (Lane& lane : lanes_) lane.stop();
    }
    bool done() const {
        return lanes_done() &&
               std::all_of(scanners_.begin(), scanners_.end(), [](const Scanner& one) { return one.done(); });
    }
    void check(const View& view) const {
        for (const Scanner& scanner : scanners_) CHECK_EQ(scanner.wrong(), 0);
        for (const Lane& lane : lanes_) lane.check(view);
    }

  private:
    bool lanes_done() const {
        return std::all_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.done(); });
    }
    static constexpr unsigned count = 4;  // on each context
    const unsigned rounds_;
    std::array<Lane, 2 * count> lanes_;
    std::array<Scanner, 2> scanners_;
};

}  // namespace overlay_lanes
