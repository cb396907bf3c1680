// Requests of all kinds over a stack of nodes, several at a time on two contexts, with odd offsets, lengths,
// flags and vectors, filters that come and go meanwhile, and cancellations: what is read is what a plain
// array has.
#include "stack.hh"

namespace {

using namespace stack;

constexpr size_t in_flight_max = 12;

// What one request is about to do, until its completion is drained.
struct Pending {
    uint32_t op = 0;
    uint64_t offset = 0, length = 0;
    uint32_t flags = 0;
    std::unique_ptr<Parts> parts;
    std::vector<uint8_t> data;  // that a write writes
    std::vector<engine_extent> extents;
    bool cancelled = false;

    bool changes() const {
        return op == ENGINE_OP_WRITE || op == ENGINE_OP_WRITE_ZEROES || op == ENGINE_OP_DISCARD;
    }
    bool touches(uint64_t from, uint64_t bytes) const {
        return from < offset + length && offset < from + bytes;
    }
};

class Exercise {
  public:
    Exercise(sim::Engine& engine, Stack& stack, Input& input)
        : engine_(engine), stack_(stack), input_(input), queue_(engine.handle()), model_(stack.model()) {}

    void run() {
        for (unsigned steps = 0; steps < 60 && !input_.empty(); steps++) step();
        drain_all();
        remove_filters();
        verify(0, model_.bytes());
    }

  private:
    void step() {
        uint8_t kind = input_.byte();
        if (kind < 200) {
            submit(kind);
        } else if (kind < 216) {
            for (unsigned left = kind - 200u; left != 0 && engine_.simulator.step(); left--) {
            }
            drain();
        } else if (kind < 224) {
            drain_all();
        } else if (kind < 232) {
            cancel();
        } else if (kind < 238) {
            change_filters();
        } else if (kind < 244) {
            copy();
        } else {
            resize();
        }
    }
    engine_context_t* context() { return engine_.context_handle(input_.below(3)); }

    // --- one request, not waited for

