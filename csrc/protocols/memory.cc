// The memory driver: a RAM disk that several contexts use at once. The template for a protocol that stores.
// No lock: what a table points to appears by one compare-exchange and stays until the node closes; contexts
// that work on the same bytes at once get a mixture, as on any disk.
#include <sys/mman.h>

#include <array>
#include <cstring>

#include "base/error.hh"
#include "block/registry.hh"

#if defined(__SANITIZE_THREAD__)
#define MEMORY_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MEMORY_TSAN 1
#endif
#endif

namespace engine::block {

namespace {

constexpr unsigned chunk_bits = 16;
constexpr unsigned fan_bits = 10;  // of each of the three levels of the table
constexpr uint64_t chunk_bytes = uint64_t{1} << chunk_bits;
constexpr uint64_t fan = uint64_t{1} << fan_bits;
constexpr uint64_t size_max = chunk_bytes << (3 * fan_bits);
constexpr unsigned status_steps_max = 65536;  // looked at for one answer

struct alignas(4096) Chunk {
    std::array<std::byte, chunk_bytes> data;
};

struct Slot {
    base::Atomic<Chunk*> chunk;  // null: never written
    // The chunk has been discarded and holds nothing but zeroes. It stays where it is, because another
    // context may be copying from it or into it; its pages go back to the kernel, which is safe at any time.
    base::Atomic<bool> discarded;
};
struct Leaf {
    std::array<Slot, fan> slots;
};
struct Middle {
    std::array<base::Atomic<Leaf*>, fan> leaves;
};

// What is there, or new: the first to put one in wins. Null when memory is short.
template <class T>
T* ensure(base::Atomic<T*>& place) noexcept {
    T* found = place.load_acquire();  // pairs with the exchange below
    if (ENGINE_LIKELY(found != nullptr)) return found;
    base::Owner<T> made = base::make<T>();
    if (made == nullptr) return nullptr;
    while (found == nullptr) {
        if (place.compare_exchange_acq_rel(found, made.get())) return made.release();
    }
    return found;
}

// From a chunk's index to its slot, in three steps.
class Table {
  public:
    Table() noexcept = default;
    Table(const Table&) = delete;
    Table& operator=(const Table&) = delete;
    // With no context inside.
    ~Table() {
        for (auto& middle : middles_) {
            base::Owner<Middle> owned(middle.load_acquire());
            if (owned == nullptr) continue;
            for (auto& leaf : owned->leaves) {
                base::Owner<Leaf> owned_leaf(leaf.load_acquire());
                if (owned_leaf == nullptr) continue;
                for (Slot& slot : owned_leaf->slots) base::Owner<Chunk>(slot.chunk.load_acquire()).reset();
            }
        }
    }

    // Null: nothing was written there; nor in the `run` chunks from there on.
    Slot* find(uint64_t index, uint64_t* run) noexcept {
        Middle* middle = middles_[index >> (2 * fan_bits)].load_acquire();
        if (middle == nullptr) {
            *run = fan * fan - index % (fan * fan);
            return nullptr;
        }
        Leaf* leaf = middle->leaves[(index >> fan_bits) % fan].load_acquire();
        if (leaf == nullptr) {
            *run = fan - index % fan;
            return nullptr;
        }
        *run = 1;
        return &leaf->slots[index % fan];
    }
    // Null when memory is short.
    Slot* make(uint64_t index) noexcept {
        Middle* middle = ensure(middles_[index >> (2 * fan_bits)]);
        Leaf* leaf = middle == nullptr ? nullptr : ensure(middle->leaves[(index >> fan_bits) % fan]);
        if (leaf == nullptr) return nullptr;
        Slot* slot = &leaf->slots[index % fan];
        return ensure(slot->chunk) == nullptr ? nullptr : slot;
    }

