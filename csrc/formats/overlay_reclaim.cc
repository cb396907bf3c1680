// What becomes of dropped host clusters, on the home: grace, then their space goes back, then they are free.
#include "block/grace.hh"
#include "formats/overlay.hh"

namespace engine::formats {

using block::Channel;
using block::ChildRequest;
using block::ChildRequests;
using block::MetaLock;
using block::Op;
using coro::LockChain;
using coro::Task;

namespace {

constexpr unsigned batch_max = 64;  // clusters given back side by side

// That it fails costs space and nothing else: what is not written anew is not read.
Task<int64_t> give_back(Channel& home, std::span<uint32_t> clusters) {
    ChildRequests parts(home, home.state<OverlayChannel>().parts, nullptr);
    unsigned bits = home.state<OverlayChannel>().overlay->map.layout().cluster_bits;
    std::sort(clusters.begin(), clusters.end());
    for (size_t first = 0, end; first < clusters.size(); first = end) {
        for (end = first + 1; end < clusters.size() && clusters[end] == clusters[end - 1] + 1;) end++;
        ChildRequest* part =
            parts.make(Op::discard, uint64_t{clusters[first]} << bits, (end - first) << bits);
        if (part != nullptr) parts.submit(part, data_child);
    }
    int64_t result = co_await parts;
    co_return result;
}

}  // namespace

Task<int> reclaim(Channel& home) {
    Overlay& overlay = *home.state<OverlayChannel>().overlay;
    LockChain chain(home.executor());
    {
        MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
        if (!overlay.map.space().begin_rest(guard)) co_return 0;
    }
    chain.check_may_await("grace");
    int result = co_await grace(*home.context, *home.node);
    {
        MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
        overlay.map.space().end_rest(guard, result >= 0);
    }
    if (result < 0) co_return result;
    std::array<uint32_t, batch_max> batch{};
    for (unsigned count = 0;;) {
        {
            MetaLock::Exclusive guard = co_await overlay.meta.lock_exclusive(chain);
            overlay.map.space().free(guard, std::span(batch).first(count));
            count = overlay.map.space().take_rested(guard, batch);
        }
        if (count == 0) co_return 0;
        chain.check_may_await("discards");
        co_await give_back(home, std::span(batch).first(count));
    }
}

}  // namespace engine::formats
