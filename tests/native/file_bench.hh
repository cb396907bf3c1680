// What the tests of files share: a folder that cleans up, an engine with a context of the backend under test,
// data with a seed, requests larger than the C interface takes.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/handles.hh"
#include "block/graph.hh"
#include "check.hh"

namespace file_bench {

using namespace engine;

constexpr uint64_t MiB = 1 << 20;
using Options = std::map<std::string, std::string>;

class Folder {
  public:
    Folder() {
        const char* base = getenv("TMPDIR");
        path_ = std::string(base != nullptr ? base : "/tmp") + "/engine-test-XXXXXX";
        REQUIRE(mkdtemp(path_.data()) != nullptr);
    }
    ~Folder() {
        for (const std::string& name : names_) unlink(name.c_str());
        rmdir(path_.c_str());
    }
    std::string name(const std::string& file) {
        names_.push_back(path_ + "/" + file);
        return names_.back();
    }
    std::string make(const std::string& file, uint64_t bytes) {
        std::string path = name(file);
        int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        REQUIRE(fd >= 0);
        REQUIRE(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
        close(fd);
        return path;
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
    std::vector<std::string> names_;
};

inline void fill(std::vector<char>& data, unsigned seed) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (char& byte : data) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        byte = static_cast<char>(state >> 56);
    }
}

inline std::vector<char> pattern(size_t bytes, unsigned seed) {
    std::vector<char> data(bytes);
    fill(data, seed);
    return data;
}

inline bool all_zero(const char* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != 0) return false;
    }
    return true;
}

