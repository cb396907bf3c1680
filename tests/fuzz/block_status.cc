// Block status over a stack of nodes: extents follow one another from the offset on, stay within the range
// and the capacity, say something, and what they call zero reads as zeroes.
#include "stack.hh"

namespace {

using namespace stack;

class Exercise {
  public:
    Exercise(sim::Engine& engine, Stack& stack, Input& input)
        : engine_(engine), stack_(stack), input_(input), model_(stack.model()) {}

    void run() {
        for (unsigned steps = 0; steps < 80 && !input_.empty(); steps++) {
            uint8_t kind = input_.byte();
            if (kind < 128) {
                change(kind);
            } else {
                ask(input_.position(model_.bytes()), input_.position(model_.bytes()));
            }
        }
        for (uint64_t at = 0; at < model_.bytes();) at += ask(at, model_.bytes() - at);
    }

  private:
    engine_context_t* context() { return engine_.context_handle(input_.below(3)); }

    void change(uint8_t kind) {
        uint64_t bytes = model_.bytes();
        uint64_t offset = std::min(input_.position(bytes), bytes);
        uint64_t length = std::min(input_.position(bytes - offset), bytes - offset);
        std::vector<uint8_t> data(length, kind < 16 ? 0 : kind);
        verify(offset, length);
        uint32_t op = kind < 48 ? ENGINE_OP_WRITE : kind < 80 ? ENGINE_OP_WRITE_ZEROES : ENGINE_OP_DISCARD;
        if (op != ENGINE_OP_WRITE) std::fill(data.begin(), data.end(), 0);
        Error error;
        int64_t result = embedder::io(stack_.user, op, data.data(), offset, length,
                                      kind % 2 != 0 ? ENGINE_MAY_UNMAP : 0, &error, context());
        CHECK(result >= 0 || (result == -ENOSPC && stack_.may_run_out()));
        if (result < 0 || op == ENGINE_OP_DISCARD) {
            model_.set_perhaps(offset, data.data(), length);
        } else {
            model_.set(offset, data.data(), length);
        }
    }
    void verify(uint64_t offset, uint64_t length) {
        std::vector<uint8_t> read(length, 0xa5);
        Error error;
        CHECK_EQ(embedder::io(stack_.user, ENGINE_OP_READ, read.data(), offset, length, 0, &error, context()),
                 length);
        model_.agree(offset, read);
    }

    // How far it got: never nowhere, unless it was asked for nothing or has no answer.
    uint64_t ask(uint64_t offset, uint64_t length) {
        uint32_t capacity = input_.empty() ? 3 : static_cast<uint32_t>(input_.below(6));
        // As long as it says: the sanitizer sees the extent behind.
        guest::Block memory = guest::block(capacity * sizeof(engine_extent), alignof(std::max_align_t));
        auto* extents = reinterpret_cast<engine_extent*>(memory.get());
        Error error;
        int64_t count =
            engine_user_block_status(stack_.user, context(), offset, length, extents, capacity, &error);
        bool fits = length <= model_.bytes() && offset <= model_.bytes() - length;
        if (count < 0) {
            CHECK((count == -EINVAL && !fits) || (count == -ENOTSUP && fits));
            CHECK_EQ(error.errnum, -count);
            CHECK(error.message[0] != '\0');
            return model_.bytes();
        }
        CHECK(fits);
        CHECK(count <= capacity);
        uint64_t at = offset;
        for (int64_t i = 0; i < count; i++) {
            const engine_extent& extent = extents[i];
            CHECK_EQ(extent.offset, at);
            CHECK(extent.length != 0 && extent.length <= offset + length - at);
            CHECK(extent.flags != 0 && (extent.flags & ~7u) == 0);
            if (i != 0) CHECK(extent.flags != extents[i - 1].flags);
            if ((extent.flags & ENGINE_EXTENT_ZERO) != 0) must_be_zero(at, extent.length);
            at += extent.length;
        }
        if (length != 0 && capacity != 0) CHECK(count > 0);
        return count == 0 ? model_.bytes() : at - offset;
    }
    void must_be_zero(uint64_t offset, uint64_t length) {
        verify(offset, length);
        const std::vector<uint8_t> now = model_.now(offset, length);
        CHECK(std::all_of(now.begin(), now.end(), [](uint8_t byte) { return byte == 0; }));
    }

    sim::Engine& engine_;
    Stack& stack_;
    Input& input_;
    Model model_;
};

}  // namespace

void fuzz::run(Input& input) {
    sim::Engine engine(input.byte());
    Stack stack(engine, input);
    Exercise(engine, stack, input).run();
}
