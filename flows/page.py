"""An estimate as one HTML page that needs no network: numbers, figures, tables and assumptions.

The page is made of the JSON object of ``nimble estimate`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from flows.figures import CAUSE_COLOURS, ROLE_MARKERS, attained, causes, comparison, intensity, layers_of, roofline
from flows.page_frame import framed, page_file
from quant.atomic_file import write_text

#: What a number can be, from the firmest to the weakest: class of its tag, and the tag in words.
TAGS = {
    "measured on RTL": ("measured", "The RTL was simulated and its cycles were counted."),
    "exact model": (
        "exact",
        "Computed by a model that tests hold equal to the RTL: cycles, what each of them goes to, bytes and counts.",
    ),
    "estimated": ("estimated", "Rests on an assumption, such as a clock or a memory's bandwidth."),
}

PERFETTO_NOTE = (
    "In the trace that --perfetto writes of the same estimate, one cycle of the core is shown as 1 µs, and slices on "
    "a track never overlap."
)

_CAUSES = {
    "busy": "the lanes multiply",
    "wait_acts": "waits for activations",
    "wait_weights": "waits for weights",
    "wait_write": "waits for a free accumulator, until results are written",
    "wait_drain": "waits for a chain of partial sums",
    "idle": "before the first step and after the last one",
    "write_back": "the core is done, its last result is on the way to memory",
}

_ROLES = {"linear": "linear layer", "head": "head", "attention": "attention's product"}

Write = Callable[[Any], str]


def write_page(document: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of an estimate's JSON object.

    Raises
    ------
    OSError
        The file cannot be written; it is then as it was.
    """
    write_text(path, page(document))


def page(document: Mapping[str, Any]) -> str:
    """Return the page of an estimate's JSON object."""
    from plotly.offline import get_plotlyjs

    return render(document, get_plotlyjs())


def render(document: Mapping[str, Any], plotly: str) -> str:
    """Return the page with a given script as Plotly."""
    title = f"{document['model']} on {document['core']}"
    body = f"""{_header(document, title)}
{_headlines(document)}
{_comparison(document)}
{_detail(document)}
{_words(document)}
<footer>Written by <code>nimble estimate --html</code>. 1 GB is 10<sup>9</sup> bytes.
{escape(PERFETTO_NOTE)}</footer>"""
    return framed(title, "nimble estimate", body, _figures(document), plotly=plotly, script=page_file("page.js"))


def _phases(document: Mapping[str, Any]) -> list[str]:
    """Phases that have tokens, in the order of time."""
    return [phase for phase in ("prefill", "decode") if phase in document["patterns"][0]["phases"]]


def _figures(document: Mapping[str, Any]) -> dict[str, Any]:
    patterns, phases = document["patterns"], _phases(document)
    return {
        "phases": phases,
        "comparison": {
            field: comparison(patterns, field, digits=digits) for field, digits, _, _ in _compared(document)
        },
        "detail": [
            {
                phase: {
                    "roofline": roofline(document, pattern, phase),
                    "cycles": causes(pattern, phase, share=False),
                    "share": causes(pattern, phase, share=True),
                }
                for phase in phases
            }
            for pattern in patterns
        ],
    }


# -- head of the page ----------------------------------------------------------------------------------------


def _header(document: Mapping[str, Any], title: str) -> str:
    memory = document["memory"]
    group = document["group_size"]
    tag = _tag_of(document)
    weights = "asymmetric" if document["asymmetric"] else "symmetric"
    settings = [
        ("Core", document["core"], f"{document['multipliers']:,} multipliers {tag('multipliers')}"),
        ("Clock", f"{document['clock_mhz']:,g} MHz", escape(_clock_source(document["clock_source"]))),
        (
            "Memory",
            memory["name"],
            f"{memory['bandwidth_gb_s']:,g} GB/s, {memory['latency_ns']:,g} ns latency, assumed",
        ),
        ("Weights", f"INT4, {weights}", "a scale per row" if group == -1 else f"a scale per {group:,} weights"),
        ("Prompt", f"{document['prefill']:,} tokens", "in one pass"),
        ("Answer", f"{document['decode']:,} tokens", "one a pass"),
        ("Sequences", f"{document['batch']:,}", "in each pass"),
        ("Attention, head", f"{document['attention']}, {document['lm_head']}", "attention’s products, lm_head"),
    ]
    rows = "".join(
        f'<div><dt>{name}</dt><dd>{escape(value)}</dd><dd class="more">{more}</dd></div>'
        for name, value, more in settings
    )
    return (
        f"<header><h1>{escape(title)}</h1><p>Tokens per second of an N:M sparse INT4 tensor core, and where its "
        f'cycles go</p></header>\n<dl class="settings">{rows}</dl>'
    )


