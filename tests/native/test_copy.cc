// The copy loop: what it copies, what it leaves out, how it ends. Over drivers of the test's own, which fail
// where they are told and hand out poison with it: a copy that fails never says that it succeeded, and what
// was not read never reaches the target.
#include <algorithm>
#include <memory>

#include "api/handles.hh"
#include "block/graph.hh"
#include "embedder.hh"

namespace {

using embedder::both_backends;
using embedder::Engine;
using embedder::Error;
using embedder::io;
using engine::block::bit;
using engine::block::Channel;
using engine::block::Driver;
using engine::block::Node;
using engine::block::Op;
using engine::block::OpenArguments;
using engine::block::Request;

constexpr char poison = 'P';
constexpr uint64_t block = 4096;

// --- drivers of the test's own: one is read, the other written

struct Seen {
    Op op;
    uint64_t offset;
    uint64_t length;
};

// One at a time; used on a context's thread while the test waits for its copy.
struct Script {
    std::vector<char> data;
    std::vector<engine_extent> extents;  // block status; none: it has no such operation
    uint32_t request_alignment = 1;
    bool writes_zeroes = true;
    Op fail_op = Op::discard;  // which never comes
    uint64_t fail_offset = 0;
    int fail_errno = EIO;
    bool fail_with_text = false;
    bool failed = false;
    std::vector<Seen> seen;

