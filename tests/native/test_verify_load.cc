// The verify filter over files and memory with contexts on threads of their own: requests that overlap in
// every way raise no false alarm, and none is missed; it comes and goes meanwhile.
#include <random>
#include <thread>

#include "api/handles.hh"
#include "block/graph.hh"
#include "filter_load.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::io;
using engine::block::Op;
using engine::block::Port;
using engine::block::Request;
using filter_load::child_of;
using filter_load::Load;
using filter_load::stats_of;
namespace api = engine::api;

constexpr uint64_t disk_bytes = 256 << 10;  // few enough that much overlaps

// One that submits itself anew when it has completed, until so many have been.
class Stream {
  public:
    Stream(Port* port, uint64_t seed, unsigned count) : port_(port), random_(seed), left_(count) {
        for (One& one : ones_) {
            one.stream = this;
            one.error = &one.failure;
            one.complete = [](Request* request) {
                auto* self = static_cast<One*>(request);
                self->stream->completed(*self);
            };
        }
    }
    // On the context's thread.
    void start() {
        for (One& one : ones_) next(one);
    }
    bool over() const { return idle_.load(std::memory_order_acquire) == depth; }

    unsigned results[2] = {};  // well, not
    Error first_failure;
    uint64_t first_at = 0;

  private:
    static constexpr unsigned depth = 8;
    static constexpr unsigned parts_max = 5;
    struct One : Request {
        Stream* stream = nullptr;
        Error failure;
        std::vector<char> data = std::vector<char>(40000);
        iovec parts[parts_max];
        engine_extent extent;
    };

    void next(One& one) {
        if (left_ == 0) {
            idle_.fetch_add(1, std::memory_order_release);
            return;
        }
        left_--;
        static constexpr Op ops[] = {Op::read,  Op::read,  Op::read,    Op::write,        Op::write,
                                     Op::write, Op::flush, Op::discard, Op::write_zeroes, Op::block_status};
        one.op = ops[random_() % std::size(ops)];
        one.length = 1 + random_() % (random_() % 8 == 0 ? 40000 : 3000);
        one.offset = random_() % (disk_bytes - one.length);
        if (one.op == Op::flush) one.length = one.offset = 0;
        one.flags = one.op == Op::write && random_() % 8 == 0 ? ENGINE_FUA : 0;
        one.extents = &one.extent;
        one.extent_capacity = 1;
        one.iov = one.parts;
        one.iov_count = 0;
        one.failure = Error();
        if (one.op == Op::write) std::fill(one.data.begin(), one.data.end(), static_cast<char>(random_()));
        for (uint64_t done = 0; done < one.length && (one.op == Op::read || one.op == Op::write);) {
            bool last = one.iov_count + 1 == parts_max;
            uint64_t bytes = last ? one.length - done : random_() % (one.length - done + 1);
            one.parts[one.iov_count++] = {one.data.data() + done, bytes};
            done += bytes;
        }
        engine::block::submit(*port_, &one);
    }
    void completed(One& one) {
        if (one.result < 0 && results[1] == 0) {
            first_failure = one.failure;
            first_at = one.offset;
        }
        results[one.result < 0 ? 1 : 0]++;
        next(one);
    }

    Port* port_;
    std::mt19937_64 random_;
    unsigned left_;
    std::atomic<unsigned> idle_{0};
    One ones_[depth];
};

// So many contexts with streams of their own over one node; what they say afterwards.
unsigned run_streams(Engine& engine, engine_node_t* node, unsigned contexts, uint32_t backend,
                     unsigned count) {
    engine_user_t* user = Engine::user(node, "streams");
    std::vector<std::unique_ptr<Stream>> streams;
    Error error;
    for (unsigned i = 0; i < contexts; i++) {
        engine_context_t* context = engine.context(("s" + std::to_string(i)).c_str(), backend);
        Port* port = nullptr;
        REQUIRE(engine::block::open_port(api::unwrap(user), api::unwrap(context), &port, &error) == 0);
        streams.push_back(std::make_unique<Stream>(port, i + 1, count));
        embedder::run_on(context, [&] { streams.back()->start(); });
    }
    for (auto& stream : streams) CHECK(embedder::eventually([&] { return stream->over(); }));
    unsigned failures = 0;
    for (auto& stream : streams) {
        CHECK_EQ(stream->results[0] + stream->results[1], count);
        failures += stream->results[1];
        if (stream->results[1] != 0) fprintf(stderr, "  %s\n", stream->first_failure.message);
    }
    CHECK_EQ(engine_user_close(user, &error), 0);
    return failures;
}

#ifdef EMBEDDER_TSAN
constexpr unsigned scale = 1;
#else
constexpr unsigned scale = 4;
#endif

