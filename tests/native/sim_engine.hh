// What tests in virtual time share: an engine whose contexts belong to a simulator, reached through the C
// interface like any other, and a driver over a simulated file. One thread; blocking calls let time go on.
#pragma once

#include <engine/engine.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "aio/context.hh"
#include "aio/sim.hh"
#include "block/graph.hh"
#include "block/registry.hh"
#include "embedder.hh"

namespace sim {

// Reads, writes and flushes a file of the simulator: `fd` names it.
struct DiskState {
    int fd;
};

inline int open_disk(engine::block::Node& node, const engine::block::OpenArguments& arguments) {
    node.state<DiskState>().fd = static_cast<int>(arguments.options.number("fd"));
    node.bytes.store_relaxed(arguments.options.number("size"));
    node.native_ops = engine::block::bit(engine::block::Op::read) |
                      engine::block::bit(engine::block::Op::write) |
                      engine::block::bit(engine::block::Op::flush);
    return 0;
}

inline void submit_to_disk(engine::block::Channel& channel, engine::block::Request* request) {
    using engine::block::Op;
    engine::aio::IoOp& io = request->io;
    io.done = [](engine::aio::IoOp* op, int64_t result) {
        engine::block::Request* done = engine::block::Request::of(op);
        bool whole = result < 0 || static_cast<uint64_t>(result) == op->length;
        engine::block::finish(done, result < 0 ? result : whole ? 0 : -EIO);
    };
    io.fd = channel.node->state<DiskState>().fd;
    io.kind = request->op == Op::read    ? engine::aio::IoKind::read
              : request->op == Op::write ? engine::aio::IoKind::write
                                         : engine::aio::IoKind::fdatasync;
    io.iov = request->iov;
    io.iov_count = request->op == Op::flush ? 0 : request->iov_count;
    io.offset = request->offset;
    io.length = request->op == Op::flush ? 0 : request->length;
    channel.context->backend().queue(&io);
}

inline const engine::block::OptionDef disk_options[] = {
    {"fd", engine::block::OptionType::integer, "0", "0..4294967295", "a file of the simulator"},
    {"size", engine::block::OptionType::size, "1M", "0..8E", "size of that file, bytes"},
};

inline const engine::block::Driver disk_driver{
    .name = "sim-disk",
    .layer = "protocol",
    .text = "a file of the simulator",
    .options = disk_options,
    .children = {},
    .state_size = sizeof(DiskState),
    .channel_state_size = 0,
    .open = open_disk,
    .close = nullptr,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = submit_to_disk,
};

// Contexts main, io0, io1 …
class Engine {
  public:
    explicit Engine(uint64_t seed, unsigned io_contexts = 2) : simulator(seed) {
        auto made = std::make_unique<engine::Instance>();
        made->pid = getpid();
        instance_ = made.release();
        add_context("main");
        instance_->main_context = instance_->contexts[0].get();
        for (unsigned i = 0; i < io_contexts; i++) add_context("io" + std::to_string(i));
    }
    ~Engine() {
        embedder::Error error;
        int result = engine_close(handle(), &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_close: ") + error.message);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    engine_context_t* add_context(const std::string& name) const {
        engine::aio::ContextConfig config;
        config.name = name;
        config.simulator = const_cast<engine::aio::Simulator*>(&simulator);
        std::unique_ptr<engine::aio::AioContext> context;
        embedder::Error error;
        int result = engine::aio::AioContext::create(std::move(config), &context, &error);
        check::report(result == 0, __FILE__, __LINE__, error.message);
        if (result != 0) throw check::Failure();
        context->instance = instance_;
        instance_->contexts.push_back(std::move(context));
        return reinterpret_cast<engine_context_t*>(instance_->contexts.back().get());
    }

    engine_t* handle() const { return reinterpret_cast<engine_t*>(instance_); }
    engine::aio::AioContext& context(size_t index) const { return *instance_->contexts[index]; }
    engine_context_t* context_handle(size_t index) const {
        return reinterpret_cast<engine_context_t*>(&context(index));
    }
    engine_node_t* open(const std::vector<engine_option>& options) const {
        engine_node_t* node = nullptr;
        embedder::Error error;
        int result = engine_node_open(handle(), options.data(), options.size(), &node, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_node_open: ") + error.message);
        if (result != 0) throw check::Failure();
        return node;
    }
    engine_node_t* open_disk(int fd, uint64_t bytes) const {
        engine::block::OptionBag bag;
        bag.set("fd", std::to_string(fd));
        bag.set("size", std::to_string(bytes));
        return open_with(disk_driver, std::move(bag));
    }
    engine_node_t* open_with(const engine::block::Driver& driver, engine::block::OptionBag bag) const {
        engine::block::Node* node = nullptr;
        embedder::Error error;
        int result = engine::block::open_node(*instance_, driver, std::move(bag), &node, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("open_node: ") + error.message);
        if (result != 0) throw check::Failure();
        return reinterpret_cast<engine_node_t*>(node);
    }

    engine::aio::Simulator simulator;

  private:
    engine::Instance* instance_ = nullptr;
};

}  // namespace sim
