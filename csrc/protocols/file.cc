// The file driver's entry in the driver table.
#include "protocols/file.hh"

#include "block/registry.hh"

namespace engine::block {

namespace {

const OptionDef file_options[] = {
    {"filename", OptionType::string, nullptr, nullptr,
     "path of a regular file or block device; a plain name, in which nothing has a special meaning", true},
    {"unnamed", OptionType::boolean, "off", nullptr,
     "a new, empty file without a name in the directory `filename`: nothing is left of it, whatever happens"},
    {"locking", OptionType::enumeration, "auto", "auto|on|off",
     "lock the file against other processes as QEMU does: auto where the system can, on or fail, off"},
    {"cache.direct", OptionType::boolean, "off", nullptr,
     "bypass the page cache (O_DIRECT): what is not aligned is copied; a size that is not a multiple of the "
     "alignment is rounded up, the rest reads as zeroes, and a write there makes the file that long"},
};

Location file_locate(Channel& channel, uint64_t offset) {
    return {&channel, offset};
}

}  // namespace

const Driver file_driver{
    .name = "file",
    .layer = "protocol",
    .text = "a regular file or a block device",
    .options = file_options,
    .children = {},
    .state_size = sizeof(FileState),
    .channel_state_size = sizeof(FileChannel),
    .open = file_open,
    .close = file_close,
    .open_channel = file_open_channel,
    .close_channel = file_close_channel,
    .submit = file_submit,
    .rounds_size = true,
    .locate = file_locate,
};

}  // namespace engine::block
