// What the programs of this folder share: opening an engine over the C interface, and ending with one clear
// line when something fails. They are embedders: they include engine.h and nothing else of the core. No lock.
#pragma once

#include <engine/engine.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace micro {

[[noreturn]] inline void fail(const char* what, const char* why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

inline void must(int result, const char* what, const engine_error& error) {
    if (result != 0) fail(what, error.message[0] != '\0' ? error.message : strerror(-result));
}

inline void must(int result, const char* what) {
    if (result != 0) fail(what, strerror(result < 0 ? -result : result));
}

inline uint64_t number(const char* text, const char* what) {
    char* end = nullptr;
    uint64_t value = strtoull(text, &end, 10);
    if (end == text || *end != '\0') fail(what, "not a number");
    return value;
}

inline engine_error make_error() {
    engine_error error{};
    error.size = sizeof error;
    return error;
}

// An engine that closes itself.
class Engine {
  public:
    // The backend is that of `main` and of every context.
    explicit Engine(uint32_t backend = ENGINE_BACKEND_AUTO) : backend_(backend) {
        engine_config config{};
        config.size = sizeof config;
        config.backend = backend;
        must(engine_create(&config, &engine_, &error_), "engine_create", error_);
    }
    ~Engine() { must(engine_close(engine_, &error_), "engine_close", error_); }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Pinned to one CPU; -1: not pinned.
    engine_context_t* add_context(const char* name, int32_t cpu, int64_t poll_max_ns) {
        engine_context_config config{};
        config.size = sizeof config;
        config.name = name;
        config.cpus = cpu >= 0 ? &cpu : nullptr;
        config.cpu_count = cpu >= 0 ? 1 : 0;
        config.poll_max_ns = poll_max_ns;
        config.backend = backend_;
        engine_context_t* context = nullptr;
        must(engine_context_create(engine_, &config, &context, &error_), name, error_);
        return context;
    }

    engine_node_t* open(const engine_option* options, size_t count) {
        engine_node_t* node = nullptr;
        must(engine_node_open(engine_, options, count, &node, &error_), "engine_node_open", error_);
        return node;
    }

    engine_t* get() const { return engine_; }

  private:
    uint32_t backend_;
    engine_t* engine_ = nullptr;
    engine_error error_ = make_error();
};

// 4 KiB random reads at a given depth, over a node or through a virtqueue, of a null node, bare or under so
// many do-nothing filters, or of a file: opened, and closed in order.
class Load {
  public:
    // `filename` NULL: a null node; "filters=N": under filters; "trace=N": one request in N is traced.
    // `count` 0: until stop(). `rate` 0: closed loop.
    Load(Engine& engine, engine_context_t* context, const char* filename, bool over_queue, uint32_t depth,
         uint64_t count, uint64_t rate = 0) {
        open_node(engine, filename);
        engine_workload_config config{};
        config.size = sizeof config;
        config.pattern = ENGINE_RANDOM;
        config.read_percent = 100;
        config.block_size = 4096;
        config.iodepth = depth;
        config.count = count;
        config.rate_iops = rate;
        config.runtime_ns = count == 0 ? 60'000'000'000 : 0;
        config.seed = 1;
        if (traced(filename)) config.trace_every = static_cast<uint32_t>(number(filename + 6, "trace"));
        if (over_queue) {
            config.queue = open_queue(context);
        } else {
            must(engine_user_create(node_, "load", ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL, &user_,
                                    &error_),
                 "engine_user_create", error_);
            config.user = user_;
            config.context = context;
        }
        must(engine_workload_create(engine.get(), &config, &workload_, &error_), "engine_workload_create",
             error_);
    }

    ~Load() {
        must(engine_workload_close(workload_), "engine_workload_close");
        if (user_ != nullptr) must(engine_user_close(user_, &error_), "engine_user_close", error_);
        if (disk_ != nullptr) must(engine_disk_close(disk_, &error_), "engine_disk_close", error_);
        must(engine_node_close(node_, &error_), "engine_node_close", error_);
    }
    Load(const Load&) = delete;
    Load& operator=(const Load&) = delete;

    void start() { must(engine_workload_start(workload_, &error_), "engine_workload_start", error_); }
    void stop() { must(engine_workload_stop(workload_), "engine_workload_stop"); }
    void wait() { must(engine_workload_wait(workload_, UINT64_MAX), "engine_workload_wait"); }

    // The figures until now; every request must have succeeded.
    const engine_workload_result& result() {
        result_.size = sizeof result_;
        must(engine_workload_get_result(workload_, &result_), "engine_workload_get_result");
        if (result_.errors != 0) fail("workload", strerror(result_.error_errnum));
        return result_;
    }

  private:
    void open_node(Engine& engine, const char* filename) {
        if (filename == nullptr || traced(filename)) {
            const engine_option options[] = {{"driver", "null"}, {"size", "1G"}, {"node-name", "disk"}};
            node_ = engine.open(options, 3);
        } else if (strncmp(filename, "filters=", 8) == 0) {
            open_filters(engine, number(filename + 8, "filters"));
        } else {
            const engine_option options[] = {{"driver", "raw"},
                                             {"node-name", "disk"},
                                             {"read-only", "on"},
                                             {"file.driver", "file"},
                                             {"file.filename", filename}};
            node_ = engine.open(options, 5);
        }
    }

    static bool traced(const char* filename) {
        return filename != nullptr && strncmp(filename, "trace=", 6) == 0;
    }

    void open_filters(Engine& engine, uint64_t count) {
        std::vector<std::pair<std::string, const char*>> named;
        std::string place;
        for (; count != 0; count--) {
            named.emplace_back(place + "driver", "passthrough");
            place += "file.";
        }
        named.emplace_back(place + "driver", "null");
        named.emplace_back(place + "size", "1G");
        std::vector<engine_option> options;
        for (const auto& [key, value] : named) options.push_back({key.c_str(), value});
        node_ = engine.open(options.data(), options.size());
    }

    engine_queue_t* open_queue(engine_context_t* context) {
        engine_disk_config config{};
        config.size = sizeof config;
        config.queue_count = 1;
        config.read_only = 1;
        config.event_index = 1;
        config.indirect = 1;
        config.name = "disk0";
        config.contexts = &context;
        must(engine_disk_create(node_, &config, &disk_, &error_), "engine_disk_create", error_);
        return engine_disk_get_queue(disk_, 0);
    }

    engine_node_t* node_ = nullptr;
    engine_user_t* user_ = nullptr;
    engine_disk_t* disk_ = nullptr;
    engine_workload_t* workload_ = nullptr;
    engine_error error_ = make_error();
    engine_workload_result result_{};
};

inline bool names_queue(const char* text) {
    if (strcmp(text, "queue") == 0) return true;
    if (strcmp(text, "node") != 0) fail(text, "neither node nor queue");
    return false;
}

}  // namespace micro
