"""What an estimate takes for granted, in sentences for its readers."""

from __future__ import annotations

from collections.abc import Iterator

from flows.attention import nibbles
from flows.model_trace import ModelTrace
from flows.workload import Workload


def assumptions(work: Workload, trace: ModelTrace) -> tuple[str, ...]:
    """What an estimate's numbers rest on, in full sentences."""
    config, memory, clock = work.config, work.memory, work.clock
    head = {
        "int4": "The layers outside the blocks (lm_head) are dense INT4 and run on the core;",
        "pruned": "The layers outside the blocks (lm_head) are pruned like those in them and run on the core;",
        "fp16-host": "Estimated: the layers outside the blocks (lm_head) run on a host in FP16, in the time in "
        "which memory moves their weights;",
        "skip": "The layers outside the blocks (lm_head) are left out.",
    }[work.lm_head]
    if work.lm_head != "skip":
        head += " prefill runs them for each sequence's last token only, whose logits alone are needed."
    group = "a whole row" if work.group_size == -1 else f"{work.group_size} weights"
    stated = (
        f"Estimated: the clock is taken to be {clock.mhz:g} MHz; no synthesis result stands behind it."
        if clock.source == "assumed"
        else f"Estimated: the clock is {clock.mhz:g} MHz, the fmax_mhz of {clock.source}."
    )
    sequences = "One sequence" if work.batch == 1 else f"{work.batch} sequences"
    return (
        "Exact model: cycles, their causes and bytes are those of the RTL with a memory of fixed bandwidth and "
        "latency, which tests show; counters name what each cycle goes to, write_back those after the core is "
        "done until its last result is in memory.",
        "Exact model: lane use is the share of the lane cycles of the rows at work that had a weight slot to "
        "work on; array use is the share of all multipliers' cycles that did useful work; dense equivalent "
        "counts the unpruned model's work in these cycles and may be above 1.",
        stated,
        f"Estimated: memory ({memory.name}) is taken to move {memory.bandwidth_gb_s:g} GB/s (1 GB = 10^9 bytes), "
        f"reading and writing together, {memory.latency_ns:g} ns after it was asked. That bandwidth is a peak, "
        "which refreshes and changes of row or direction do not reach.",
        "Estimated: layers run strictly one after the other; nothing of the next one is fetched before a "
        "layer's last result is in memory.",
        "Every linear layer in the blocks has the pattern, INT4 weights with "
        f"{'an 8' if config.scale_bytes == 1 else 'a 16'}-bit scale for {group}"
        f"{' and zero points' if work.asymmetric else ''}, and {config.act_bits}-bit activations; scales, zero "
        "points and block codes are bytes that cost time.",
        f"Weights are read once for each block of up to {config.rows * config.subtiles} tokens, fewer "
        "where the activation buffer holds fewer; raw integer results are written.",
        head,
        *_of_attention(work, trace),
        f"{sequences}: prefill is one pass of {work.prefill} tokens each, decode {work.decode} passes of one "
        f"token each at a growing context; a row of the core works on one token, and it has {config.rows}.",
        *(f"Not included: {exclusion}." for exclusion in trace.excludes),
        "Not included: what is neither a linear layer nor attention's products, such as norms, softmax, "
        "activation functions, requantisation, and the look-up of embeddings.",
    )


def _of_attention(work: Workload, trace: ModelTrace) -> Iterator[str]:
    how = work.attention
    if how == "skip":
        yield "Attention's own products (queries by keys, probabilities by values) are left out."
        return
    if not trace.attention:
        yield "The trace has no products of attention."
        return
    if how == "host":
        yield (
            "Estimated: attention's own products run on a host, in the time in which memory moves the keys and "
            "values once a pass, 16 bits each."
        )
        return
    bits = 4 * nibbles(how)
    halves = ", each as two nibbles along K, which is exact and doubles K" if how == "core-int8" else ""
    yield (
        f"Attention's own products run on the core in dense mode with {bits}-bit keys and values{halves}; one "
        "GEMM for each sequence and head of keys and values, in parts that the host adds up where K is beyond "
        f"{work.config.k_max}. Prefill computes the whole square of scores, future tokens included."
    )
    yield (
        f"The host keeps the cache in the packed form of the stream: the {trace.kv_values_per_token:,} keys "
        "and values that a token of a sequence adds are packed and written in no time."
    )
