// Drives one verilated core through whole GEMMs: memory images in, result image out, one call from Python.
//
// The Python side prepends the geometry (COLUMNS, SLICE_BYTES, ...) and the names of the model's ports. Every
// val and rdy that the core drives follows from its registers, so they are sampled before the rising edge.

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

namespace {

struct Pattern {  // 1 = the stream is held back in this cycle; repeats
    const uint8_t* bits;
    uint64_t length;
    bool blocks(uint64_t cycle) const { return length && bits[cycle % length]; }
};

// A memory port in ticks, a whole number of which makes a cycle and each kind of word takes; accel/memory.py
// describes it.
struct Memory {
    uint64_t cycle_ticks;  // 0: no memory port; words are always there
    uint64_t weight_ticks;
    uint64_t act_ticks;
    uint64_t result_ticks;
    uint64_t latency;
    uint64_t depth;               // weight tiles in flight or held
    uint64_t out_tiles;           // of each command
    uint64_t groups;              // weight tiles of an output tile
    uint64_t tile_bytes;          // of a weight tile, in each column
    const uint64_t* act_words;    // of each command
    const uint64_t* write_words;  // of an output tile, for each command
};

using Ticks = unsigned __int128;

constexpr uint64_t NEVER = UINT64_MAX;

uint64_t ceil_div(Ticks a, uint64_t b) { return static_cast<uint64_t>((a + b - 1) / b); }

// Words on their way to the core, or arrived and not taken.
class Arrivals {
public:
    Arrivals(const Memory& memory, uint64_t word_ticks) : memory_(memory), word_ticks_(word_ticks) {}

    void add(Ticks start, uint64_t words) {
        bursts_.push_back({start, words});
        if (bursts_.size() == 1) set_next();
    }
    void take() {
        ++taken;
        if (++word_ == bursts_.front().words) {
            bursts_.pop_front();
            word_ = 0;
        }
        set_next();
    }
    bool empty() const { return bursts_.empty(); }

    uint64_t next = NEVER;  // cycle from which the next word can be taken
    uint64_t taken = 0;

private:
    struct Burst {
        Ticks start;
        uint64_t words;
    };
    void set_next() {
        next = NEVER;
        if (bursts_.empty()) return;
        const Ticks passed = bursts_.front().start + Ticks(word_ + 1) * word_ticks_;
        next = ceil_div(passed, memory_.cycle_ticks) + memory_.latency;
    }

    const Memory& memory_;
    const uint64_t word_ticks_;
    std::deque<Burst> bursts_;
    uint64_t word_ = 0;  // of the first burst
};

// Source of all reads and sink of all writes behind one port.
class Port {
public:
    Port(const Memory& memory, uint64_t commands, uint64_t weight_words)
        : weights(memory, memory.weight_ticks),
          acts(memory, memory.act_ticks),
          memory_(memory),
          commands_(commands),
          weight_words_(weight_words) {}

    // Issue what may be issued in this cycle, and start the bursts whose turn comes in it.
    void begin(uint64_t cycle, bool acts_rdy) {
        if (write_due_) {
            writes_.push_back({Ticks(write_words_) * memory_.result_ticks, Ticks(cycle) * memory_.cycle_ticks});
            write_due_ = false;
        }
        issue_reads(acts_rdy);
        while (serve_one(cycle)) {}
    }
    // Let the writes that wait pass, from the cycle after that of the last result word on.
    void finish(uint64_t cycle) {
        do begin(cycle++, false);
        while (!writes_.empty());
    }
    // A result word left in this cycle.
    void take_result() {
        if (++result_words_ < memory_.write_words[written_tiles_ / memory_.out_tiles]) return;
        write_words_ = result_words_;
        write_due_ = true;
        result_words_ = 0;
        ++written_tiles_;
    }

    Arrivals weights, acts;
    uint64_t written = 0;  // cycle after which all results so far are in memory

private:
    // Weight words of a command up to the end of a tile.
    uint64_t words_to(uint64_t tile) const { return ((tile + 1) * memory_.tile_bytes + SLICE_BYTES - 1) / SLICE_BYTES; }

