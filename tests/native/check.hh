// The harness of the native tests: TEST registers, CHECK counts a failure and goes on, REQUIRE ends the test.
// One executable is one source file; arguments are parts of test names, any of which selects a test.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace check {

struct Failure {};  // thrown by REQUIRE

struct Test {
    const char* name;
    void (*run)();
    Test* next = nullptr;

    Test(const char* test_name, void (*function)()) : name(test_name), run(function) {
        *tail() = this;
        tail() = &next;
    }
    static Test*& first() {
        static Test* test = nullptr;
        return test;
    }
    static Test**& tail() {
        static Test** link = &first();
        return link;
    }
};

// Of the running test. CHECK may be used from any thread.
inline std::atomic<unsigned> failures{0};

// Where a failure ends the process, as in a fuzzer: called once it has been told.
inline void (*fatal)() = nullptr;

inline bool report(bool good, const char* file, int line, const std::string& what) {
    if (good) return true;
    failures.fetch_add(1);
    fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    if (fatal != nullptr) fatal();
    return false;
}

template <class T>
std::string show(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
        return value ? "true" : "false";
    } else if constexpr (std::is_enum_v<T>) {
        return std::to_string(static_cast<int64_t>(value));
    } else if constexpr (std::is_arithmetic_v<T>) {
        return std::to_string(value);
    } else if constexpr (std::is_null_pointer_v<T>) {
        return "nullptr";
    } else if constexpr (std::is_convertible_v<const T&, std::string_view>) {
        return '"' + std::string(std::string_view(value)) + '"';
    } else if constexpr (std::is_pointer_v<T>) {
        char text[32];
        snprintf(text, sizeof text, "%p", reinterpret_cast<const void*>(value));
        return text;
    } else {
        return "(an object)";
    }
}

// Out of line: inlined everywhere it takes a third of a test's time to compile, and g++ 12 warns of it.
[[gnu::noinline]] inline bool report_difference(const char* file, int line, const char* text,
                                                const std::string& a, const std::string& b) {
    std::string all = text;
    all.append(": ").append(a).append(" against ").append(b);
    return report(false, file, line, all);
}

template <class A, class B>
bool report_equal(const A& a, const B& b, const char* file, int line, const char* text) {
    bool good;
    constexpr bool numbers = std::is_integral_v<A> && std::is_integral_v<B>;
    constexpr bool others = std::is_same_v<A, bool> || std::is_same_v<B, bool> || std::is_same_v<A, char> ||
                            std::is_same_v<B, char>;
    if constexpr (numbers && !others) {
        good = std::cmp_equal(a, b);
    } else if constexpr (std::is_convertible_v<const A&, std::string_view> &&
                         std::is_convertible_v<const B&, std::string_view>) {
        good = std::string_view(a) == std::string_view(b);
    } else {
        good = a == b;
    }
    return good || report_difference(file, line, text, show(a), show(b));
}

// Runs `f` in a child process and returns what it wrote to standard error, if it ended by SIGABRT; "" if not.
template <class F>
std::string abort_message(F&& f) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return "";
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);  // no report of a sanitizer, no core
        f();
        _exit(0);
    }
    close(ends[1]);
    std::string text = " ";
    char part[256];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return "";
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? text : "";
}

inline bool selected(const char* name, int argc, char** argv) {
    for (int i = 1; i < argc; i++) {
        if (strstr(name, argv[i]) != nullptr) return true;
    }
    return argc < 2;
}

inline double seconds() {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) / 1e9;
}

inline int run_all(int argc, char** argv) {
    unsigned passed = 0;
    unsigned failed = 0;
    for (Test* test = Test::first(); test != nullptr; test = test->next) {
        if (!selected(test->name, argc, argv)) continue;
        failures = 0;
        double start = seconds();
        try {
            test->run();
        } catch (const Failure&) {
        }
        bool good = failures == 0;
        (good ? passed : failed)++;
        printf("%s %s (%.3f s)\n", good ? "ok  " : "FAIL", test->name, seconds() - start);
        fflush(stdout);
    }
    printf("%u passed, %u failed\n", passed, failed);
    return failed != 0 || passed == 0 ? 1 : 0;
}

}  // namespace check

#define TEST(name)                                              \
    static void test_##name();                                  \
    static ::check::Test registered_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(expression) \
    ::check::report(static_cast<bool>(expression), __FILE__, __LINE__, "CHECK(" #expression ")")
#define CHECK_EQ(a, b) ::check::report_equal((a), (b), __FILE__, __LINE__, "CHECK_EQ(" #a ", " #b ")")
#define REQUIRE(expression)                                                     \
    do {                                                                        \
        if (!::check::report(static_cast<bool>(expression), __FILE__, __LINE__, \
                             "REQUIRE(" #expression ")")) {                     \
            throw ::check::Failure();                                           \
        }                                                                       \
    } while (0)
// The statements must abort the process and say `text` on standard error.
#define CHECK_ABORTS(text, ...)                                                                           \
    do {                                                                                                  \
        std::string check_message = ::check::abort_message([&] { __VA_ARGS__; });                         \
        ::check::report(check_message.find(text) != std::string::npos, __FILE__, __LINE__,                \
                        std::string("CHECK_ABORTS(") + (text) +                                           \
                            "): " + (check_message.empty() ? std::string("it did not") : check_message)); \
    } while (0)

#ifndef CHECK_WITHOUT_MAIN
int main(int argc, char** argv) {
    return ::check::run_all(argc, argv);
}
#endif
