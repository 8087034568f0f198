"""What one GEMM tells the core: commands derived from a packed stream, one for each token block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from accel.codes import code_bits
from accel.config import ConfigError, CoreConfig, count_bits, signed_bits
from accel.core.CoreMsg import code_shift_bits, position_bits
from accel.schedule import Step, schedule
from accel.stream import CODE_IDS, StreamLayout
from quant import NMPattern


@dataclass(frozen=True)
class Command:
    """One token block of one GEMM. Fields as in `accel.core.CoreMsg.mk_command_msg`."""

    n: int
    m: int
    code: int
    code_mask: int
    asymmetric: int
    slots: int
    steps: int
    last_lanes: int
    last_advance: int
    round_steps: int
    round_lanes: int
    round_nonzeros: int
    round_advance: int
    round_code: int
    first_advance: int
    first_code: int
    step_advance: int
    step_code: int
    carry_advance: int
    carry_code: int
    block_code: int
    turn: int
    back: int
    overs: int
    places: int
    offsets: int
    shifts: int
    code_bytes: int
    value_bytes: int
    code_words: int
    value_words: int
    groups: int
    out_tiles: int
    subtiles: int
    last_rows: int
    last_length: int
    row_words: int
    block_words: int
    wide: int

    def fields(self) -> dict[str, int]:
        """Field values by name."""
        return asdict(self)


def token_blocks(config: CoreConfig, layout: StreamLayout, tokens: int) -> list[int]:
    """Tokens of each block: as many subtiles as the accumulators and the activation buffer hold.

    Raises
    ------
    ConfigError
        When there are no tokens.
    """
    if tokens < 1:
        raise ConfigError(f"A GEMM needs at least one token, but {tokens} were given.")
    block = config.rows * block_subtiles(config, layout)
    return [min(block, tokens - start) for start in range(0, tokens, block)]


def block_subtiles(config: CoreConfig, layout: StreamLayout) -> int:
    """Most token subtiles of a block: as many as the accumulators and the activation buffer hold."""
    return max(1, min(config.subtiles, config.act_words // config.k_words(layout.k_padded)))


def commands_for(config: CoreConfig, layout: StreamLayout, tokens: int, *, wide: bool | None = None) -> list[Command]:
    """The commands of a GEMM of ``tokens`` tokens, in order.

    Parameters
    ----------
    wide
        64-bit results; by default only when 32 bits could overflow for weights of this shape.

    Raises
    ------
    ConfigError
        When ``wide`` is False but 32-bit results could overflow.
    """
    wide = wide_results(config, layout, wide)
    field = code_bits(layout.code, layout.pattern)
    row_words = config.k_words(layout.k_padded)
    walk = _walk(config, layout.pattern, layout.group, layout.code)
    commands = []
    for block in token_blocks(config, layout, tokens):
        subtiles = -(-block // config.rows)
        commands.append(
            Command(
                n=layout.pattern.n,
                m=layout.pattern.m,
                code=CODE_IDS[layout.code],
                code_mask=(1 << field) - 1,
                asymmetric=int(layout.asymmetric),
                slots=layout.slots,
                **walk,
                code_bytes=layout.code_bytes,
                value_bytes=layout.value_bytes,
                code_words=-(-layout.code_bytes // config.slice_bytes),
                value_words=-(-layout.value_bytes // config.slice_bytes),
                groups=layout.groups,
                out_tiles=layout.out_tiles,
                subtiles=subtiles,
                last_rows=(last_rows := block - (subtiles - 1) * config.rows),
                last_length=-(-last_rows // config.drain_chains),
                row_words=row_words,
                block_words=subtiles * row_words,
                wide=int(wide),
            )
        )
    return commands


@lru_cache(maxsize=4096)
def _walk(config: CoreConfig, pattern: NMPattern, group: int, code: str) -> dict[str, int]:
    """The fields of a command that say how its lanes walk through a group."""
    lanes, n, m = config.lanes, pattern.n, pattern.m
    position, shift = position_bits(config), code_shift_bits(config)
    bits = code_bits(code, pattern)
    steps = schedule(pattern, group, lanes, config.window)
    last = steps[-1]
    round_last = next((i for i, step in enumerate(steps) if (step.first + step.count) % n == 0), len(steps) - 1)

    def advance(step: Step) -> tuple[int, int]:
        blocks = (step.first + step.count) // n - step.first // n
        return blocks * m, bits * (step.count if code == "index" else blocks)

    def packed(values: Sequence[int], width: int) -> int:
        return sum(value % (1 << width) << width * lane for lane, value in enumerate(values))

    blocks = [lane // n for lane in range(lanes)]
    offsets = [block * m - low for block, (low, _) in zip(blocks, config.lane_reach, strict=True)]
    shifts = [bits * (lane if code == "index" else block) for lane, block in enumerate(blocks)]
    end = steps[round_last]
    first = advance(steps[0])
    last_of_round = advance(end)
    repeated = round_last > 0  # else no step is within a round
    carries = repeated and lanes % n > 0
    return {
        "steps": len(steps),
        "last_lanes": (1 << last.count) - 1,
        "last_advance": advance(last)[0],
        "round_steps": round_last + 1,
        "round_lanes": (1 << end.count) - 1,
        "round_nonzeros": end.count,
        "round_advance": last_of_round[0],
        "round_code": last_of_round[1],
        "first_advance": first[0],
        "first_code": first[1],
        "step_advance": lanes // n * m if repeated else 0,
        "step_code": bits * (lanes if code == "index" else lanes // n) if repeated else 0,
        "carry_advance": (lanes // n + 1) * m if carries else 0,
        "carry_code": bits * (lanes if code == "index" else lanes // n + 1) if carries else 0,
        "block_code": 0 if code == "index" else bits,
        "turn": lanes % n,
        "back": n - lanes % n,
        "overs": packed([lane % n + lanes % n - n for lane in range(lanes)], count_bits(config.window) + 1),
        "places": packed([lane % n for lane in range(lanes)], position),
        "offsets": packed(offsets, position),
        "shifts": packed(shifts, shift),
    }


def ideal_cycles(config: CoreConfig, layout: StreamLayout, commands: list[Command]) -> int:
    """Cycles if every lane of a PE worked in every cycle: value slots of all tiles, once a subtile, over the lanes."""
    subtiles = sum(command.subtiles for command in commands)
    return -(-layout.out_tiles * layout.groups * layout.slots * subtiles // config.lanes)


def wide_results(config: CoreConfig, layout: StreamLayout, asked: bool | None = None) -> bool:
    """Whether results take 64 bits: as asked for, or only where 32 could overflow.

    Raises
    ------
    ConfigError
        When 32 bits were asked for but could overflow.
    """
    needed = result_bits(config, layout.slots * layout.groups)
    if asked is None:
        return needed > 32
    if not asked and needed > 32:
        raise ConfigError(
            f"Results of {layout.in_features} input features take up to {needed} bits, more than the 32 asked for; "
            f"ask for 64-bit results."
        )
    return asked


@lru_cache(maxsize=4096)
def result_bits(config: CoreConfig, kept: int) -> int:
    """Bits of the largest result that so many kept weights can give."""
    return signed_bits(*config.acc_range(kept))
