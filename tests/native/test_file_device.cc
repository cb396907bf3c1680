// The file driver on a block device: a loop device of this test's own. Without the right to make one there is
// nothing to test here, and it says so.
#include <errno.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include "file_bench.hh"

using namespace file_bench;

namespace {

class LoopDevice {
  public:
    explicit LoopDevice(const std::string& image, int block_size = 512) {
        int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
        if (control < 0) return;
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        close(control);
        if (number < 0) return;
        path_ = "/dev/loop" + std::to_string(number);
        int backing = open(image.c_str(), O_RDWR | O_CLOEXEC);
        fd_ = open(path_.c_str(), O_RDWR | O_CLOEXEC);
        loop_config config{};
        config.fd = static_cast<uint32_t>(backing);
        config.block_size = static_cast<uint32_t>(block_size);
        if (fd_ >= 0 && ioctl(fd_, LOOP_CONFIGURE, &config) != 0) {
            close(fd_);
            fd_ = -1;
        }
        close(backing);
        if (fd_ < 0) printf("     skipped: no loop device to be had\n");
    }
    ~LoopDevice() {
        if (fd_ < 0) return;
        ioctl(fd_, LOOP_CLR_FD);
        close(fd_);
    }
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;
    bool works() const { return fd_ >= 0; }
    const std::string& path() const { return path_; }
    int fd() const { return fd_; }

  private:
    std::string path_;
    int fd_ = -1;
};

BOTH(a_device_reads_and_writes) {
    Folder folder;
    LoopDevice device(folder.make("a.img", 4 * MiB));
    if (!device.works()) return;
    Bench bench(backend);
    engine_node_t* node = bench.file(device.path());
    CHECK_EQ(bench.info(node).bytes, 4 * MiB);
    CHECK_EQ(bench.info(node).holes, 0u);
    auto data = pattern(65536, 1);
    std::vector<char> back(65536);
    CHECK_EQ(bench.write(node, data.data(), 1001, data.size()), data.size());
    CHECK_EQ(bench.read(node, back.data(), 1001, back.size()), back.size());
    CHECK(data == back);
    CHECK_EQ(bench.io(node, ENGINE_OP_FLUSH, nullptr, 0, 0), 0);
    check_extents(bench.extents(node, 512, 4096), {{512, 4096, DATA, 0}});
    CHECK_EQ(bench.read(node, back.data(), 4 * MiB - 1, 2), -EINVAL);
}

// Zeroes and discards work in blocks; what is smaller is written, or left alone.
BOTH(a_device_zeroes_and_discards) {
    Folder folder;
    LoopDevice device(folder.make("a.img", 4 * MiB), 4096);
    if (!device.works()) return;
    Bench bench(backend);
    engine_node_t* node = bench.file(device.path(), {{"discard", "unmap"}});
    auto data = pattern(MiB, 2);
    std::vector<char> back(MiB);
    for (uint32_t flags : {0u, uint32_t{ENGINE_MAY_UNMAP}}) {
        for (uint64_t offset : {uint64_t{4096}, uint64_t{5000}}) {
            CHECK_EQ(bench.write(node, data.data(), 0, MiB), MiB);
            CHECK_EQ(bench.io(node, ENGINE_OP_WRITE_ZEROES, nullptr, offset, 65536, flags), 0);
            CHECK_EQ(bench.read(node, back.data(), 0, MiB), MiB);
            CHECK(memcmp(back.data(), data.data(), offset) == 0);
            CHECK(all_zero(back.data() + offset, 65536));
            CHECK(memcmp(back.data() + offset + 65536, data.data() + offset + 65536, MiB - offset - 65536) ==
                  0);
        }
    }
    CHECK_EQ(bench.write(node, data.data(), 0, MiB), MiB);
    CHECK_EQ(bench.io(node, ENGINE_OP_DISCARD, nullptr, 5000, 65536), 0);
    CHECK_EQ(bench.io(node, ENGINE_OP_DISCARD, nullptr, 200000, 100), 0);
    CHECK_EQ(bench.read(node, back.data(), 0, MiB), MiB);
    CHECK(memcmp(back.data(), data.data(), 8192) == 0);  // a part of a block is kept
    CHECK(all_zero(back.data() + 8192, 69632 - 8192));
    CHECK(memcmp(back.data() + 69632, data.data() + 69632, MiB - 69632) == 0);
}

BOTH(a_device_keeps_its_size) {
    Folder folder;
    std::string image = folder.make("a.img", 4 * MiB);
    LoopDevice device(image);
    if (!device.works()) return;
    Bench bench(backend);
    engine_node_t* node = bench.file(device.path());
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 2 * MiB, 0), -ENOTSUP);
    CHECK(bench.says("is a device"));
    CHECK_EQ(bench.error.kind, static_cast<uint32_t>(ENGINE_ERROR_UNSUPPORTED));
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 8 * MiB, 0), -ENOTSUP);
    CHECK_EQ(bench.info(node).bytes, 4 * MiB);
    REQUIRE(truncate(image.c_str(), 8 * MiB) == 0);
    REQUIRE(ioctl(device.fd(), LOOP_SET_CAPACITY) == 0);
    CHECK_EQ(bench.io(node, ENGINE_OP_RESIZE, nullptr, 8 * MiB, 0), 0);  // it has grown by other means
    CHECK_EQ(bench.info(node).bytes, 8 * MiB);
    char byte = 'x';
    CHECK_EQ(bench.write(node, &byte, 8 * MiB - 1, 1), 1);
}

BOTH(a_device_tells_its_alignment) {
    for (int block_size : {512, 4096}) {
        Folder folder;
        LoopDevice device(folder.make("a.img", 4 * MiB), block_size);
        if (!device.works()) return;
        Bench bench(backend);
        engine_node_t* node = bench.file(device.path(), {{"cache.direct", "on"}});
        CHECK_EQ(bench.info(node).request_alignment, static_cast<uint32_t>(block_size));
        auto data = pattern(65536, 3);
        Aligned out(65536), back(65536);
        memcpy(out.base, data.data(), data.size());
        CHECK_EQ(bench.write(node, out.base, 4096, 65536), 65536);
        CHECK_EQ(bench.read(node, back.base, 4096, 65536), 65536);
        CHECK(memcmp(out.base, back.base, 65536) == 0);
    }
}

BOTH(a_device_has_one_writer) {
    Folder folder;
    LoopDevice device(folder.make("a.img", 4 * MiB));
    if (!device.works()) return;
    Bench bench(backend);
    bench.file(device.path());
    engine_node_t* second = nullptr;
    CHECK_EQ(bench.try_open({{"driver", "file"}, {"filename", device.path()}}, &second), -EBUSY);
}

}  // namespace
