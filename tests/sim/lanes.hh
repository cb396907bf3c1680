// Lanes: closed loops of requests by the three ways into the engine. Each draws its operations from the stage
// and tells it how they ended; the stage knows what is right. One thread, that of the simulation; what is
// said to run on a context's home is called by a turn of that context.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "aio/bottom_half.hh"
#include "aio/poller.hh"
#include "api/handles.hh"
#include "sim_engine.hh"
#include "virtio/blk_driver.hh"

namespace lab {

// One operation, as the model sees it.
struct Job {
    uint64_t number = 0;
    uint32_t op = 0;
    uint8_t flags = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t change = UINT32_MAX;  // of the shadow; reads, flushes and questions have none
    uint64_t began = 0;
    bool cancelled = false;
    bool library = false;
    std::vector<std::byte> memory;
    std::byte* data = nullptr;  // within `memory`, of reads and writes
    std::vector<engine_iovec> parts;
    std::vector<engine_extent> extents;
    engine_error error{};
};

// What a lane may ask for.
struct Grain {
    uint64_t bytes = 32;  // offsets and lengths are multiples of it
    uint64_t longest = 64 << 10;
    bool questions = true;     // block status
    bool flags = true;         // FUA of its own
    bool all_durable = false;  // every write is, the flag is not needed
    bool library = false;      // it reads the library, and does nothing else
};

class Director {
  public:
    // False: that was all. Begins in the model.
    virtual bool draw(Job& job, const Grain& grain, const std::string& lane) = 0;
    virtual void ended(Job& job, int64_t result, const std::string& lane) = 0;
    virtual engine::base::Random& random() = 0;
    virtual void reach_cancelled(bool in_time) = 0;

  protected:
    ~Director() = default;
};

class Lane {
  public:
    explicit Lane(Director& director, std::string name) : director_(director), name_(std::move(name)) {}
    virtual ~Lane() = default;
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;
    virtual void start() = 0;
    // Between two turns.
    virtual bool pump() { return false; }  // true: there was something to do
    // It has something to submit that it has not begun.
    virtual bool may_pump() const { return false; }
    virtual void close() {}
    bool done() const noexcept { return running_ == 0; }

  protected:
    Director& director_;
    const std::string name_;
    unsigned running_ = 0;
};

// Requests straight into a port, as a data plane does.
class DirectLane final : public Lane {
  public:
    DirectLane(Director& director, std::string name, engine_user_t* user, engine_context_t* context,
               unsigned depth, Grain grain = {});
    void start() override;

  private:
    struct Ticket : engine::block::Request {
        DirectLane* lane = nullptr;
        Job job;
        bool in_flight = false;
    };
    void strike(Ticket& ticket);
    void ended(Ticket& ticket);

    engine_context_t* context_;
    const Grain grain_;
    engine::block::Port* port_ = nullptr;
    std::vector<std::unique_ptr<Ticket>> tickets_;
};

// Arrays of requests and a completion queue, as an event loop does.
class AsyncLane final : public Lane {
  public:
    AsyncLane(Director& director, std::string name, engine_t* engine, engine_user_t* user,
              engine_context_t* context, unsigned depth);
    void start() override { running_ = 1; }
    bool pump() override;
    bool may_pump() const override {
        return running_ != 0 && (!dry_ || jobs_.empty()) && jobs_.size() < depth_;
    }
    void close() override;

  private:
    void submit();

    engine_cq_t* queue_ = nullptr;
    engine_user_t* user_;
    engine_context_t* context_;
    const unsigned depth_;
    bool dry_ = false;
    std::vector<std::unique_ptr<Job>> jobs_;  // in flight; the token is the pointer
};

// Through a virtqueue, as a guest does.
class QueueLane final : public Lane, private engine::aio::Poller {
  public:
    QueueLane(Director& director, std::string name, engine_queue_t* queue, engine_context_t* context,
              unsigned depth, bool writethrough);
    ~QueueLane() override = default;
    void start() override;
    void close() override;
    bool broken() const noexcept { return driver_.broken(); }

  private:
    static constexpr uint64_t bytes_each = 8192;
    bool poll() override;
    bool has_work() override { return driver_.has_used(); }
    bool prepare_sleep() override { return !driver_.enable_calls(); }
    void end_sleep() override { driver_.disable_calls(); }
    void issue(uint32_t slot);

    engine_context_t* context_;
    engine::virtio::BlkDriver driver_;
    engine::aio::BottomHalf* call_ = nullptr;
    std::vector<Job> jobs_;  // by slot
    Grain grain_;
};

}  // namespace lab
