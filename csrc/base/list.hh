// Intrusive lists. No allocation, no lock: whoever owns the list guards it.
#pragma once

#include <cstddef>

namespace engine::base {

// First in, first out; singly linked through T::next.
template <class T>
class Queue {
  public:
    bool empty() const noexcept { return head_ == nullptr; }
    T* front() const noexcept { return head_; }
    void push(T* item) noexcept {
        item->next = nullptr;
        *tail_ = item;
        tail_ = link(item);
    }
    T* pop() noexcept {
        T* item = head_;
        if (item == nullptr) return nullptr;
        head_ = static_cast<T*>(item->next);
        if (head_ == nullptr) tail_ = &head_;
        return item;
    }
    // Takes one out, wherever it is. False: it is not in here.
    bool remove(T* item) noexcept {
        for (T** at = &head_; *at != nullptr; at = link(*at)) {
            if (*at != item) continue;
            *at = static_cast<T*>(item->next);
            if (*at == nullptr) tail_ = at;
            return true;
        }
        return false;
    }
    // Hands the whole chain over and leaves the queue empty.
    T* take_all() noexcept {
        T* all = head_;
        head_ = nullptr;
        tail_ = &head_;
        return all;
    }
    // Appends a chain whose last item is `last`.
    void append(T* first, T* last) noexcept {
        *tail_ = first;
        last->next = nullptr;
        tail_ = link(last);
    }

    Queue() noexcept = default;
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

  private:
    static T** link(T* item) noexcept { return &item->next; }
    T* head_ = nullptr;
    T** tail_ = &head_;
};

// Doubly linked, circular; an item unlinks itself.
struct Link {
    Link* previous = this;
    Link* following = this;

    Link() noexcept = default;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;
    ~Link() { unlink(); }

    bool linked() const noexcept { return following != this; }
    void unlink() noexcept {
        previous->following = following;
        following->previous = previous;
        previous = following = this;
    }
    void insert_before(Link* position) noexcept {
        previous = position->previous;
        following = position;
        previous->following = this;
        position->previous = this;
    }
};

// T derives from Link.
template <class T>
class List {
  public:
    bool empty() const noexcept { return !head_.linked(); }
    void push_back(T* item) noexcept { item->insert_before(&head_); }
    T* front() const noexcept { return empty() ? nullptr : static_cast<T*>(head_.following); }
    // Of an item in this list; null at the end.
    T* after(const T* item) const noexcept {
        return item->following == &head_ ? nullptr : static_cast<T*>(item->following);
    }
    // Safe against removal of the current item, not of the next one.
    template <class F>
    void for_each(F&& f) {
        for (Link* l = head_.following; l != &head_;) {
            Link* next = l->following;
            f(static_cast<T*>(l));
            l = next;
        }
    }

  private:
    Link head_;
};

}  // namespace engine::base