def _clock_source(source: str) -> str:
    return "assumed" if source == "assumed" else f"from {source}"


def _headlines(document: Mapping[str, Any]) -> str:
    tag = _tag_of(document)
    cards = []
    for pattern in document["patterns"]:
        main = "tokens_per_second" if pattern["tokens_per_second"] is not None else "prefill_tokens_per_second"
        phase = "decode" if main == "tokens_per_second" else "prefill"
        rows = [
            ("Time to first token", pattern["ttft_seconds"], _seconds, "ttft_seconds"),
            ("Time per output token", pattern["tpot_seconds"], _seconds, "tpot_seconds"),
            *(
                [("Prefill, tokens/s", pattern["prefill_tokens_per_second"], _digits, "prefill_tokens_per_second")]
                if phase == "decode"
                else []
            ),
            ("Weights", pattern["weight_gbytes"], lambda value: f"{value:,.2f} GB", "weight_gbytes"),
        ]
        body = "".join(
            f'<tr><th scope="row">{label} {tag(field)}</th><td>{_or_dash(value, write)}</td></tr>'
            for label, value, write, field in rows
        )
        cards.append(
            f'<article class="card"><h3>{escape(pattern["pattern"])}</h3><p class="big">{pattern[main]:,.2f}</p>'
            f'<p class="unit">tokens/s, {phase} {tag(main)}</p><table>{body}</table></article>'
        )
    return (
        f'<section><h2>Tokens per second</h2>{_batch_note(document)}<div class="cards">{"".join(cards)}</div></section>'
    )


def _batch_note(document: Mapping[str, Any]) -> str:
    if document["batch"] == 1:
        return ""
    return f'<p class="note">Tokens of all {document["batch"]:,} sequences together; times are those of a pass.</p>'


def _compared(document: Mapping[str, Any]) -> list[tuple[str, int, str, str]]:
    """Field, decimal places, title and unit of each figure of the comparison."""
    if len(document["patterns"]) == 1:
        return []
    return [
        *([("tokens_per_second", 2, "Decode", "tokens/s")] if document["decode"] else []),
        *([("prefill_tokens_per_second", 1, "Prefill", "tokens/s")] if document["prefill"] else []),
        ("weight_gbytes", 2, "Weights", "GB"),
    ]


def _comparison(document: Mapping[str, Any]) -> str:
    patterns, tag = document["patterns"], _tag_of(document)
    first = escape(patterns[0]["pattern"])
    if len(patterns) == 1:
        return ""
    panels = "".join(
        f'<div class="panel"><h3>{title}, {unit} {tag(field)}</h3>'
        f'<div class="plot" data-plot="comparison {field}" role="img" aria-label="{title}, {unit}, by pattern"></div>'
        "</div>"
        for field, _, title, unit in _compared(document)
    )
    return (
        f'<section><h2>Patterns side by side</h2><p class="note">In brackets: the ratio to {first}. For tokens/s '
        f'longer is better, for weights shorter.</p><div class="panels">{panels}</div></section>'
    )


# -- one pattern ---------------------------------------------------------------------------------------------


def _detail(document: Mapping[str, Any]) -> str:
    names = [pattern["pattern"] for pattern in document["patterns"]]
    phases = _phases(document)
    controls = "".join(
        f"<fieldset><legend>{legend}</legend>"
        + "".join(
            f'<label><input type="radio" name="{key}" value="{value}"{" checked" if n == 0 else ""}>'
            f"<span>{escape(label)}</span></label>"
            for n, (value, label) in enumerate(choices)
        )
        + "</fieldset>"
        for legend, key, choices in (
            ("Pattern", "pattern", [(str(n), name) for n, name in enumerate(names)]),
            ("Phase", "phase", [(phase, phase) for phase in phases]),
        )
    )
    return (
        '<section><h2>Where the time goes</h2><p class="note">The plots and tables below are of one pattern and '
        f'one phase.</p><form class="controls" autocomplete="off">{controls}</form>'
        f"{_roofline_panel(document)}{_causes_panel(document)}{_layers_panel(document)}{_phases_panel(document)}"
        "</section>"
    )


