// Opening a file: what it is, how it may be reached, how large it is, what O_DIRECT demands. Control plane.
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/error.hh"
#include "block/graph.hh"
#include "protocols/file.hh"

namespace engine::block {

namespace {

constexpr uint32_t safe_alignment = 4096;  // where the kernel does not say

class Descriptor {
  public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const noexcept { return fd_; }
    int release() noexcept { return std::exchange(fd_, -1); }

  private:
    int fd_;
};

const char* kind_of(mode_t mode) noexcept {
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode)) return "a character device";
    return "of an unknown kind";
}

int check_kind(const char* name, mode_t mode, const OpenArguments& arguments) {
    if (S_ISREG(mode) || S_ISBLK(mode)) return 0;
    return base::fail(arguments.error, ENGINE_ERROR_INVALID, S_ISDIR(mode) ? EISDIR : EINVAL,
                      {.operation = "open", .field = "filename"},
                      "file '%s' is %s: name a regular file or a block device", name, kind_of(mode));
}

// Why the kernel would not, and what to do about it.
int cannot_open(const char* name, int errnum, bool direct, const OpenArguments& arguments) {
    const char* advice = nullptr;
    switch (errnum) {
        case ENOENT:
            advice = "check the name; a relative one starts at the working directory";
            break;
        case ENOTDIR:
            advice = "a part of the path is not a directory";
            break;
        case EACCES:
        case EPERM:
            advice = arguments.read_only
                         ? "this user may not read it: see its mode and those of its folders"
                         : "this user may not write it: change its mode, or open it with read-only=on";
            break;
        case EROFS:
            advice = "its file system is read-only: open it with read-only=on";
            break;
        case ETXTBSY:
            advice = "it is being executed or swapped to";
            break;
        case EMFILE:
            advice = "this process has too many files open: raise its limit (ulimit -n)";
            break;
        case ENXIO:
        case ENODEV:
        case ENOMEDIUM:
            advice = "there is no such device, or nothing in it";
            break;
        case ELOOP:
            advice = "too many symbolic links";
            break;
        case EINVAL:
            if (direct) advice = "its file system cannot bypass the page cache: use cache.direct=off";
            break;
        default:
            break;
    }
    return base::fail(arguments.error, ENGINE_ERROR_OS, errnum, {.operation = "open", .field = "filename"},
                      "file '%s': cannot open it for %s: %s%s%s", name,
                      arguments.read_only ? "reading" : "writing", strerrordesc_np(errnum),
                      advice != nullptr ? ": " : "", advice != nullptr ? advice : "");
}

// A FIFO, a socket or a terminal is never opened, so that nothing happens at its other end. O_NONBLOCK is for
// what takes the name between the look and the opening.
int open_descriptor(const char* name, bool direct, const OpenArguments& arguments, struct stat* status) {
    if (name[0] == '\0') {
        return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "open", .field = "filename"},
                          "option 'filename' is empty: name a regular file or a block device");
    }
    if (stat(name, status) != 0) return cannot_open(name, errno, direct, arguments);
    int result = check_kind(name, status->st_mode, arguments);
    if (result != 0) return result;
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (arguments.read_only ? O_RDONLY : O_RDWR);
    Descriptor fd(open(name, flags | (direct ? O_DIRECT : 0)));
    if (fd.get() < 0) return cannot_open(name, errno, direct, arguments);
    if (fstat(fd.get(), status) != 0) return cannot_open(name, errno, direct, arguments);
    result = check_kind(name, status->st_mode, arguments);
    if (result != 0) return result;
    // Left on it would turn waiting for the device into -EAGAIN.
    int now = fcntl(fd.get(), F_GETFL);
    if (now < 0 || fcntl(fd.get(), F_SETFL, now & ~O_NONBLOCK) != 0) {
        return cannot_open(name, errno, direct, arguments);
    }
    return fd.release();
}

int open_unnamed(const char* directory, bool direct, const OpenArguments& arguments, struct stat* status) {
    if (arguments.read_only) {
        return base::fail(arguments.error, ENGINE_ERROR_INVALID, EINVAL,
                          {.operation = "open", .field = "unnamed"},
                          "option 'unnamed': a new file that cannot be written is of no use: leave out "
                          "read-only, or name a file");
    }
    int flags = O_TMPFILE | O_EXCL | O_CLOEXEC | O_RDWR;
    Descriptor fd(open(directory, flags | (direct ? O_DIRECT : 0), 0600));
    if (fd.get() < 0 || fstat(fd.get(), status) != 0) {
        int errnum = errno;
        const char* advice =
            errnum == EOPNOTSUPP || errnum == EISDIR
                ? "its file system has no unnamed files: name a directory elsewhere"
            : errnum == ENOENT || errnum == ENOTDIR ? "with unnamed=on it must be a directory that is there"
            : errnum == EACCES || errnum == EPERM   ? "this user may not write in it: see its mode"
                                                    : "name another directory";
        return base::fail(arguments.error, ENGINE_ERROR_OS, errnum,
                          {.operation = "open", .field = "filename"},
                          "directory '%s': cannot make an unnamed file in it: %s: %s", directory,
                          strerrordesc_np(errnum), advice);
    }
    return fd.release();
}

bool power_of_two(uint64_t n) noexcept {
    return n != 0 && (n & (n - 1)) == 0;
}