TEST(requests_that_overlap_raise_no_false_alarm) {
    for (uint32_t backend : both_backends) {
        for (unsigned contexts : {1u, 2u, 4u, 8u}) {
            Engine engine;
            embedder::TempFile file(disk_bytes);
            engine_node_t* node = engine.open({{"driver", "verify"},
                                               {"file.driver", "delay"},
                                               {"file.write", "20us"},
                                               {"file.spread", "100us"},
                                               {"file.file.driver", "file"},
                                               {"file.file.filename", file.name()},
                                               {"reference.driver", "memory"},
                                               {"reference.size", "256k"}});
            engine_user_t* user = Engine::user(node, "filler");
            std::vector<char> data(disk_bytes, 'z');
            Error error;
            CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), 0, disk_bytes, 0, &error), disk_bytes);
            CHECK_EQ(run_streams(engine, node, contexts, backend, 800 * scale / contexts), 0);
            CHECK_EQ(io(user, ENGINE_OP_READ, data.data(), 0, disk_bytes, 0, &error), disk_bytes);
            CHECK_EQ(engine_user_close(user, &error), 0);
        }
    }
}

// Blocks that the file is read and written in, so that the request layer below has to put them together.
TEST(nor_do_those_that_a_child_bounces) {
    Engine engine;
    embedder::TempFile file(disk_bytes);
    engine_node_t* node = nullptr;
    Error error;
    int result = engine.open({{"driver", "verify"},
                              {"file.driver", "file"},
                              {"file.filename", file.name()},
                              {"file.cache.direct", "on"},
                              {"reference.driver", "memory"},
                              {"reference.size", "256k"}},
                             &node, &error);
    if (result == -EINVAL) return;  // a file system without O_DIRECT
    REQUIRE(result == 0);
    engine_user_t* user = Engine::user(node, "filler");
    std::vector<char> data(disk_bytes, 'z');
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), 0, disk_bytes, 0, &error), disk_bytes);
    CHECK_EQ(run_streams(engine, node, 2, ENGINE_BACKEND_AUTO, 100 * scale), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

// With what differs there are alarms: a write that goes past it.
TEST(a_difference_is_not_missed) {
    Engine engine;
    embedder::TempFile file(disk_bytes);
    engine_node_t* node = engine.open({{"driver", "verify"},
                                       {"file.driver", "file"},
                                       {"file.filename", file.name()},
                                       {"reference.driver", "memory"},
                                       {"reference.size", "256k"}});
    engine_user_t* user = Engine::user(node, "filler");
    std::vector<char> data(disk_bytes, 'z');
    Error error;
    CHECK_EQ(io(user, ENGINE_OP_WRITE, data.data(), 0, disk_bytes, 0, &error), disk_bytes);
    for (uint64_t at : {uint64_t{0}, uint64_t{77777}, disk_bytes - 1}) {
        REQUIRE(pwrite(file.fd(), "!", 1, static_cast<off_t>(at)) == 1);
        CHECK_EQ(io(user, ENGINE_OP_READ, data.data(), 0, disk_bytes, 0, &error), -EIO);
        CHECK_EQ(error.offset, at);
        REQUIRE(pwrite(file.fd(), "z", 1, static_cast<off_t>(at)) == 1);
    }
    CHECK_EQ(io(user, ENGINE_OP_READ, data.data(), 0, disk_bytes, 0, &error), disk_bytes);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

TEST(it_comes_and_goes_under_load) {
    for (uint32_t backend : both_backends) {
        Engine engine;
        engine_node_t* disk = engine.open({{"driver", "memory"}, {"size", "1M"}});
        engine.open({{"driver", "memory"}, {"size", "1M"}, {"node-name", "spare"}});
        engine_user_t* user = Engine::user(disk, "load");
        Error error;
        {
            Load first(engine, user, engine.context("io0", backend), uint64_t{1} << 40, 100, 32);
            Load second(engine, user, engine.context("io1", backend), uint64_t{1} << 40, 100, 32);
            for (unsigned i = 0; i < 20; i++) {
                engine_option options[] = {{"driver", "verify"}, {"reference", "spare"}};
                engine_node_t *filter = nullptr, *above = nullptr;
                REQUIRE(engine_node_insert_filter(disk, options, 2, 0, &filter, &error) == 0);
                CHECK(embedder::eventually(
                    [&] { return stats_of(filter).op[ENGINE_OP_READ].requests >= 100; }));
                engine_option passthrough[] = {{"driver", "passthrough"}};
                engine_node_t* at = i % 2 == 0 ? disk : filter;
                CHECK_EQ(engine_node_insert_filter(at, passthrough, 1, 0, &above, &error), 0);
                CHECK_EQ(engine_node_remove_filter(filter, 0, nullptr, &error), 0);
                CHECK_EQ(engine_node_remove_filter(above, 0, nullptr, &error), 0);
            }
            for (const Load* load : {&first, &second}) {
                CHECK_EQ(engine_workload_stop(load->workload), 0);
                CHECK_EQ(load->wait()->errors, 0);
            }
        }
        CHECK_EQ(engine_user_close(user, &error), 0);
    }
}

}  // namespace