    void submit(uint8_t kind) {
        Pending pending;
        pending.op = kind < 72    ? ENGINE_OP_WRITE
                     : kind < 120 ? ENGINE_OP_READ
                     : kind < 150 ? ENGINE_OP_WRITE_ZEROES
                     : kind < 170 ? ENGINE_OP_DISCARD
                     : kind < 180 ? ENGINE_OP_FLUSH
                                  : ENGINE_OP_BLOCK_STATUS;
        pending.offset = input_.position(model_.bytes());
        pending.length =
            input_.position(std::min(model_.bytes() - std::min(pending.offset, model_.bytes()), request_max));
        bool data = pending.op == ENGINE_OP_READ || pending.op == ENGINE_OP_WRITE;
        if (data && pending.length > request_max) pending.length = request_max;
        pending.flags = input_.byte() < 64 ? input_.byte() & 7 : 0;
        if (pending.op == ENGINE_OP_FLUSH) pending.offset = pending.length = 0;
        if (data) pending.parts = std::make_unique<Parts>(input_, pending.length);
        if (pending.op == ENGINE_OP_WRITE) fill(pending);
        if (pending.op == ENGINE_OP_BLOCK_STATUS) pending.extents.resize(input_.below(8));
        if (in_flight_.size() >= in_flight_max || conflicts(pending)) drain_all();
        if (valid(pending) && pending.changes()) settle(pending.offset, pending.length);
        send(std::move(pending));
    }
    void fill(Pending& pending) {
        uint8_t kind = input_.byte();
        pending.data = kind < 32 ? std::vector<uint8_t>(pending.length) : pattern_of(pending.length, kind);
        pending.parts->fill(pending.data);
    }
    void send(Pending pending) {
        engine_request request{};
        request.size = sizeof request;
        request.op = pending.op;
        request.token = next_token_++;
        request.offset = pending.offset;
        request.bytes = pending.length;
        request.flags = pending.flags;
        if (pending.parts != nullptr) {
            request.iov = pending.parts->data();
            request.iov_count = pending.parts->count();
        }
        request.extents = pending.extents.data();
        request.extent_capacity = static_cast<uint32_t>(pending.extents.size());
        Error error;
        int result = engine_submit(queue_, stack_.user, context(), &request, 1, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        in_flight_.emplace(request.token, std::move(pending));
    }
    bool valid(const Pending& pending) const {
        return pending.length <= model_.bytes() && pending.offset <= model_.bytes() - pending.length;
    }
    // Requests that overlap, one of which changes something, have no order among them.
    bool conflicts(const Pending& pending) const {
        if (!valid(pending)) return false;
        for (const auto& [token, other] : in_flight_) {
            (void)token;
            bool either = other.changes() || pending.changes();
            if (either && other.touches(pending.offset, pending.length)) return true;
        }
        return false;
    }

    // --- completions

    void drain() {
        engine_completion out[in_flight_max];
        int64_t count = engine_cq_drain(queue_, out, in_flight_max);
        CHECK(count >= 0);
        for (int64_t i = 0; i < count; i++) {
            auto found = in_flight_.find(out[i].token);
            REQUIRE(found != in_flight_.end());  // exactly once
            judge(found->second, out[i]);
            in_flight_.erase(found);
        }
    }
    void drain_all() {
        Error error;
        CHECK_EQ(engine_cq_wait(queue_, nullptr, nullptr, UINT64_MAX, &error), 0);
        while (!in_flight_.empty()) drain();
    }

    void judge(const Pending& pending, const engine_completion& completion) {
        int64_t result = completion.result;
        if (result < 0) {
            CHECK(completion.error != nullptr && completion.error->errnum == -result);
            CHECK(completion.error->kind != ENGINE_ERROR_NONE && completion.error->message[0] != '\0');
            judge_failure(pending, result);
            return;
        }
        CHECK(valid(pending));
        bool data = pending.op == ENGINE_OP_READ || pending.op == ENGINE_OP_WRITE;
        if (pending.op == ENGINE_OP_BLOCK_STATUS) {
            CHECK(result <= static_cast<int64_t>(pending.extents.size()));
        } else {
            CHECK_EQ(result, data ? pending.length : 0);
        }
        if (pending.op == ENGINE_OP_READ) model_.agree(pending.offset, pending.parts->content());
        if (!pending.changes()) return;
        const std::vector<uint8_t> changed = after(pending);
        if (pending.op == ENGINE_OP_DISCARD) {
            model_.set_perhaps(pending.offset, changed.data(), pending.length);
        } else {
            model_.set(pending.offset, changed.data(), pending.length);
        }
    }
    static std::vector<uint8_t> after(const Pending& pending) {
        return pending.op == ENGINE_OP_WRITE ? pending.data : std::vector<uint8_t>(pending.length);
    }
    // What may fail without a fault: what is out of bounds, what the caller has forbidden to emulate, what
    // was cancelled, what a node cannot, and a data node that is full.
    void judge_failure(const Pending& pending, int64_t result) {
        bool no_fallback = pending.op == ENGINE_OP_WRITE_ZEROES && (pending.flags & ENGINE_NO_FALLBACK) != 0;
        bool expected = (result == -EINVAL && !valid(pending)) || (result == -ENOTSUP && no_fallback) ||
                        (result == -ENOTSUP && pending.op == ENGINE_OP_BLOCK_STATUS) ||
                        (result == -ECANCELED && pending.cancelled) ||
                        (result == -ENOSPC && stack_.may_run_out());
        if (!expected) {
            fprintf(stderr, "op %u at %lu, %lu bytes: %ld\n", pending.op, pending.offset, pending.length,
                    result);
            CHECK(false);
        }
        if (!valid(pending) || !pending.changes()) return;
        model_.set_perhaps(pending.offset, after(pending).data(), pending.length);
    }

    // --- others

    void verify(uint64_t offset, uint64_t length) {
        std::vector<uint8_t> read(length, 0xa5);
        Error error;
        int64_t result = embedder::io(stack_.user, ENGINE_OP_READ, read.data(), offset, length, 0, &error);
        check::report(result == static_cast<int64_t>(length), __FILE__, __LINE__, error.message);
        model_.agree(offset, read);
    }
    // A byte may be one of two things, no more: what is not known is read before it changes again.
    void settle(uint64_t offset, uint64_t length) {
        if (!model_.known(offset, length)) verify(offset, length);
    }

    void cancel() {
        if (in_flight_.empty()) return;
        auto chosen = in_flight_.begin();
        std::advance(chosen, input_.below(in_flight_.size()));
        chosen->second.cancelled = true;
        CHECK(engine_cancel(queue_, chosen->first) >= 0);
    }

    void change_filters() {
        Error error;
        if (!filters_.empty() && input_.flag()) {
            remove_filters();
            return;
        }
        if (filters_.size() >= 3) return;
        const engine_option options[] = {{"driver", input_.flag() ? "passthrough" : "throttle"}};
        engine_node_t* filter = nullptr;
        int result = engine_node_insert_filter(stack_.node(input_.below(4)), options, 1, 0, &filter, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        filters_.push_back(filter);
    }
    void remove_filters() {
        Error error;
        while (!filters_.empty()) {
            int result = engine_node_remove_filter(filters_.back(), 0, nullptr, &error);
            check::report(result == 0, __FILE__, __LINE__, error.message);
            filters_.pop_back();
        }
    }

    void copy() {
        drain_all();
        uint64_t bytes = model_.bytes();
        uint64_t from = input_.position(bytes), to = input_.position(bytes);
        uint64_t length = input_.position(bytes - std::min(bytes, std::max(from, to)));
        bool fits = length <= bytes && from <= bytes - length && to <= bytes - length;
        if (fits) settle(from, length), settle(to, length);
        Error error;
        int64_t result =
            engine_user_copy_range(stack_.user, from, stack_.user, to, length, context(), &error);
        if (result < 0) {
            bool full = result == -ENOSPC && stack_.may_run_out();
            CHECK(full || (result == -EINVAL && !fits));
            CHECK_EQ(error.errnum, -result);
        } else {
            CHECK(fits && result == static_cast<int64_t>(length));
        }
        if (!fits) return;
        const std::vector<uint8_t> moved = model_.now(from, length);
        if (result < 0) {
            model_.set_perhaps(to, moved.data(), length);
        } else {
            model_.set(to, moved.data(), length);
        }
        if (result < 0) verify(to, length);
    }

    // Waits for what is in flight by itself; what completes counts as before it.
    void resize() {
        uint64_t before = model_.bytes(), wanted = input_.position(bytes_max / 2);
        if (wanted > bytes_max) wanted = before;
        drain_all();
        Error error;
        int64_t result =
            engine_user_io(stack_.user, context(), ENGINE_OP_RESIZE, nullptr, 0, wanted, 0, 0, &error);
        uint64_t now = info_of(stack_.top).bytes;
        if (result < 0) {
            CHECK(result == -ENOTSUP || result == -EINVAL);
            CHECK_EQ(error.errnum, -result);
            CHECK_EQ(now, before);
            return;
        }
        CHECK_EQ(now, wanted);
        model_.resize(now);  // what is new reads as zeroes
    }

    sim::Engine& engine_;
    Stack& stack_;
    Input& input_;
    embedder::Queue queue_;
    Model model_;
    std::map<uint64_t, Pending> in_flight_;
    std::vector<engine_node_t*> filters_;
    uint64_t next_token_ = 1;
};

}  // namespace

void fuzz::run(Input& input) {
    sim::Engine engine(input.byte());
    Stack stack(engine, input);
    Exercise(engine, stack, input).run();
}
