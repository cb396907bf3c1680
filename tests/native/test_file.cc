// The file driver over both backends: reads, writes, errors, O_DIRECT.
#include <errno.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "file_bench.hh"

using namespace file_bench;

namespace {

// --- reads and writes

BOTH(data_comes_back) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    engine_node_t* node = bench.file(path);
    CHECK_EQ(bench.info(node).bytes, MiB);
    CHECK_EQ(bench.info(node).request_alignment, 1u);
    auto data = pattern(100001, 1);
    CHECK_EQ(bench.write(node, data.data(), 12345, data.size()), data.size());
    std::vector<char> back(data.size());
    CHECK_EQ(bench.read(node, back.data(), 12345, back.size()), back.size());
    CHECK(data == back);
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    CHECK_EQ(pread(fd, back.data(), back.size(), 12345), static_cast<ssize_t>(back.size()));
    CHECK(data == back);
    close(fd);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
}

BOTH(far_offsets) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", uint64_t{5} << 30));
    auto data = pattern(8192, 2);
    uint64_t offsets[] = {(uint64_t{4} << 30) - 4096, (uint64_t{4} << 30) + 12345,
                          (uint64_t{5} << 30) - 8192};
    for (uint64_t offset : offsets) {
        std::vector<char> back(8192);
        CHECK_EQ(bench.write(node, data.data(), offset, data.size()), 8192);
        CHECK_EQ(bench.read(node, back.data(), offset, back.size()), 8192);
        CHECK(data == back);
    }
    char byte = 1;
    CHECK_EQ(bench.read(node, &byte, (uint64_t{4} << 30) - 4097, 1), 1);
    CHECK(byte == 0);
}

BOTH(past_the_end) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", 10000));
    char data[100] = {};
    CHECK_EQ(bench.read(node, data, 9900, 100), 100);
    CHECK_EQ(bench.read(node, data, 9901, 100), -EINVAL);
    CHECK(bench.says("past the end"));
    CHECK_EQ(bench.write(node, data, 10000, 1), -EINVAL);
    CHECK_EQ(bench.write(node, data, UINT64_MAX, 2), -EINVAL);
}

BOTH(vectors_of_many_parts) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = bench.file(folder.make("a.img", 4 * MiB));
    auto data = pattern(2 * MiB, 3);
    std::vector<iovec> parts;
    for (size_t at = 0; at < data.size();) {
        size_t length =
            std::min<size_t>(parts.size() % 3 == 0 ? 1 : 1 + parts.size() % 1500, data.size() - at);
        parts.push_back({data.data() + at, length});
        if (parts.size() % 7 == 0) parts.push_back({nullptr, 0});
        at += length;
    }
    REQUIRE(parts.size() > 3 * 1024);
    CHECK_EQ(submit_vector(bench, node, block::Op::write, parts, 4097), 0);
    std::vector<char> back(data.size());
    CHECK_EQ(bench.read(node, back.data(), 4097, back.size()), back.size());
    CHECK(data == back);
    std::vector<char> again(data.size());
    for (iovec& part : parts) {
        if (part.iov_base != nullptr)
            part.iov_base = again.data() + (static_cast<char*>(part.iov_base) - data.data());
    }
    CHECK_EQ(submit_vector(bench, node, block::Op::read, parts, 4097), 0);
    CHECK(data == again);
}

// More bytes than the kernel moves in one call, and a part longer than that: all parts name the same memory.
BOTH(more_than_two_gigabytes) {
    Folder folder;
    Bench bench(backend);
    constexpr uint64_t size = 2112 * MiB;
    engine_node_t* node = bench.file(folder.make("a.img", size));
    auto mark = pattern(4096, 4);
    CHECK_EQ(bench.write(node, mark.data(), size - 4096, 4096), 4096);
    std::vector<char> window(16 * MiB, 'x');
    std::vector<iovec> parts(size / window.size(), iovec{window.data(), window.size()});
    CHECK_EQ(submit_vector(bench, node, block::Op::read, parts, 0), 0);
    CHECK(all_zero(window.data(), window.size() - 4096));
    CHECK(memcmp(window.data() + window.size() - 4096, mark.data(), 4096) == 0);
}

