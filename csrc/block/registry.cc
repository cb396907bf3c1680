// The driver table, in order of name, and its export through the C interface. Constant: any thread.
#include "block/registry.hh"

#include <cstring>

#include "base/error.hh"
#include "block/graph.hh"

namespace engine::block {

namespace {
const Driver* const table[] = {&delay_driver,  &external_driver, &fault_driver,   &file_driver,
                               &memory_driver, &null_driver,     &overlay_driver, &passthrough_driver,
                               &raw_driver,    &throttle_driver, &verify_driver,  &write_log_driver};
}

std::span<const Driver* const> drivers() noexcept {
    return table;
}

const Driver* find_driver(std::string_view name) noexcept {
    if (name == "null-co" || name == "null-aio") name = "null";  // as QEMU names it
    for (const Driver* driver : table) {
        if (name == driver->name) return driver;
    }
    return nullptr;
}

}  // namespace engine::block

using engine::block::common_options;
using engine::block::drivers;

uint32_t engine_driver_count(void) {
    return static_cast<uint32_t>(drivers().size());
}

int engine_driver_get(uint32_t index, engine_driver_info* info) {
    if (index >= drivers().size()) return -ENOENT;
    const engine::block::Driver& driver = *drivers()[index];
    info->option_count = static_cast<uint32_t>(driver.options.size() + common_options().size());
    info->name = driver.name;
    info->layer = driver.layer;
    info->text = driver.text;
    return 0;
}

const char* engine_driver_get_role(uint32_t driver, uint32_t index) {
    if (driver >= drivers().size() || index >= drivers()[driver]->children.size()) return nullptr;
    return drivers()[driver]->children[index].role;
}

int engine_driver_get_option(uint32_t driver, uint32_t index, engine_option_info* info) {
    if (driver >= drivers().size()) return -ENOENT;
    auto own = drivers()[driver]->options;
    if (index >= own.size() + common_options().size()) return -ENOENT;
    const auto& def = index < own.size() ? own[index] : common_options()[index - own.size()];
    info->required = def.required ? 1 : 0;
    info->key = def.key;
    info->type = engine::block::option_type_name(def.type);
    info->default_value = def.default_value;
    info->values = def.values;
    info->text = def.text;
    return 0;
}
