// One seed.
#include "seed.hh"

#include <cstring>

#include "disk.hh"
#include "stage.hh"

namespace lab {

namespace {

constexpr uint64_t window_offset = 8192;
constexpr uint64_t operations_min = 2000;  // of a seed
constexpr std::byte guard{0xa5};           // around a window

class Life {
  public:
    Life(const Plan& plan, Outcome& outcome, FILE* trace)
        : plan_(plan),
          outcome_(outcome),
          storage_(engine::base::mix(plan.seed ^ 0x5709), outcome.coverage),
          shadow_(plan.bytes, plan.capacity),
          world_{plan, outcome.coverage, storage_, shadow_, 0, 0, 0, trace} {
        lab::storage = &storage_;
        storage_.on_cut = [](void* opaque) { static_cast<Life*>(opaque)->shadow_.lose_power(); };
        storage_.opaque = this;
        uint64_t offset = disk_offset();
        world_.disk = storage_.add(plan.bytes + 2 * offset);
        if (plan.shape == Shape::verified) storage_.misdirected_fd = world_.disk;
        world_.library = storage_.add(plan.bytes);
        world_.data = storage_.add(2 * plan.capacity);
        engine::base::Random random(plan.seed);
        std::vector<std::byte>& disk = storage_.bytes(world_.disk);
        std::fill(disk.begin(), disk.end(), offset != 0 ? guard : std::byte{0});
        for (uint64_t cell = 0; cell < plan.bytes / cell_bytes; cell++) {
            uint64_t value = cell / 64 % 2 == 0 ? random.next() | 1 : 0;
            fill_cell(disk.data() + offset + cell * cell_bytes, value);
            shadow_.set_initial(cell, value);
            fill_cell(storage_.bytes(world_.library).data() + cell * cell_bytes, library_value(cell));
        }
        original_ = disk;
        for (int fd : {world_.disk, world_.library, world_.data}) storage_.settle(fd);
    }
    ~Life() { lab::storage = nullptr; }

    void live() {
        for (unsigned stage = 0; stage < 2 && !world_.failed(); stage++) {
            storage_.faults = plan_.faults;
            if (stage == 0 && plan_.power_loss) storage_.cut_at(plan_.cut_at);
            {
                uint64_t missing =
                    world_.operations < operations_min ? operations_min - world_.operations : 0;
                Stage now(world_, plan_.seed * 2 + stage, std::max(plan_.operations, missing * stage));
                now.run();
                outcome_.virtual_ns += now.virtual_ns();
                outcome_.hash = engine::base::mix(outcome_.hash ^ now.hash());
            }
            if (!world_.failed()) look_at_survivors();
        }
        outcome_.failure = world_.failure;
        outcome_.operations = world_.operations;
    }

  private:
    uint64_t disk_offset() const { return plan_.shape == Shape::window ? window_offset : 0; }

    void look_at_survivors() {
        bool misdirected = storage_.misdirected() != 0;
        storage_.cut_power();
        storage_.restore_power();
        const std::vector<std::byte>& disk = storage_.bytes(world_.disk);
        if (plan_.shape == Shape::overlay) {
            if (disk != original_) world_.fail("an overlay has changed what is below it");
            shadow_.adopt(disk.size(), disk.data());
            outcome_.coverage.reach(Event::overlay_lost);
            return;
        }
        uint64_t offset = disk_offset();
        uint64_t bytes = disk.size() - 2 * offset;
        if (!shadow_.may_survive(bytes)) {
            world_.fail("after the power loss the disk has " + std::to_string(bytes) + " bytes");
        }
        std::string wrong = shadow_.check_survivor(0, bytes, disk.data() + offset);
        // Where writes went to wrong places it holds what it likes.
        if (!wrong.empty() && !misdirected) world_.fail("after the power loss: " + wrong);
        for (uint64_t i = 0; i < offset; i++) {
            if (disk[i] != guard || disk[disk.size() - 1 - i] != guard) {
                world_.fail("something was written beside the window");
                break;
            }
        }
        shadow_.adopt(bytes, disk.data() + offset);
    }

    const Plan& plan_;
    Outcome& outcome_;
    Storage storage_;
    Shadow shadow_;
    World world_;
    std::vector<std::byte> original_;
};

}  // namespace

Outcome run_seed(uint64_t seed, FILE* trace) {
    Outcome outcome;
    Plan plan(seed);
    if (trace != nullptr) fprintf(trace, "%s\n", plan.text().c_str());
    Life(plan, outcome, trace).live();
    return outcome;
}

}  // namespace lab
