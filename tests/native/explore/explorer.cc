// The explorer's scheduler and memory. One OS thread; everything hangs on one Explorer, made anew for every
// call of explore() or replay(), and reset for every execution.
#include "explorer.hh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "fiber.hh"

namespace engine::base {
[[noreturn]] void check_failed(const char* expression, const char* file, int line) noexcept;
}

namespace explore {

namespace {

constexpr unsigned main_fiber = 0;

enum class Status : uint8_t { runnable, paused, blocked, ended };

struct Fiber {
    FiberContext context;
    std::function<void()> body;
    const char* name = "main";
    Status status = Status::ended;
    uint32_t lets_pass = 0;  // paused: the fibers that are to take a step first, one bit each
    View view{};
    Clock clock{};
};

struct Choice {
    uint16_t chosen;
    uint16_t count;
};
constexpr uint16_t any_count = 0;  // of a schedule to replay

enum class Mode : uint8_t { search, random };

class Explorer {
  public:
    Explorer(const Options& options, const Scenario& scenario)
        : options_(options),
          scenario_(scenario),
          mode_(options.random_executions != 0 ? Mode::random : Mode::search) {}

    void run_once(uint64_t seed);
    bool next_choices();
    void forget_choices() { choices_.clear(); }
    std::string schedule() const;
    void set_schedule(const std::string& text);

    // For the fibers.
    void add_fiber(const char* name, std::function<void()> body);
    void at_end(std::function<void()> body) { end_ = std::move(body); }
    unsigned choose(unsigned count);
    void step(const char* operation);
    void block();
    void has_moved();
    void wake(unsigned fiber) { fibers_[fiber].status = Status::runnable; }
    void pause();
    void fail(const std::string& what);
    void note(const char* operation, int location, uint64_t value, const char* remark);
    Fiber& current() { return fibers_[current_]; }
    unsigned current_number() const { return current_; }
    unsigned add_location(const Location* location);
    void check_location(unsigned id, const Location* location);
    void remove_location(unsigned id, const Location* location) {
        if (locations_[id] == location) locations_[id] = nullptr;
    }
    bool in_main() const { return current_ == main_fiber; }
    bool may_read_stale() const { return !in_main() && stale_reads_ < options_.stale_reads; }
    void count_stale_read() { stale_reads_++; }
    bool may_fail_spuriously() const { return !in_main() && spurious_failures_ < options_.spurious_failures; }
    void count_spurious_failure() { spurious_failures_++; }

    bool failed = false;
    bool tracing = false;
    std::string what;
    std::string trace;
    View sc_view{};

  private:
    void reset();
    void switch_to(unsigned fiber);
    void run_another();
    unsigned candidates(unsigned (&out)[threads_max]) const;
    static void enter_fiber();