  private:
    std::array<base::Atomic<Middle*>, fan> middles_;
};

struct MemoryState {
    Table* table;
};

// Two requests may touch the same bytes at once. That race is their senders' affair, and thread sanitizer
// hears no more of it than that: single bytes.
void copy_bytes(std::byte* to, const std::byte* from, size_t bytes) noexcept {
#ifdef MEMORY_TSAN
    auto* into = reinterpret_cast<unsigned char*>(to);
    const auto* out_of = reinterpret_cast<const unsigned char*>(from);
    for (size_t i = 0; i < bytes; i++) {
        __atomic_store_n(into + i, __atomic_load_n(out_of + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    }
#else
    memcpy(to, from, bytes);
#endif
}

void clear_bytes(std::byte* at, size_t bytes) noexcept {
#ifdef MEMORY_TSAN
    auto* into = reinterpret_cast<unsigned char*>(at);
    for (size_t i = 0; i < bytes; i++) __atomic_store_n(into + i, 0, __ATOMIC_RELAXED);
#else
    memset(at, 0, bytes);
#endif
}

// Calls f(index, first byte in the chunk, buffer, bytes) for each piece that lies in one chunk, until it says
// no.
template <class F>
bool for_each_piece(const Request& request, F&& f) noexcept {
    uint64_t at = request.offset;
    for (uint32_t i = 0; i < request.iov_count; i++) {
        auto* buffer = static_cast<std::byte*>(request.iov[i].iov_base);
        size_t left = request.iov[i].iov_len;
        while (left != 0) {
            uint64_t inside = at % chunk_bytes;
            size_t bytes = left < chunk_bytes - inside ? left : chunk_bytes - inside;
            if (!f(at / chunk_bytes, inside, buffer, bytes)) return false;
            at += bytes;
            buffer += bytes;
            left -= bytes;
        }
    }
    return true;
}

void read(Table& table, const Request& request) noexcept {
    for_each_piece(request, [&](uint64_t index, uint64_t inside, std::byte* buffer, size_t bytes) {
        uint64_t run = 0;
        Slot* slot = table.find(index, &run);
        const Chunk* chunk = slot == nullptr ? nullptr : slot->chunk.load_acquire();
        if (chunk == nullptr) {
            memset(buffer, 0, bytes);
        } else {
            copy_bytes(buffer, &chunk->data[inside], bytes);
        }
        return true;
    });
}

// False when memory is short; what came before is written.
bool write(Table& table, const Request& request) noexcept {
    return for_each_piece(request, [&](uint64_t index, uint64_t inside, std::byte* buffer, size_t bytes) {
        Slot* slot = table.make(index);
        if (slot == nullptr) return false;
        copy_bytes(&slot->chunk.load_acquire()->data[inside], buffer, bytes);
        // Afterwards, so that a discard which overtakes this cannot leave data under the mark: it sets the
        // mark before it drops the pages, and when that has returned no processor writes to the old ones.
        if (ENGINE_UNLIKELY(slot->discarded.load_seq_cst())) slot->discarded.store_seq_cst(false);
        return true;
    });
}

// Zeroes a range as far as it was ever written. With `unmap` whole chunks give their memory back.
void zero(Table& table, uint64_t offset, uint64_t length, bool unmap) noexcept {
    uint64_t end = offset + length;
    while (offset < end) {
        uint64_t run = 0;
        uint64_t index = offset / chunk_bytes;
        Slot* slot = table.find(index, &run);
        uint64_t next = (index + run) * chunk_bytes;
        if (next > end) next = end;
        Chunk* chunk = slot == nullptr ? nullptr : slot->chunk.load_acquire();
        if (chunk != nullptr) {
            bool whole = unmap && next - offset == chunk_bytes;
            if (whole) slot->discarded.store_seq_cst(true);  // see write()
            if (!whole || madvise(chunk, chunk_bytes, MADV_DONTNEED) != 0) {
                clear_bytes(&chunk->data[offset % chunk_bytes], next - offset);
            }
        }
        offset = next;
    }
}

// Returns how many extents it filled: of the whole range, or of its beginning.
int64_t status(Table& table, const Request& request) noexcept {
    uint32_t count = 0;
    uint64_t at = request.offset;
    uint64_t end = request.offset + request.length;
    for (unsigned step = 0; at < end && step < status_steps_max; step++) {
        uint64_t run = 0;
        uint64_t index = at / chunk_bytes;
        const Slot* slot = table.find(index, &run);
        bool data =
            slot != nullptr && slot->chunk.load_acquire() != nullptr && !slot->discarded.load_seq_cst();
        uint32_t flags = data ? ENGINE_EXTENT_DATA : ENGINE_EXTENT_ZERO;
        uint64_t next = (index + run) * chunk_bytes;
        if (next > end) next = end;
        if (count != 0 && request.extents[count - 1].flags == flags) {
            request.extents[count - 1].length += next - at;
        } else if (count == request.extent_capacity) {
            break;
        } else {
            request.extents[count++] = {at, next - at, flags, 0};
        }
        at = next;
    }
    return count;
}

// What goes is zeroed, so that it does not come back when the disk grows again.
void resize(Node& node, Table& table, Request* request) noexcept {
    uint64_t before = node.bytes.load_relaxed();
    uint64_t after = request->offset;
    if (after > size_max) {
        fail_later(request, ENGINE_ERROR_LIMIT, EFBIG,
                   "node %s: %lu bytes are more than a memory disk can have: at most %lu",
                   node.control->name.c_str(), after, size_max);
        return;
    }
    node.bytes.store_relaxed(after);
    if (after < before) zero(table, after, before - after, true);
    finish_later(request, 0);
}

void memory_submit(Channel& channel, Request* request) {
    Node& node = *channel.node;
    Table& table = *node.state<MemoryState>().table;
    int64_t result = 0;
    switch (request->op) {
        case Op::read:
            read(table, *request);
            break;
        case Op::write:
            if (!write(table, *request)) {
                fail_later(request, ENGINE_ERROR_LIMIT, ENOMEM,
                           "node %s: no memory for what is written at offset %lu: it is a RAM disk; discard "
                           "what is not needed, or make more memory available",
                           node.control->name.c_str(), request->offset);
                return;
            }
            break;
        case Op::flush:
            break;
        case Op::discard:
            zero(table, request->offset, request->length, true);
            break;
        case Op::write_zeroes:
            zero(table, request->offset, request->length, (request->flags & ENGINE_MAY_UNMAP) != 0);
            break;
        case Op::resize:
            resize(node, table, request);
            return;
        case Op::block_status:
            result = status(table, *request);
            break;
        case Op::copy_range:  // none of its operations
            result = -ENOTSUP;
            break;
    }
    finish_later(request, result);
}

int memory_open(Node& node, const OpenArguments& arguments) {
    base::Owner<Table> table = base::make<Table>();
    if (table == nullptr) {
        return base::fail(arguments.error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "open"},
                          "memory: no memory for the table of chunks");
    }
    node.state<MemoryState>().table = table.release();
    node.bytes.store_relaxed(arguments.options.number("size"));
    node.native_ops = ops_of_data;
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    node.holes = true;
    return 0;
}

void memory_close(Node& node) {
    base::Owner<Table>(node.state<MemoryState>().table).reset();
}

const OptionDef memory_options[] = {
    {"size", OptionType::size, nullptr, "0..64T",
     "size of the disk, bytes; it takes memory for what has been written", true},
};

}  // namespace

const Driver memory_driver{
    .name = "memory",
    .layer = "protocol",
    .text = "a RAM disk: sparse, and gone when it is closed",
    .options = memory_options,
    .children = {},
    .state_size = sizeof(MemoryState),
    .channel_state_size = 0,
    .open = memory_open,
    .close = memory_close,
    .open_channel = nullptr,
    .close_channel = nullptr,
    .submit = memory_submit,
};

}  // namespace engine::block
