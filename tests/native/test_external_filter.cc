// The external driver as a filter, its options, and what a child of a fork gets.
#include "external_bench.hh"

using namespace external_bench;

namespace {

struct Filtered {
    Engine engine;
    engine_node_t* below;
    engine_node_t* node;
    engine_user_t* user;
    Error error;

    explicit Filtered(const char* ops, const char* forward)
        : below(engine.open({{"driver", "external"},
                             {"node-name", "below"},
                             {"size", "1M"},
                             {"ops", "read,write,flush,discard,resize"}})),
          node(engine.open({{"driver", "external"},
                            {"node-name", "top"},
                            {"file", "below"},
                            {"discard", "unmap"},
                            {"ops", ops},
                            {"forward", forward}})),
          user(Engine::user(node, "test")) {}
    ~Filtered() { CHECK_EQ(engine_user_close(user, &error), 0); }
};

TEST(a_filter_passes_on_and_asks_below) {
    Filtered disk("read,write", "flush");
    Ram ram(disk.below);
    engine_external_t* external = attach(disk.node, "filter");
    char buffer[512] = "hello";
    {
        Asking asking(disk.user, ENGINE_OP_WRITE, buffer, 4096, 512);
        uint64_t id = take_one(external).id;
        CHECK_EQ(engine_external_forward(external, &id, 1), 1);
        CHECK_EQ(asking.result(), 512);
        CHECK_EQ(engine_external_forward(external, &id, 1), 0);
    }
    engine_user_t* child = engine_external_get_child(external);
    REQUIRE(child != nullptr);
    {
        char answer[512] = {};
        Asking asking(disk.user, ENGINE_OP_READ, answer, 4096, 512);
        engine_external_request request = take_one(external);
        auto* to = static_cast<char*>(request.iov[0].base);
        CHECK_EQ(io(child, ENGINE_OP_READ, to, request.offset, 512, 0, &disk.error), 512);
        to[0] = 'j';
        CHECK_EQ(complete_one(external, request.id, 0), 1);
        CHECK_EQ(asking.result(), 512);
        CHECK_EQ(std::string_view(answer), "jello");
    }
    CHECK_EQ(io(disk.user, ENGINE_OP_FLUSH, nullptr, 0, 0, 0, &disk.error),
             0);  // the program does not see it
    CHECK_EQ(ram.flushes.load(), 1);
    CHECK_EQ(io(disk.user, ENGINE_OP_RESIZE, nullptr, 4096, 0, 0, &disk.error), -ENOTSUP);
    CHECK_EQ(stats_of(external).forwarded, 1);
    CHECK_EQ(stats_of(external).requests, 2);
    CHECK_EQ(engine_external_close(external), 0);
}

TEST(a_size_goes_through) {
    Filtered disk("read,write", "flush,discard,resize");
    Ram ram(disk.below);
    CHECK_EQ(io(disk.user, ENGINE_OP_RESIZE, nullptr, 4096, 0, 0, &disk.error), 0);
    CHECK_EQ(io(disk.user, ENGINE_OP_DISCARD, nullptr, 0, 512, 0, &disk.error), 0);
    engine_node_info info = embedder::info_of(disk.node);
    CHECK_EQ(info.bytes, 4096);
    CHECK_EQ(info.ops, 1u << ENGINE_OP_READ | 1u << ENGINE_OP_WRITE | 1u << ENGINE_OP_FLUSH |
                           1u << ENGINE_OP_DISCARD | 1u << ENGINE_OP_RESIZE);
}

TEST(options_are_checked) {
    Engine engine;
    const struct {
        const char *key, *value, *text;
    } wrong[] = {
        {"ops", "read,wrote", "ops = read,wrote: a list of read, write"},
        {"forward", "all", "forward = all: a list"},
        {"request-alignment", "3", "a power of two"},
        {"memory-alignment", "2M", "memory-alignment"},
        {"request-alignment", "2M", "request-alignment"},
        {"size", "1000", "not a multiple of the alignment"},
        {"timeout", "2h", "timeout"},
    };
    for (const auto& one : wrong) {
        engine_node_t* node = nullptr;
        Error error;
        bool size = strcmp(one.key, "size") == 0;
        CHECK_EQ(engine.open({{"driver", "external"},
                              {size ? "request-alignment" : "size", size ? "512" : "1M"},
                              {one.key, one.value}},
                             &node, &error),
                 -EINVAL);
        CHECK(error.says(one.text));
        CHECK_EQ(std::string_view(error.field), one.key);
    }
    engine_node_t* node = nullptr;
    Error error;
    CHECK_EQ(engine.open({{"driver", "external"}}, &node, &error), -EINVAL);
    CHECK(error.says("size = (none): needed where there is no node below"));
}

TEST(a_child_of_a_fork_is_refused) {
#if !defined(EMBEDDER_TSAN)
    Served disk;
    engine_external_t* external = attach(disk.node);
    CHECK_EQ(embedder::in_child([&] {
                 engine_external_request request;
                 bool good =
                     engine_external_take(external, &request, 1, for_ever) == -EBADF &&
                     complete_one(external, 1, 0) == -EBADF && engine_external_stop(external) == -EBADF &&
                     engine_external_close(external) == -EBADF && engine_external_get_fd(external) == -EBADF;
                 return good ? 0 : 1;
             }),
             0);
    CHECK_EQ(engine_external_close(external), 0);
#else
    CHECK(true);
#endif
}

}  // namespace