    unsigned count(Op op) const {
        return static_cast<unsigned>(
            std::count_if(seen.begin(), seen.end(), [&](const Seen& one) { return one.op == op; }));
    }
};
Script source, target;

int open_script(Node& node, const Script& script) {
    node.bytes.store_relaxed(script.data.size());
    node.native_ops = bit(Op::read) | bit(Op::write) | bit(Op::flush);
    if (!script.extents.empty()) node.native_ops |= bit(Op::block_status);
    if (script.writes_zeroes) node.native_ops |= bit(Op::write_zeroes);
    node.native_write_flags = ENGINE_MAY_UNMAP;
    node.request_alignment = script.request_alignment;
    node.holes = !script.extents.empty();
    return 0;
}

// Extents from the request's offset on, the first of them cut to it.
int64_t tell_extents(const Script& script, const Request& request) {
    int64_t count = 0;
    for (const engine_extent& extent : script.extents) {
        uint64_t end = std::min(extent.offset + extent.length, request.offset + request.length);
        uint64_t start = std::max(extent.offset, request.offset);
        if (start >= end) continue;
        if (count == request.extent_capacity) break;
        request.extents[count++] = {start, end - start, extent.flags, 0};
    }
    return count;
}

void serve(Script& script, Request* request) {
    script.seen.push_back({request->op, request->offset, request->length});
    bool fails = request->op == script.fail_op && request->offset == script.fail_offset;
    uint64_t at = request->offset;
    for (uint32_t i = 0; i < request->iov_count; i++) {
        auto* buffer = static_cast<char*>(request->iov[i].iov_base);
        size_t bytes = request->iov[i].iov_len;
        if (request->op == Op::read && fails) memset(buffer, poison, bytes);
        if (request->op == Op::read && !fails) memcpy(buffer, &script.data[at], bytes);
        if (request->op == Op::write && !fails) memcpy(&script.data[at], buffer, bytes);
        at += bytes;
    }
    if (request->op == Op::write_zeroes && !fails) memset(&script.data[at], 0, request->length);
    int64_t result = request->op == Op::block_status ? tell_extents(script, *request) : 0;
    script.failed = script.failed || fails;
    if (fails && script.fail_with_text) {
        fail_later(request, ENGINE_ERROR_OS, script.fail_errno, "the script says so");
    } else {
        finish_later(request, fails ? -script.fail_errno : result);
    }
}

constexpr Driver make_driver(const char* name, int (*open)(Node&, const OpenArguments&),
                             void (*submit)(Channel&, Request*)) {
    return {.name = name,
            .layer = "protocol",
            .text = "of the test",
            .options = {},
            .children = {},
            .state_size = 0,
            .channel_state_size = 0,
            .open = open,
            .close = nullptr,
            .open_channel = nullptr,
            .close_channel = nullptr,
            .submit = submit};
}
const Driver source_driver = make_driver(
    "source", [](Node& node, const OpenArguments&) { return open_script(node, source); },
    [](Channel&, Request* request) { serve(source, request); });
const Driver target_driver = make_driver(
    "target", [](Node& node, const OpenArguments&) { return open_script(node, target); },
    [](Channel&, Request* request) { serve(target, request); });

// --- a copy

struct Job {
    engine_copy_t* copy = nullptr;
    Error error;
    Job(Engine& engine, const engine_copy_config& config) {
        int result = engine_copy_create(engine, &config, &copy, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        if (result != 0) throw check::Failure();
    }
    ~Job() { CHECK_EQ(engine_copy_close(copy), 0); }
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;
    void start() { CHECK_EQ(engine_copy_start(copy, &error), 0); }
    int wait() { return engine_copy_wait(copy, 50'000'000'000, &error); }
    int run() {
        start();
        return wait();
    }
    engine_copy_progress progress() {
        engine_copy_progress progress{};
        progress.size = sizeof progress;
        CHECK_EQ(engine_copy_get_progress(copy, &progress), 0);
        return progress;
    }
};

engine_copy_config config_of(engine_node_t* from, engine_node_t* to, engine_context_t* context = nullptr) {
    engine_copy_config config{};
    config.size = sizeof config;
    config.source = from;
    config.target = to;
    config.context = context;
    config.chunk_size = block;
    config.chunks = 4;
    return config;
}

engine_node_stats stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}

// Both scripts opened, with the data that they have been given.
struct Scripted {
    Engine engine;
    engine_context_t* context;
    engine_node_t *from, *to;

    explicit Scripted(uint32_t backend = ENGINE_BACKEND_AUTO) : context(engine.context("io0", backend)) {
        from = open(source_driver, "src");
        to = open(target_driver, "dst");
    }
    ~Scripted() {
        for (engine_node_t* node : {from, to}) CHECK_EQ(stats_of(node).in_flight, 0);
    }
    engine_node_t* open(const Driver& driver, const char* name) {
        Node* made = nullptr;
        Error error;
        engine::block::OptionBag bag;
        bag.set("node-name", name);
        REQUIRE(open_node(*engine::api::unwrap(engine.get()), driver, std::move(bag), &made, &error) == 0);
        return engine::api::wrap(made);
    }
    engine_copy_config config() { return config_of(from, to, context); }
};

std::vector<char> pattern(uint64_t bytes) {
    std::vector<char> data(bytes);
    for (uint64_t i = 0; i < bytes; i++) data[i] = static_cast<char>('a' + (i / 512 + i % 7) % 15);
    return data;
}

// Data in every third block, with holes between: a hole, data, an unwritten part, and so on.
void make_sparse(Script& script) {
    uint64_t bytes = script.data.size();
    for (uint64_t at = 0; at < bytes; at += block) {
        bool data = at / block % 3 == 1;
        uint64_t length = std::min(block, bytes - at);
        if (!data) memset(&script.data[at], 0, length);
        uint32_t flags = ENGINE_EXTENT_ZERO;
        if (data) flags = ENGINE_EXTENT_DATA;
        if (at / block % 3 == 2) flags |= ENGINE_EXTENT_UNWRITTEN;
        script.extents.push_back({at, length, flags, 0});
    }
}

void reset(uint64_t bytes, bool sparse) {
    source = {};
    target = {};
    source.data = pattern(bytes);
    if (sparse) make_sparse(source);
    target.data.assign(bytes, 'T');
}

TEST(all_of_it_is_copied) {
    for (uint32_t backend : both_backends) {
        for (bool sparse : {false, true}) {
            for (uint64_t bytes : {uint64_t{0}, uint64_t{1}, block, 20 * block, 20 * block + 777}) {
                reset(bytes, sparse);
                Scripted disks(backend);
                Job job(disks.engine, disks.config());
                CHECK_EQ(job.progress().running + job.progress().started_ns, 0);
                CHECK_EQ(job.run(), 0);
                CHECK(target.data == source.data);
                CHECK(!target.seen.empty() && target.seen.back().op == Op::flush);
                CHECK_EQ(target.count(Op::flush), 1);
                engine_copy_progress progress = job.progress();
                CHECK_EQ(progress.running, 0);
                CHECK_EQ(progress.total, bytes);
                CHECK_EQ(progress.done, bytes);
                CHECK_EQ(progress.data_bytes + progress.zero_bytes, bytes);
                CHECK_EQ(progress.zero_bytes != 0, sparse && bytes != 0);
                CHECK(progress.ended_ns >= progress.started_ns && progress.started_ns != 0);
                if (!sparse) CHECK_EQ(source.count(Op::read), (bytes + block - 1) / block);
            }
        }
    }
}

TEST(zeroes_are_not_read) {
    reset(30 * block, true);
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), 0);
    CHECK_EQ(source.count(Op::read), 10);
    CHECK_EQ(target.count(Op::write), 10);
    for (const Seen& seen : source.seen) {
        if (seen.op == Op::read) CHECK_EQ(seen.offset / block % 3, 1);
    }
}

TEST(what_is_zero_is_left_out_where_the_target_is) {
    reset(30 * block, true);
    Scripted disks;
    engine_copy_config config = disks.config();
    config.flags = ENGINE_COPY_TARGET_IS_ZERO;
    Job job(disks.engine, config);
    CHECK_EQ(job.run(), 0);
    CHECK_EQ(target.count(Op::write_zeroes), 0);
    CHECK_EQ(job.progress().zero_bytes, 20 * block);
    CHECK_EQ(job.progress().done, 30 * block);
    CHECK(target.data[0] == 'T');  // untouched: it was said to be zero
    CHECK(memcmp(&target.data[block], &source.data[block], block) == 0);
}

TEST(zeroes_in_data_are_found_where_asked_for) {
    for (uint32_t flags : {0u, uint32_t{ENGINE_COPY_DETECT_ZEROES},
                           uint32_t{ENGINE_COPY_DETECT_ZEROES | ENGINE_COPY_TARGET_IS_ZERO}}) {
        reset(10 * block, false);
        memset(&source.data[3 * block], 0, 2 * block);
        source.data[4 * block + block - 1] = 1;  // not quite
        Scripted disks;
        engine_copy_config config = disks.config();
        config.flags = flags;
        Job job(disks.engine, config);
        CHECK_EQ(job.run(), 0);
        CHECK_EQ(target.count(Op::write_zeroes), flags == ENGINE_COPY_DETECT_ZEROES ? 1 : 0);
        CHECK_EQ(target.count(Op::write), flags == 0 ? 10 : 9);
        CHECK_EQ(job.progress().zero_bytes, flags == 0 ? 0 : block);
        CHECK_EQ(job.progress().done, 10 * block);
        if ((flags & ENGINE_COPY_TARGET_IS_ZERO) == 0) CHECK(target.data == source.data);
    }
}

TEST(a_target_that_cannot_write_zeroes_gets_them_written) {
    reset(30 * block, true);
    target.writes_zeroes = false;
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), 0);
    CHECK(target.data == source.data);
    CHECK_EQ(target.count(Op::write), 30);
}