// The smallest read from the start of the file that the kernel takes; it tells only where there is something
// to read.
uint32_t probe_alignment(int fd) noexcept {
    struct Free {
        void operator()(void* block) const { free(block); }
    };
    std::unique_ptr<void, Free> buffer(aligned_alloc(safe_alignment, safe_alignment));
    if (buffer == nullptr) return safe_alignment;
    for (uint32_t alignment = 512; alignment < safe_alignment; alignment *= 2) {
        ssize_t result = pread(fd, buffer.get(), alignment, 0);
        if (result == static_cast<ssize_t>(alignment)) return alignment;
        if (result >= 0 || errno != EINVAL) break;
    }
    return safe_alignment;
}

// What O_DIRECT demands of offsets, lengths and addresses. One figure for all three: so every part of a
// vector is a whole number of blocks, and a transfer can be split between any two.
uint32_t direct_alignment(int fd, bool device) noexcept {
#ifdef STATX_DIOALIGN
    struct statx status{};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
        (status.stx_mask & STATX_DIOALIGN) != 0) {
        uint32_t alignment = std::max(status.stx_dio_mem_align, status.stx_dio_offset_align);
        if (power_of_two(alignment)) return alignment;
    }
#endif
    int block_size = 0;
    if (device && ioctl(fd, BLKSSZGET, &block_size) == 0 && block_size > 0 &&
        power_of_two(static_cast<unsigned>(block_size))) {
        return static_cast<uint32_t>(block_size);
    }
    return device ? safe_alignment : probe_alignment(fd);
}

int find_size(int fd, const struct stat& status, const char* name, const OpenArguments& arguments,
              uint64_t* bytes) {
    if (!S_ISBLK(status.st_mode)) {
        *bytes = static_cast<uint64_t>(status.st_size);
        return 0;
    }
    int64_t result = device_bytes(fd);
    if (result < 0) {
        return base::fail_os(arguments.error, static_cast<int>(-result),
                             {.operation = "open", .field = "filename"},
                             "file '%s': cannot tell the size of the device", name);
    }
    *bytes = static_cast<uint64_t>(result);
    return 0;
}

FileLocking locking_of(const std::string& text) noexcept {
    return text == "on" ? FileLocking::on : text == "off" ? FileLocking::off : FileLocking::automatic;
}

int open_file(Node& node, const OpenArguments& arguments) {
    auto& state = node.state<FileState>();
    const std::string& name = arguments.options.text("filename");
    bool direct = arguments.options.boolean("cache.direct");
    struct stat status{};
    bool unnamed = arguments.options.boolean("unnamed");
    int opened = unnamed ? open_unnamed(name.c_str(), direct, arguments, &status)
                         : open_descriptor(name.c_str(), direct, arguments, &status);
    if (opened < 0) return opened;
    Descriptor fd(opened);
    // Nobody else can open what has no name.
    FileLocking locking = unnamed ? FileLocking::off : locking_of(arguments.options.text("locking"));
    int result = lock_file(fd.get(), name.c_str(), arguments.read_only, locking, arguments.error);
    if (result != 0) return result;
    uint64_t bytes = 0;
    result = find_size(fd.get(), status, name.c_str(), arguments, &bytes);
    if (result != 0) return result;

    state.device = S_ISBLK(status.st_mode);
    state.direct = direct;
    int block_size = 0;
    state.block_size = state.device && ioctl(fd.get(), BLKSSZGET, &block_size) == 0 && block_size > 0
                           ? static_cast<uint32_t>(block_size)
                           : 512;
    if (direct) {
        node.request_alignment = node.memory_alignment = direct_alignment(fd.get(), state.device);
        bytes = (bytes + node.request_alignment - 1) & ~uint64_t{node.request_alignment - 1};
    }
    node.bytes.store_relaxed(bytes);
    node.native_ops = bit(Op::read) | bit(Op::flush) | bit(Op::block_status);
    if (!arguments.read_only) {
        node.native_ops |= bit(Op::write) | bit(Op::discard) | bit(Op::write_zeroes) | bit(Op::resize);
        if (!state.device) node.native_ops |= bit(Op::copy_range);
    }
    node.native_write_flags = ENGINE_FUA | ENGINE_MAY_UNMAP | ENGINE_NO_FALLBACK;
    node.holes = !state.device;
    node.control->filename = unnamed ? name + " (unnamed file)" : name;
    state.shared = new FileShared;
    state.fd = fd.release();
    return 0;
}

}  // namespace

int64_t device_bytes(int fd) noexcept {
    uint64_t bytes = 0;
    return ioctl(fd, BLKGETSIZE64, &bytes) == 0 ? static_cast<int64_t>(bytes) : -errno;
}

int file_open(Node& node, const OpenArguments& arguments) {
    Quota& limit = node.control->engine->limits.descriptors;
    if (!limit.take(1)) {
        return base::fail(
            arguments.error, ENGINE_ERROR_LIMIT, EMFILE, {.operation = "open", .field = "max_descriptors"},
            "file '%s': the engine's nodes have %lu files open, which is its limit: close some, or "
            "raise max_descriptors",
            arguments.options.text("filename").c_str(), limit.used());
    }
    int result = open_file(node, arguments);
    if (result != 0) limit.give_back(1);
    return result;
}

int file_open_channel(Channel& channel) {
    channel.state<FileChannel>().slot =
        channel.context->backend().register_file(channel.node->state<FileState>().fd);
    return 0;
}

// A context that has closed has taken its ring along.
void file_close_channel(Channel& channel) {
    if (channel.context->on_home()) {
        channel.context->backend().unregister_file(channel.state<FileChannel>().slot);
    }
}

void file_close(Node& node) {
    auto& state = node.state<FileState>();
    unlock_file(state.fd);
    close(state.fd);
    node.control->engine->limits.descriptors.give_back(1);
    delete state.shared;
}

}  // namespace engine::block
