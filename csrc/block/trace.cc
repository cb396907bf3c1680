// Traces. Home thread of whoever has the request, or of the front end.
#include "block/trace.hh"

#include <cstddef>
#include <cstring>

#include "block/node.hh"

namespace engine::block {

void Trace::add(const aio::AioContext& context, const Node* node, uint8_t kind, uint8_t detail,
                uint64_t at_ns) noexcept {
    if (mark_count == trace_marks_max) {
        marks_lost++;
        return;
    }
    uint64_t id = node != nullptr ? node->control->id : 0;
    marks[mark_count++] = {at_ns, static_cast<uint32_t>(id), context.number(), kind, detail};
}

void add_mark(const Request& request, uint8_t kind, uint8_t detail) noexcept {
    const Channel& channel = *request.channel;
    request.trace->add(*channel.context, channel.node, kind, detail, channel.context->now_ns());
}

void add_mark_at(const Request& request, uint8_t kind, uint64_t at_ns) noexcept {
    const Channel& channel = *request.channel;
    request.trace->add(*channel.context, channel.node, kind, 0, at_ns);
}

void TraceStore::set_up(uint32_t every, uint64_t seed) noexcept {
    every_ = every;
    random_ = base::Random(base::mix(seed ^ 0x7261636573ull));
    distance_ = every == 0 ? UINT64_MAX : random_.between(1, every);
}

Trace* TraceStore::draw(const aio::AioContext& front, uint64_t start_ns) noexcept {
    distance_ = random_.between(1, 2 * uint64_t{every_} - 1);
    if (kept_ + in_flight_ >= kept_max) {
        if (kept_ < kept_max / 2) return nullptr;  // they are in flight, and thinning would not make room
        thin_out();
    }
    Trace* trace = pool_.get();
    if (trace == nullptr) return nullptr;
    in_flight_++;
    memset(static_cast<engine_trace*>(trace), 0, offsetof(engine_trace, marks));
    trace->start_ns = start_ns;
    trace->front_context = front.number();
    return trace;
}

void TraceStore::ended(Trace* trace, uint64_t end_ns, int result) noexcept {
    trace->end_ns = end_ns;
    trace->result = result;
    in_flight_--;
    kept_++;
    trace->next = latest_;
    latest_ = trace;
}

void TraceStore::thin_out() noexcept {
    every_ = every_ > UINT32_MAX / 2 ? UINT32_MAX : 2 * every_;
    for (Trace* stays = latest_; stays != nullptr && stays->next != nullptr; stays = stays->next) {
        Trace* goes = stays->next;
        stays->next = goes->next;
        pool_.put(goes);
        kept_--;
    }
}

uint64_t TraceStore::read(engine_trace* out, uint64_t capacity) const noexcept {
    uint64_t count = 0;
    for (const Trace* trace = latest_; trace != nullptr && count < capacity; trace = trace->next) {
        out[count++] = static_cast<const engine_trace&>(*trace);
    }
    return count;
}

}  // namespace engine::block