// Where extents do not end at the target's blocks, a block that is data in part is data.
TEST(pieces_are_aligned_for_both) {
    for (uint64_t skew : {512, 1024, 3584}) {
        reset(40 * block, false);
        target.request_alignment = block;
        memset(source.data.data(), 0, source.data.size());
        uint64_t at = 0;
        for (unsigned i = 0; at < 40 * block; i++) {
            uint64_t length = std::min<uint64_t>(i % 2 == 0 ? 2 * block + skew : 512, 40 * block - at);
            if (i % 2 == 1) memset(&source.data[at], 'd', length);
            source.extents.push_back(
                {at, length, i % 2 == 1 ? uint32_t{ENGINE_EXTENT_DATA} : uint32_t{ENGINE_EXTENT_ZERO}, 0});
            at += length;
        }
        Scripted disks;
        Job job(disks.engine, disks.config());
        CHECK_EQ(job.run(), 0);
        CHECK(target.data == source.data);
        CHECK(job.progress().zero_bytes > 20 * block);
    }
}

TEST(a_part_is_copied) {
    reset(20 * block, true);
    Scripted disks;
    engine_copy_config config = disks.config();
    config.offset = 4 * block;
    config.length = 7 * block;
    Job job(disks.engine, config);
    CHECK_EQ(job.run(), 0);
    for (uint64_t at = 0; at < 20 * block; at++) {
        bool inside = at >= 4 * block && at < 11 * block;
        if (target.data[at] != (inside ? source.data[at] : 'T')) {
            CHECK_EQ(at, 0);
            break;
        }
    }
    CHECK_EQ(job.progress().total, 7 * block);
}

TEST(many_extents_are_asked_for_in_parts) {
    reset(1000 * block, true);
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), 0);
    CHECK(target.data == source.data);
    CHECK_EQ(source.count(Op::block_status), (1000 + 127) / 128);
}

// A driver that turns out to know nothing of its data.
TEST(without_an_answer_everything_is_data) {
    reset(20 * block, true);
    source.fail_op = Op::block_status;
    source.fail_errno = ENOTSUP;
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), 0);
    CHECK(target.data == source.data);
    CHECK_EQ(source.count(Op::read), 20);
}

