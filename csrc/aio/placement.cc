// A context's thread: start, pinning, scheduling policy, and what the kernel says became of them.
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "aio/context.hh"
#include "aio/sim.hh"
#include "base/clock.hh"
#include "base/error.hh"

namespace engine::aio {

namespace {

base::Atomic<uint64_t> next_context_id{1};

// The part of a cpu list such as "0-3,8" that a reader of an error message wants: the text of the file
// itself.
void online_cpus(char* text, size_t size) {
    base::copy_text(text, size, "?");
    FILE* file = fopen("/sys/devices/system/cpu/online", "re");
    if (file == nullptr) return;
    if (fgets(text, static_cast<int>(size), file) != nullptr) text[strcspn(text, "\n")] = '\0';
    fclose(file);
}

// Workers of io_uring are threads of this process named after the thread they serve.
void find_workers(int tid, engine_context_info* out) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, "iou-wrk-%d", tid);
    DIR* tasks = opendir("/proc/self/task");
    if (tasks == nullptr) return;
    while (dirent* entry = readdir(tasks)) {
        char path[300];
        char name[32] = {};
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE* file = fopen(path, "re");
        if (file == nullptr) continue;
        if (fgets(name, sizeof name, file) != nullptr) name[strcspn(name, "\n")] = '\0';
        fclose(file);
        if (strcmp(name, wanted) != 0) continue;
        uint64_t mask[ENGINE_CPU_WORDS] = {};
        if (syscall(SYS_sched_getaffinity, atoi(entry->d_name), sizeof mask, mask) > 0) {
            for (int i = 0; i < ENGINE_CPU_WORDS; i++) out->worker_cpus[i] |= mask[i];
        }
        out->worker_count++;
    }
    closedir(tasks);
}

void find_thread_times(int tid, engine_context_info* out) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE* file = fopen(path, "re");
    if (file != nullptr) {
        char line[1024];
        if (fgets(line, sizeof line, file) != nullptr) {
            const char* after = strrchr(line, ')');  // the name may hold anything
            unsigned long user = 0, system = 0;
            int cpu = -1;
            if (after != nullptr && sscanf(after + 1,
                                           " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d "
                                           "%*d %*d %*d %*u %*u %*d "
                                           "%*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*d %d",
                                           &user, &system, &cpu) == 3) {
                auto tick_ns = 1000000000ul / static_cast<unsigned long>(sysconf(_SC_CLK_TCK));
                out->cpu_user_ns = user * tick_ns;
                out->cpu_system_ns = system * tick_ns;
                out->last_cpu = cpu;
            }
        }
        fclose(file);
    }
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    file = fopen(path, "re");
    if (file == nullptr) return;
    char line[256];
    while (fgets(line, sizeof line, file) != nullptr) {
        sscanf(line, "voluntary_ctxt_switches: %lu", &out->voluntary_switches);
        sscanf(line, "nonvoluntary_ctxt_switches: %lu", &out->involuntary_switches);
    }
    fclose(file);
}

int node_of_cpu(int cpu) {
    if (cpu < 0) return -1;
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d", cpu);
    DIR* directory = opendir(path);
    if (directory == nullptr) return -1;
    int node = -1;
    while (dirent* entry = readdir(directory)) {
        if (sscanf(entry->d_name, "node%d", &node) == 1) break;
    }
    closedir(directory);
    return node;
}

}  // namespace

int AioContext::pin(engine_error* error) {
    if (config_.cpus.empty()) return 0;
    uint64_t mask[ENGINE_CPU_WORDS] = {};
    for (int cpu : config_.cpus) mask[cpu / 64] |= uint64_t{1} << (cpu % 64);
    base::Where where{.operation = "pin", .field = "cpus"};
    char online[128];
    online_cpus(online, sizeof online);
    long set = syscall(SYS_sched_setaffinity, 0, sizeof mask, mask);
    int refused = set < 0 ? errno : 0;
    uint64_t effective[ENGINE_CPU_WORDS] = {};
    if (syscall(SYS_sched_getaffinity, 0, sizeof effective, effective) < 0) {
        return base::fail_os(error, errno, where, "context %s: cannot read back its CPUs", name().c_str());
    }
    for (int cpu : config_.cpus) {
        if (refused != 0 || (effective[cpu / 64] >> (cpu % 64) & 1) == 0) {
            return base::fail(error, ENGINE_ERROR_INVALID, EINVAL, where,
                              "context %s: cannot run on CPU %d: not online or not allowed for this process "
                              "(online here: %s); choose others or leave cpus out",
                              name().c_str(), cpu, online);
        }
    }
    return 0;
}

int AioContext::set_up_thread(engine_error* error) {
    bind_to_this_thread();
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    char thread_name[16];
    base::copy_text(thread_name, name().c_str());
    pthread_setname_np(pthread_self(), thread_name);
    tid_.store_relaxed(static_cast<int32_t>(syscall(SYS_gettid)));

    int result = pin(error);
    if (result != 0) return result;
    if (config_.sched_policy != 0) {
        sched_param param{};
        param.sched_priority = config_.sched_priority;
        int failed = pthread_setschedparam(pthread_self(), config_.sched_policy, &param);
        if (failed != 0) {
            return base::fail_os(
                error, failed, {.operation = "schedule", .field = "sched-policy"},
                "context %s: cannot set scheduling policy %d, priority %d (needs CAP_SYS_NICE)",
                name().c_str(), config_.sched_policy, config_.sched_priority);
        }
    }
    return 0;
}