    const Options& options_;
    const Scenario& scenario_;
    Mode mode_;
    std::array<Fiber, threads_max> fibers_;
    unsigned count_ = 1;
    unsigned current_ = main_fiber;
    std::function<void()> end_;
    std::vector<Choice> choices_;
    size_t position_ = 0;
    const Location* locations_[locations_max] = {};
    unsigned location_count_ = 0;
    unsigned preemptions_ = 0, detours_ = 0, stale_reads_ = 0, spurious_failures_ = 0, steps_ = 0;
    uint64_t random_ = 0;
};

Explorer* active = nullptr;
Mutation active_mutation = Mutation::none;

Explorer& explorer() {
    if (active == nullptr) {
        fprintf(stderr, "explorer: used outside of a scenario\n");
        abort();
    }
    return *active;
}

uint64_t next_random(uint64_t& state) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void Explorer::reset() {
    count_ = 1;
    current_ = main_fiber;
    position_ = 0;
    location_count_ = 0;
    preemptions_ = detours_ = stale_reads_ = spurious_failures_ = steps_ = 0;
    std::fill(std::begin(locations_), std::end(locations_), nullptr);
    sc_view.fill(0);
    failed = false;
    what.clear();
    trace.clear();
    end_ = nullptr;
    fibers_[main_fiber].view.fill(0);
    fibers_[main_fiber].clock.fill(0);
    fibers_[main_fiber].clock[main_fiber] = 1;
}

void Explorer::run_once(uint64_t seed) {
    reset();
    random_ = seed;
    active = this;
    Program program;
    scenario_(program);
    for (unsigned i = 1; i < count_; i++) {
        fibers_[i].view = fibers_[main_fiber].view;
        fibers_[i].clock = fibers_[main_fiber].clock;
        fibers_[i].clock[i] = 1;
    }
    if (count_ > 1 && !failed) {
        fibers_[main_fiber].status = Status::blocked;
        run_another();
    }
    Fiber& main = fibers_[main_fiber];
    for (unsigned i = 1; i < count_; i++) {
        for (unsigned j = 0; j < threads_max; j++)
            main.clock[j] = std::max(main.clock[j], fibers_[i].clock[j]);
    }
    if (!failed && end_) end_();
    end_ = nullptr;
    // After a failure the stacks of fibers hold what they hold: it is left behind. Else all of it goes here.
    for (unsigned i = 1; i < count_; i++) fibers_[i].body = nullptr;
    active = nullptr;
}

// Depth first: the last choice that has an alternative left takes it. False: all have been made.
bool Explorer::next_choices() {
    choices_.resize(position_);
    while (!choices_.empty()) {
        if (++choices_.back().chosen < choices_.back().count) return true;
        choices_.pop_back();
    }
    return false;
}

unsigned Explorer::choose(unsigned count) {
    if (count <= 1) return 0;
    if (position_ < choices_.size()) {
        Choice& choice = choices_[position_++];
        if (choice.count != count && choice.count != any_count) {
            fprintf(stderr, "explorer: the scenario is not deterministic\n");
            abort();
        }
        return std::min<unsigned>(choice.chosen, count - 1);
    }
    unsigned chosen = 0;
    // Half of the time on with what goes on by itself, so that executions get somewhere.
    if (mode_ == Mode::random && (next_random(random_) & 1) != 0) {
        chosen = static_cast<unsigned>(next_random(random_) % count);
    }
    choices_.push_back({static_cast<uint16_t>(chosen), static_cast<uint16_t>(count)});
    position_++;
    return chosen;
}

std::string Explorer::schedule() const {
    size_t length = position_;
    while (length > 0 && choices_[length - 1].chosen == 0) length--;
    std::string text;
    for (size_t i = 0; i < length; i++) text += (i == 0 ? "" : ".") + std::to_string(choices_[i].chosen);
    return (mode_ == Mode::random ? "random:" : "search:") + text;
}

void Explorer::set_schedule(const std::string& text) {
    choices_.clear();
    mode_ = text.starts_with("random:") ? Mode::random : Mode::search;
    const char* at = text.c_str() + std::min(text.size(), text.find(':') + 1);
    while (*at != '\0') {
        char* end;
        unsigned long chosen = strtoul(at, &end, 10);
        if (end == at) break;
        choices_.push_back({static_cast<uint16_t>(chosen), any_count});
        at = *end == '.' ? end + 1 : end;
    }
}

void Explorer::add_fiber(const char* name, std::function<void()> body) {
    if (!in_main() || count_ == threads_max) {
        fprintf(stderr, "explorer: at most %u threads, made before any runs\n", threads_max - 1);
        abort();
    }
    Fiber& fiber = fibers_[count_++];
    fiber.name = name;
    fiber.body = std::move(body);
    fiber.status = Status::runnable;
    fiber.context.prepare(enter_fiber);
}

void Explorer::enter_fiber() {
    Explorer& self = *active;
    self.current().body();
    self.note("ends", -1, 0, "");
    self.has_moved();
    self.current().status = Status::ended;
    self.run_another();
    abort();  // nobody switches to a fiber that has ended
}

void Explorer::switch_to(unsigned next) {
    Fiber& from = current();
    current_ = next;
    FiberContext::switch_over(from.context, fibers_[next].context);
}

// Who may run next, the current one first. A paused one only when nobody else can.
unsigned Explorer::candidates(unsigned (&out)[threads_max]) const {
    for (Status wanted : {Status::runnable, Status::paused}) {
        unsigned count = 0;
        if (current_ != main_fiber && fibers_[current_].status == wanted) out[count++] = current_;
        for (unsigned i = 1; i < count_; i++) {
            if (i != current_ && fibers_[i].status == wanted) out[count++] = i;
        }
        if (count != 0) return count;
    }
    return 0;
}

// The current fiber cannot go on, or lets others go first: whoever is chosen runs, at no price but that of a
// detour.
void Explorer::run_another() {
    unsigned others[threads_max];
    unsigned count = candidates(others);
    if (count == 0) {
        std::string waiting;
        for (unsigned i = 1; i < count_; i++) {
            if (fibers_[i].status == Status::blocked) waiting += std::string(" ") + fibers_[i].name;
        }
        if (!waiting.empty() && !failed) {
            failed = true;
            what = "deadlock, or a lost wake-up: nobody can run, and these wait:" + waiting;
        }
        switch_to(main_fiber);
        return;
    }
    bool bound = mode_ == Mode::search && detours_ >= options_.detours;
    unsigned chosen = bound ? 0 : choose(count);
    if (chosen != 0) detours_++;
    unsigned next = others[chosen];
    fibers_[next].status = Status::runnable;
    if (next != current_) switch_to(next);
}

// Before every operation: perhaps somebody else runs first.
void Explorer::step(const char* operation) {
    if (in_main() || failed) return;
    if (++steps_ > options_.steps_max) {
        fail(std::string("no end after ") + std::to_string(options_.steps_max) + " steps, at " + operation);
    }
    has_moved();
    if (mode_ == Mode::search && preemptions_ >= options_.preemptions) return;
    unsigned all[threads_max];
    unsigned next = all[choose(candidates(all))];
    if (next == current_) return;
    preemptions_++;
    switch_to(next);
}

// Fairness: who paused may go on when all others have taken a step, or cannot.
void Explorer::has_moved() {
    for (unsigned i = 1; i < count_; i++) {
        fibers_[i].lets_pass &= ~(1u << current_);
        if (fibers_[i].status == Status::paused && fibers_[i].lets_pass == 0)
            fibers_[i].status = Status::runnable;
    }
}

void Explorer::block() {
    has_moved();
    current().status = Status::blocked;
    run_another();
}

void Explorer::pause() {
    if (in_main()) return;
    step("pause");
    current().lets_pass = 0;
    for (unsigned i = 1; i < count_; i++) {
        bool can_move = fibers_[i].status == Status::runnable || fibers_[i].status == Status::paused;
        if (i != current_ && can_move) current().lets_pass |= 1u << i;
    }
    if (current().lets_pass == 0) return;
    current().status = Status::paused;
    run_another();
}

void Explorer::fail(const std::string& text) {
    if (!failed) {
        failed = true;
        what = std::string(current().name) + ": " + text;
        note("fails", -1, 0, text.c_str());
    }
    if (!in_main()) switch_to(main_fiber);  // never to return
}

void Explorer::note(const char* operation, int location, uint64_t value, const char* remark) {
    if (!tracing) return;
    char line[256];
    if (location < 0) {
        snprintf(line, sizeof line, "%-10s %s %s\n", current().name, operation, remark);
    } else {
        snprintf(line, sizeof line, "%-10s atomic %d: %s %#llx%s\n", current().name, location, operation,
                 static_cast<unsigned long long>(value), remark);
    }
    trace += line;
}

unsigned Explorer::add_location(const Location* location) {
    if (location_count_ == locations_max) {
        fprintf(stderr, "explorer: more than %u atomics in one execution\n", locations_max);
        abort();
    }
    locations_[location_count_] = location;
    return location_count_++;
}

void Explorer::check_location(unsigned id, const Location* location) {
    if (id >= location_count_ || locations_[id] != location) fail("an atomic is used after its end");
}

bool acquires(Order order) {
    return order == Order::acquire || order == Order::acq_rel || order == Order::seq_cst;
}
bool releases(Order order) {
    return order == Order::release || order == Order::acq_rel || order == Order::seq_cst;
}

template <class A>
void join(A& into, const A& from) {
    for (size_t i = 0; i < into.size(); i++) into[i] = std::max(into[i], from[i]);
}

}  // namespace

// --- locations

Location::Location(uint64_t initial) : id_(explorer().add_location(this)) {
    stores_.reserve(16);
    stores_.push_back({initial, View{}, explorer().current().clock});
}

Location::~Location() {
    if (active != nullptr) active->remove_location(id_, this);
}

void Location::enter(const char* operation) const {
    explorer().step(operation);
    explorer().check_location(id_, this);
}

unsigned Location::oldest_readable(Order order) const {
    unsigned oldest = explorer().current().view[id_];
    if (order == Order::seq_cst) oldest = std::max<unsigned>(oldest, explorer().sc_view[id_]);
    return oldest;
}

// Choice 0 is the latest.
unsigned Location::choose_store(Order order) {
    unsigned latest = static_cast<unsigned>(stores_.size()) - 1;
    if (!explorer().may_read_stale()) return latest;
    unsigned age = explorer().choose(latest - oldest_readable(order) + 1);
    if (age != 0) explorer().count_stale_read();
    return latest - age;
}

void Location::read_from(unsigned index, Order order) {
    Fiber& fiber = explorer().current();
    fiber.view[id_] = std::max<uint16_t>(fiber.view[id_], static_cast<uint16_t>(index));
    if (acquires(order)) {
        join(fiber.view, stores_[index].view);
        join(fiber.clock, stores_[index].clock);
    }
    if (order == Order::seq_cst) {
        explorer().sc_view[id_] = std::max<uint16_t>(explorer().sc_view[id_], static_cast<uint16_t>(index));
    }
}

void Location::append(uint64_t value, Order order, bool modifies) {
    Fiber& fiber = explorer().current();
    auto index = static_cast<uint16_t>(stores_.size());
    Store store{value, View{}, Clock{}};
    if (modifies) {  // a read-modify-write carries on the release sequence of what it read
        store.view = stores_.back().view;
        store.clock = stores_.back().clock;
    }
    fiber.view[id_] = index;
    if (releases(order)) {
        join(store.view, fiber.view);
        join(store.clock, fiber.clock);
        fiber.clock[explorer().current_number()]++;
    }
    if (order == Order::seq_cst) explorer().sc_view[id_] = index;
    stores_.push_back(store);
}

uint64_t Location::load(Order order) {
    enter("load");
    unsigned index = choose_store(order);
    read_from(index, order);
    uint64_t value = stores_[index].value;
    explorer().note("load", static_cast<int>(id_), value, index + 1 == stores_.size() ? "" : " (stale)");
    return value;
}

void Location::store(uint64_t value, Order order) {
    enter("store");
    append(value, order, false);
    explorer().note("store", static_cast<int>(id_), value, "");
}

uint64_t Location::read_modify_write(Change change, uint64_t operand, Order order) {
    enter("read-modify-write");
    uint64_t old = stores_.back().value;
    uint64_t value = operand;
    switch (change) {
        case Change::exchange:
            break;
        case Change::add:
            value = old + operand;
            break;
        case Change::subtract:
            value = old - operand;
            break;
        case Change::bit_or:
            value = old | operand;
            break;
        case Change::bit_and:
            value = old & operand;
            break;
    }
    read_from(static_cast<unsigned>(stores_.size()) - 1, order);
    append(value, order, true);
    explorer().note("read-modify-write to", static_cast<int>(id_), value, "");
    return old;
}

// Succeeds on the latest store only. A failure is a load: it may have read an older one.
bool Location::compare_exchange(uint64_t& expected, uint64_t desired, Order success, Order failure) {
    enter("compare-exchange");
    unsigned latest = static_cast<unsigned>(stores_.size()) - 1;
    unsigned index = choose_store(failure);
    bool equal = stores_[index].value == expected;
    bool spurious = false;
    if (equal && index == latest && explorer().may_fail_spuriously()) {
        spurious = explorer().choose(2) == 1;
        if (spurious) explorer().count_spurious_failure();
    }
    if (equal && index == latest && !spurious) {
        read_from(index, success);
        append(desired, success, true);
        explorer().note("compare-exchange to", static_cast<int>(id_), desired, "");
        return true;
    }
    read_from(index, failure);
    expected = stores_[index].value;
    explorer().note("compare-exchange fails on", static_cast<int>(id_), expected,
                    equal ? " (spuriously)" : "");
    return false;
}

// --- plain data, events

void PlainAccess::read() {
    const Clock& clock = explorer().current().clock;
    if (clock[writer_] < written_) fail("data race: a read against a write");
    unsigned self = explorer().current_number();
    reads_[self] = clock[self];
}

void PlainAccess::write() {
    const Clock& clock = explorer().current().clock;
    if (clock[writer_] < written_) fail("data race: a write against a write");
    for (unsigned i = 0; i < threads_max; i++) {
        if (clock[i] < reads_[i]) fail("data race: a write against a read");
    }
    writer_ = explorer().current_number();
    written_ = clock[writer_];
}

void Event::signal() {
    explorer().step("signal");
    explorer().note("signals", -1, 0, "");
    signalled_ = true;
    for (unsigned i = 0; i < threads_max; i++) {
        if ((waiters_ >> i & 1) != 0) explorer().wake(i);
    }
    waiters_ = 0;
}

void Event::wait() {
    explorer().step("wait");
    explorer().note("waits", -1, 0, "");
    while (!signalled_) {
        waiters_ |= 1u << explorer().current_number();
        explorer().block();
    }
    signalled_ = false;
    explorer().note("wakes up", -1, 0, "");
}

// --- the rest of the interface

void Program::thread(const char* name, std::function<void()> body) {
    explorer().add_fiber(name, std::move(body));
}
void Program::at_end(std::function<void()> body) {
    explorer().at_end(std::move(body));
}
unsigned current_thread() {
    return active == nullptr ? main_fiber : explorer().current_number();
}
void fail(const std::string& what) {
    explorer().fail(what);
}
unsigned choose(unsigned count) {
    return explorer().choose(count);
}
void point() {
    explorer().step("point");
}
void pause() {
    explorer().pause();
}
void set_mutation(Mutation mutation) {
    active_mutation = mutation;
}
bool mutated(Mutation mutation) {
    return active_mutation == mutation;
}

Report replay(const Options& options, const Scenario& scenario, const std::string& schedule) {
    Explorer run(options, scenario);
    run.set_schedule(schedule);
    run.tracing = true;
    run.run_once(0);
    return {
        .failed = run.failed, .executions = 1, .what = run.what, .schedule = schedule, .trace = run.trace};
}

Report explore(const Options& options, const Scenario& scenario) {
    Explorer run(options, scenario);
    Report report;
    uint64_t most = options.random_executions != 0 ? options.random_executions : options.executions_max;
    while (report.executions < most && !report.complete) {
        if (options.random_executions != 0) run.forget_choices();
        run.run_once(options.seed + report.executions);
        report.executions++;
        if (run.failed) {
            report.failed = true;
            report.what = run.what;
            report.schedule = run.schedule();
            report.trace = replay(options, scenario, report.schedule).trace;
            return report;
        }
        if (options.random_executions == 0) report.complete = !run.next_choices();
    }
    return report;
}

}  // namespace explore

// An assertion of the explored code fails the execution.
void engine::base::check_failed(const char* expression, const char*, int) noexcept {
    explore::fail(std::string("assertion failed: ") + expression);
    abort();
}