// --- failures

// Fails one operation at one offset: never a success, the target never poisoned, told where it was.
void fails_at(uint32_t backend, Op op, uint64_t offset, bool sparse, bool text) {
    constexpr uint64_t blocks = 12;
    reset(blocks * block, sparse);
    bool read = op == Op::read || op == Op::block_status;
    Script& failing = read ? source : target;
    failing.fail_op = op;
    failing.fail_offset = offset;
    failing.fail_with_text = text;
    Scripted disks(backend);
    Job job(disks.engine, disks.config());
    int result = job.run();
    CHECK(failing.failed);
    CHECK_EQ(result, -EIO);
    CHECK_EQ(job.error.errnum, EIO);
    CHECK_EQ(job.error.offset, offset);
    CHECK_EQ(std::string_view(job.error.node), read ? "src" : "dst");
    CHECK(job.error.request_id != 0);
    CHECK(job.error.says(text ? "the script says so" : "copy of node src to node dst: node "));
    CHECK(std::find(target.data.begin(), target.data.end(), poison) == target.data.end());
    CHECK_EQ(engine_copy_wait(job.copy, 0, &job.error), -EIO);  // and stays so
    engine_copy_progress progress = job.progress();
    CHECK_EQ(progress.running, 0);
    if (op != Op::flush) CHECK(progress.done < progress.total);
    CHECK_EQ(target.count(Op::flush), op == Op::flush ? 1 : 0);
    // What is told as done is there.
    for (const Seen& seen : target.seen) {
        bool failed = seen.op == op && seen.offset == offset && !read;
        if (seen.op == Op::flush || failed) continue;
        CHECK(memcmp(&target.data[seen.offset], &source.data[seen.offset], seen.length) == 0);
    }
}

TEST(the_first_failure_at_every_offset_is_told) {
    for (uint32_t backend : both_backends) {
        for (bool text : {false, true}) {
            for (uint64_t k = 0; k < 12; k++) {
                fails_at(backend, Op::read, k * block, false, text);
                fails_at(backend, Op::write, k * block, false, text);
                if (k % 3 == 1) {
                    fails_at(backend, Op::read, k * block, true, text);
                    fails_at(backend, Op::write, k * block, true, text);
                } else {
                    fails_at(backend, Op::write_zeroes, k * block, true, text);
                }
            }
            fails_at(backend, Op::flush, 0, false, text);
            fails_at(backend, Op::flush, 0, true, text);
            fails_at(backend, Op::block_status, 0, true, text);
        }
    }
}

TEST(after_a_failure_nothing_new_is_begun) {
    reset(1000 * block, false);
    source.fail_op = Op::read;
    source.fail_offset = 10 * block;
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), -EIO);
    CHECK(source.seen.size() <= 10 + 2 * 4);
}

TEST(zeroes_that_fail_natively_and_work_otherwise_are_no_failure) {
    reset(12 * block, true);
    target.fail_op = Op::write_zeroes;
    target.fail_offset = 3 * block;
    target.fail_errno = ENOTSUP;
    target.fail_with_text = true;
    Scripted disks;
    CHECK_EQ(Job(disks.engine, disks.config()).run(), 0);
    CHECK(target.data == source.data);
}

// --- over real drivers

TEST(between_files_and_memory) {
    for (uint32_t backend : both_backends) {
        embedder::TempFile first(3 << 20);
        CHECK_EQ(ftruncate(first.fd(), 8 << 20), 0);  // a hole at the end
        embedder::TempFile second(8 << 20);
        Engine engine;
        engine_context_t* context = engine.context("io0", backend);
        engine_node_t* from = engine.open({{"driver", "raw"}, {"filename", first.name()}});
        engine_node_t* ram = engine.open({{"driver", "memory"}, {"size", "8M"}});
        engine_node_t* to = engine.open({{"driver", "file"}, {"filename", second.name()}});
        engine_copy_config config = config_of(from, ram, context);
        config.chunk_size = 0;
        config.chunks = 0;
        config.flags = ENGINE_COPY_TARGET_IS_ZERO;
        CHECK_EQ(Job(engine, config).run(), 0);
        config.flags = 0;
        config.source = ram;
        config.target = to;
        CHECK_EQ(Job(engine, config).run(), 0);
        std::vector<char> a(8 << 20), b(8 << 20);
        CHECK_EQ(pread(first.fd(), a.data(), a.size(), 0), a.size());
        CHECK_EQ(pread(second.fd(), b.data(), b.size(), 0), b.size());
        CHECK(a == b);
        CHECK(a[0] == 'd' && a[4 << 20] == 0);
    }
}

