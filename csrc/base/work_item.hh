// A piece of work in a queue: a message in a context's inbox, an entry of its ready queue. Intrusive, so that
// queueing never allocates. No lock of its own: the queue says who may touch it.
#pragma once

namespace engine::base {

struct WorkItem {
    WorkItem* next = nullptr;
    void (*run)(WorkItem*) = nullptr;  // called once each time it was queued; may free the item
};

}  // namespace engine::base