    void issue_reads(bool acts_rdy) {
        const uint64_t tiles = memory_.out_tiles * memory_.groups;
        while (command_ < commands_) {
            if (!acts_issued_) {
                if (!acts_rdy || !acts.empty() || acts_wait_) return;
                reads_.push_back({memory_.act_words[command_], NEVER});
                acts_wait_ = acts_issued_ = true;
            }
            for (; tile_ < tiles; ++tile_) {
                const uint64_t words = words_to(tile_) - (tile_ ? words_to(tile_ - 1) : 0);
                if (!words) continue;
                const uint64_t index = command_ * tiles + tile_;
                if (index >= memory_.depth) {
                    const uint64_t before = index - memory_.depth;
                    if (weights.taken < before / tiles * weight_words_ + words_to(before % tiles)) return;
                }
                reads_.push_back({words, index / memory_.groups});
            }
            tile_ = 0;
            acts_issued_ = false;
            ++command_;
        }
    }
    // Start the burst whose turn it is, if it starts within this cycle; a write that waits goes before every read.
    bool serve_one(uint64_t cycle) {
        const Ticks now = Ticks(cycle) * memory_.cycle_ticks, next = now + memory_.cycle_ticks;
        const Ticks whole = Ticks(ceil_div(free_, memory_.cycle_ticks)) * memory_.cycle_ticks;
        if (!writes_.empty()) {
            const Write write = writes_.front();
            const Ticks start = whole > write.issued ? whole : write.issued;
            if (start >= next) return false;
            writes_.pop_front();
            free_ = start + write.ticks;
            last_out_tile_ = NEVER;
            written = ceil_div(free_, memory_.cycle_ticks);
            return true;
        }
        if (reads_.empty()) return false;
        const Read read = reads_.front();
        const bool is_acts = read.out_tile == NEVER;
        const Ticks free = !is_acts && read.out_tile == last_out_tile_ ? free_ : whole;
        const Ticks start = free > now ? free : now;
        if (start >= next) return false;
        reads_.pop_front();
        if (is_acts) acts_wait_ = false;
        (is_acts ? acts : weights).add(start, read.words);
        free_ = start + Ticks(read.words) * (is_acts ? memory_.act_ticks : memory_.weight_ticks);
        last_out_tile_ = read.out_tile;
        return true;
    }

    struct Read {
        uint64_t words;
        uint64_t out_tile;  // of weights, counted over all commands; NEVER = activations
    };
    struct Write {
        Ticks ticks;
        Ticks issued;
    };
    const Memory& memory_;
    const uint64_t commands_, weight_words_;
    uint64_t command_ = 0, tile_ = 0;  // of the next read
    bool acts_issued_ = false, acts_wait_ = false;  // acts_wait_: issued, but not on their way yet
    std::deque<Read> reads_;    // wait for the port
    std::deque<Write> writes_;
    uint64_t result_words_ = 0, written_tiles_ = 0, write_words_ = 0;
    bool write_due_ = false;
    Ticks free_ = 0;
    uint64_t last_out_tile_ = NEVER;
};

}  // namespace