// --- how it ends, and what it refuses

TEST(a_copy_is_cancelled) {
    for (bool closing : {false, true}) {
        Engine engine;
        engine_context_t* context = engine.context("io0");
        engine_node_t* from =
            engine.open({{"driver", "null"}, {"latency-ns", "2ms"}, {"size", "1T"}, {"node-name", "src"}});
        engine_node_t* to = engine.open({{"driver", "null"}, {"size", "1T"}});
        Job job(engine, config_of(from, to, context));
        CHECK_EQ(engine_copy_wait(job.copy, 0, &job.error), -EINVAL);  // not started
        job.start();
        CHECK_EQ(engine_copy_start(job.copy, &job.error), -EALREADY);
        CHECK_EQ(engine_copy_wait(job.copy, 1'000'000, &job.error), -ETIMEDOUT);
        REQUIRE(embedder::eventually([&] { return job.progress().data_bytes > 10 * block; }));
        CHECK_EQ(job.progress().running, 1);
        CHECK_EQ(job.progress().total, uint64_t{1} << 40);
        if (closing) continue;  // close cancels and waits by itself
        CHECK_EQ(engine_copy_cancel(job.copy), 0);
        CHECK_EQ(engine_copy_cancel(job.copy), 0);
        CHECK_EQ(job.wait(), -ECANCELED);
        CHECK(job.error.says("copy of node src to node"));
        CHECK(job.error.says("cancelled after"));
        CHECK_EQ(stats_of(from).in_flight + stats_of(to).in_flight, 0);
        CHECK_EQ(stats_of(to).op[ENGINE_OP_FLUSH].requests, 0);
        CHECK(job.progress().done < job.progress().total);
    }
}

TEST(cancelled_before_its_start_or_after_its_end) {
    reset(8 * block, false);
    Scripted disks;
    {
        Job job(disks.engine, disks.config());
        CHECK_EQ(engine_copy_cancel(job.copy), 0);
        CHECK_EQ(job.run(), -ECANCELED);
        CHECK(target.seen.empty());
    }
    Job job(disks.engine, disks.config());
    CHECK_EQ(job.run(), 0);
    CHECK_EQ(engine_copy_cancel(job.copy), 0);
    CHECK_EQ(job.wait(), 0);
}

TEST(who_waits_on_a_contexts_thread_is_refused) {
    reset(8 * block, false);
    Scripted disks;
    Job job(disks.engine, disks.config());
    embedder::run_on(disks.context, [&] {
        Error error;
        CHECK_EQ(engine_copy_wait(job.copy, 0, &error), -EDEADLK);
        CHECK_EQ(engine_copy_start(job.copy, &error), -EDEADLK);
    });
    CHECK_EQ(job.run(), 0);
}

TEST(permissions_are_held_and_conflicts_named) {
    reset(8 * block, false);
    Scripted disks;
    Error error;
    engine_copy_config config = disks.config();
    engine_copy_t* copy = nullptr;
    engine_user_t* guest = Engine::user(disks.from, "guest", ENGINE_PERM_WRITE);
    CHECK_EQ(engine_copy_create(disks.engine, &config, &copy, &error), -EBUSY);
    CHECK(error.says("user 'copy to dst' cannot use node src: it conflicts with user 'guest' over: write"));
    CHECK(copy == nullptr);
    config.source_shared = ENGINE_PERM_ALL;
    CHECK_EQ(Job(disks.engine, config).run(), 0);
    CHECK_EQ(engine_user_close(guest, &error), 0);
    config.source_shared = 0;
    {
        Job job(disks.engine, config);
        CHECK_EQ(engine_user_create(disks.to, "guest", ENGINE_PERM_WRITE, 15, &guest, &error), -EBUSY);
        CHECK(error.says("conflicts with user 'copy from src'"));
        CHECK_EQ(engine_node_close(disks.from, &error), -EBUSY);
        CHECK(error.says("node src is in use by 'copy to dst'"));
        CHECK_EQ(engine_context_close(disks.context, &error), -EBUSY);
    }
    guest = Engine::user(disks.to, "guest", ENGINE_PERM_WRITE);
    CHECK_EQ(engine_user_close(guest, &error), 0);
}

