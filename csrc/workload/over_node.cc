// The generator over a node: requests enter the graph directly. Home thread of its context.
#include <sys/mman.h>

#include "base/error.hh"
#include "workload/generator.hh"

namespace engine::workload {

namespace {

class NodeGenerator final : public Generator {
  public:
    NodeGenerator(Instance& engine, const engine_workload_config& config, aio::AioContext& context)
        : Generator(engine, config, context), user_(reinterpret_cast<block::User*>(config.user)) {}
    ~NodeGenerator() override {
        close();
        if (buffers_ != nullptr) munmap(buffers_, buffer_bytes());
    }

  protected:
    int attach(engine_error* error) override {
        int result = block::open_port(user_, &context_, &port_, error);
        if (result != 0) return result;
        void* memory =
            mmap(nullptr, buffer_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            return base::fail_os(error, errno, {.operation = "workload"}, "cannot map %lu bytes for buffers",
                                 buffer_bytes());
        }
        buffers_ = static_cast<std::byte*>(memory);
        user_->references.fetch_add_acq_rel(1);
        return 0;
    }
    void detach() noexcept override { user_->references.fetch_sub_acq_rel(1); }
    // First touched here, on the home thread.
    void begin() override {
        requests_ = std::make_unique<Slot[]>(config_.iodepth);
        for (uint32_t i = 0; i < config_.iodepth; i++) {
            Slot& slot = requests_[i];
            slot.generator = this;
            slot.complete = [](block::Request* request) { static_cast<Slot*>(request)->done(); };
            std::byte* at = buffers_ + i * stride();
            for (uint64_t byte = 0; byte < stride(); byte += page) at[byte] = std::byte{0x5a};
            slot.set_buffer(at, config_.block_size);
        }
    }
    void issue(Ticket& ticket) noexcept override {
        Slot& slot = requests_[ticket.index];
        slot.ticket = &ticket;
        slot.trace = ticket.trace;
        slot.op = static_cast<block::Op>(ticket.kind);
        slot.offset = ticket.offset;
        slot.length = slot.single.iov_len = ticket.length;
        block::submit(*port_, &slot);
    }
    void issued() noexcept override {}
    void end() noexcept override {}
    std::byte* buffer(const Ticket& ticket) noexcept override { return buffers_ + ticket.index * stride(); }
    block::User* user() const noexcept override { return user_; }

  private:
    static constexpr uint64_t page = 4096;
    struct Slot : block::Request {
        NodeGenerator* generator;
        Ticket* ticket;
        void done() noexcept { generator->completed(*ticket, static_cast<int>(result < 0 ? result : 0)); }
    };
    uint64_t stride() const noexcept { return (config_.block_size + page - 1) / page * page; }
    uint64_t buffer_bytes() const noexcept { return stride() * config_.iodepth; }

    block::User* user_;
    block::Port* port_ = nullptr;
    std::byte* buffers_ = nullptr;
    std::unique_ptr<Slot[]> requests_;
};

}  // namespace

std::unique_ptr<Generator> make_node_generator(Instance& engine, const engine_workload_config& config,
                                               aio::AioContext& context) {
    return std::make_unique<NodeGenerator>(engine, config, context);
}

}  // namespace engine::workload
