"""Options that several commands share: the model, what runs on it, and the clock and memory that it runs with.

Declare ``batch: BatchOption = 1`` and the like; a default of None is chosen by the flow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL_SOURCES = "llama-7b, llama-2-7b, llama-3-8b, gpt-neox-20b, or a directory that holds a Hugging Face config.json"
ModelOption = Annotated[str, typer.Option(metavar="NAME|DIR", help=f"{MODEL_SOURCES}.")]
MaybeModelOption = Annotated[str | None, typer.Option(metavar="NAME|DIR", help=f"{MODEL_SOURCES}.")]
PrefillOption = Annotated[int, typer.Option(metavar="P", help="Tokens of the prompt, in one pass.")]
DecodeOption = Annotated[int, typer.Option(metavar="D", help="Tokens after it, one a pass.")]
BatchOption = Annotated[int, typer.Option(metavar="B", help="Sequences in a pass.")]
GroupOption = Annotated[
    int, typer.Option(metavar="G", help="Weights that share a scale: a multiple of m, or -1 for a whole row.")
]
AsymmetricFlag = Annotated[bool, typer.Option("--asymmetric", help="Weights with a zero point per group.")]
AttentionOption = Annotated[
    str,
    typer.Option(
        metavar="HOW", help="Attention's products: core-int8 or core-int4 (bits of keys and values), host or skip."
    ),
]
LmHeadOption = Annotated[
    str,
    typer.Option(metavar="HOW", help="lm_head: int4 (dense INT4), pruned (like the blocks), fp16-host or skip."),
]
ClockFromOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A synthesis report: JSON with fmax_mhz, in place of --clock.")
]
MemoryOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="ddr3-1600, ddr4-3200 (default), lpddr5-6400 or hbm2-u280.")
]
BandwidthOption = Annotated[
    float | None, typer.Option(metavar="GB/S", help="Bandwidth of another memory, 1 GB = 10^9 bytes.")
]
LatencyOption = Annotated[float | None, typer.Option(metavar="NS", help="Its latency; an assumption, by default 100.")]
PageOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with plots to this file; no network.")
]