// A file that somebody else has cut reads as zeroes, as with QEMU.
BOTH(a_file_cut_behind_our_back) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", 65536);
    engine_node_t* node = bench.file(path);
    auto data = pattern(65536, 5);
    CHECK_EQ(bench.write(node, data.data(), 0, data.size()), 65536);
    REQUIRE(truncate(path.c_str(), 20001) == 0);
    std::vector<char> one(7000, 'x'), two(58536, 'x');
    engine_iovec parts[] = {{one.data(), one.size()}, {two.data(), two.size()}};
    CHECK_EQ(engine_user_io(api::wrap(bench.user(node)), bench.context, ENGINE_OP_READ, parts, 2, 0, 65536, 0,
                            bench.clean()),
             65536);
    CHECK(memcmp(one.data(), data.data(), one.size()) == 0);
    CHECK(memcmp(two.data(), data.data() + 7000, 13001) == 0);
    CHECK(all_zero(two.data() + 13001, two.size() - 13001));
    CHECK_EQ(bench.read(node, one.data(), 50000, 7000), 7000);
    CHECK(all_zero(one.data(), one.size()));
}

// --- errors

BOTH(a_full_disk_is_an_error_with_node_and_offset) {
    // A limit on the size of files stands for a full file system: the transfer stops in the middle.
    Folder folder;
    rlimit before{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    signal(SIGXFSZ, SIG_IGN);
    std::string path = folder.make("a.img", 0);
    REQUIRE(truncate(path.c_str(), 2 * MiB) == 0);
    rlimit limit{MiB, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    {
        Bench bench(backend);
        engine_node_t* node = bench.file(path, {{"node-name", "disk"}});
        auto data = pattern(65536, 6);
        CHECK_EQ(bench.write(node, data.data(), MiB - 4096, data.size()), -EFBIG);
        CHECK_EQ(bench.error.errnum, EFBIG);
        CHECK_EQ(bench.error.kind, static_cast<uint32_t>(ENGINE_ERROR_OS));
        CHECK_EQ(bench.error.offset, MiB);  // what came before it was written
        CHECK_EQ(std::string(bench.error.node), "disk");
        CHECK_EQ(std::string(bench.error.operation), "write");
        CHECK(bench.error.request_id != 0);
        CHECK(bench.says("a.img"));
        std::vector<char> back(4096);
        CHECK_EQ(bench.read(node, back.data(), MiB - 4096, 4096), 4096);
        CHECK(memcmp(back.data(), data.data(), 4096) == 0);
        CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 4 * MiB, 0), -EFBIG);
        CHECK_EQ(bench.info(node).bytes, 2 * MiB);
        CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);  // nothing was lost
    }
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
}

