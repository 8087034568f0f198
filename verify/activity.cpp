// A model that counts its nets' toggles, in place of the plain one that the testbench drives.
//
// Nets are sampled once a cycle, when they have settled before the rising edge: a net that goes up and down again
// within a cycle counts as still. What happens while reset is held is left out.
//
// Verilator's counts begin at 0, so that a bit which is 1 at first has changed once. A file of the first sample alone,
// with ".start" after its name, tells which these are.

#include <string>

#include "Vtop.h"
#include "verilated_saif_c.h"

namespace {

std::string activity_file;

class CountedTop final : public Vtop {
public:
    explicit CountedTop(VerilatedContext* context) : Vtop{(context->traceEverOn(true), context)} {
        trace(&start_, 99);
        trace(&counts_, 99);
    }
    void eval() {
        Vtop::eval();
        if (clk || reset) return;
        if (!counts_.isOpen()) {
            start_.open((activity_file + ".start").c_str());
            start_.dump(0);
            start_.close();
            counts_.open(activity_file.c_str());
        }
        counts_.dump(samples_++);
    }
    void final() {
        counts_.close();
        Vtop::final();
    }

private:
    VerilatedSaifC start_, counts_;
    uint64_t samples_ = 0;
};

}  // namespace

extern "C" void nimble_activity_file(const char* path) { activity_file = path; }

#define Vtop CountedTop
