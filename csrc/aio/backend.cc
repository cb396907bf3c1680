// The choice of a backend, and the reason for it.
#include "aio/backend.hh"

#include <stdio.h>

#include "aio/context.hh"
#include "base/error.hh"
#include "base/log.hh"

namespace engine::aio {

int make_backend(AioContext& context, const BackendChoice& choice, std::unique_ptr<Backend>* out,
                 char (&reason)[160], engine_error* error) {
    if (choice.kind != ENGINE_BACKEND_THREADS) {
        engine_error why{};
        why.size = sizeof why;
        int result = make_uring_backend(choice, out, reason, &why, &context);
        if (result == 0) return 0;
        if (choice.kind == ENGINE_BACKEND_IO_URING) {
            if (error != nullptr) *error = why;
            return result;
        }
        snprintf(reason, sizeof reason, "threads, because %.140s", why.message);
        base::log(ENGINE_LOG_INFO, "context %s: backend %s", context.name().c_str(), reason);
    } else {
        snprintf(reason, sizeof reason, "threads, as asked");
    }
    return make_threads_backend(context, out, error);
}

}  // namespace engine::aio
