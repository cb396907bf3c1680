// Locks on image files, shared with QEMU: open file description locks on single bytes, one for each
// permission that is held (from 100 on) and one for each that is not shared (from 200 on). All are read
// locks; a conflict is found by asking whether a write lock would be refused. Control plane; the kernel keeps
// the state.
#include <errno.h>
#include <fcntl.h>

#include "base/error.hh"
#include "base/log.hh"
#include "protocols/file.hh"

namespace engine::block {

namespace {

constexpr off_t held_base = 100;
constexpr off_t unshared_base = 200;
constexpr struct {
    uint32_t bit;
    const char* name;
} permissions[] = {
    {ENGINE_PERM_CONSISTENT_READ, "consistent read"},
    {ENGINE_PERM_WRITE, "write"},
    {ENGINE_PERM_WRITE_UNCHANGED, "write unchanged"},
    {ENGINE_PERM_RESIZE, "resize"},
};
constexpr unsigned permission_count = sizeof permissions / sizeof permissions[0];

struct Claim {
    uint32_t held;
    uint32_t shared;
};
// A writer lets others read; a reader of a plain file minds nobody, as with qemu-img. Formats that cannot
// stand a change under them say so by their permissions on the node.
constexpr Claim writer{ENGINE_PERM_ALL, ENGINE_PERM_CONSISTENT_READ | ENGINE_PERM_WRITE_UNCHANGED};
constexpr Claim reader{ENGINE_PERM_CONSISTENT_READ, ENGINE_PERM_ALL};

// 0, or -errno. Length 0: to the end of all files.
int set_lock(int fd, short type, off_t start, off_t length) noexcept {
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = start;
    lock.l_len = length;
    int result;
    do {
        result = fcntl(fd, F_OFD_SETLK, &lock);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}
int lock_byte(int fd, off_t byte) noexcept {
    return set_lock(fd, F_RDLCK, byte, 1);
}

// 0: nobody else has locked it. -EAGAIN: somebody has. Else -errno.
int test_byte(int fd, off_t byte) noexcept {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

bool means_unsupported(int result) noexcept {
    return result == -EINVAL || result == -ENOLCK || result == -EOPNOTSUPP || result == -ENOSYS;
}

int conflict(engine_error* error, const char* filename, bool read_only, unsigned i, bool held_by_other) {
    const char* advice =
        read_only ? "end the program that has it open (a running virtual machine?), or pass locking=off "
                    "where a changing image does no harm"
                  : "end the program that has it open (a running virtual machine?), or open it with "
                    "read-only=on";
    return base::fail(error, ENGINE_ERROR_CONFLICT, EBUSY, {.operation = "open", .field = "locking"},
                      "file '%s' is in use: somebody else %s \"%s\" (lock on byte %ld); %s", filename,
                      held_by_other ? "holds" : "does not share", permissions[i].name,
                      static_cast<long>((held_by_other ? held_base : unshared_base) + i), advice);
}

// Locks first and looks afterwards: two processes that do so at once may both give up, but never both go on.
int apply(int fd, const Claim& claim) noexcept {
    for (unsigned i = 0; i < permission_count; i++) {
        if ((claim.held & permissions[i].bit) != 0) {
            int result = lock_byte(fd, held_base + i);
            if (result != 0) return result;
        }
        if ((claim.shared & permissions[i].bit) == 0) {
            int result = lock_byte(fd, unshared_base + i);
            if (result != 0) return result;
        }
    }
    return 0;
}

}  // namespace

int lock_file(int fd, const char* filename, bool read_only, FileLocking locking, engine_error* error) {
    if (locking == FileLocking::off) return 0;
    const Claim& claim = read_only ? reader : writer;
    base::Where where{.operation = "open", .field = "locking"};
    int result = test_byte(fd, 0);  // can this file be locked at all?
    if (!means_unsupported(result)) result = apply(fd, claim);
    if (means_unsupported(result)) {
        if (locking == FileLocking::automatic) {
            base::log(
                ENGINE_LOG_WARNING,
                "file '%s' is not locked: its file system has no open file description locks; see to it "
                "that nobody else writes it",
                filename);
            return 0;
        }
        return base::fail(
            error, ENGINE_ERROR_UNSUPPORTED, ENOTSUP, where,
            "file '%s': its file system has no open file description locks; use locking=auto to go on "
            "without, and see to it that nobody else writes it",
            filename);
    }
    if (result == -EAGAIN ||
        result == -EACCES) {  // a lock for writing, over what others only lock for reading
        return base::fail(
            error, ENGINE_ERROR_CONFLICT, EBUSY, where,
            "file '%s' is in use: somebody else has locked it whole; end the program that has it open",
            filename);
    }
    if (result != 0) return base::fail_os(error, -result, where, "file '%s': cannot lock it", filename);
    for (unsigned i = 0; i < permission_count; i++) {
        for (bool held : {true, false}) {
            uint32_t concerned = held ? ~claim.shared : claim.held;
            if ((concerned & permissions[i].bit) == 0) continue;
            result = test_byte(fd, (held ? held_base : unshared_base) + i);
            if (result == -EAGAIN) return conflict(error, filename, read_only, i, held);
            if (result != 0)
                return base::fail_os(error, -result, where, "file '%s': cannot look at its locks", filename);
        }
    }
    return 0;
}

void unlock_file(int fd) noexcept {
    set_lock(fd, F_UNLCK, 0, 0);
}

}  // namespace engine::block
