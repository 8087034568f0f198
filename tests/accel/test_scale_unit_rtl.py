"""Scale unit: every scale, or many of 16 bits, times the ends and the middle of a partial's range.

Its translation is driven at the end of a processing element's chain, in test_pe_rtl.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from accel import load_preset
from accel.config import CoreConfig
from accel.scale_unit.ScaleUnitRTL import ScaleUnitRTL


def core(act_bits: int, asymmetric: bool, scale_bits: int, group_max: int) -> CoreConfig:
    sizes = {"group_max": group_max, "k_max": 4096, "act_words": 512}
    return load_preset("tiny").replace(act_bits=act_bits, asymmetric=asymmetric, scale_bits=scale_bits, **sizes)


CORES = {
    "a4s2g8": core(4, False, 2, 8),
    "a8z8g32": core(8, True, 8, 32),
    "a8s5g100": core(8, False, 5, 100),
    "a16z8g4096": core(16, True, 8, 4096),
    "a8z16g32": core(8, True, 16, 32),
    "a16z16g4096": core(16, True, 16, 4096),
    # Partials of 18 and 19 bits: one multiplier block takes the first, the second comes in two parts.
    "a8z8g64": core(8, True, 8, 64),
    "a8z8g128": core(8, True, 8, 128),
    # The product is a bit narrower than that of the lower part would be.
    "a8s8g128": core(8, False, 8, 128),
}


def check_products(config: CoreConfig, pins: object) -> None:
    low, high = config.partial_range(config.group_max)
    partial_span, scaled_span = 1 << config.partial_bits, 1 << config.scaled_bits
    smallest, largest = config.scale_range
    scales = range(smallest, largest + 1)
    if config.scale_bits > 8:
        ends = [smallest, smallest + 1, -257, -256, -129, -128, -1, 0, 1, 127, 128, 255, 256, largest - 1, largest]
        scales = [*ends, *random.Random(config.scale_bits).sample(scales, 50)]
    cycles = 1 + ("scale" in config.registers)
    on_the_way: deque[int] = deque()
    for scale in scales:
        for partial in (low, low + 1, -(1 << 17), -(1 << 16), -1, 0, 1, 1 << 16, (1 << 17) - 1, high - 1, high):
            if not low <= partial <= high:
                continue
            pins.drive(partial=partial % partial_span, scale=scale % (1 << config.scale_bits))
            pins.tick()
            on_the_way.append(partial * scale)
            assert -scaled_span <= 2 * partial * scale < scaled_span, "the product does not fit its width"
            if len(on_the_way) == cycles:
                assert pins.read("scaled") == on_the_way.popleft() % scaled_span


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("registers", [(), ("scale",)])
def test_products_are_exact(name: str, registers: tuple[str, ...], open_pins: Callable) -> None:
    config = CORES[name].replace(registers=registers)
    check_products(config, open_pins(ScaleUnitRTL(config), f"ScaleUnit_{name}_{len(registers)}", "python"))


@pytest.mark.parametrize("name", ["a16z16g4096", "a8s8g128"])
def test_products_in_two_parts_in_the_translation(name: str, open_pins: Callable) -> None:
    config = CORES[name].replace(registers=("scale",))
    check_products(config, open_pins(ScaleUnitRTL(config), f"ScaleUnit_{name}", "verilog"))


def test_a_partial_that_is_as_wide_as_its_product_is_among_the_cases() -> None:
    """There is nothing to extend then, which a translation could get wrong: −2 · −512 fits where 512 does."""
    assert CORES["a4s2g8"].scaled_bits == CORES["a4s2g8"].partial_bits


def test_partials_that_one_multiplier_block_just_takes_and_does_not_are_among_the_cases() -> None:
    assert {18, 19} <= {config.partial_bits for config in CORES.values()}
