// Grace: waits until every request that was inside a node has left it. What a lookup returned before stays
// valid that long, so what it names may be used anew, or given back, afterwards. Explored as shipped by
// tests/native/explore_grace.cc.
#pragma once

#include "block/node.hh"
#include "coro/task.hh"

namespace engine::block {

// What is done with each channel of the node, on its context, before the requests there are waited for.
struct ChannelVisit {
    void (*visit)(Channel& channel) noexcept = nullptr;
};

enum class GraceOver : uint8_t {
    nothing,  // a visit alone
    plain,    // all but those that are known to serialise (Channel::serialising)
    everything,
};

// A task of `here`; never inside a request that it would wait for. 0; -ENOMEM and nothing was done.
coro::Task<int> grace(aio::AioContext& here, Node& node, ChannelVisit visit = {},
                      GraceOver over = GraceOver::everything);

}  // namespace engine::block
