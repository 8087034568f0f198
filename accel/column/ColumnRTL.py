"""One column of the core: weight buffer, feeder, R processing elements, drain chains, scale units, accumulators.

Steps, windows and drain cycles come from the left and leave to the right one cycle later, so all columns
are alike and each is one cycle behind its left neighbour.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update, update_ff, zext

from accel.accumulator.AccumulatorRTL import AccumulatorRTL
from accel.column_feeder.ColumnFeederRTL import ColumnFeederRTL
from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_drain_msg, mk_read_msg, mk_step_msg, mk_write_msg
from accel.delay.DelayRTL import DelayRTL, FanoutRTL, HoldRTL
from accel.pe.PERTL import PERTL
from accel.scale_unit.ScaleUnitRTL import ScaleUnitRTL
from accel.weight_buffer.WeightBufferRTL import WeightBufferRTL


class ColumnRTL(Component):
    """Column of R PEs; PE, feeder, buffer and scale unit are types that a variant may replace."""

    def construct(
        s,
        config: CoreConfig,
        PEType=PERTL,
        FeederType=ColumnFeederRTL,
        BufferType=WeightBufferRTL,
        ScaleType=ScaleUnitRTL,
    ):
        # Constants
        Step, Drain, Read = mk_step_msg(config), mk_drain_msg(config), mk_read_msg(config)
        rows, chains = config.rows, config.drain_chains
        copies, fanout_rows = config.row_copies, config.fanout_rows
        acc_bits = config.acc_bits
        selections = max(2, 2 * chains)
        select_bits = count_bits(selections - 1)

        # Interface
        s.step_val = InPort()
        s.step = InPort(Step)
        s.step_val_out = OutPort()
        s.step_out = OutPort(Step)
        s.window = [InPort(config.act_port_bits) for _ in range(rows)]
        s.window_out = [OutPort(config.act_port_bits) for _ in range(rows)]
        s.drain_val = InPort()
        s.drain = InPort(Drain)
        s.drain_val_out = OutPort()
        s.drain_out = OutPort(Drain)
        s.data = InPort(config.slice_bits)
        s.write = InPort(mk_write_msg(config))
        s.read = InPort(Read)
        s.result = OutPort(acc_bits)  # one cycle after read, or two
        s.done = OutPort()  # this column's results of an output tile are complete

        # State and wires
        s.drain_scale = Wire(config.scale_bits)
        s.candidate = [Wire(acc_bits) for _ in range(selections)]
        s.selection = Wire(select_bits)
        s.at_sum_val = Wire()
        s.step_val_feed = Wire()
        s.step_feed = Wire(Step)

        # Components
        s.buffer = BufferType(config)
        s.feeder = FeederType(config)
        s.pe = [PEType(config) for _ in range(rows)]
        # What a PE needs later than the index waits here, once for all rows.
        holding = config.has_register("multiplexer")
        s.at_product = [FanoutRTL(config.weight_bits, holding, copies) for _ in range(config.lanes)]
        copied = int(config.lane_registers > 0)
        s.before_sum = DelayRTL(mk_bits(1), config.lane_registers - copied)
        s.sum_val = FanoutRTL(1, copied, copies)
        s.sum_last = FanoutRTL(1, copied, copies)
        s.scale_at_sum = HoldRTL(config.scale_bits, 1, config.lane_registers)
        s.at_scaled = DelayRTL(Drain, config.has_register("scale"))
        s.scale = [ScaleType(config) for _ in range(chains)]
        s.acc = [AccumulatorRTL(config) for _ in range(chains)]
        s.read_result = HoldRTL(acc_bits, 1, config.has_register("results"))

        # Connections: weight buffer and feeder
        s.buffer.data //= s.data
        s.buffer.write //= s.write
        s.buffer.header_raddr //= s.step.header
        s.buffer.code_raddr //= s.step.code_addr
        s.buffer.code_even //= s.step.code_even
        s.buffer.value_raddr //= s.step.value_addr
        s.buffer.value_even //= s.step.value_even
        s.buffer.header //= s.feeder.header
        s.buffer.code_low //= s.feeder.code_low
        s.buffer.code_high //= s.feeder.code_high
        s.buffer.value_low //= s.feeder.value_low
        s.buffer.value_high //= s.feeder.value_high
        # The step that the buffer answers is also the one that the right neighbour gets.
        s.step_val_out //= s.step_val_feed
        s.step_out //= s.step_feed
        s.feeder.step_val //= s.step_val_feed
        s.feeder.step //= s.step_feed

        s.before_sum.val //= s.feeder.val
        s.before_sum.msg //= s.feeder.last
        s.sum_val.in_ //= s.at_sum_val
        s.sum_last.in_ //= s.before_sum.msg_out
        s.scale_at_sum.in_[0] //= s.feeder.scale
        for lane in range(config.lanes):
            s.at_product[lane].in_ //= s.feeder.weight[lane]

        # Connections: processing elements and drain chains
        for r in range(rows):
            s.pe[r].window_in //= s.window[r]
            s.pe[r].window_out //= s.window_out[r]
            copy = r // fanout_rows
            s.pe[r].val //= s.sum_val.out[copy]
            s.pe[r].last //= s.sum_last.out[copy]
            for lane in range(config.lanes):
                s.pe[r].index[lane] //= s.feeder.index[copy][lane]
                s.pe[r].weight[lane] //= s.at_product[lane].out[copy]
            if r + chains < rows:
                s.pe[r].chain_in //= s.pe[r + chains].chain_out
            else:
                s.pe[r].chain_in //= 0

        # Connections: scale units and accumulators
        s.at_scaled.val //= s.drain_val
        s.at_scaled.msg //= s.drain
        for d in range(chains):
            s.scale[d].partial //= s.pe[d].chain_out
            s.scale[d].scale //= s.drain_scale
            s.acc[d].drain_val //= s.at_scaled.val_out
            s.acc[d].drain //= s.at_scaled.msg_out
            s.acc[d].scaled //= s.scale[d].scaled
            s.acc[d].read_half //= s.read.half
            s.acc[d].read_addr //= s.read.addr
            s.candidate[d] //= s.acc[d].result[0]
            s.candidate[chains + d] //= s.acc[d].result[1]
        s.done //= s.acc[0].done

        s.result //= s.read_result.out[0]

        if copied:

            @update
            def up_val_before_copies():
                s.at_sum_val @= s.before_sum.val_out & ~s.reset

        else:
            s.at_sum_val //= s.before_sum.val_out

        @update
        def up_result():
            s.read_result.in_[0] @= s.candidate[s.selection]

        # Either block has a name of its own: PyMTL3 keeps one source a class and name, of whichever came first.
        if chains > 1:

            @update_ff
            def ff_selection_of_chains():
                s.selection <<= zext(s.read.chain, select_bits)
                if s.read.half:
                    s.selection <<= zext(s.read.chain, select_bits) + chains

        else:

            @update_ff
            def ff_selection():
                s.selection <<= s.read.half

        @update_ff
        def ff_right():
            s.step_feed <<= s.step
            s.drain_out <<= s.drain
            if s.sum_val.out[0] & s.sum_last.out[0]:
                s.drain_scale <<= s.scale_at_sum.out[0]
            if s.reset:
                s.step_val_feed <<= 0
                s.drain_val_out <<= 0
            else:
                s.step_val_feed <<= s.step_val
                s.drain_val_out <<= s.drain_val

    def line_trace(s):
        return f"{s.feeder.line_trace()}|{s.pe[0].line_trace()}"