extern "C" {

struct Job {
    const uint8_t* commands;  // commands of COMMAND_BYTES each
    uint64_t command_count;
    const uint8_t* weights;  // one pass; read again for each command
    uint64_t weight_words;
    const uint8_t* acts;
    uint64_t act_words;
    uint8_t* results;
    uint64_t result_words;
    uint64_t result_bytes;  // of a result word in memory
    uint64_t* word_cycles;  // out: cycle in which each result word left
    Pattern stalls[4];      // command, weights, acts, results
    Memory memory;
    uint64_t cycle_limit;
    uint64_t reset_seed;  // 0: registers start at zero; else at random, where the model is built for that
    volatile uint64_t* progress;  // result words so far
    volatile uint8_t* cancel;
    uint64_t cycles;   // out: cycles simulated after reset
    uint64_t written;  // out: cycles until all results are in memory
    uint64_t counters[CAUSES];
};

// 0: all results came; 1: cycle limit reached; 2: cancelled.
int nimble_run(Job* job) {
    const auto context = std::make_unique<VerilatedContext>();
    if (job->reset_seed) {
        context->randReset(2);
        context->randSeed(static_cast<int>(job->reset_seed));
    }
    const auto top = std::make_unique<Vtop>(context.get());
    const auto edge = [&] {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
    };
    top->COMMAND_VAL = 0;
    top->WEIGHTS_VAL = 0;
    top->ACTS_VAL = 0;
    top->RESULTS_RDY = 0;
    top->reset = 1;
    for (int i = 0; i < 4; ++i) edge();
    top->reset = 0;
    // Ready after reset shows only once the reset has gone.
    top->clk = 0;
    top->eval();

    uint64_t commands = 0, weights = 0, acts = 0, got = 0, cycle = 0;
    const uint64_t all_weights = job->weight_words * job->command_count;
    uint64_t word = 0;  // of the pass over the weights
    const bool timed = job->memory.cycle_ticks != 0;
    Port port(job->memory, job->command_count, job->weight_words);
    int status = 0;
    while (got < job->result_words) {
        if (cycle >= job->cycle_limit) {
            status = 1;
            break;
        }
        const bool command_val = commands < job->command_count && !job->stalls[0].blocks(cycle);
        bool weights_val = weights < all_weights && !job->stalls[1].blocks(cycle);
        bool acts_val = acts < job->act_words && !job->stalls[2].blocks(cycle);
        if (timed) {
            port.begin(cycle, top->ACTS_RDY);
            weights_val &= port.weights.next <= cycle;
            acts_val &= port.acts.next <= cycle;
        }
        const bool results_rdy = !job->stalls[3].blocks(cycle);
        top->COMMAND_VAL = command_val;
        top->WEIGHTS_VAL = weights_val;
        top->ACTS_VAL = acts_val;
        top->RESULTS_RDY = results_rdy;
        if (command_val) std::memcpy(&top->COMMAND_MSG, job->commands + commands * COMMAND_BYTES, COMMAND_BYTES);
        if (weights_val) {
            const uint8_t* from = job->weights + word * COLUMNS * SLICE_BYTES;
            for (int c = 0; c < COLUMNS; ++c) std::memcpy(&top->WEIGHTS_MSG[c], from + c * SLICE_BYTES, SLICE_BYTES);
        }
        if (acts_val) {
            const uint8_t* from = job->acts + acts * ACT_PORTS * ACT_PORT_BYTES;
            for (int p = 0; p < ACT_PORTS; ++p)
                std::memcpy(&top->ACTS_MSG[p], from + p * ACT_PORT_BYTES, ACT_PORT_BYTES);
        }
        if (results_rdy && top->RESULTS_VAL) {
            std::memcpy(job->results + got * job->result_bytes, &top->RESULTS_MSG, job->result_bytes);
            job->word_cycles[got] = cycle;
            ++got;
            if (timed) port.take_result();
        }
        if (command_val && top->COMMAND_RDY) ++commands;
        if (weights_val && top->WEIGHTS_RDY) {
            ++weights;
            if (++word == job->weight_words) word = 0;
            if (timed) port.weights.take();
        }
        if (acts_val && top->ACTS_RDY) {
            ++acts;
            if (timed) port.acts.take();
        }
        edge();
        ++cycle;
        if ((cycle & 1023) == 0) {
            *job->progress = got;
            if (*job->cancel) {
                status = 2;
                break;
            }
        }
    }
    edge();  // counters tell of the cycle before
    *job->progress = got;
    job->cycles = cycle;
    if (timed) port.finish(cycle);
    job->written = timed ? port.written : cycle;
    for (int i = 0; i < CAUSES; ++i) job->counters[i] = top->COUNTERS[i];
    top->final();
    return status;
}

}  // extern "C"
