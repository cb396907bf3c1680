// A stage: its graph, its jobs, its end. What changes beneath the lanes is in stage_changes.cc.
#include "stage.hh"

#include <algorithm>
#include <cstdarg>
#include <cstring>

#include "block/track.hh"
#include "disk.hh"

namespace lab {

using embedder::Error;
using engine::block::OptionBag;

namespace {

constexpr uint64_t margin = 64;  // of a buffer, on either side
constexpr std::byte margin_fill{0x5c};
constexpr uint64_t steps_max = 3'000'000;
constexpr uint64_t window_offset = 8192;

}  // namespace

Stage::Stage(World& world, uint64_t seed, uint64_t operations)
    : world_(world),
      plan_(world.plan),
      random_(engine::base::mix(seed ^ 0x57a9e)),
      left_(operations),
      engine_(seed, world.plan.contexts) {
    engine_.simulator.serve_with(world.storage);
    open_graph();
    open_lanes();
}

Stage::~Stage() = default;

void Stage::trace(const char* format, ...) {
    if (world_.trace == nullptr) return;
    fprintf(world_.trace, "%12.3f us  ", static_cast<double>(engine_.simulator.now_ns()) / 1e3);
    va_list args;
    va_start(args, format);
    vfprintf(world_.trace, format, args);
    va_end(args);
    fputc('\n', world_.trace);
}

// --- the graph

engine_node_t* Stage::open_disk(int fd, const char* name, bool plain) {
    OptionBag bag;
    bag.set("node-name", name);
    bag.set("fd", std::to_string(fd));
    if (!plain) {
        constexpr const char* zeroes[] = {"off", "on", "unmap"};
        bag.set("alignment", std::to_string(plan_.alignment));
        bag.set("direct", plan_.direct ? "on" : "off");
        bag.set("max-transfer", std::to_string(plan_.max_transfer));
        bag.set("ops", std::to_string(plan_.ops));
        bag.set("fua", plan_.fua ? "on" : "off");
        bag.set("discard", plan_.discard ? "unmap" : "ignore");
        bag.set("detect-zeroes", zeroes[plan_.discard ? plan_.detect_zeroes : plan_.detect_zeroes & 1]);
    }
    return engine_.open_with(disk::driver, std::move(bag));
}

// What the disk holds.
engine_node_t* Stage::open_reference() {
    std::vector<std::byte> bytes = world_.storage.bytes(world_.disk);
    std::string size = std::to_string(bytes.size());
    engine_node_t* node =
        engine_.open({{"driver", "memory"}, {"node-name", "reference"}, {"size", size.c_str()}});
    engine_user_t* writer = embedder::Engine::user(node, "writer");
    Error error;
    int64_t written = embedder::io(writer, ENGINE_OP_WRITE, bytes.data(), 0, bytes.size(), 0, &error);
    CHECK_EQ(written, static_cast<int64_t>(bytes.size()));
    close_user(writer, "the reference");
    return node;
}

void Stage::open_graph() {
    disk_ = open_disk(world_.disk, "disk", false);
    library_ = open_disk(world_.library, "library", false);
    copy_of_library_ = open_disk(world_.library, "copy-of-library", false);
    reader_ = embedder::Engine::user(library_, "reader", ENGINE_PERM_CONSISTENT_READ);
    std::string size = std::to_string(world_.shadow.size());
    std::string offset = std::to_string(window_offset);
    std::string cluster = std::to_string(plan_.cluster);
    switch (plan_.shape) {
        case Shape::bare:
            top_ = disk_;
            break;
        case Shape::window:
            top_ = engine_.open({{"driver", "raw"},
                                 {"node-name", "top"},
                                 {"file", "disk"},
                                 {"offset", offset.c_str()},
                                 {"size", size.c_str()},
                                 {"discard", "unmap"}});
            break;
        case Shape::filtered:
            top_ = engine_.open(
                {{"driver", "passthrough"}, {"node-name", "top"}, {"file", "disk"}, {"discard", "unmap"}});
            break;
        case Shape::overlay:
            data_ = plan_.data_in_memory
                        ? engine_.open({{"driver", "memory"}, {"node-name", "data"}, {"size", "1M"}})
                        : open_disk(world_.data, "data", false);
            top_ = engine_.open({{"driver", "overlay"},
                                 {"node-name", "top"},
                                 {"backing", "disk"},
                                 {"file", "data"},
                                 {"size", size.c_str()},
                                 {"discard", "unmap"},
                                 {"cluster-size", cluster.c_str()}});
            break;
        case Shape::verified:
            reference_ = open_reference();
            top_ = engine_.open({{"driver", "verify"},
                                 {"node-name", "top"},
                                 {"file", "disk"},
                                 {"reference", "reference"},
                                 {"discard", "unmap"}});
            break;
    }
    user_ = embedder::Engine::user(top_, "lab");
}

void Stage::open_lanes() {
    auto context = [this] { return engine_.context_handle(1 + random_.below(plan_.contexts)); };
    Error error;
    for (unsigned i = 0; i < plan_.direct_lanes; i++) {
        lanes_.push_back(
            std::make_unique<DirectLane>(*this, "direct" + std::to_string(i), user_, context(), plan_.depth));
    }
    Grain reading;
    reading.library = true;
    lanes_.push_back(std::make_unique<DirectLane>(*this, "library", reader_, context(), 1, reading));
    for (unsigned i = 0; i < plan_.async_lanes; i++) {
        lanes_.push_back(std::make_unique<AsyncLane>(*this, "async" + std::to_string(i), engine_.handle(),
                                                     user_, context(), plan_.depth));
    }
    if (plan_.queue_lanes != 0) {
        engine_context_t* on[2] = {context(), context()};
        engine_disk_config config{};
        config.size = sizeof config;
        config.queue_count = plan_.queue_lanes;
        config.queue_size = 64;
        config.write_cache = plan_.write_cache ? 1 : 0;
        config.event_index = random_.below(2) == 0;
        config.indirect = random_.below(2) == 0;
        config.name = "vda";
        config.serial = "lab";
        config.contexts = on;
        int result = engine_disk_create(top_, &config, &device_, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_disk_create: ") + error.message);
        REQUIRE(result == 0);
    }
    for (unsigned i = 0; i < plan_.queue_lanes; i++) {
        lanes_.push_back(std::make_unique<QueueLane>(*this, "queue" + std::to_string(i),
                                                     engine_disk_get_queue(device_, i), context(),
                                                     plan_.depth, !plan_.write_cache));
    }
    if (!plan_.generator) return;
    memory_ = engine_.open({{"driver", "memory"}, {"node-name", "beside"}, {"size", "256k"}});
    memory_user_ = embedder::Engine::user(memory_, "generator");
    engine_workload_config config{};
    config.size = sizeof config;
    config.pattern = ENGINE_RANDOM;
    config.read_percent = 50;
    config.block_size = 4096;
    config.iodepth = 4;
    config.count = 200;
    config.flush_every = 16;
    config.seed = plan_.seed;
    config.flags = ENGINE_WORKLOAD_VERIFY;
    config.user = memory_user_;
    config.context = context();
    REQUIRE(engine_workload_create(engine_.handle(), &config, &workload_, &error) == 0);
    REQUIRE(engine_workload_start(workload_, &error) == 0);
}

// --- jobs

void Stage::choose_range(Job& job, const Grain& grain) {
    uint64_t size = grain.library ? plan_.bytes : world_.shadow.size();
    uint64_t unit = one_in(2) ? std::max<uint64_t>(grain.bytes, 512) : grain.bytes;
    uint64_t most = one_in(40) ? grain.longest : one_in(4) ? std::min<uint64_t>(8192, grain.longest) : 1024;
    uint64_t space = one_in(2) ? std::min<uint64_t>(size, 16384) : size;  // half of all in a quarter of it
    job.length = unit * (1 + random_.below(std::max<uint64_t>(most / unit, 1)));
    job.offset = random_.below(space / unit) * unit;
    if (one_in(60) && !grain.library) {
        job.offset = size - std::min(size, job.length / unit / 2 * unit);  // across the end
    } else if (job.offset + job.length > size) {
        job.length = size - job.offset;
    }
}

void Stage::choose_memory(Job& job) {
    constexpr uint64_t page = 4096;
    job.memory.assign(job.length + 2 * page + margin, margin_fill);
    auto start = reinterpret_cast<uintptr_t>(job.memory.data());
    // Where it lies must not depend on the heap: one seed is one history.
    job.data = job.memory.data() + ((0 - start) & (page - 1)) + (one_in(2) ? margin : page);
    uint64_t pieces = one_in(3) ? 1 + random_.below(4) : 1;
    uint64_t done = 0;
    for (uint64_t i = 1; done < job.length; i++) {
        uint64_t rest = job.length - done;
        uint64_t length =
            i >= pieces || rest <= cell_bytes ? rest : cell_bytes * (1 + random_.below(rest / cell_bytes));
        job.parts.push_back({job.data + done, static_cast<size_t>(length)});
        done += length;
    }
    if (job.parts.size() > 2) reach(Event::vector_of_many_parts);
}

void Stage::begin_change(Job& job, const Grain& grain) {
    if (job.op == ENGINE_OP_READ || job.op == ENGINE_OP_FLUSH || job.op == ENGINE_OP_BLOCK_STATUS) {
        if (job.op == ENGINE_OP_READ && !job.library &&
            world_.shadow.overlaps(job.offset, job.length, UINT32_MAX)) {
            reach(Event::read_beside_write);
        }
        job.began = world_.shadow.tick();
        return;
    }
    bool nothing = job.op == ENGINE_OP_WRITE && one_in(8);  // it writes zeroes
    Kind kind = nothing || job.op == ENGINE_OP_WRITE_ZEROES ? Kind::zeroes
                : job.op == ENGINE_OP_DISCARD               ? Kind::discard
                                                            : Kind::write;
    bool durable = ((job.flags & ENGINE_FUA) != 0 || grain.all_durable) && kind != Kind::discard;
    job.change = world_.shadow.begin(kind, job.offset, job.length, durable);
    job.began = world_.shadow.now();
    if (world_.shadow.overlaps(job.offset, job.length, job.change)) reach(Event::overlapping_writes);
    if (job.data != nullptr) world_.shadow.fill(job.change, job.data);
    if (nothing && plan_.detect_zeroes != 0) reach(Event::zeroes_detected);
}

bool Stage::draw(Job& job, const Grain& grain, const std::string& lane) {
    if (left_ == 0 || !on() || world_.failed()) return false;
    left_--;
    constexpr uint32_t ops[] = {ENGINE_OP_READ,  ENGINE_OP_READ,         ENGINE_OP_READ,  ENGINE_OP_READ,
                                ENGINE_OP_WRITE, ENGINE_OP_WRITE,        ENGINE_OP_WRITE, ENGINE_OP_WRITE,
                                ENGINE_OP_WRITE, ENGINE_OP_WRITE_ZEROES, ENGINE_OP_FLUSH, ENGINE_OP_DISCARD};
    job.op = one_in(30) && grain.questions ? static_cast<uint32_t>(ENGINE_OP_BLOCK_STATUS)
                                           : ops[random_.below(std::size(ops))];
    job.library = grain.library;
    if (job.library) job.op = ENGINE_OP_READ;
    job.number = ++jobs_;
    job.flags = 0;
    job.offset = job.length = 0;
    job.change = UINT32_MAX;
    job.cancelled = false;
    job.data = nullptr;
    job.parts.clear();
    job.extents.clear();
    job.error = Error();
    bool writes = job.op == ENGINE_OP_WRITE || job.op == ENGINE_OP_WRITE_ZEROES;
    if (writes && grain.flags && one_in(5)) {
        job.flags |= ENGINE_FUA;
        reach(Event::fua_write);
    }
    if (job.op == ENGINE_OP_WRITE_ZEROES && one_in(2)) job.flags |= ENGINE_MAY_UNMAP;
    if (job.op == ENGINE_OP_WRITE_ZEROES && grain.flags && one_in(6)) job.flags |= ENGINE_NO_FALLBACK;
    if (job.op == ENGINE_OP_FLUSH) {
        if (++flushing_ > 1) reach(Event::flush_shared);
    } else {
        choose_range(job, grain);
    }
    if (job.op == ENGINE_OP_BLOCK_STATUS) job.extents.resize(1 + random_.below(8));
    if (job.op == ENGINE_OP_READ || job.op == ENGINE_OP_WRITE) choose_memory(job);
    if (job.op == ENGINE_OP_WRITE && (job.offset | job.length) % plan_.alignment != 0) {
        reach(Event::unaligned_write);
    }
    if (job.op == ENGINE_OP_WRITE_ZEROES) reach(Event::zeroes_written);
    if (job.op == ENGINE_OP_DISCARD) reach(Event::discarded);
    begin_change(job, grain);
    trace("%s  #%lu %s %lu+%lu flags %x, from %lu", lane.c_str(), job.number,
          engine::block::op_name(static_cast<engine::block::Op>(job.op)), job.offset, job.length, job.flags,
          job.began);
    return true;
}

bool Stage::may_fail(const Job& job, int64_t result, const std::string& lane) {
    const Faults& faults = plan_.faults;
    bool queue = lane.starts_with("queue");
    bool past = job.length != 0 && world_.shadow.may_not_fit(job.offset + job.length, job.began);
    bool broken = reads_may_fail() || faults.write_error != 0 || faults.sync_error != 0;
    switch (result) {
        case -ECANCELED:
            return job.cancelled;
        case -EINVAL:
            if (past) reach(Event::refused_past_the_end);
            return past && !queue;
        case -ENOSPC:
            return faults.no_space != 0;
        case -EIO:
            if (queue && past) reach(Event::refused_past_the_end);
            return broken || (queue && (past || faults.no_space != 0));
        case -ENOTSUP:
            return (job.flags & ENGINE_NO_FALLBACK) != 0 || (queue && job.op == ENGINE_OP_DISCARD) ||
                   (queue && job.op == ENGINE_OP_FLUSH && !plan_.write_cache);
        default:
            return false;
    }
}

std::string Stage::check_library(const Job& job) const {
    for (uint64_t at = 0; at < job.length; at += cell_bytes) {
        uint64_t value;
        bool whole = value_of_cell(job.data + at, &value);
        if (!whole || value != library_value((job.offset + at) / cell_bytes)) {
            char text[96];
            snprintf(text, sizeof text, "the library reads as %016lx at offset %lu", value, job.offset + at);
            return text;
        }
    }
    return "";
}

void Stage::succeeded(Job& job, int64_t result) {
    Shadow& shadow = world_.shadow;
    if (job.length != 0 && !job.library && !shadow.may_fit(job.offset + job.length, job.began)) {
        world_.fail("a request past the end has succeeded");
    }
    if (job.change != UINT32_MAX) shadow.end(job.change, true);
    std::string wrong;
    if (job.library) {
        wrong = check_library(job);
    } else if (job.op == ENGINE_OP_READ) {
        wrong = shadow.check_read(job.offset, job.length, job.data, job.began);
    } else if (job.op == ENGINE_OP_FLUSH) {
        shadow.flushed(job.began);
    } else if (job.op == ENGINE_OP_BLOCK_STATUS) {
        reach(Event::block_status_asked);
        uint64_t at = job.offset;
        if (result < (job.length != 0 ? 1 : 0)) wrong = "no extent was told";
        for (int64_t i = 0; i < result && wrong.empty(); i++) {
            const engine_extent& extent = job.extents[static_cast<size_t>(i)];
            if (extent.offset != at || extent.length == 0 || at + extent.length > job.offset + job.length) {
                wrong = "extents leave gaps, or reach out of what was asked";
            }
            at += extent.length;
            if ((extent.flags & ENGINE_EXTENT_ZERO) == 0) continue;
            reach(Event::zero_extent_seen);
            if (wrong.empty()) wrong = shadow.check_zero_extent(extent.offset, extent.length, job.began);
        }
    }
    if (job.data != nullptr) {
        auto clean = [](const std::byte* from) {
            return std::all_of(from, from + margin, [](std::byte byte) { return byte == margin_fill; });
        };
        if (!clean(job.data - margin) || !clean(job.data + job.length)) wrong = "memory beside the buffer";
    }
    if (wrong.empty()) return;
    world_.fail(std::string(engine::block::op_name(static_cast<engine::block::Op>(job.op))) + " #" +
                std::to_string(job.number) + " of " + std::to_string(job.length) + " bytes at offset " +
                std::to_string(job.offset) + ": " + wrong);
}

void Stage::ended(Job& job, int64_t result, const std::string& lane) {
    world_.operations++;
    if (job.op == ENGINE_OP_FLUSH) flushing_--;
    trace("%s  #%lu -> %ld%s%s", lane.c_str(), job.number, result, result < 0 ? ": " : "",
          result < 0 ? job.error.message : "");
    if (!on()) return;  // nobody lives to hear it
    if (lane.starts_with("queue")) reach(Event::queue_request);
    if (lane.starts_with("async")) reach(Event::async_batch);
    if (result >= 0) {
        succeeded(job, result);
        return;
    }
    if (job.change != UINT32_MAX) world_.shadow.end(job.change, false);
    if (strstr(job.error.message, "fails by rule") != nullptr) reach(Event::failed_by_filter);
    if (strstr(job.error.message, "children differ") != nullptr) reach(Event::misdirection_found);
    if (may_fail(job, result, lane)) return;
    world_.fail(lane + ": #" + std::to_string(job.number) + " (" +
                engine::block::op_name(static_cast<engine::block::Op>(job.op)) + " of " +
                std::to_string(job.length) + " bytes at offset " + std::to_string(job.offset) +
                ") failed without a reason: " + std::to_string(result) + " " + job.error.message);
}

// --- from beginning to end

void Stage::run() {
    for (auto& lane : lanes_) lane->start();
    uint64_t steps = 0;
    auto done = [this] {
        return std::all_of(lanes_.begin(), lanes_.end(), [](const auto& lane) { return lane->done(); });
    };
    while (!done()) {
        if (++steps > steps_max) world_.give_up("the requests do not come to an end");
        for (auto& lane : lanes_) lane->pump();
        if (on() && !world_.failed() && one_in(250)) act();
        if (deputy_.idle()) {
            if (on() && !world_.failed() && one_in(400)) deputy_.begin([this] { act_beside(); });
        } else {
            deputy_.go_on();
        }
        auto* node = reinterpret_cast<engine::block::Node*>(disk_);
        if (steps % 64 == 0 && node->control->tracking->active()) reach(Event::tracking_switched);
        if (!done() && !engine_.simulator.step()) {
            bool more = false;
            for (auto& lane : lanes_) more = lane->pump() || lane->may_pump() || more;
            if (more || done() || resume_filters() || let_deputy_go_on()) continue;
            world_.give_up("requests wait for ever");
        }
    }
    finish_deputy();
    finish_lanes();
    if (on() && !world_.failed()) read_all(user_);
    close_all();
}

// Where nothing else happens.
bool Stage::let_deputy_go_on() {
    if (deputy_.end_ns() != UINT64_MAX && engine_.simulator.now_ns() < deputy_.end_ns()) {
        engine::aio::Signal never;
        engine_.simulator.wait(never, deputy_.end_ns() - engine_.simulator.now_ns());
    }
    return deputy_.go_on();
}

void Stage::finish_deputy() {
    for (uint64_t steps = 0; !deputy_.idle(); steps++) {
        if (steps > steps_max) world_.give_up("what the deputy does comes to no end");
        if (deputy_.go_on() || engine_.simulator.step()) continue;
        if (!let_deputy_go_on()) world_.give_up("the deputy waits for ever");
    }
}

void Stage::finish_lanes() {
    if (workload_ != nullptr) check_generator();
    for (auto& lane : lanes_) lane->close();
    if (device_ != nullptr) {
        for (unsigned i = 0; i < plan_.queue_lanes; i++) {
            engine_queue_stats stats{};
            stats.size = sizeof stats;
            CHECK_EQ(engine_queue_get_stats(engine_disk_get_queue(device_, i), &stats), 0);
            if (stats.calls != 0) reach(Event::queue_called);
            if (stats.broken != 0) world_.fail(std::string("a queue broke: ") + stats.error.message);
            if (stats.in_flight != 0) world_.fail("a closed queue has requests in flight");
        }
    }
    lanes_.clear();
}

void Stage::check_generator() {
    CHECK_EQ(engine_workload_wait(workload_, UINT64_MAX), 0);
    engine_workload_result result{};
    result.size = sizeof result;
    CHECK_EQ(engine_workload_get_result(workload_, &result), 0);
    if (result.verify_errors != 0 || result.errors != 0) world_.fail("the generator found errors");
    if (result.requests[0] != 0 && result.requests[1] != 0) reach(Event::generator_verified);
    CHECK_EQ(engine_workload_close(workload_), 0);
}

// Everything, once nothing is under way; with faults it may take several tries.
void Stage::read_all(engine_user_t* user) {
    uint64_t size = world_.shadow.size();
    alignas(4096) std::byte page[4096];
    uint64_t began = world_.shadow.tick();
    for (uint64_t at = 0, tries = 0; at < size;) {
        uint64_t length = std::min<uint64_t>(size - at, sizeof page);
        Error error;
        int64_t result = embedder::io(user, ENGINE_OP_READ, page, at, length, 0, &error);
        if (!on()) return;
        if (result == static_cast<int64_t>(length)) {
            std::string wrong = world_.shadow.check_read(at, length, page, began);
            if (!wrong.empty()) world_.fail("in the end: " + wrong);
        } else if (result != -EIO || !reads_may_fail()) {
            world_.fail(std::string("reading all of it: ") + error.message);
            return;
        } else if (!misdirected() || ++tries < 100) {
            continue;
        }
        at += length;
        tries = 0;
    }
    Error error;
    began = world_.shadow.tick();
    int64_t result = embedder::io(user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &error);
    if (result == 0 && on()) world_.shadow.flushed(began);
}

engine_node_stats Stage::stats_of(engine_node_t* node) {
    engine_node_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_node_get_stats(node, nullptr, &stats), 0);
    return stats;
}

void Stage::close_user(engine_user_t* user, const char* whose) {
    Error error;
    int result = engine_user_close(user, &error);
    if (result != 0) world_.fail(std::string("closing the user of ") + whose + ": " + error.message);
}

void Stage::close_node(engine_node_t* node, const char* which) {
    if (node == nullptr) return;
    Error error;
    if (stats_of(node).in_flight != 0) world_.fail(std::string("something is left inside ") + which);
    int result = engine_node_close(node, &error);
    if (result != 0) world_.fail(std::string("closing ") + which + ": " + error.message);
}

void Stage::close_all() {
    engine_pause_stats pauses{};
    pauses.size = sizeof pauses;
    CHECK_EQ(engine_user_get_pauses(user_, &pauses), 0);
    if (pauses.count != 0) reach(Event::parked_request);
    if (plan_.shape == Shape::overlay) {
        if (stats_of(data_).op[ENGINE_OP_WRITE].requests != 0) reach(Event::overlay_allocated);
        if (stats_of(disk_).op[ENGINE_OP_READ].requests != 0) reach(Event::overlay_read_below);
    }
    Error error;
    if (device_ != nullptr && engine_disk_close(device_, &error) != 0) {
        world_.fail(std::string("closing the device: ") + error.message);
    }
    while (!filters_.empty()) remove_filter(filters_[random_.below(filters_.size())].node, 0);
    close_user(user_, "the lab");
    close_user(reader_, "the library");
    if (memory_user_ != nullptr) close_user(memory_user_, "the generator");
    if (top_ != disk_) close_node(top_, "the top");
    close_node(data_, "the data");
    close_node(reference_, "the reference");
    close_node(memory_, "the generator's disk");
    close_node(copy_of_library_, "the copy of the library");
    close_node(library_, "the library");
    close_node(disk_, "the disk");
    if (engine_.simulator.run_until([] { return false; })) world_.fail("there is no end");
}

}  // namespace lab
