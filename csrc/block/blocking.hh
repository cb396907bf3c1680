// A request whose caller waits for it: that of a blocking call, or of a driver that reads or writes what
// describes it while it is opened. Foreign threads only.
#pragma once

#include "aio/signal.hh"
#include "block/graph.hh"

namespace engine::block {

// Its caller fills operation, flags, place and vector.
struct BlockingCall : Request {
    Port* port = nullptr;
    aio::Signal done;
};

// `context` null: main. Returns the request's result, 0 or more, or -errno with `error` filled. A resize
// waits `quiesce_timeout_ns` for the node to come to rest.
int64_t perform(User* user, aio::AioContext* context, BlockingCall* call, engine_error* error);
constexpr uint64_t quiesce_timeout_ns = 30'000'000'000;

// Of data, through a child of a node that is being opened.
int64_t read_child(Node& node, size_t child, uint64_t offset, void* data, size_t bytes, engine_error* error);
int64_t write_child(Node& node, size_t child, uint64_t offset, const void* data, size_t bytes, uint8_t flags,
                    engine_error* error);

}  // namespace engine::block
