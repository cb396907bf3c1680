// One life of an engine on a storage: from opening until everything is closed, by itself or after the power
// has gone. Lanes work, graph and size change beneath them, and whatever is returned is checked against the
// shadow.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coverage.hh"
#include "deputy.hh"
#include "lanes.hh"
#include "plan.hh"
#include "shadow.hh"
#include "storage.hh"

namespace lab {

// What outlives a stage.
struct World {
    const Plan& plan;
    Coverage& coverage;
    Storage& storage;
    Shadow& shadow;
    int disk;  // files of the storage
    int library;
    int data;                  // of the overlay
    FILE* trace;               // null: none
    uint64_t operations = 0;   // done
    std::string failure = "";  // the first

    void fail(const std::string& what) {
        if (failure.empty()) failure = what;
        if (trace != nullptr) fprintf(trace, "FAILED: %s\n", what.c_str());
    }
    // Where nothing can be closed any more.
    [[noreturn]] void give_up(const std::string& what) {
        fail(what);
        if (trace != nullptr) fflush(trace);
        fprintf(stderr, "%s\n", failure.c_str());
        abort();
    }
    bool failed() const noexcept { return !failure.empty(); }
};

class Stage final : public Director {
  public:
    Stage(World& world, uint64_t seed, uint64_t operations);
    ~Stage();
    void run();
    uint64_t virtual_ns() const noexcept { return engine_.simulator.now_ns() - 1'000'000'000; }
    uint64_t hash() const noexcept { return engine_.simulator.trace_hash(); }

  private:
    struct Filter {
        engine_node_t* node;
        std::string name;
        bool pauses;           // a fault filter
        bool leaving = false;  // somebody is removing it
    };
    // While it lives the graph is being changed.
    class Change {
      public:
        explicit Change(Stage& stage) : stage_(stage) {
            if (stage_.changing_++ != 0) stage_.reach(Event::changes_overlapped);
        }
        ~Change() { stage_.changing_--; }
        Change(const Change&) = delete;
        Change& operator=(const Change&) = delete;

      private:
        Stage& stage_;
    };

    // Director
    bool draw(Job& job, const Grain& grain, const std::string& lane) override;
    void ended(Job& job, int64_t result, const std::string& lane) override;
    engine::base::Random& random() override { return random_; }
    void reach_cancelled(bool in_time) override {
        reach(in_time ? Event::cancelled_in_time : Event::cancelled_too_late);
    }
    void choose_range(Job& job, const Grain& grain);
    void choose_memory(Job& job);
    void begin_change(Job& job, const Grain& grain);
    void succeeded(Job& job, int64_t result);
    std::string check_library(const Job& job) const;
    bool may_fail(const Job& job, int64_t result, const std::string& lane);
    // The disk has gone to a wrong place, so a request that meets it may fail.
    bool misdirected() const { return world_.storage.misdirected() != 0; }
    bool reads_may_fail() const {
        return plan_.faults.read_error != 0 || plan_.filters_fail || misdirected();
    }

    // The graph
    void open_graph();
    engine_node_t* open_disk(int fd, const char* name, bool plain);
    engine_node_t* open_reference();
    void open_lanes();
    void close_all();
    static engine_node_stats stats_of(engine_node_t* node);
    void close_user(engine_user_t* user, const char* whose);
    void close_node(engine_node_t* node, const char* which);

    // Changes
    void act();
    void act_beside();  // the deputy
    void insert_filter();
    engine::block::OptionBag choose_filter();
    void remove_some_filter();
    bool resume_filters();  // that hold requests; false: none did
    void remove_filter(engine_node_t* filter, uint64_t timeout_ns);
    void replace();
    void resize();
    void copy();
    void come_and_go();
    void conflict();
    void move_through_context();
    void check_generator();

    bool on() const { return world_.storage.powered(); }
    void reach(Event event) { world_.coverage.reach(event); }
    bool one_in(uint64_t n) { return random_.below(n) == 0; }
    void expect(bool good, const std::string& what) {
        if (!good && on()) world_.fail(what);
    }
    void trace(const char* format, ...) __attribute__((format(printf, 2, 3)));
    void read_all(engine_user_t* user);
    void finish_lanes();
    bool let_deputy_go_on();
    void finish_deputy();

    World& world_;
    const Plan& plan_;
    engine::base::Random random_;
    uint64_t left_;
    uint64_t jobs_ = 0;
    unsigned flushing_ = 0;
    unsigned temporary_ = 0;  // names
    sim::Engine engine_;
    engine_node_t* disk_ = nullptr;
    engine_node_t* library_ = nullptr;
    engine_node_t* copy_of_library_ = nullptr;
    engine_node_t* data_ = nullptr;       // of the overlay
    engine_node_t* reference_ = nullptr;  // that the disk is compared with
    engine_node_t* top_ = nullptr;
    engine_node_t* memory_ = nullptr;
    engine_user_t* user_ = nullptr;
    engine_user_t* reader_ = nullptr;  // of the library
    engine_user_t* memory_user_ = nullptr;
    engine_disk_t* device_ = nullptr;
    engine_workload_t* workload_ = nullptr;
    std::vector<std::unique_ptr<Lane>> lanes_;
    std::vector<Filter> filters_;
    unsigned changing_ = 0;
    Deputy deputy_{engine_.simulator};
};

}  // namespace lab
