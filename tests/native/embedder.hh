// What the native tests of the C interface share: an engine that closes itself, an error object that starts
// clean, waiting without a clock that decides anything, and running a piece in a child process. Any thread.
#pragma once

#include <engine/engine.h>
#include <sched.h>

#include <functional>
#include <initializer_list>
#include <vector>

#include "check.hh"

// The thread sanitizer cannot start threads in a child of a process that has some.
#if defined(__SANITIZE_THREAD__)
#define EMBEDDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMBEDDER_TSAN 1
#endif
#endif

namespace embedder {

struct Error : engine_error {
    Error() noexcept : engine_error{} { size = sizeof(engine_error); }
    bool says(const char* text) const { return strstr(message, text) != nullptr; }
};

// Gives others the processor until `condition` holds. The limit only keeps a broken engine from hanging the
// test.
template <class F>
bool eventually(F&& condition) {
    double end = check::seconds() + 40;
    while (!condition()) {
        if (check::seconds() > end) return false;
        sched_yield();
    }
    return true;
}

class Engine {
  public:
    explicit Engine(uint32_t locking = ENGINE_LOCKING_PER_NODE, bool lock_profile = false) {
        engine_config config{};
        config.size = sizeof config;
        config.locking = locking;
        config.lock_profile = lock_profile ? 1 : 0;
        Error error;
        int result = engine_create(&config, &engine_, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_create: ") + error.message);
        if (result != 0) throw check::Failure();
    }
    ~Engine() { close(); }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    void close() {
        if (engine_ == nullptr) return;
        Error error;
        int result = engine_close(engine_, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_close: ") + error.message);
        engine_ = nullptr;
    }

    // Somebody else has closed it.
    void closed() { engine_ = nullptr; }

    engine_t* get() const { return engine_; }
    operator engine_t*() const { return engine_; }

    static engine_context_config context_config(const char* name, uint32_t backend = ENGINE_BACKEND_AUTO,
                                                int64_t poll_max_ns = 0) {
        engine_context_config config{};
        config.size = sizeof config;
        config.name = name;
        config.backend = backend;
        config.poll_max_ns = poll_max_ns;
        return config;
    }
    engine_context_t* context(const char* name, uint32_t backend = ENGINE_BACKEND_AUTO,
                              int64_t poll_max_ns = 0) {
        engine_context_config config = context_config(name, backend, poll_max_ns);
        return context(config);
    }
    engine_context_t* context(const engine_context_config& config) {
        engine_context_t* made = nullptr;
        Error error;
        int result = engine_context_create(engine_, &config, &made, &error);
        check::report(result == 0, __FILE__, __LINE__,
                      std::string("engine_context_create: ") + error.message);
        if (result != 0) throw check::Failure();
        return made;
    }

    using Options = std::initializer_list<engine_option>;
    int open(Options options, engine_node_t** node, engine_error* error) {
        return engine_node_open(engine_, options.begin(), options.size(), node, error);
    }
    engine_node_t* open(Options options) {
        engine_node_t* node = nullptr;
        Error error;
        int result = open(options, &node, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_node_open: ") + error.message);
        if (result != 0) throw check::Failure();
        return node;
    }

    static engine_user_t* user(engine_node_t* node, const char* name, uint32_t permissions = ENGINE_PERM_ALL,
                               uint32_t shared = ENGINE_PERM_ALL) {
        engine_user_t* made = nullptr;
        Error error;
        int result = engine_user_create(node, name, permissions, shared, &made, &error);
        check::report(result == 0, __FILE__, __LINE__, std::string("engine_user_create: ") + error.message);
        if (result != 0) throw check::Failure();
        return made;
    }

  private:
    engine_t* engine_ = nullptr;
};

inline int64_t io(engine_user_t* user, uint32_t op, void* buffer, uint64_t offset, uint64_t bytes,
                  uint32_t flags, engine_error* error, engine_context_t* context = nullptr) {
    engine_iovec part{buffer, static_cast<size_t>(bytes)};
    bool data = op == ENGINE_OP_READ || op == ENGINE_OP_WRITE;
    return engine_user_io(user, context, op, data ? &part : nullptr, data ? 1 : 0, offset, bytes, flags,
                          error);
}

inline engine_node_info info_of(engine_node_t* node) {
    engine_node_info info{};
    info.size = sizeof info;
    CHECK_EQ(engine_node_get_info(node, &info), 0);
    return info;
}

inline engine_context_stats stats_of(engine_context_t* context) {
    engine_context_stats stats{};
    stats.size = sizeof stats;
    CHECK_EQ(engine_context_get_stats(context, &stats), 0);
    return stats;
}

// Runs f on the context's own thread and waits until it has.
inline void run_on(engine_context_t* context, std::function<void()> f) {
    struct Piece {
        std::function<void()> f;
        std::atomic<bool> done{false};
    } piece{std::move(f)};
    int result = engine_schedule_oneshot(
        context,
        [](void* opaque) {
            auto* self = static_cast<Piece*>(opaque);
            self->f();
            self->done.store(true, std::memory_order_release);
        },
        &piece);
    REQUIRE(result == 0);
    REQUIRE(eventually([&] { return piece.done.load(std::memory_order_acquire); }));
}

// The exit status of f in a child process; 1000 + n where signal n ended it.
template <class F>
int in_child(F&& f) {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(f());
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

// A file of its own, gone at the end; in the working directory, so that it lies on a real file system.
class TempFile {
  public:
    explicit TempFile(uint64_t bytes) : name_("native-test-XXXXXX") {
        fd_ = mkostemp(name_.data(), O_CLOEXEC);
        std::vector<char> chunk(65536, 'd');
        bool good = fd_ >= 0;
        for (uint64_t at = 0; good && at < bytes; at += chunk.size()) {
            size_t length = bytes - at < chunk.size() ? static_cast<size_t>(bytes - at) : chunk.size();
            good = pwrite(fd_, chunk.data(), length, static_cast<off_t>(at)) == static_cast<ssize_t>(length);
        }
        check::report(good, __FILE__, __LINE__, "cannot write a temporary file");
        if (!good) throw check::Failure();
    }
    ~TempFile() {
        if (fd_ >= 0) ::close(fd_);
        unlink(name_.c_str());
    }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;

    const char* name() const { return name_.c_str(); }
    int fd() const { return fd_; }

  private:
    std::string name_;
    int fd_ = -1;
};

constexpr uint32_t both_backends[] = {ENGINE_BACKEND_IO_URING, ENGINE_BACKEND_THREADS};

}  // namespace embedder