def _views(document: Mapping[str, Any], body: Callable[[Mapping[str, Any], str], str]) -> str:
    """One element for each pattern and phase, of which the page shows the chosen one."""
    return "".join(
        f'<div data-view data-pattern="{n}" data-phase="{phase}"{"" if n == 0 and first else " hidden"}>'
        f"{body(pattern, phase)}</div>"
        for n, pattern in enumerate(document["patterns"])
        for first, phase in zip((True, False), _phases(document), strict=False)
    )


def _roofline_panel(document: Mapping[str, Any]) -> str:
    places = {(layer["role"], layer["where"]): None for pattern in document["patterns"] for layer in pattern["layers"]}
    legend = "".join(
        f"<li>{_symbol(role, where)}{_ROLES[role]} on the {where}</li>"
        for role in ROLE_MARKERS
        for where in ("core", "host")
        if (role, where) in places
    )
    on_host = any(where == "host" for _, where in places)
    tag = _tag_of(document)

    def key(pattern: Mapping[str, Any], phase: str) -> str:
        rows = "".join(
            f"<tr><td>{n}</td><th scope='row' class='text'>{escape(layer['name'])}</th>"
            f"<td>{_digits(intensity(layer))}</td><td>{_digits(attained(layer))}</td></tr>"
            for n, layer in enumerate(layers_of(pattern, phase), 1)
        )
        return (
            f"<table><thead><tr><th></th><th class='text'>layer</th><th>MAC/B {tag('macs', 'bytes')}</th>"
            f"<th>GMAC/s {tag('macs', 'seconds')}</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    host = (
        " What runs on a host (hollow) takes the time in which memory moves its bytes and may be above the lanes' "
        "limit; the dotted line goes on with memory's."
        if on_host
        else ""
    )
    int8 = (
        " Attention with 8-bit keys and values takes two multiplications for each MAC, and so ends at half of the "
        "lanes' limit."
        if document["attention"] == "core-int8"
        else ""
    )
    return (
        '<div class="panel"><h3>Roofline</h3><p class="note">Useful multiply-accumulates (MACs), those with kept '
        "weights: how many for each byte that memory moves, and how many each second.</p>"
        f'<ul class="legend">{legend}</ul><div class="with-key">'
        '<div class="plot" data-plot="detail roofline" role="img" aria-label="Roofline; its numbers are in the table '
        f'beside it"></div><div class="key scroll" tabindex="0">{_views(document, key)}</div></div>'
        '<p class="note">No layer on the core can be above the solid line: its slope is the bandwidth of memory, its '
        "level part all multipliers in every cycle. Where only some rows have a token to work on, the dashed line is "
        f"what these can do of the blocks’ linear layers.{host}{int8}</p></div>"
    )


def _causes_panel(document: Mapping[str, Any]) -> str:
    legend = "".join(
        f'<li><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" rx="2" fill="{colour}"/>'
        f"</svg><code>{cause}</code> {_CAUSES[cause]}</li>"
        for cause, colour in CAUSE_COLOURS.items()
    )

    def without_cycles(pattern: Mapping[str, Any], phase: str) -> str:
        names = [escape(layer["name"]) for layer in layers_of(pattern, phase) if layer["where"] == "host"]
        return f'<p class="note">On the host, and so without cycles: {", ".join(names)}.</p>' if names else ""

    tag = _tag_of(document)
    return (
        f'<div class="panel"><h3>Cycles by cause {tag("counters")}</h3><p class="note">Each cycle of a layer goes '
        f'to one cause.</p><ul class="legend">{legend}</ul>{_views(document, without_cycles)}<div class="panels">'
        '<div><h3>All calls of the phase, cycles</h3><div class="plot" data-plot="detail cycles" role="img" '
        'aria-label="Cycles of each layer by cause; the numbers of the phase are in the last table"></div></div>'
        '<div><h3>Share of the layer’s own cycles</h3><div class="plot" data-plot="detail share" role="img" '
        'aria-label="Shares of each layer\'s cycles by cause"></div></div></div></div>'
    )


