// The fault filter: requests fail, wait or tear by rules (fault_rules.hh). What waits is its channel's; what
// rules have counted is the node's, and lies beside its pages. Nothing here takes a lock but resume_faults().
#include "filters/fault.hh"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/error.hh"
#include "block/child_requests.hh"
#include "block/graph_tasks.hh"
#include "block/registry.hh"
#include "coro/task.hh"
#include "filters/fault_rules.hh"
#include "filters/filter.hh"
#include "filters/waiting.hh"

namespace engine::filters {

using block::Channel;
using block::ChildRequest;
using block::ChildRequests;
using block::Node;
using block::Op;
using block::OptionDef;
using block::OptionType;
using block::Request;

namespace {

constexpr uint64_t sector_bytes = 512;
constexpr unsigned parts_max = 32;  // of a torn write at a time

struct FaultState {
    FaultRules* rules;
};

struct FaultChannel {
    Waiting delayed;
    base::Queue<aio::Message> paused;
    ChildRequests::Pool parts;
};

FaultRules& rules_of(const Channel& channel) noexcept {
    return *channel.node->state<FaultState>().rules;
}

// --- failing

void fail_by(const FaultRule& rule, Request* request) noexcept {
    const char* text = strerrordesc_np(rule.errnum);
    fail_later(request, ENGINE_ERROR_OS, rule.errnum,
               "node %s: %s of %lu bytes at offset %lu fails by rule %u of 'rules': %s",
               request->channel->node->control->name.c_str(), op_name(request->op), request->length,
               request->offset, rule.number, text != nullptr ? text : "an error without a name");
}

// Some sectors of a write, each or not by chance, with the flags of the whole: so what gets there has the
// fate that it would have had. Sectors are those of the disk; the first and last may be there in part.
coro::Task<int64_t> write_some(Channel& channel, const Request& origin, base::Random random) {
    auto& own = channel.state<FaultChannel>();
    uint64_t sector = std::max<uint64_t>(sector_bytes, channel.children[0]->node->best_request_alignment);
    block::SliceCursor cursor(origin);
    uint64_t at = origin.offset, end = origin.offset + origin.length;
    int64_t result = 0;
    while (at < end && result >= 0) {
        ChildRequests parts(channel, own.parts, &origin);
        for (unsigned i = 0; i < parts_max && at < end; i++) {
            uint64_t length = std::min(end - at, sector - at % sector);
            ChildRequest* part = random.below(2) == 0 ? nullptr : parts.make(Op::write, at, length);
            if (part == nullptr) {
                cursor.advance(length);
            } else if (cursor.give(*part)) {
                part->flags = origin.flags;
                parts.submit(part, 0);
            } else {
                parts.discard(part, -ENOMEM);
                break;
            }
            at += length;
        }
        result = co_await parts;
    }
    co_return result;
}

struct Tear : coro::Callback<int64_t> {
    Request* request = nullptr;
    const FaultRule* rule = nullptr;
};

// It fails as the rule says, whatever became of its sectors; without memory none of them is written.
void tear(Channel& channel, const FaultRule& rule, Request* request) noexcept {
    base::Owner<Tear> tear = base::make<Tear>();
    if (tear == nullptr) {
        fail_by(rule, request);
        return;
    }
    tear->request = request;
    tear->rule = &rule;
    tear->completed = [](coro::Callback<int64_t>* callback, int64_t) {
        base::Owner<Tear> self(static_cast<Tear*>(callback));
        fail_by(*self->rule, self->request);
    };
    coro::start(channel.executor(), write_some(channel, *request, rules_of(channel).tear()),
                static_cast<coro::Callback<int64_t>*>(tear.release()));
}

// --- the request path

[[gnu::noinline]] void obey(Channel& channel, const FaultRule& rule, Request* request) noexcept {
    auto& own = channel.state<FaultChannel>();
    switch (rule.action) {
        case FaultAction::none:
            pass(channel, request);
            break;
        case FaultAction::fail:
            if (rule.torn && request->op == Op::write) {
                tear(channel, rule, request);
            } else {
                fail_by(rule, request);
            }
            break;
        case FaultAction::delay:
            own.delayed.add(request, rule.delay_ns);
            break;
        case FaultAction::pause:
            if (own.delayed.hurrying()) {
                pass(channel, request);
            } else {
                mark(*request, ENGINE_MARK_WAIT, ENGINE_WAIT_HELD);
                own.paused.push(request);
            }
            break;
    }
}

void fault_submit(Channel& channel, Request* request) {
    FaultRules& rules = rules_of(channel);
    if (rules.concern(request->op)) {
        const FaultRule* rule = rules.fire(*request);
        if (ENGINE_UNLIKELY(rule != nullptr)) {
            obey(channel, *rule, request);
            return;
        }
    }
    pass(channel, request);
}

// How many that were.
unsigned let_go(Channel& channel) noexcept {
    auto& own = channel.state<FaultChannel>();
    unsigned count = 0;
    while (aio::Message* message = own.paused.pop()) {
        auto* request = static_cast<Request*>(message);
        mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
        pass(channel, request);
        count++;
    }
    return count;
}

void fault_hurry(Channel& channel, bool on) {
    channel.state<FaultChannel>().delayed.hurry(on);
    if (on) let_go(channel);
}

void fault_cancel(Channel& channel, Request* request) {
    auto& own = channel.state<FaultChannel>();
    bool paused = own.paused.remove(request);
    if (paused) mark(*request, ENGINE_MARK_WAITED, ENGINE_WAIT_HELD);
    if (paused || own.delayed.remove(request)) {
        fail_cancelled(request, "a rule of 'rules' held it back");
    }
}

int fault_open_channel(Channel& channel) {
    auto* own = new (channel.state_memory.get()) FaultChannel;
    int result = own->delayed.open(channel);
    if (result != 0) own->~FaultChannel();
    return result;
}

void fault_close_channel(Channel& channel) {
    auto& own = channel.state<FaultChannel>();
    ENGINE_CHECK(own.paused.empty());
    own.delayed.close();
    own.~FaultChannel();
}

// --- control plane

const OptionDef fault_options[] = {
    {"rules", OptionType::string, "", nullptr,
     "what fails or waits: rules separated by ';', each key=value separated by ',': op, offset, state, skip, "
     "count, probability, new-state; errno (and torn), delay, pause. The first that fires decides"},
    {"seed", OptionType::integer, "0", "0..18446744073709551615", "of probabilities and torn writes"},
};

int fault_open(Node& node, const block::OpenArguments& arguments) {
    base::Owner<FaultRules> rules = base::make<FaultRules>();
    if (rules == nullptr) throw std::bad_alloc();
    const block::Options& given = arguments.options;
    int result = rules->parse(given.text("rules"), given.number("seed"), arguments.error);
    if (result != 0) return result;
    open_above_child(node, arguments);
    node.native_ops &= block::ops_of_data;  // a copy by the kernel would meet no rule
    node.state<FaultState>().rules = rules.release();
    return 0;
}

void fault_close(Node& node) {
    base::Owner<FaultRules> rules(node.state<FaultState>().rules);
}

// A channel's part of resuming, on its context.
class Resumption final : public block::Rally::Part {
  public:
    explicit Resumption(Channel* channel) noexcept : channel_(channel) { context = channel->context; }
    void work() noexcept override {
        count = let_go(*channel_);
        answer();
    }
    unsigned count = 0;