BOTH(what_cannot_be_opened) {
    Folder folder;
    Bench bench(backend);
    engine_node_t* node = nullptr;
    auto open_it = [&](const std::string& path, Options more = {}) {
        more["driver"] = "file";
        more["filename"] = path;
        return bench.try_open(more, &node);
    };
    CHECK_EQ(open_it(folder.path() + "/missing"), -ENOENT);
    CHECK(bench.says("/missing"));
    CHECK(bench.says("check the name"));
    CHECK_EQ(std::string(bench.error.field), "filename");
    CHECK_EQ(open_it(""), -EINVAL);
    CHECK_EQ(open_it(folder.path()), -EISDIR);
    CHECK(bench.says("is a directory"));
    std::string fifo = folder.name("fifo");
    REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
    CHECK_EQ(open_it(fifo), -EINVAL);  // and does not wait for its other end
    CHECK(bench.says("is a FIFO"));
    CHECK_EQ(open_it(fifo, {{"read-only", "on"}}), -EINVAL);
    CHECK_EQ(open_it("/dev/null"), -EINVAL);
    CHECK(bench.says("is a character device"));
    std::string socket_path = folder.name("socket");
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, socket_path.c_str(), sizeof address.sun_path - 1);
    REQUIRE(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    CHECK_EQ(open_it(socket_path), -EINVAL);
    CHECK(bench.says("is a socket"));
    close(listener);
    std::string loop = folder.name("loop");
    REQUIRE(symlink(loop.c_str(), loop.c_str()) == 0);
    CHECK_EQ(open_it(loop), -ELOOP);
    std::string path = folder.make("a.img", 4096);
    CHECK_EQ(open_it(path + "/below"), -ENOTDIR);
    CHECK_EQ(open_it(path, {{"locking", "perhaps"}}), -EINVAL);
    CHECK_EQ(std::string(bench.error.field), "locking");
    CHECK_EQ(open_it(path, {{"aio", "native"}}), -EINVAL);  // the context decides
    CHECK_EQ(bench.try_open({{"driver", "file"}}, &node), -EINVAL);
}

// Root may read everything, so this one is somebody else, in a child process.
BOTH(what_may_not_be_read) {
    Folder folder;
    std::string path = folder.make("a.img", 4096);
    REQUIRE(chmod(path.c_str(), 0400) == 0);
    REQUIRE(chmod(folder.path().c_str(), 0755) == 0);
    fflush(nullptr);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (geteuid() == 0 && (chown(path.c_str(), 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0))
            _exit(2);
        int code = 0;
        {
            Bench bench(backend);
            engine_node_t* node = nullptr;
            if (bench.try_open({{"driver", "file"}, {"filename", path}}, &node) != -EACCES) code = 3;
            if (!bench.says("read-only=on")) code = 4;
            if (bench.try_open({{"driver", "file"}, {"filename", path}, {"read-only", "on"}}, &node) != 0)
                code = 5;
            if (chmod(path.c_str(), 0) != 0) code = 6;
            engine_node_t* other = nullptr;
            if (bench.try_open({{"driver", "file"}, {"filename", path}, {"read-only", "on"}}, &other) !=
                -EACCES)
                code = 7;
            if (!bench.says("may not read")) code = 8;
        }
        _exit(code);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

// A file name means nothing but a file name.
BOTH(names_are_plain) {
    Folder folder;
    Bench bench(backend);
    for (const char* name : {"a:b.img", "json:{}", "nbd:localhost", "file:x", "%41", "-"}) {
        engine_node_t* node = bench.file(folder.make(name, 512));
        CHECK_EQ(bench.info(node).bytes, 512u);
        CHECK(strstr(bench.info(node).filename, name) != nullptr);
    }
}

BOTH(read_only_files) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", 4096);
    engine_node_t* node = bench.file(path, {{"read-only", "on"}});
    char data[512] = {};
    CHECK_EQ(bench.read(node, data, 0, 512), 512);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    CHECK(bench.write(node, data, 0, 512) < 0);
    CHECK_EQ(bench.info(node).ops & (1u << ENGINE_OP_WRITE), 0u);
}

// --- O_DIRECT

BOTH(direct_reads_and_writes) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    if (!has_direct(path)) return;
    engine_node_t* node = bench.file(path, {{"cache.direct", "on"}});
    uint32_t alignment = bench.info(node).request_alignment;
    CHECK(alignment >= 512 && alignment <= 4096);
    CHECK_EQ(bench.info(node).memory_alignment, alignment);
    auto data = pattern(65536, 7);
    Aligned out(65536), back(65536);
    memcpy(out.base, data.data(), data.size());
    CHECK_EQ(bench.write(node, out.base, 8192, 65536), 65536);
    CHECK_EQ(bench.read(node, back.base, 8192, 65536), 65536);
    CHECK(memcmp(out.base, back.base, 65536) == 0);
    // Many parts, more than one call takes: split between blocks.
    std::vector<iovec> parts;
    Aligned many(size_t{1500} * alignment);
    for (size_t i = 0; i < 1500; i++) parts.push_back({many.base + i * alignment, alignment});
    std::string big = folder.make("b.img", many.bytes);
    engine_node_t* other = bench.file(big, {{"cache.direct", "on"}});
    std::vector<char> content(many.bytes);
    fill(content, 8);
    memcpy(many.base, content.data(), many.bytes);
    CHECK_EQ(submit_vector(bench, other, block::Op::write, parts, 0), 0);
    memset(many.base, 0, many.bytes);
    CHECK_EQ(submit_vector(bench, other, block::Op::read, parts, 0), 0);
    CHECK(memcmp(many.base, content.data(), many.bytes) == 0);
}