def _layers_panel(document: Mapping[str, Any]) -> str:
    tag = _tag_of(document)
    columns: list[tuple[str, str, Callable[[Mapping[str, Any]], str]]] = [
        ("pattern", "", lambda layer: escape(layer["pattern"])),
        ("on", "", lambda layer: layer["where"]),
        ("tokens", "", lambda layer: f"{layer['tokens']:,}"),
        ("inputs", "", lambda layer: f"{layer['in_features']:,}"),
        ("outputs", "", lambda layer: f"{layer['out_features']:,}"),
        ("calls", "", lambda layer: f"{layer['calls']:,}"),
        ("cycles<br>a call", tag("cycles"), lambda layer: f"{layer['cycles']:,.0f}" if layer["cycles"] else "–"),
        ("MB<br>a call", tag("bytes"), lambda layer: f"{layer['bytes'] / 1e6:,.3f}"),
        ("useful GMACs,<br>all calls", tag("macs"), lambda layer: f"{layer['macs'] / 1e9:,.2f}"),
        ("time,<br>all calls", tag("seconds"), lambda layer: _seconds(layer["seconds"])),
        ("lane use", tag("lane_use"), lambda layer: _or_dash(layer["lane_use"], _percent)),
        ("bound by", tag("bound"), lambda layer: escape(layer["bound"])),
    ]
    head = "".join(f"<th>{name}{pill}</th>" for name, pill, _ in columns)

    def table(pattern: Mapping[str, Any], phase: str) -> str:
        rows = "".join(
            f"<tr><th scope='row'>{n} {escape(layer['name'])}</th>"
            + "".join(f"<td>{write(layer)}</td>" for _, _, write in columns)
            + "</tr>"
            for n, layer in enumerate(layers_of(pattern, phase), 1)
        )
        return f"<table><thead><tr><th>layer</th>{head}</tr></thead><tbody>{rows}</tbody></table>"

    return (
        '<div class="panel"><h3>Layers</h3><p class="note">Layers of one size are one row. Where the context grows '
        "from call to call, sizes, cycles and bytes of a call are means.</p>"
        f'<div class="scroll wide layers" tabindex="0">{_views(document, table)}</div></div>'
    )


#: Groups of the phases' table: heading, and for each row its field, its label and how it is written.
_PHASE_ROWS: list[tuple[str, list[tuple[str, str, Write]]]] = [
    (
        "Work",
        [
            ("tokens", "tokens", lambda value: f"{value:,}"),
            ("passes", "passes", lambda value: f"{value:,}"),
            ("tokens_per_second", "tokens per second", lambda value: f"{value:,.2f}"),
        ],
    ),
    (
        "Time",
        [
            ("seconds", "all", lambda value: _seconds(value)),
            ("linear_seconds", "of it linear layers", lambda value: _seconds(value)),
            ("attention_seconds", "of it attention’s products", lambda value: _seconds(value)),
            ("host_seconds", "of both, on the host", lambda value: _seconds(value)),
        ],
    ),
    (
        "Limits",
        [
            ("lane_limit_seconds", "lanes alone", lambda value: _seconds(value)),
            ("bytes_limit_seconds", "bytes alone", lambda value: _seconds(value)),
            ("over_limit", "time over the larger limit", lambda value: f"{value:,.3f}×"),
            ("bound", "most time bound by", lambda value: escape(value)),
        ],
    ),
    (
        "Use of the multipliers",
        [
            ("lane_use", "lane use", lambda value: _percent(value)),
            ("array_use", "array use", lambda value: _percent(value)),
            ("dense_equivalent", "dense-equivalent use", lambda value: _percent(value)),
        ],
    ),
    (
        "Memory and core",
        [
            ("bytes", "GB moved", lambda value: f"{value / 1e9:,.2f}"),
            ("cycles", "cycles", lambda value: f"{value:,.0f}"),
        ],
    ),
]


def _phases_panel(document: Mapping[str, Any]) -> str:
    tag = _tag_of(document)
    phases = list(document["patterns"][0]["phases"])

    def rows_of(pattern: Mapping[str, Any]) -> Iterator[str]:
        totals = pattern["phases"]
        for heading, rows in _PHASE_ROWS:
            yield f'<tr class="group"><th colspan="{len(phases) + 1}">{heading}</th></tr>'
            for field, label, write in rows:
                pill = tag(field) if field in document["sources"] else ""
                yield _row(f"{label} {pill}", (_or_dash(totals[phase][field], write) for phase in phases))
        yield f'<tr class="group"><th colspan="{len(phases) + 1}">Cycles by cause</th></tr>'
        for cause in CAUSE_COLOURS:
            cells = (f"{totals[phase]['counters'].get(cause, 0):,.0f}" for phase in phases)
            yield _row(f"<code>{cause}</code> {tag('counters')}", cells)

    tables = "".join(
        f'<div data-view data-pattern="{n}"{"" if n == 0 else " hidden"}><table><thead><tr><th></th>'
        + "".join(f"<th>{phase}</th>" for phase in phases)
        + f"</tr></thead><tbody>{''.join(rows_of(pattern))}</tbody></table></div>"
        for n, pattern in enumerate(document["patterns"])
    )
    return f'<div class="panel"><h3>Phases</h3><div class="scroll wide" tabindex="0">{tables}</div></div>'