// Of the file system that this file is on.
inline bool has_direct(const std::string& path) {
    int fd = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

struct Aligned {
    explicit Aligned(size_t size)
        : base(static_cast<char*>(aligned_alloc(4096, (size + 4095) / 4096 * 4096))), bytes(size) {}
    ~Aligned() { free(base); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    char* base;
    size_t bytes;
};

// An engine with a context of the backend under test; a user for each node that is opened.
class Bench {
  public:
    explicit Bench(uint32_t backend) : backend_(backend) {
        engine_config config{};
        config.size = sizeof config;
        REQUIRE(engine_create(&config, &engine, clean()) == 0);
        context = add_context("io");
    }
    ~Bench() {
        while (!users_.empty()) close_node(users_.begin()->first);
        CHECK_EQ(engine_close(engine, clean()), 0);
    }
    engine_context_t* add_context(const char* name) {
        engine_context_config config{};
        config.size = sizeof config;
        config.backend = backend_;
        config.name = name;
        config.poll_max_ns = 0;
        engine_context_t* made = nullptr;
        REQUIRE(engine_context_create(engine, &config, &made, clean()) == 0);
        return made;
    }
    engine_error* clean() {
        error = {};
        error.size = sizeof error;
        return &error;
    }
    int try_open(const Options& options, engine_node_t** node) {
        std::vector<engine_option> list;
        for (const auto& [key, value] : options) list.push_back({key.c_str(), value.c_str()});
        return engine_node_open(engine, list.data(), list.size(), node, clean());
    }
    engine_node_t* open(const Options& options) {
        engine_node_t* node = nullptr;
        int result = try_open(options, &node);
        if (result != 0) fprintf(stderr, "%s\n", error.message);
        REQUIRE(result == 0);
        bool read_only = options.contains("read-only");
        engine_user_t* user = nullptr;
        result = engine_user_create(node, "test", read_only ? ENGINE_PERM_CONSISTENT_READ : ENGINE_PERM_ALL,
                                    ENGINE_PERM_ALL, &user, clean());
        REQUIRE(result == 0);
        users_[node] = user;
        return node;
    }
    engine_node_t* file(const std::string& path, Options more = {}) {
        more["driver"] = "file";
        more["filename"] = path;
        return open(more);
    }
    void close_node(engine_node_t* node) {
        CHECK_EQ(engine_user_close(users_[node], clean()), 0);
        users_.erase(node);
        CHECK_EQ(engine_node_close(node, clean()), 0);
    }
    int64_t io(engine_node_t* node, uint32_t op, void* base, uint64_t offset, uint64_t bytes,
               uint32_t flags = 0, engine_context_t* on = nullptr) {
        engine_iovec part{base, bytes};
        return engine_user_io(users_[node], on != nullptr ? on : context, op, &part, 1, offset, bytes, flags,
                              clean());
    }
    int64_t read(engine_node_t* node, void* base, uint64_t offset, uint64_t bytes) {
        return io(node, ENGINE_OP_READ, base, offset, bytes);
    }
    int64_t write(engine_node_t* node, const void* base, uint64_t offset, uint64_t bytes,
                  uint32_t flags = 0) {
        return io(node, ENGINE_OP_WRITE, const_cast<void*>(base), offset, bytes, flags);
    }
    std::vector<engine_extent> extents(engine_node_t* node, uint64_t offset, uint64_t bytes,
                                       uint32_t capacity = 64) {
        std::vector<engine_extent> found(capacity);
        int64_t count =
            engine_user_block_status(users_[node], context, offset, bytes, found.data(), capacity, clean());
        CHECK(count >= 0);
        found.resize(count < 0 ? 0 : static_cast<size_t>(count));
        return found;
    }
    engine_node_info info(engine_node_t* node) { return embedder::info_of(node); }
    engine_context_stats stats() {
        engine_context_stats stats{};
        stats.size = sizeof stats;
        CHECK_EQ(engine_context_get_stats(context, &stats), 0);
        return stats;
    }
    block::User* user(engine_node_t* node) { return api::unwrap(users_[node]); }
    bool says(const char* text) const { return strstr(error.message, text) != nullptr; }

    engine_t* engine = nullptr;
    engine_context_t* context = nullptr;
    engine_error error{};

  private:
    uint32_t backend_;
    std::map<engine_node_t*, engine_user_t*> users_;
};

// A request of the internal interface: vectors beyond what one system call takes.
struct Submission : block::Request {
    block::Port* port = nullptr;
    aio::Signal over;

    int64_t perform(Bench& bench, engine_node_t* node) {
        REQUIRE(block::open_port(bench.user(node), api::unwrap(bench.context), &port, bench.clean()) == 0);
        error = bench.clean();
        complete = [](block::Request* request) { static_cast<Submission*>(request)->over.set(); };
        run = [](aio::Message* message) {
            auto* self = static_cast<Submission*>(message);
            block::submit(*self->port, self);
        };
        REQUIRE(api::unwrap(bench.context)->send(this) == 0);
        over.wait();
        return result;
    }
};

inline int64_t submit_vector(Bench& bench, engine_node_t* node, block::Op op, const std::vector<iovec>& parts,
                             uint64_t offset) {
    Submission request;
    request.op = op;
    request.offset = offset;
    request.iov = parts.data();
    request.iov_count = static_cast<uint32_t>(parts.size());
    for (const iovec& part : parts) request.length += part.iov_len;
    return request.perform(bench, node);
}

inline void check_extents(const std::vector<engine_extent>& found,
                          const std::vector<engine_extent>& expected) {
    CHECK_EQ(found.size(), expected.size());
    for (size_t i = 0; i < std::min(found.size(), expected.size()); i++) {
        CHECK_EQ(found[i].offset, expected[i].offset);
        CHECK_EQ(found[i].length, expected[i].length);
        CHECK_EQ(found[i].flags, expected[i].flags);
    }
}

constexpr uint32_t DATA = ENGINE_EXTENT_DATA;
constexpr uint32_t ZERO = ENGINE_EXTENT_ZERO;

}  // namespace file_bench

// One test for each backend.
#define BOTH(name)                     \
    void name(uint32_t backend);       \
    TEST(uring_##name) {               \
        name(ENGINE_BACKEND_IO_URING); \
    }                                  \
    TEST(threads_##name) {             \
        name(ENGINE_BACKEND_THREADS);  \
    }                                  \
    void name(uint32_t backend)