BOTH(direct_without_alignment) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", MiB);
    if (!has_direct(path)) return;
    auto data = pattern(MiB, 11);
    int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    REQUIRE(pwrite(fd, data.data(), data.size(), 0) == static_cast<ssize_t>(data.size()));
    REQUIRE(fsync(fd) == 0);
    close(fd);
    engine_node_t* node = bench.file(path, {{"cache.direct", "on"}});
    std::vector<char> buffer(200001);
    const struct {
        size_t shift;
        uint64_t offset, bytes;
    } ways[] = {{1, 0, 4096}, {0, 1, 4096}, {0, 0, 100}, {1, 5000, 200000}, {1, MiB - 3, 3}, {0, 4095, 2}};
    for (const auto& way : ways) {
        CHECK_EQ(bench.read(node, &buffer[way.shift], way.offset, way.bytes), way.bytes);
        CHECK(memcmp(&buffer[way.shift], &data[way.offset], way.bytes) == 0);
        memset(&buffer[way.shift], 'w', way.bytes);
        memset(&data[way.offset], 'w', way.bytes);
        CHECK_EQ(bench.write(node, &buffer[way.shift], way.offset, way.bytes), way.bytes);
    }
    std::vector<char> back(MiB);
    CHECK_EQ(bench.read(node, back.data(), 0, MiB), MiB);
    CHECK(memcmp(back.data(), data.data(), MiB) == 0);
}

// The last block of a file that ends within it: the rest reads as zeroes; a write fills the file up to the
// block.
BOTH(direct_with_a_ragged_end) {
    Folder folder;
    Bench bench(backend);
    std::string path = folder.make("a.img", 10001);
    if (!has_direct(path)) return;
    auto data = pattern(10001, 9);
    int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    REQUIRE(pwrite(fd, data.data(), data.size(), 0) == 10001);
    engine_node_t* node = bench.file(path, {{"cache.direct", "on"}});
    uint64_t alignment = bench.info(node).request_alignment;
    uint64_t rounded = (10001 + alignment - 1) / alignment * alignment;
    CHECK_EQ(bench.info(node).bytes, rounded);
    Aligned back(16384);
    memset(back.base, 'x', back.bytes);
    CHECK_EQ(bench.read(node, back.base, 0, rounded), rounded);
    CHECK(memcmp(back.base, data.data(), 10001) == 0);
    CHECK(all_zero(back.base + 10001, rounded - 10001));
    auto found = bench.extents(node, 0, rounded);
    REQUIRE(!found.empty());
    CHECK_EQ(found[0].length % alignment, 0u);
    struct stat status{};
    REQUIRE(fstat(fd, &status) == 0);
    CHECK_EQ(status.st_size, 10001);  // reading changes nothing
    CHECK_EQ(bench.write(node, back.base + rounded - alignment, rounded - alignment, alignment), alignment);
    REQUIRE(fstat(fd, &status) == 0);
    CHECK_EQ(static_cast<uint64_t>(status.st_size), rounded);
    close(fd);
}

}  // namespace