def _row(label: str, cells: Iterable[str]) -> str:
    return f"<tr><th scope='row'>{label}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


# -- words ---------------------------------------------------------------------------------------------------


def _words(document: Mapping[str, Any]) -> str:
    used = set(document["sources"].values())
    tags = "".join(
        f"<dt>{_pill(name)}</dt><dd>{meaning}{'' if name in used else ' No number on this page is.'}</dd>"
        for name, (_, meaning) in TAGS.items()
    )
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in document["assumptions"])
    trace_seconds = 1e6 / (document["clock_mhz"] * 1e6)
    return (
        f'<section><h2>Assumptions</h2><div class="panel"><ul class="sentences" style="margin:0">{sentences}</ul>'
        "</div></section>"
        '<section><h2>How to read the numbers</h2><div class="panel"><h3>Where a number comes from</h3>'
        f'<dl class="words">{tags}</dl><p class="note">A number made of several has the tag of the weakest of '
        'them.</p></div><div class="panel"><h3>Two definitions of utilisation</h3><dl class="words">'
        "<dt>Lane use</dt><dd>Of the lane cycles of the rows at work, the share with a weight to work on. It is "
        "never over 100%. Rows without a token do not count, so that decode of one sequence may have full lane use "
        "on one row.</dd><dt>Dense-equivalent use</dt><dd>The multiply-accumulates of the unpruned model, of all "
        "that the multipliers could do in the same cycles. It tells what a dense array of the same size would need, "
        "and is over 100% where pruning saves more cycles than are lost; it is no share of anything.</dd></dl>"
        '<p class="note">Array use stands beside them: useful multiplications of all that all rows could do. Idle '
        'rows lower it.</p></div><div class="panel"><h3>The trace for Perfetto</h3><p style="margin:0">'
        f"{escape(PERFETTO_NOTE)} At {document['clock_mhz']:,g} MHz, a cycle takes {_seconds(trace_seconds / 1e6)}: "
        f"what the trace shows as 1 s takes {_seconds(trace_seconds)}.</p></div></section>"
    )


def _tag_of(document: Mapping[str, Any]) -> Callable[..., str]:
    """Return what gives the tag of a field, or the weakest tag of several fields."""
    sources, order = document["sources"], list(TAGS)

    def tag(*fields: str) -> str:
        return _pill(max((sources[field] for field in fields), key=order.index))

    return tag


def _pill(name: str) -> str:
    return f'<span class="tag {TAGS[name][0]}">{name}</span>'


def _symbol(role: str, where: str) -> str:
    shape, colour = ROLE_MARKERS[role]
    outline = {
        "circle": '<circle cx="6.5" cy="6.5" r="5"',
        "diamond": '<path d="M6.5 .8 12.2 6.5 6.5 12.2 .8 6.5z"',
        "square": '<rect x="1.5" y="1.5" width="10" height="10"',
    }[shape]
    paint = f'fill="{colour}"' if where == "core" else f'fill="#ffffff" stroke="{colour}" stroke-width="2"'
    return f'<svg width="13" height="13" aria-hidden="true">{outline} {paint}/></svg>'


# -- numbers -------------------------------------------------------------------------------------------------


def _or_dash(value: Any, write: Write) -> str:
    return "–" if value is None else write(value)


def _seconds(value: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")):
        if value * factor >= 1:
            return f"{_digits(value * factor)} {unit}"
    return "0 s" if value == 0 else f"{value:.2g} s"


def _percent(value: float) -> str:
    return f"{value:,.1%}"


def _digits(value: float) -> str:
    """Four significant digits, with separators; integers in full from 1,000 on."""
    return f"{value:,.0f}" if value >= 999.95 else f"{value:#.4g}"
