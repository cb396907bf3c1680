// Filling the one error object. No state: any thread.
#include "base/error.hh"

#include <cstdio>
#include <cstring>

namespace engine::base {

void copy_text(char* to, size_t capacity, const char* from) noexcept {
    if (capacity == 0) return;
    size_t length = from == nullptr ? 0 : strnlen(from, capacity - 1);
    if (length != 0) memcpy(to, from, length);
    to[length] = '\0';
}

void clear(engine_error* error) noexcept {
    if (error == nullptr) return;
    uint32_t size = error->size;
    memset(error, 0, sizeof *error);
    error->size = size;
    error->offset = UINT64_MAX;
}

namespace {
void fill(engine_error* error, engine_error_kind kind, int errnum, const Where& where) {
    clear(error);
    error->kind = kind;
    error->errnum = errnum;
    error->offset = where.offset;
    error->request_id = where.request_id;
    copy_text(error->node, where.node);
    copy_text(error->operation, where.operation);
    copy_text(error->field, where.field);
}
}  // namespace

int fail(engine_error* error, engine_error_kind kind, int errnum, const Where& where, const char* format,
         ...) {
    if (error == nullptr) return -errnum;
    fill(error, kind, errnum, where);
    va_list args;
    va_start(args, format);
    vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    return -errnum;
}

int fail_os(engine_error* error, int errnum, const Where& where, const char* format, ...) {
    if (error == nullptr) return -errnum;
    fill(error, ENGINE_ERROR_OS, errnum, where);
    va_list args;
    va_start(args, format);
    int used = vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    char text[128];
    if (used >= 0 && static_cast<size_t>(used) < sizeof error->message) {
        snprintf(error->message + used, sizeof error->message - static_cast<size_t>(used), ": %s",
                 strerror_r(errnum, text, sizeof text));
    }
    return -errnum;
}

}  // namespace engine::base