TEST(bad_arguments_are_named) {
    reset(8 * block, false);
    source.request_alignment = 512;
    Scripted disks;
    Engine other;
    auto refused = [&](const engine_copy_config& config, const char* field, const char* text) {
        engine_copy_t* copy = nullptr;
        Error error;
        CHECK_EQ(engine_copy_create(disks.engine, &config, &copy, &error), -EINVAL);
        CHECK_EQ(std::string_view(error.field), field);
        CHECK(error.says(text));
        CHECK(copy == nullptr);
    };
    engine_copy_config good = disks.config(), bad = good;
    bad.source = nullptr;
    refused(bad, "source", "a node is needed as source");
    bad = good;
    bad.target = nullptr;
    refused(bad, "target", "a node is needed as target");
    bad = good;
    bad.target = bad.source;
    refused(bad, "target", "would be copied to itself");
    bad = good;
    bad.flags = 8;
    refused(bad, "flags", "unknown bits");
    bad = good;
    bad.chunks = 1025;
    refused(bad, "chunks", "is more than 1024");
    bad = good;
    bad.chunk_size = 1000;
    refused(bad, "chunk_size", "no multiple of both nodes' alignment");
    bad = good;
    bad.offset = 100;
    refused(bad, "offset", "no multiple of both nodes' alignment");
    bad = good;
    bad.offset = 4 * block;
    bad.length = 4 * block + 512;
    refused(bad, "length", "reach past the end of the source");
    bad = good;
    bad.target = disks.engine.open({{"driver", "null"}, {"size", "28k"}, {"node-name", "small"}});
    refused(bad, "target", "the target has 28672 bytes, 32768 are needed");
    bad = good;
    bad.target = other.open({{"driver", "null"}});
    refused(bad, "", "must belong to this engine");
    bad = good;
    bad.target = disks.engine.open({{"driver", "null"}, {"read-only", "on"}});
    engine_copy_t* copy = nullptr;
    Error error;
    CHECK_EQ(engine_copy_create(disks.engine, &bad, &copy, &error), -EROFS);
}

TEST(short_memory_is_an_error) {
    reset(8 * block, false);
    Scripted disks;
    Job job(disks.engine, disks.config());
    engine_set_allocation_hook([](size_t bytes, void*) { return bytes >= 4 * block ? 1 : 0; }, nullptr);
    int result = engine_copy_start(job.copy, &job.error);
    engine_set_allocation_hook(nullptr, nullptr);
    CHECK_EQ(result, -ENOMEM);
    CHECK(job.error.says("cannot start a copy on context io0"));
    CHECK_EQ(job.run(), 0);
    CHECK(target.data == source.data);
}

// From one context while another one's load reads the source.
TEST(it_runs_beside_others) {
    Engine engine;
    engine_node_t* from = engine.open({{"driver", "memory"}, {"size", "16M"}});
    engine_node_t* to = engine.open({{"driver", "memory"}, {"size", "16M"}});
    engine_user_t* user = Engine::user(from, "load", ENGINE_PERM_CONSISTENT_READ);
    engine_user_t* writer = Engine::user(from, "writer");
    std::vector<char> data = pattern(16 << 20), back(16 << 20);
    Error error;
    CHECK_EQ(io(writer, ENGINE_OP_WRITE, data.data(), 0, data.size(), 0, &error), data.size());
    CHECK_EQ(engine_user_close(writer, &error), 0);
    engine_workload_config load{};
    load.size = sizeof load;
    load.pattern = ENGINE_RANDOM;
    load.read_percent = 100;
    load.block_size = 4096;
    load.iodepth = 8;
    load.runtime_ns = 60'000'000'000;
    load.user = user;
    load.context = engine.context("io0");
    engine_workload_t* workload = nullptr;
    REQUIRE(engine_workload_create(engine, &load, &workload, &error) == 0);
    CHECK_EQ(engine_workload_start(workload, &error), 0);
    engine_copy_config config = config_of(from, to, engine.context("io1"));
    config.chunk_size = 65536;
    CHECK_EQ(Job(engine, config).run(), 0);
    CHECK_EQ(engine_workload_close(workload), 0);
    writer = Engine::user(to, "reader");
    CHECK_EQ(io(writer, ENGINE_OP_READ, back.data(), 0, back.size(), 0, &error), back.size());
    CHECK(back == data);
    CHECK_EQ(engine_user_close(writer, &error), 0);
    CHECK_EQ(engine_user_close(user, &error), 0);
}

}  // namespace
