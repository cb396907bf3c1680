// Bounce buffers: the engine's limit first, then the channel's turn.
#include "block/bounce.hh"

#include <algorithm>
#include <new>

#include "block/graph.hh"

namespace engine::block {

namespace {

constexpr size_t bounce_most = 128 << 10;   // of one request: longer ones go through it in pieces
constexpr size_t reserve_least = 16 << 10;  // of one channel

size_t block_of(const Node& node) noexcept {
    return std::max<size_t>(node.request_alignment, node.memory_alignment);
}

}  // namespace

std::unique_ptr<BounceReserve> BounceReserve::make(const Node& node, coro::Executor& executor) {
    size_t block = block_of(node);
    if (block == 1 && !node.driver->bounces) return nullptr;
    auto reserve = std::make_unique<BounceReserve>(executor);
    reserve->bytes = std::max(reserve_least, block);
    reserve->memory = base::make_array<std::byte>(reserve->bytes, node.best_memory_alignment);
    if (reserve->memory == nullptr) throw std::bad_alloc();
    return reserve;
}

bool Bounce::take_from(Quota& quota, size_t bytes, size_t alignment) noexcept {
    if (!quota.take(bytes)) return false;
    memory_ = base::make_array<std::byte>(bytes, alignment);
    if (memory_ == nullptr) {
        quota.give_back(bytes);
        return false;
    }
    quota_ = &quota;
    data_ = memory_.get();
    bytes_ = bytes;
    return true;
}

coro::Task<int> Bounce::take(Channel& channel, uint64_t wanted, Bounce& out, coro::CancelToken token) {
    const Node& node = *channel.node;
    size_t block = block_of(node);
    size_t bytes = std::max<size_t>(static_cast<size_t>(std::min<uint64_t>(wanted, bounce_most)), 1);
    bytes = (bytes + block - 1) / block * block;
    if (out.take_from(node.control->engine->limits.bounce_bytes, bytes, node.best_memory_alignment)) {
        co_return 0;
    }
    BounceReserve& reserve = *channel.reserve;
    int result = co_await reserve.turn.acquire(1, token);
    if (result != 0) co_return result;
    out.reserve_ = &reserve;
    out.data_ = reserve.memory.get();
    out.bytes_ = reserve.bytes;
    co_return 0;
}

Bounce::~Bounce() {
    if (quota_ != nullptr) quota_->give_back(bytes_);
    if (reserve_ != nullptr) reserve_->turn.release();
}

}  // namespace engine::block