int AioContext::set_up(engine_error* error) {
    id_base_ = next_context_id.fetch_add_relaxed(1) << 48;
    poll_max_ns_.store_relaxed(config_.poll_max_ns < 0 ? default_poll_max_ns : config_.poll_max_ns);
    cpu_set_t workers;
    CPU_ZERO(&workers);
    for (int cpu : config_.cpus) CPU_SET(static_cast<size_t>(cpu), &workers);
    BackendChoice choice{
        .kind = config_.backend, .queue_depth = config_.queue_depth, .caller_driven = config_.caller_driven};
    if (!config_.cpus.empty()) {
        choice.worker_cpus = &workers;
        choice.worker_cpus_size = sizeof workers;
    }
    return make_backend(*this, choice, &backend_, backend_reason_, error);
}

void AioContext::thread_main(engine_error* error, int* result, Signal* started) {
    Home home(*this);
    try {
        *result = set_up_thread(error);
        if (*result == 0) *result = set_up(error);
    } catch (const std::bad_alloc&) {
        *result = base::fail(error, ENGINE_ERROR_LIMIT, ENOMEM, {.operation = "create context"},
                             "context %s: out of memory", name().c_str());
    }
    bool good = *result == 0;
    started->set();
    if (good) {
        run();
        wind_up();
    }
}

int AioContext::create(ContextConfig config, std::unique_ptr<AioContext>* out, engine_error* error) {
    base::clock_scale();
    std::unique_ptr<AioContext> context(new AioContext(std::move(config)));
    if (Simulator* simulator = context->config_.simulator; simulator != nullptr) {
        context->backend_ = simulator->join(*context);
        base::copy_text(context->backend_reason_, "simulated");
        *out = std::move(context);
        return 0;
    }
    if (context->config_.caller_driven) return create_driven(std::move(context), out, error);
    Signal started;
    int result = 0;
    AioContext* raw = context.get();
    context->thread_ =
        std::thread([raw, error, &result, &started] { raw->thread_main(error, &result, &started); });
    started.wait();
    if (result != 0) {
        context->thread_.join();
        return result;
    }
    *out = std::move(context);
    return 0;
}

// Its backend is made here, and enabled by the thread that will drive it.
int AioContext::create_driven(std::unique_ptr<AioContext> context, std::unique_ptr<AioContext>* out,
                              engine_error* error) {
    const ContextConfig& config = context->config_;
    if (!config.cpus.empty() || config.sched_policy != 0) {
        return base::fail(
            error, ENGINE_ERROR_INVALID, EINVAL,
            {.operation = "create context", .field = config.cpus.empty() ? "sched-policy" : "cpus"},
            "context %s is driven by its caller, whose thread it does not pin or schedule: leave "
            "CPUs and policy out",
            context->name().c_str());
    }
    context->caller_ = std::make_shared<CallerLoop>(*context);
    int result = context->caller_->open(error);
    if (result == 0) result = context->set_up(error);
    if (result == 0) *out = std::move(context);
    return result;
}

// From the moment that the gate is closed, whoever is refused there may free what belongs to it. So by then
// nothing here points to a timer or a poller of others any more, and what is sent until then adds none.
void AioContext::wind_up() noexcept {
    if (config_.turn_mutex != nullptr) config_.turn_mutex->lock();
    while (has_ready()) run_ready(UINT_MAX);
    timers_.abandon_all();
    while (Poller* poller = pollers_.front()) poller->unlink();
    backend_->forget_fds();
    // Nothing can be sent any more. What was accepted before still runs; who is just sending is waited for,
    // asleep, since it may need this CPU.
    gate_.close();
    for (timespec pause{0, 20000}; !gate_.empty();) nanosleep(&pause, nullptr);
    for (Message* message = inbox_.close(); message != nullptr;) {
        Message* next = message->next;
        message->run(message);
        message = next;
    }
    while (has_ready()) run_ready(UINT_MAX);
    if (config_.turn_mutex != nullptr) config_.turn_mutex->unlock();
}

AioContext::~AioContext() {
    ENGINE_CHECK(!thread_.joinable());
}

int AioContext::read_info(engine_context_info* out) const noexcept {
    out->backend = backend_->kind();
    base::copy_text(out->name, name().c_str());
    base::copy_text(out->backend_reason, backend_reason_);
    memset(out->cpus, 0, sizeof out->cpus);
    memset(out->worker_cpus, 0, sizeof out->worker_cpus);
    out->worker_count = 0;
    out->id = number();
    out->reserved0 = 0;
    out->tid = tid_.load_relaxed();
    out->last_cpu = -1;
    out->poll_max_ns = poll_max_ns_.load_relaxed();
    if (out->tid == 0) {  // nobody has driven it yet
        out->numa_node = -1;
        return 0;
    }
    if (syscall(SYS_sched_getaffinity, out->tid, sizeof out->cpus, out->cpus) < 0) return -errno;
    find_workers(out->tid, out);
    find_thread_times(out->tid, out);
    out->numa_node = node_of_cpu(out->last_cpu);
    return 0;
}

}  // namespace engine::aio
