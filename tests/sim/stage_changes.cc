// What happens beneath the lanes: filters, sizes, copies, users, contexts. Each is a blocking call, during
// which the simulation goes on. Some are made by the deputy, while others are under way.
#include <algorithm>

#include "stage.hh"

namespace lab {

using embedder::Error;
using engine::block::OptionBag;

void Stage::act() {
    if (deputy_.idle() && one_in(3)) deputy_.begin([this] { act_beside(); });
    switch (random_.below(12)) {
        case 0:
        case 1:
            return insert_filter();
        case 2:
        case 3:
            return remove_some_filter();
        case 4:
            return one_in(2) ? replace() : conflict();
        case 5:
        case 6:
            return resize();
        case 7:
        case 8:
        case 9:
            return copy();
        case 10:
            return one_in(3) ? static_cast<void>(resume_filters()) : come_and_go();
        default:
            return move_through_context();
    }
}

// What may meet a change of the other's: sizes, the library and contexts are the first one's.
void Stage::act_beside() {
    switch (random_.below(8)) {
        case 0:
        case 1:
        case 2:
            return insert_filter();
        case 3:
        case 4:
            return remove_some_filter();
        case 5:
            return copy();
        case 6:
            return come_and_go();
        default:
            return conflict();
    }
}

OptionBag Stage::choose_filter() {
    OptionBag bag;
    bag.set("discard", "unmap");
    uint64_t kind = random_.below(5);
    if (kind == 0) {
        bag.set("driver", "passthrough");
        return bag;
    }
    if (kind <= 2) {
        bag.set("driver", "throttle");
        bag.set("limits.iops-total", std::to_string(5000 << random_.below(6)));
        reach(Event::throttled);
        return bag;
    }
    bag.set("seed", std::to_string(random_.below(1000)));
    if (kind == 3) {
        bag.set("driver", "delay");
        bag.set("read", "20us");
        bag.set("write", one_in(2) ? "0" : "50us");
        bag.set("spread", one_in(2) ? "0" : "300us");
        reach(Event::delayed);
        return bag;
    }
    // No blocking call of the stage is a discard: it might wait for ever.
    std::string rules = "op=discard,probability=0.3,pause;op=any,probability=0.05,delay=1ms";
    if (plan_.filters_fail) {
        rules += ";op=write,probability=0.01,errno=EIO,torn=on;op=any,probability=0.01,errno=EIO";
    }
    bag.set("driver", "fault");
    bag.set("rules", rules);
    reach(Event::delayed_by_chance);
    return bag;
}

void Stage::insert_filter() {
    if (filters_.size() >= 4) return;
    Change change(*this);
    std::string name = "filter" + std::to_string(temporary_++);
    OptionBag bag = choose_filter();
    bag.set("node-name", name);
    std::vector<engine_option> options;
    for (const auto& [key, value] : bag.all()) options.push_back({key.c_str(), value.c_str()});
    uint64_t timeout_ns = one_in(5) ? 1000 : 0;
    engine_node_t* node = nullptr;
    Error error;
    int result = engine_node_insert_filter(top_, options.data(), options.size(), timeout_ns, &node, &error);
    trace("insert %s (%s) -> %d %s", name.c_str(), bag.find("driver")->c_str(), result, error.message);
    if (result == 0) {
        filters_.push_back({node, name, bag.find("rules") != nullptr});
        reach(Event::filter_inserted);
    } else if (result == -ETIMEDOUT && timeout_ns != 0) {
        reach(Event::filter_timed_out);
    } else {
        expect(false, "inserting " + name + ": " + error.message);
    }
}

void Stage::remove_some_filter() {
    if (filters_.empty()) return;
    const Filter& filter = filters_[random_.below(filters_.size())];
    if (!filter.leaving) remove_filter(filter.node, one_in(6) ? 1000 : 0);
}

void Stage::remove_filter(engine_node_t* filter, uint64_t timeout_ns) {
    auto find = [&] {
        return std::find_if(filters_.begin(), filters_.end(),
                            [&](const Filter& one) { return one.node == filter; });
    };
    Change change(*this);
    find()->leaving = true;
    std::string name = find()->name;
    Error error;
    int result = engine_node_remove_filter(filter, timeout_ns, nullptr, &error);
    trace("remove %s -> %d %s", name.c_str(), result, error.message);
    auto found = find();  // others have come and gone meanwhile
    found->leaving = false;
    if (result == 0) {
        filters_.erase(found);
        reach(Event::filter_removed);
    } else if (result == -ETIMEDOUT && timeout_ns != 0) {
        reach(Event::filter_timed_out);
    } else {
        if (timeout_ns == 0) world_.give_up("removing " + name + ": " + error.message);
        world_.fail("removing " + name + ": " + error.message);
    }
}

void Stage::replace() {
    Error error;
    Change change(*this);
    int result = engine_node_replace(library_, copy_of_library_, 0, &error);
    trace("replace -> %d %s", result, error.message);
    expect(result == 0, std::string("replacing a node: ") + error.message);
    if (result != 0) return;
    std::swap(library_, copy_of_library_);
    reach(Event::node_replaced);
}

void Stage::resize() {
    if (plan_.shape == Shape::window || plan_.shape == Shape::overlay) return;
    uint64_t bytes = 4096 * (6 + random_.below(plan_.capacity / 4096 - 6));
    Error error;
    uint64_t before = world_.shadow.size();
    uint32_t change = world_.shadow.begin_resize(bytes);
    Change here(*this);
    trace("resize to %lu, from %lu", bytes, world_.shadow.now());
    int64_t result = embedder::io(user_, ENGINE_OP_RESIZE, nullptr, bytes, 0, 0, &error);
    trace("resize -> %ld %s", result, error.message);
    if (!on()) return;
    world_.shadow.end_resize(change, result == 0);
    expect(result == 0, std::string("resizing: ") + error.message);
    if (result == 0 && bytes != before) reach(bytes < before ? Event::shrunk : Event::grown);
}

void Stage::copy() {
    uint64_t size = world_.shadow.size();
    uint64_t unit = one_in(2) ? cell_bytes : 4096;
    uint64_t length = unit * (1 + random_.below(8192 / unit));
    uint64_t source = unit * random_.below((plan_.bytes - length) / unit);
    uint64_t offset = unit * random_.below((size - length) / unit);
    uint32_t change = world_.shadow.begin(Kind::copy, offset, length, false, source);
    uint64_t began = world_.shadow.now();
    trace("copy %lu+%lu from %lu of the library, from %lu", offset, length, source, world_.shadow.now());
    Error error;
    engine_context_t* context = engine_.context_handle(random_.below(plan_.contexts + 1));
    int64_t result = engine_user_copy_range(reader_, source, user_, offset, length, context, &error);
    trace("copy -> %ld %s", result, error.message);
    if (!on()) return;
    world_.shadow.end(change, result >= 0);
    bool broken = reads_may_fail() || plan_.faults.write_error != 0 || plan_.faults.no_space != 0 ||
                  world_.shadow.may_not_fit(offset + length, began);
    expect(result >= 0 || broken, std::string("copying: ") + error.message);
    if (result < 0) return;
    reach(Event::range_copied);
    engine_node_stats stats = stats_of(disk_);
    if (stats.op[ENGINE_OP_COPY_RANGE].requests > stats.op[ENGINE_OP_COPY_RANGE].errors) {
        reach(Event::range_copied_in_kernel);
    }
}

void Stage::come_and_go() {
    std::string name = "guest" + std::to_string(temporary_++);
    engine_user_t* user = nullptr;
    Error error;
    int result =
        engine_user_create(top_, name.c_str(), ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL, &user, &error);
    expect(result == 0, name + " cannot come: " + error.message);
    if (result != 0) return;
    alignas(4096) std::byte data[4096];
    uint64_t began = world_.shadow.tick();
    uint64_t offset = 4096 * random_.below(4);
    engine_context_t* context = engine_.context_handle(random_.below(plan_.contexts + 1));
    int64_t read = embedder::io(user, ENGINE_OP_READ, data, offset, sizeof data, 0, &error, context);
    trace("%s reads %lu -> %ld", name.c_str(), offset, read);
    if (on() && read >= 0) {
        std::string wrong = world_.shadow.check_read(offset, sizeof data, data, began);
        if (!wrong.empty()) world_.fail(name + ": " + wrong);
    }
    expect(read >= 0 || reads_may_fail(), name + ": " + error.message);
    read = embedder::io(user, ENGINE_OP_WRITE, data, offset, sizeof data, 0, &error, context);
    if (read != -EPERM) world_.fail(name + " may not write, and has: " + std::to_string(read));
    close_user(user, name.c_str());
    reach(Event::user_came_and_went);
}

bool Stage::resume_filters() {
    int resumed = 0;
    for (const Filter& filter : std::vector<Filter>(filters_)) {
        if (!filter.pauses || filter.leaving) continue;
        Error error;
        int result = engine_fault_resume(filter.node, &error);
        expect(result >= 0, std::string("resuming: ") + error.message);
        resumed += std::max(result, 0);
    }
    trace("resume -> %d", resumed);
    if (resumed > 0) reach(Event::paused_by_filter);
    return resumed > 0;
}

void Stage::conflict() {
    engine_user_t* user = nullptr;
    Error error;
    int result = engine_user_create(top_, "alone", ENGINE_PERM_CONSISTENT_READ, 0, &user, &error);
    if (result == 0) {
        world_.fail("somebody is alone who is not");
        close_user(user, "alone");
        return;
    }
    if (error.kind != ENGINE_ERROR_CONFLICT || !error.says("'alone'") || !error.says("conflicts with user")) {
        world_.fail(std::string("a conflict does not name both sides: ") + error.message);
    }
    reach(Event::conflict_refused);
}

// A context comes, serves a request, and closes.
void Stage::move_through_context() {
    engine_context_t* context = engine_.add_context("visit" + std::to_string(temporary_++));
    alignas(4096) std::byte data[512];
    Error error;
    uint64_t began = world_.shadow.tick();
    int64_t read = embedder::io(user_, ENGINE_OP_READ, data, 0, sizeof data, 0, &error, context);
    if (on() && read >= 0) {
        std::string wrong = world_.shadow.check_read(0, sizeof data, data, began);
        if (!wrong.empty()) world_.fail("on a new context: " + wrong);
    }
    expect(read >= 0 || reads_may_fail(), std::string("on a new context: ") + error.message);
    int result = engine_context_close(context, &error);
    if (result != 0) world_.fail(std::string("closing a context: ") + error.message);
    reach(Event::context_closed);
}

}  // namespace lab
