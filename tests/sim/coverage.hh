// What a seed has reached. Each event must be seen in at least 5 % of the seeds of a run: a simulator that
// never gets somewhere finds nothing there. One thread.
#pragma once

#include <bitset>
#include <cstdint>

namespace lab {

// clang-format off
#define LAB_EVENTS(X)                                                             \
    X(power_lost)          X(torn_by_power)      X(reordered_by_power)            \
    X(lost_by_power)       X(power_lost_in_sync) X(read_error)                    \
    X(write_error)         X(torn_by_error)      X(sync_error)                    \
    X(no_space)            X(transient_error)    X(short_transfer)                \
    X(slow_operation)      X(early_write)        X(sync_covers_nothing_new)       \
    X(overlapping_writes)  X(read_beside_write)  X(unaligned_write)               \
    X(fua_write)           X(zeroes_written)     X(discarded)                     \
    X(zeroes_detected)     X(block_status_asked) X(zero_extent_seen)              \
    X(flush_shared)        X(range_copied)       X(range_copied_in_kernel)        \
    X(cancelled_in_time)   X(cancelled_too_late) X(vector_of_many_parts)          \
    X(grown)               X(shrunk)             X(refused_past_the_end)          \
    X(filter_inserted)     X(filter_removed)     X(filter_timed_out)              \
    X(node_replaced)       X(user_came_and_went) X(conflict_refused)              \
    X(parked_request)      X(tracking_switched)  X(throttled)                     \
    X(overlay_allocated)   X(overlay_read_below) X(overlay_lost)                  \
    X(queue_request)       X(queue_called)       X(async_batch)                   \
    X(generator_verified)  X(context_closed)     X(failed_after_power)           \
    X(delayed)             X(delayed_by_chance)  X(failed_by_filter)             \
    X(paused_by_filter)    X(changes_overlapped) X(misdirected_write)            \
    X(misdirected_read)    X(misdirection_found)
// clang-format on

enum class Event : unsigned {
#define LAB_ENUM(name) name,
    LAB_EVENTS(LAB_ENUM)
#undef LAB_ENUM
        count
};
constexpr unsigned event_count = static_cast<unsigned>(Event::count);
inline constexpr const char* event_names[] = {
#define LAB_NAME(name) #name,
    LAB_EVENTS(LAB_NAME)
#undef LAB_NAME
};

class Coverage {
  public:
    void reach(Event event) noexcept { reached_.set(static_cast<unsigned>(event)); }
    bool reached(unsigned event) const noexcept { return reached_.test(event); }

  private:
    std::bitset<event_count> reached_;
};

}  // namespace lab
