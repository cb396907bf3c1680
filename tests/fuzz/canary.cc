// The fuzzer that must fail: a byte behind a block is read where four bytes of the input are right, one after
// the other. Who finds it sees branches, goes on from what it has seen, and has the address sanitizer.
#include <memory>

#include "fuzz.hh"

namespace {

size_t count_right(const std::string& text) {
    static const char wanted[] = {'V', 'D', '\x7f', '0'};
    size_t right = 0;
    if (text[0] == wanted[0]) {
        right = 1;
        if (text[1] == wanted[1]) {
            right = 2;
            if (text[2] == wanted[2]) {
                right = 3;
                if (text[3] == wanted[3]) right = 4;
            }
        }
    }
    return right;
}

}  // namespace

void fuzz::run(Input& input) {
    std::string text = input.text(4);
    if (text.size() < 4) return;
    std::unique_ptr<char[]> block(new char[4]());
    CHECK_EQ(block.get()[count_right(text)], 0);
}