  private:
    Channel* channel_;
};

// Holds the node's edges, so that its channels stay.
coro::Task<int> resume_all(Instance& engine, Node* node) ENGINE_NO_THREAD_SAFETY_ANALYSIS {
    block::EdgeLocks locks(engine);
    auto compute = [node](std::vector<Node*>& wanted) { wanted.push_back(node); };
    int result = co_await lock_edges(engine, locks, compute);
    if (result != 0) co_return result;
    std::vector<std::unique_ptr<Resumption>> parts;
    parts.reserve(node->control->channels.size());
    for (auto& channel : node->control->channels)
        parts.push_back(std::make_unique<Resumption>(channel.get()));
    block::Rally rally(engine);
    for (auto& part : parts) rally.send(part.get());
    co_await rally;
    for (auto& part : parts) result += static_cast<int>(part->count);
    co_return result;
}

const block::ChildDef fault_children[] = {{"file", true}};

}  // namespace

int resume_faults(Node& node, engine_error* error) {
    Instance& engine = *node.control->engine;
    base::Where where{.node = node.control->name.c_str(), .operation = "resume"};
    if (node.driver != &block::fault_driver) {
        return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                          "node %s has driver %s: only a fault node holds requests that can be resumed",
                          where.node, node.driver->name);
    }
    int result = block::on_main(engine, error, "resume", [&] { return resume_all(engine, &node); });
    if (result < 0 && result != -ENOMEM) {
        return base::fail_os(error, -result, where, "node %s: cannot resume what its rules hold", where.node);
    }
    return result;
}

}  // namespace engine::filters

namespace engine::block {

const Driver fault_driver{
    .name = "fault",
    .layer = "filter",
    .text = "lets requests fail, wait or tear by rules",
    .options = filters::fault_options,
    .children = filters::fault_children,
    .state_size = sizeof(filters::FaultState),
    .channel_state_size = sizeof(filters::FaultChannel),
    .open = filters::fault_open,
    .close = filters::fault_close,
    .open_channel = filters::fault_open_channel,
    .close_channel = filters::fault_close_channel,
    .submit = filters::fault_submit,
    .filter = true,
    .hurry = filters::fault_hurry,
    .cancel = filters::fault_cancel,
};

}  // namespace engine::block
