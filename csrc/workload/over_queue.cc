// The generator through a virtqueue: it is the driver, and shares with the device nothing but the ring's
// memory. Home thread of its own context, which need not be the queue's.
#include "aio/bottom_half.hh"
#include "virtio/blk_driver.hh"
#include "workload/generator.hh"

namespace engine::workload {

namespace {

using virtio::BlkStatus;

class QueueGenerator final : public Generator, private aio::Poller {
  public:
    QueueGenerator(Instance& engine, const engine_workload_config& config, aio::AioContext& context)
        : Generator(engine, config, context), queue_(reinterpret_cast<virtio::BlkQueue*>(config.queue)) {}
    ~QueueGenerator() override { close(); }

  protected:
    int attach(engine_error* error) override {
        // Being called, all there is to do is to wake up: the turn then polls the ring.
        call_ = new aio::BottomHalf(context_, [](void*) {}, nullptr);
        virtio::CallNotifier notifier{[](void* opaque) { static_cast<aio::BottomHalf*>(opaque)->schedule(); },
                                      call_};
        int result = driver_.attach(*queue_, config_.iodepth, config_.block_size, notifier, error,
                                    config_.trace_every != 0);
        if (result != 0) aio::BottomHalf::destroy(call_);
        return result;
    }
    void detach() noexcept override {
        driver_.detach();
        aio::BottomHalf::destroy(call_);
    }
    void begin() override { context_.add_poller(this); }
    void issue(Ticket& ticket) noexcept override {
        constexpr virtio::BlkType types[] = {virtio::blk_in, virtio::blk_out, virtio::blk_flush,
                                             virtio::blk_discard};
        auto type = types[static_cast<unsigned>(ticket.kind)];
        bool added = driver_.add(ticket.index, type, ticket.offset, ticket.length, 0, ticket.trace);
        ENGINE_CHECK(added);  // there is a descriptor for every ticket
    }
    void issued() noexcept override { driver_.publish(); }
    void end() noexcept override { unlink(); }
    std::byte* buffer(const Ticket& ticket) noexcept override { return driver_.data(ticket.index); }
    block::User* user() const noexcept override { return queue_->disk().user(); }
    aio::AioContext& entry_context() noexcept override { return queue_->context(); }

  private:
    bool poll() override {
        uint32_t slot;
        BlkStatus status;
        bool progress = false;
        while (running() && driver_.reap(&slot, &status)) {
            progress = true;
            int result = status == virtio::blk_ok ? 0 : status == virtio::blk_unsupported ? -ENOTSUP : -EIO;
            completed(ticket(slot), result);
        }
        driver_.publish();  // what followed the completions, in one batch
        return progress;
    }
    bool has_work() override { return driver_.has_used(); }
    bool prepare_sleep() override { return !driver_.enable_calls(); }
    void end_sleep() override { driver_.disable_calls(); }

    virtio::BlkQueue* queue_;
    virtio::BlkDriver driver_;
    aio::BottomHalf* call_ = nullptr;
};

}  // namespace

std::unique_ptr<Generator> make_queue_generator(Instance& engine, const engine_workload_config& config,
                                                aio::AioContext& context) {
    return std::make_unique<QueueGenerator>(engine, config, context);
}

}  // namespace engine::workload
