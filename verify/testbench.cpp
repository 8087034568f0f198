// Drives one verilated core through whole GEMMs: memory images in, result image out, one call from Python.
//
// The Python side prepends the geometry (COLUMNS, SLICE_BYTES, ...) and the names of the model's ports. Every
// val and rdy that the core drives follows from its registers, so they are sampled before the rising edge.

#include <cstdint>
#include <cstring>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

namespace {

struct Pattern {  // 1 = the stream is held back in this cycle; repeats
    const uint8_t* bits;
    uint64_t length;
    bool blocks(uint64_t cycle) const { return length && bits[cycle % length]; }
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
    Pattern stalls[4];      // command, weights, acts, results
    uint64_t cycle_limit;
    uint64_t reset_seed;  // 0: registers start at zero; else at random, where the model is built for that
    volatile uint64_t* progress;  // result words so far
    volatile uint8_t* cancel;
    uint64_t cycles;  // out: cycles simulated after reset
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
    int status = 0;
    while (got < job->result_words) {
        if (cycle >= job->cycle_limit) {
            status = 1;
            break;
        }
        const bool command_val = commands < job->command_count && !job->stalls[0].blocks(cycle);
        const bool weights_val = weights < all_weights && !job->stalls[1].blocks(cycle);
        const bool acts_val = acts < job->act_words && !job->stalls[2].blocks(cycle);
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
            ++got;
        }
        if (command_val && top->COMMAND_RDY) ++commands;
        if (weights_val && top->WEIGHTS_RDY) {
            ++weights;
            if (++word == job->weight_words) word = 0;
        }
        if (acts_val && top->ACTS_RDY) ++acts;
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
    *job->progress = got;
    job->cycles = cycle;
    for (int i = 0; i < CAUSES; ++i) job->counters[i] = top->COUNTERS[i];
    top->final();
    return status;
}

}  // extern "C"
