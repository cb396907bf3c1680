// What verify says of a request that failed: by which child, or where the two differ. Home thread of the
// request's context; `differences` counts those of all contexts.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.hh"
#include "base/log.hh"
#include "filters/verify.hh"

namespace engine::filters {

using block::Channel;
using block::Request;

namespace {

constexpr uint64_t logged_most = 100;  // of one node: a log is no place for each block of a lost disk
constexpr size_t shown_bytes = 8;
constexpr size_t text_bytes = 3 * sizeof(engine_error::message);  // it is cut where it is handed over
constexpr int first_words = 160;                                  // of two, so that both are there

const char* name_of(const Channel& channel) noexcept {
    return channel.node->control->name.c_str();
}

// "node v: read of 512 bytes at offset 0"
void begin_text(char (&text)[160], const Request& request) noexcept {
    snprintf(text, sizeof text, "node %s: %s of %lu bytes at offset %lu", name_of(*request.channel),
             op_name(request.op), request.length, request.offset);
}

int64_t fail(const Request& request, engine_error_kind kind, int errnum, const base::Where& where,
             const char* what) noexcept {
    char begin[160];
    begin_text(begin, request);
    base::Where all = where;
    all.operation = op_name(request.op);
    all.request_id = request.id;
    return base::fail(request.error, kind, errnum, all, "%s%s", begin, what);
}

// A child's own words; its driver may have said nothing.
const char* words_of(const Leg& leg) noexcept {
    if (leg.trouble.kind != ENGINE_ERROR_NONE) return leg.trouble.message;
    const char* text = strerrordesc_np(static_cast<int>(-leg.result));
    return text != nullptr ? text : "an error without a name";
}

// Bytes as "6e 00 0a", at most shown_bytes of them.
void show(char (&text)[3 * shown_bytes], std::span<const std::byte> bytes) noexcept {
    size_t used = 0;
    text[0] = '\0';
    for (std::byte byte : bytes.first(std::min(bytes.size(), shown_bytes))) {
        const char* format = used == 0 ? "%02x" : " %02x";
        used += static_cast<size_t>(
            snprintf(text + used, sizeof text - used, format, std::to_integer<unsigned>(byte)));
    }
}

int64_t tell(Verify& verify, const Request& request, uint64_t at, const char* what) noexcept {
    char begin[160];
    begin_text(begin, request);
    uint64_t before = verify.differences.fetch_add_relaxed(1);
    if (before < logged_most) {
        base::log(ENGINE_LOG_ERROR, "%s%s%s", begin, what,
                  before + 1 == logged_most ? " (what this node finds from here on is not logged)" : "");
    }
    return fail(request, ENGINE_ERROR_CORRUPT, EIO, {.node = name_of(*request.channel), .offset = at}, what);
}

}  // namespace

int64_t outcome(const Work& work) noexcept {
    const Request& request = *work.request;
    const Leg* failed = nullptr;
    const Leg* other = nullptr;
    for (const Leg& leg : work.legs) {
        if (!leg.used || leg.result >= 0) continue;
        (failed == nullptr ? failed : other) = &leg;
    }
    if (failed == nullptr) return 0;
    if (request.error == nullptr) return failed->result;
    size_t child = failed == &work.legs[file_child] ? file_child : reference_child;
    const char* name = name_of(*request.channel->children[child]);
    char what[text_bytes];
    if (other == nullptr) {
        snprintf(what, sizeof what, " failed in '%s' (node %s) alone: %s", child_roles[child], name,
                 words_of(*failed));
    } else if (other->result == failed->result) {
        snprintf(what, sizeof what, " failed in both children alike: %s", words_of(*failed));
    } else {
        snprintf(what, sizeof what, " failed in both children: 'file': %.*s; 'reference': %s", first_words,
                 words_of(*failed), words_of(*other));
    }
    bool told = failed->trouble.kind != ENGINE_ERROR_NONE;
    auto kind = told ? static_cast<engine_error_kind>(failed->trouble.kind) : ENGINE_ERROR_OS;
    base::Where where{.node = told && failed->trouble.node[0] != '\0' ? failed->trouble.node : name,
                      .field = other == nullptr ? child_roles[child] : nullptr,
                      .offset = told ? failed->trouble.offset : request.offset};
    return fail(request, kind, static_cast<int>(-failed->result), where, what);
}

int64_t was_cancelled(const Request& request) noexcept {
    return fail(request, ENGINE_ERROR_OS, ECANCELED,
                {.node = name_of(*request.channel), .offset = request.offset},
                " was cancelled while it waited");
}

int64_t no_memory(const Request& request) noexcept {
    return fail(request, ENGINE_ERROR_LIMIT, ENOMEM,
                {.node = name_of(*request.channel), .offset = request.offset},
                ": no memory for it: make more available and repeat the request");
}

int64_t differ(Verify& verify, const Request& request, uint64_t at, std::span<const std::byte> file,
               std::span<const std::byte> reference) noexcept {
    const Channel& channel = *request.channel;
    char what[text_bytes], has[3 * shown_bytes], should[3 * shown_bytes];
    show(has, file);
    show(should, reference);
    snprintf(
        what, sizeof what,
        ": its children differ from offset %lu on: 'file' (node %s) has %s, 'reference' (node %s) has %s", at,
        name_of(*channel.children[file_child]), has, name_of(*channel.children[reference_child]), should);
    return tell(verify, request, at, what);
}

int64_t not_zero(Verify& verify, const Request& request, uint64_t at,
                 std::span<const std::byte> reference) noexcept {
    const Channel& channel = *request.channel;
    char what[text_bytes], should[3 * shown_bytes];
    show(should, reference);
    snprintf(what, sizeof what,
             ": its children differ from offset %lu on: 'file' (node %s) says that it reads as zeroes, "
             "'reference' (node %s) has %s",
             at, name_of(*channel.children[file_child]), name_of(*channel.children[reference_child]), should);
    return tell(verify, request, at, what);
}

}  // namespace engine::filters
